"""A generator from training to a folder of pictures, good and bad, on the command line; and players that follow one
another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import etude
from etude import cli
from etude.data import deep

TINY: dict[str, Any] = {"model.width": 6, "model.depth": 1, "model.growth": 3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        (folder / split).mkdir()
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
            coarse.resize((54, 48), Image.Resampling.BICUBIC).save(folder / split / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory):
    changes: dict[str, Any] = TINY | {
        "steps": 3,
        "batch_size": 4,
        "data.size": 32,
        "data.path": str(pictures),
        "schedule.warmup": 0,
    }
    return etude.train("esrgan.folder", run=tmp_path_factory.mktemp("runs") / "one", quiet=True, **changes)


def test_a_folder_job_goes_on_past_what_is_bad(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = tmp_path / "given"
    given.mkdir()
    colour = Image.fromarray(np.random.default_rng(1).integers(0, 256, (10, 12, 3), dtype=np.uint8))
    colour.save(given / "colour.png")
    colour.convert("CMYK").save(given / "print.jpg")
    colour.convert("1").save(given / "onebit.png")
    deep.save_png(torch.full((4, 9, 9), 40_000, dtype=torch.int32).to(torch.uint16), given / "deep.png")
    (given / "zero.png").write_bytes(b"")
    (given / "cut.png").write_bytes((given / "colour.png").read_bytes()[:100])
    colour.save(given / "moving.gif", save_all=True, append_images=[Image.new("RGB", (12, 10))])
    code = cli.main(["predict", str(run.path), str(given), "--save", str(tmp_path / "out"), "--json", "--tile", "8"])
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert code == 1 and "3 of 7 inputs were skipped" in said.err
    assert {Path(e["input"]).name for e in document["errors"]} == {"zero.png", "cut.png", "moving.gif"}
    shapes = {path.name: tuple(deep.open_picture(path).shape) for path in (tmp_path / "out").iterdir()}
    assert shapes == {
        "colour.png": (3, 20, 24), "print.png": (3, 20, 24), "onebit.png": (1, 20, 24), "deep.png": (4, 18, 18)
    }  # fmt: skip
    assert deep.open_picture(tmp_path / "out" / "deep.png").dtype == torch.uint16


def test_the_second_stage_begins_where_the_first_ended(run, pictures: Path, tmp_path: Path):
    tiny: dict[str, Any] = {f"model.generator.{key.removeprefix('model.')}": value for key, value in TINY.items()}
    tiny |= {"model.generator.scale": 2, "model.generator.interpolates": False, "model.discriminator.side": 32}
    changes: dict[str, Any] = tiny | {
        "steps": 1,
        "batch_size": 4,
        "data.size": 32,
        "data.scale": 2,
        "data.path": str(pictures),
    }
    changes |= {"data.source": "folder", "data.reduce": 1, "task.features": None, "schedule.name": "constant"}
    changes |= {"start.weights": str(run.path), "start.part": "generator", "optim.generator.lr": 1e-9, "ema": None}
    second = etude.train("esrgan.photos_gan", run=tmp_path / "two", quiet=True, **changes)
    before, after = run.model().state_dict(), second.model().get_submodule("generator").state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)
    logged = second.metrics[0]
    assert {"generator/perceptual", "generator/adversarial", "generator/pixel", "discriminator/loss"} <= logged.keys()
    picture = torch.randint(0, 256, (3, 9, 9), dtype=torch.int32).to(torch.uint8)
    mixed = second.predict(picture, other=str(run.path), alpha=0.5).high.int()
    assert (mixed - run.predict(picture).high.int()).abs().max() <= 2
