"""The command line as a person uses it: what it prints, what it returns, and one clear line for each mistake."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from etude import catalog
from etude.cli import VERBS, main
from etude.cli.flags import flag_type, said_of_fields
from etude.tasks.language_model import Continue


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run that the tests share and leave as it is."""
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "mlp.digits", "--steps", "150", "--run", str(directory), "--quiet"]) == 0
    return directory


@pytest.fixture
def own(run, tmp_path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(run, tmp_path / "moved" / "own"))


def says(capsys, arguments, code: int) -> tuple[str, str]:
    """Run; the exit code must be `code`, and an error one line without a traceback."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    out, err = capsys.readouterr()
    if code not in (0, 5):
        assert err.count("\n") == 1 and err.startswith("etude: "), err
        assert "Traceback" not in err and len(err) < 600
    return out, err


def python(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["list", "--json"], ["bench", "--list"]])
def test_quick_answers_import_no_torch(arguments):
    script = (
        f"import sys; from etude.cli import main; code = main({arguments}); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    begun = time.monotonic()
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 3  # 0.07 s on a quiet machine; import torch alone takes 2


def test_help_names_every_verb(capsys):
    out, _ = says(capsys, ["--help"], 0)
    assert all(re.search(rf"^  {verb} ", out, re.M) for verb in VERBS)
    for verb in VERBS:
        try:
            code = main([verb, "--help"])
        except SystemExit as stop:
            code = stop.code
        assert code == 0
        assert f"etude {verb}" in capsys.readouterr().out


def test_list_json_is_the_catalog(capsys):
    out, _ = says(capsys, ["list", "--json"], 0)
    assert [row["name"] for row in json.loads(out)] == [row.name for row in catalog.SYSTEMS]


def test_info(capsys, run):
    out, _ = says(capsys, ["info", "resnet50", "--json"], 0)
    assert json.loads(out)["parameters"]["resnet50"] == 25_557_032
    out, _ = says(capsys, ["info", "resnet.digits"], 0)
    assert json.loads(out)["config"]["steps"] > 0
    out, _ = says(capsys, ["info", run], 0)
    assert json.loads(out)["result"]["recipe"] == "mlp.digits"


def test_train_ends_with_what_to_do_next(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, err = says(capsys, ["train", "mlp.digits", "--steps", "20", "optim.lr=0.002", "--workers", "2"], 0)
    assert "accuracy" in out and "runs/mlp.digits/1/report.html" in out and "etude predict runs/mlp.digits/1" in out
    first = err.splitlines()[:5]
    for words in (
        "etude 0",
        "mlp.digits",
        "parameters",
        "device cpu",
        "precision fp32",
        "1,437 train",
        "20 steps",
        "runs/mlp.digits/1",
    ):
        assert words in " ".join(first)
    saved = json.loads((tmp_path / "runs/mlp.digits/1/recipe.json").read_text())
    assert saved["config"]["optim"]["lr"] == 0.002 and saved["config"]["steps"] == 20
    assert main(["train", "mlp.digits", "--steps", "2", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "runs/mlp.digits/2"


def test_dry_run_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, _ = says(capsys, ["train", "resnet.digits", "--dry-run", "--quiet", "--batch-size", "8"], 0)
    assert "nothing was written" in out and not list(tmp_path.iterdir())


def test_eval_of_a_moved_run_is_its_result(capsys, own):
    out, _ = says(capsys, ["eval", own, "--json"], 0)
    assert json.loads(out)["eval"] == json.loads((own / "result.json").read_text())["eval"]


def test_predict_files_folders_and_samples(capsys, own, tmp_path):
    folder = tmp_path / "pictures" / "deeper"
    folder.mkdir(parents=True)
    from etude.data.images import Images

    dataset = Images(source="digits", mean=(0.3,), std=(0.4,)).open()
    batch = dataset.fetch("test", range(30))
    for i, image in enumerate(batch["image"]):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:02d}.png")
    (folder / "notes.txt").write_text("not a picture")
    out, _ = says(capsys, ["predict", own, tmp_path / "pictures", "--json", "--save", tmp_path / "answers"], 0)
    results = json.loads(out)["results"]
    assert len(results) == 30 and len(list((tmp_path / "answers").glob("*.png"))) == 30
    right = sum(result["label"] == str(int(label)) for result, label in zip(results, batch["label"]))
    assert right >= 27
    picture = folder / "00.png"
    says(capsys, ["predict", own, picture, "--save", tmp_path / "one" / "answer.png"], 0)
    says(capsys, ["predict", own, picture, "--save", tmp_path / "some.answers"], 0)
    assert (tmp_path / "one" / "answer.png").is_file() and (tmp_path / "some.answers" / "00.png").is_file()
    before = picture.read_bytes()
    _, said = says(capsys, ["predict", own, picture, "--save", picture], 2)
    assert "never written among the inputs" in said and picture.read_bytes() == before
    out, _ = says(capsys, ["predict", own, folder / "00.png"], 0)
    assert len(out.splitlines()) == 1 and "%" in out
    out, _ = says(capsys, ["predict", own, "--samples", "5"], 0)
    assert len(out.splitlines()) == 5 and "truly" in out


def test_types_of_flags():
    assert flag_type(int | None) == {"type": int}
    assert flag_type(str) == {"type": str}
    assert flag_type(tuple[int, int] | None) == {"type": int, "nargs": 2, "metavar": ("A", "B")}
    assert flag_type(Literal["length", "gnmt"] | None) == {"choices": ("length", "gnmt")}


def test_flags_of_a_task_say_what_they_mean():
    said = said_of_fields(Continue)
    assert said["stop"] == "Text before which to stop." and set(said) == {f.name for f in fields(Continue)}


def test_report_and_resume_of_a_finished_run(capsys, own):
    (own / "report.html").unlink()
    out, _ = says(capsys, ["report", own], 0)
    assert Path(out.strip()).read_text().lower().startswith("<!doctype html>")
    assert main(["resume", str(own)]) == 0
    assert "finished already" in capsys.readouterr().err


def test_doctor_and_data(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    capsys.readouterr()
    main(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {"etude", "torch", "bf16", "disk"} <= {row["name"] for row in rows}
    out, _ = says(capsys, ["data", "list", "--json"], 0)
    assert {row["name"]: row["state"] for row in json.loads(out)}["digits"] == "shipped"
    out, _ = says(capsys, ["data", "path", "digits"], 0)
    assert Path(out.strip()).is_file()


def png(width: int, height: int) -> bytes:
    """A PNG that says it is this large, and holds nothing of it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


MISTAKES = [
    ([], 2, None),
    (["trian"], 2, "did you mean train"),
    (["train", "resnet.digit"], 2, "did you mean resnet.digits"),
    (["train", "zzzz.qqqq"], 2, "etude list"),
    (["train", "mlp.digits", "--step", "5"], 2, "did you mean --steps"),
    (["train", "mlp.digits", "--lr", "5"], 2, "did you mean --optim.lr"),
    (["train", "mlp.digits", "--out", "x"], 2, "etude train mlp.digits --help"),  # no flag is near
    (["train", "mlp.digits", "--model.in-features", "60", "--dry-run"], 2, "--model.in-features 64"),
    (["train", "resnet.digits", "--model.in-channels", "3", "--dry-run"], 2, "--model.in-channels 1"),
    (["train", "mlp.digits", "--steps", "many"], 2, "--steps"),
    (["train", "mlp.digits", "--optim.name", "sdg"], 2, "sdg"),
    (["train", "mlp.digits", "--batch-size", "0"], 2, "batch_size is 0"),
    (["train", "mlp.digits", "--optim.lr", "-1"], 2, "optim.lr is -1"),
    (["train", "mlp.digits", "--model.hidden", "-3"], 2, "negative dimension -3"),
    (["train", "mlp.digits", "--model.num-classes", "7"], 2, "classes"),
    (["train", "mlp.digits", "--device", "cuda:9"], 2, "cuda:9"),
    (["train", "mlp.digits", "--device", "toaster"], 2, "toaster"),
    (["train", "mlp.digits", "--precision", "fp16"], 2, "fp16"),
    (["train", "mlp.digits", "--workers", "-1"], 2, "workers"),
    (["train", "mlp.digits", "--patience", "2"], 2, "--data.validation"),
    (["train", "resnet.cifar10"], 3, "etude data get cifar10"),
    (["train", "resnet.imagenet"], 3, "--data.path"),
    (["resume", "nowhere"], 3, "no run directory"),
    (["eval", "."], 3, "recipe.json"),
    (["predict", "nowhere", "x.png"], 3, "no run directory"),
    (["report", "nowhere"], 3, "no run directory"),
    (["replay", "RUN"], 3, "no failed step"),
    (["eval", "RUN", "--split", "tset"], 2, "tset"),
    (["eval", "RUN", "--slpit", "test"], 2, "did you mean --split"),
    (["predict", "RUN"], 2, "--samples"),
    (["predict", "RUN", "missing.png"], 2, "missing.png"),
    (["verify", "resnte"], 2, "resnet"),
    (["bench", "resnte"], 2, "did you mean resnet"),
    (["info", "resnte"], 2, "did you mean resnet"),
    (["data", "get", "fashion"], 2, "fashion-mnist"),
    (["data", "get"], 2, "needs a name"),
    (["data", "fetch", "x"], 2, "fetch"),
    (["data", "path", "cifar10"], 3, "etude data get cifar10"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistakes(capsys, run, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    arguments = [str(run) if word == "RUN" else word for word in arguments]
    if words is None:
        assert main(arguments) == code
        return
    _, err = says(capsys, arguments, code)
    assert words in err
    assert not (tmp_path / "runs").exists()


def test_pictures_that_cannot_be_read(capsys, own, tmp_path):
    pictures = {
        "empty.png": b"",
        "text.png": b"hello, I am no picture",
        "huge.png": png(40_000, 40_000),
        "cut.png": png(8, 8)[:-20],
    }
    for name, content in pictures.items():
        (tmp_path / name).write_bytes(content)
        out, err = says(capsys, ["predict", own, tmp_path / name], 2)
        assert name in err and not out.strip()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "good.png")
    capsys.readouterr()
    assert main(["predict", str(own), str(tmp_path / "empty.png"), str(tmp_path / "good.png")]) == 1
    out, err = capsys.readouterr()
    assert "good.png" in out and "empty.png" in err
    np.save(tmp_path / "five.npy", np.zeros((5, 8, 8)))
    says(capsys, ["predict", own, tmp_path / "five.npy"], 2)
    (tmp_path / "bare").mkdir()
    _, err = says(capsys, ["predict", own, tmp_path / "bare"], 2)
    assert "no pictures" in err


DAMAGE = [
    ("weights.safetensors", "flip", 4),
    ("weights.safetensors", "cut", 4),
    ("weights.safetensors", "empty", 4),
    ("recipe.json", "cut", 4),
    ("recipe.json", "empty", 4),
    ("env.json", "cut", 4),
]


@pytest.mark.parametrize(("name", "damage", "code"), DAMAGE)
def test_a_damaged_run_is_refused(capsys, own, name, damage, code):
    path = own / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(b"" if damage == "empty" else content[: len(content) // 2] if damage == "cut" else content)
    _, err = says(capsys, ["predict", own, "--samples", "2"], code)
    assert name in err


def test_a_recipe_from_elsewhere_runs_nothing(capsys, own):
    document = json.loads((own / "recipe.json").read_text())
    document["config"]["model"] = {"type": "os.system", "command": "touch owned"}
    (own / "recipe.json").write_text(json.dumps(document))
    _, err = says(capsys, ["eval", own], 4)
    assert "os.system" in err


def test_lost_weights_come_from_the_checkpoint(capsys, own):
    expected = says(capsys, ["eval", own, "--json"], 0)[0]
    (own / "weights.safetensors").unlink()
    assert json.loads(says(capsys, ["eval", own, "--json"], 0)[0])["eval"] == json.loads(expected)["eval"]


def test_nan_stops_with_5_and_is_replayed(capsys, tmp_path):
    arguments = [
        "train",
        "mlp.digits",
        "--steps",
        "30",
        "--optim.lr",
        "1e30",
        "--optim.name",
        "sgd",
        "--run",
        str(tmp_path / "run"),
        "--quiet",
    ]
    _, err = says(capsys, arguments, 5)
    assert "NaN or Inf at step" in err and f"etude replay {tmp_path / 'run'}" in err and err.count("\n") == 1
    out, _ = says(capsys, ["replay", tmp_path / "run"], 5)
    assert out.startswith("step ")


LONG = ["train", "mlp.digits", "--steps", "1000", "--run"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run that no signal stops."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main([*LONG, str(directory), "--quiet"]) == 0
    return directory


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_save_and_resume_ends_alike(undisturbed, tmp_path, number, code):
    """A real process, a real signal: it says so, saves, exits with its code, and resume ends as if nothing had been."""
    command = [sys.executable, "-m", "etude", *LONG, str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "figures.json").exists():
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "stopped and saved at step" in err and f"etude resume {tmp_path / 'run'}" in err
    assert main(["resume", str(tmp_path / "run"), "--quiet"]) == 0
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_second_signal_stops_at_once_and_keeps_old_files(tmp_path):
    command = [sys.executable, "-m", "etude", "train", "resnet.digits", "--steps", "2000", "--save-every", "2"]
    process = subprocess.Popen(
        [*command, "--run", str(tmp_path / "run")], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    folder = tmp_path / "run" / "checkpoints"
    while not folder.exists() or not any(folder.glob("step-*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert process.returncode != 0
    from etude.engine.checkpoint import load_newest

    assert load_newest(folder, print) is not None


def test_torchrun_trains(tmp_path):
    """Two processes, one run directory."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "etude", "train", "mlp.digits"]
    done = python(
        *words, "--steps", "30", f"run={tmp_path / 'run'}", "--json", env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["steps"] == 30 and result["eval"]["accuracy"] > 0.3
    assert "x 2 processes" in done.stderr
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_answers_are_written_where_no_input_lies(capsys, own, tmp_path):
    """Never over an input; under its own name, or numbered where two would meet."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "b-plot"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f"{name}.png")
    before = (folder / "a.png").read_bytes()
    _, err = says(capsys, ["predict", own, folder, "--save", folder], 2)
    assert "never written among the inputs" in err and (folder / "a.png").read_bytes() == before
    says(capsys, ["predict", own, folder, "--save", tmp_path / "out"], 0)
    assert [path.name[:4] for path in sorted((tmp_path / "out").iterdir())] == ["0000", "0001", "0002"]
    (folder / "b-plot.png").unlink()
    says(capsys, ["predict", own, folder, "--save", tmp_path / "named"], 0)
    assert [path.stem for path in sorted((tmp_path / "named").iterdir())] == ["a", "b"]


@pytest.mark.parametrize("flag", ["--device", "--precision"])
def test_what_is_wrong_for_every_input_is_said_once(capsys, own, tmp_path, flag):
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    _, err = says(capsys, ["predict", own, tmp_path / "a.png", tmp_path / "b.png", flag, "abacus"], 2)
    assert f"unknown {flag.removeprefix('--')} 'abacus'" in err


def test_all_inputs_are_predicted_at_once_and_one_by_one_where_one_is_bad(capsys, own, tmp_path, monkeypatch):
    from etude.engine.run import Run

    calls, predict = [], Run.predict
    monkeypatch.setattr(
        Run, "predict", lambda self, *raws, **more: (calls.append(len(raws)), predict(self, *raws, **more))[1]
    )
    places = []
    for i in range(3):
        places.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.full((8 + i, 8), 40 * i, np.uint8)).save(places[-1])
    together = json.loads(says(capsys, ["predict", own, *places, "--json"], 0)[0])["results"]
    assert calls == [3] and [row["input"] for row in together] == places
    Path(places[1]).write_bytes(b"")
    capsys.readouterr()
    assert main(["predict", str(own), *places, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert calls == [3, 3, 1, 1, 1] and [row["input"] for row in said["errors"]] == [places[1]]
    for row, expected in zip(said["results"], (together[0], together[2])):
        assert row["label"] == expected["label"] and row["confidence"] == pytest.approx(
            expected["confidence"], rel=1e-4
        )
