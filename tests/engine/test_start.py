"""Training that begins with given weights, and the texts that a run keeps beside its facts."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from toys import TYPES, BlobSet, everything

import etude
from etude.cli import main
from etude.data.base import Dataset
from etude.engine import fit
from etude.engine.recipe import Recipe, Start
from etude.engine.run import Run
from etude.errors import MissingError, RefusedError, UsageError
from etude.tasks.classify import Classify


def begun(**changes) -> Recipe:
    """A recipe of three steps whose weights hardly move."""
    return everything(steps=3, ema=None, **{"optim.lr": 1e-12}).with_(**changes)


@pytest.fixture
def given(tmp_path):
    """A run whose weights others start from."""
    return fit.train(everything(steps=3, seed=7), run=tmp_path / "given", quiet=True, types=TYPES)


def floats(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in run.model("cpu").named_parameters()}


def test_training_begins_with_the_given_weights(given, tmp_path):
    recipe = begun(**{"start.weights": str(given.path)})
    run = fit.train(recipe, run=tmp_path / "run", quiet=True, types=TYPES)
    for name, p in floats(run).items():
        torch.testing.assert_close(p, floats(given)[name], atol=1e-6, rtol=0)
    assert "begins with all weights from" in (run.path / "log.txt").read_text()
    assert Recipe.from_json(recipe.to_json(), types=TYPES) == recipe


def test_a_part_alone_can_be_given(given, tmp_path):
    whole = given.model("cpu").state_dict()
    part = next(iter(whole)).split(".")[0]
    held = {name.removeprefix(f"{part}."): t for name, t in whole.items() if name.startswith(f"{part}.")}
    save_file({name: t.clone() for name, t in held.items()}, tmp_path / "part.safetensors")
    recipe = begun(**{"start.weights": str(tmp_path / "part.safetensors"), "start.part": part})
    model = recipe.model.build()
    fresh = {name: t.clone() for name, t in model.state_dict().items()}
    assert recipe.start.fill(model).startswith(f"{part} from")
    for name, t in model.state_dict().items():
        assert torch.equal(t, whole[name] if name.startswith(f"{part}.") else fresh[name])


def test_a_run_goes_on_when_the_file_it_began_with_is_gone(given, tmp_path):
    recipe = begun(**{"start.weights": str(given.path)})
    run = fit.train(recipe, run=tmp_path / "run", quiet=True, types=TYPES)
    shutil.rmtree(given.path)
    (run.path / "result.json").unlink()
    assert fit.resume(run.path, quiet=True, types=TYPES).finished


@dataclass(frozen=True)
class Fitting(Classify):
    """A task whose check fits what it is given to the data, as detection does anchors."""

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        super().check(model, dataset)
        with torch.no_grad():
            model.get_parameter("5.bias").fill_(0.25)


def test_a_run_whose_checkpoints_are_all_damaged_begins_as_it_did(given, tmp_path):
    """With the given weights, checked against the data, in the averages too: bit for bit the same again."""
    recipe = everything(steps=6, save_every=2).with_(task=Fitting(), **{"start.weights": str(given.path)})
    run = fit.train(recipe, run=tmp_path / "run", quiet=True, types=(*TYPES, Fitting))
    before = (run.path / "weights.safetensors").read_bytes()
    (run.path / "result.json").unlink()
    (run.path / "weights.safetensors").unlink()
    damaged = list((run.path / "checkpoints").glob("step-*/*.safetensors"))
    for path in damaged:
        path.write_bytes(b"damaged")
    again = fit.resume(run.path, quiet=True, types=(*TYPES, Fitting))
    assert damaged and (run.path / "weights.safetensors").read_bytes() == before and again.finished
    said = (run.path / "log.txt").read_text()
    assert "no checkpoint to resume from" in said and said.count("begins with all weights from") == 2


@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        (Start(weights="nowhere.pt"), MissingError, "neither a file nowhere.pt nor a set"),
        (Start(weights="{given}", part="bdoy"), UsageError, "no part 'bdoy'"),
        (Start(weights="{given}", layout="torch"), UsageError, "no layout 'torch'"),
        (Start(weights="{empty}"), MissingError, "holds no weights.safetensors or"),
        (Start(weights="{other}"), RefusedError, "does not fit"),
    ],
)
def test_weights_that_cannot_be_taken_end_the_training_before_a_run_is_made(given, tmp_path, start, error, words):
    (tmp_path / "empty").mkdir()
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    places = {"given": given.path, "empty": tmp_path / "empty", "other": tmp_path / "other.safetensors"}
    recipe = begun(**{f"start.{name}": getattr(start, name).format(**places) for name in ("weights", "layout", "part")})
    with pytest.raises(error, match=words):
        fit.train(recipe, run=tmp_path / "run", quiet=True, types=TYPES)
    assert not (tmp_path / "run").exists()


def test_longer_texts_are_kept_beside_the_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(BlobSet, "files", {"words.json": '{"ä": 1}'})
    run = fit.train(everything(steps=3), run=tmp_path / "run", quiet=True, types=TYPES)
    assert (run.path / "words.json").read_text(encoding="utf-8") == '{"ä": 1}'
    assert run.facts["files"] == {"words.json": '{"ä": 1}'} and run.facts["source"] == "blobs"
    (run.path / "words.json").unlink()
    with pytest.raises(MissingError, match=r"words\.json is missing"):
        _ = run.facts


def test_published_weights_are_asked_without_a_run(tmp_path, monkeypatch, capsys):
    """A recipe that begins with weights for its whole model answers as the model does; one without says so."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = etude.recipe("resnet.digits").model.build().eval()
    save_file(model.state_dict(), "digits.safetensors")
    changes: dict[str, Any] = {"start.weights": "digits.safetensors", "precision": "fp32"}
    run = etude.open("resnet.digits", **changes)
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(run.recipe.data.collate(list(images))["image"]).softmax(1)
    answers = run.predict(*images)
    for answer, row in zip(answers, expected):
        assert answer.label == str(int(row.argmax())) and answer.confidence == pytest.approx(float(row.max()), rel=1e-4)
    with pytest.raises(UsageError, match="begins without weights"):
        etude.open("resnet.digits")
    with pytest.raises(UsageError, match="is no recipe"):
        etude.open(tmp_path, seed=1)
    Image.fromarray(images[0, 0].numpy()).save("one.png")
    words = ["predict", "resnet.digits", "one.png", "--start.weights", "digits.safetensors", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["label"] == answers[0].label
    assert main([*words[:3], "--model.num-classes", "11", *words[3:], "--precision", "fp32"]) == 4
    said = capsys.readouterr().err
    assert "fc.weight (10, 128) for (11, 128)" in said
    assert main([*words[:3], "--model.width=-5", *words[3:]]) == 2
    assert "cannot be built" in capsys.readouterr().err
    assert main([*words[:4], "nowhere.pth"]) == 3 and not Path("runs").exists()
