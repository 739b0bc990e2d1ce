"""The number format that is chosen, and the warning for one that the CPU emulates."""

import json
from pathlib import Path

import pytest
import torch
from toys import TYPES, everything

import etude
from etude import cpu
from etude.cli import main
from etude.engine import fit
from etude.engine.precision import resolve, slow
from etude.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose bf16 products take 90 times as long as fp32's."""
    speeds = {f"{work} {precision}": speed for work in ("products", "convolutions")
              for precision, speed in (("fp32", 90.0), ("bf16", 1.0))}  # fmt: skip
    monkeypatch.setattr(cpu, "speeds", lambda: speeds)


def test_auto_follows_the_measurement(monkeypatch: pytest.MonkeyPatch):
    speeds = {"products fp32": 100.0, "products bf16": 200.0, "convolutions fp32": 100.0, "convolutions bf16": 150.0}
    monkeypatch.setattr(cpu, "speeds", lambda: speeds)
    assert resolve("auto", CPU) == "bf16" and not slow("bf16", CPU)
    speeds["convolutions bf16"] = 110.0  # within the noise
    assert resolve("auto", CPU) == "fp32" and not slow("bf16", CPU)


def test_what_is_emulated_is_named_with_what_is_fastest(emulated):
    assert resolve("auto", CPU) == "fp32" and resolve("bf16", CPU) == "bf16"
    assert "90.0 times as long" in slow("bf16", CPU) and "--precision fp32" in slow("bf16", CPU)
    assert not slow("fp32", CPU)
    with pytest.raises(UsageError, match="the fastest here is fp32") as refused:
        resolve("fp16", CPU)
    assert refused.value.hint == "--precision fp32"


def test_a_run_says_what_it_was_measured_in(emulated, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = everything(steps=2, precision="bf16")
    run = fit.train(recipe, run=tmp_path / "run", types=TYPES)
    said = (tmp_path / "run" / "log.txt").read_text()
    assert said.count("emulated on this CPU") == 1
    assert run.result["precision"] == "bf16" and run.precision(CPU) == "fp32"  # it answers in what is fast here
    capsys.readouterr()
    again = run.evaluate(precision="bf16")
    assert again == run.result["eval"]
    assert "emulated" in capsys.readouterr().err
    run.evaluate()
    assert "emulated" not in capsys.readouterr().err


def test_eval_names_and_chooses_the_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    place = str(tmp_path / "run")
    etude.train("mlp.digits", steps=2, run=place, quiet=True)
    capsys.readouterr()
    assert main(["eval", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp32"
    assert main(["eval", place, "--precision", "bf16"]) == 0
    assert "computed in  bf16" in capsys.readouterr().out
    assert main(["eval", place, "--precision", "int4"]) == 2
    assert "unknown precision 'int4'" in capsys.readouterr().err
