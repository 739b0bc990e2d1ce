"""Every recipe, on data in its official format: it builds, its loss falls, a death costs nothing, predict answers.

The digits are the real ones. Data that cannot be had without a download is written here in the official format: small
pictures whose classes differ in brightness.
"""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from etude.catalog import recipes
from etude.data.images import Images
from etude.engine.checkpoint import digest
from etude.engine.parallel import World
from etude.engine.recipe import Recipe
from etude.engine.trainer import Trainer
from etude.recipes import find_recipe

CLASSES, SHOWN = 10, 6


def pictures(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 noise around a level that tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    level = 20 + labels * 22
    noise = rng.integers(-15, 16, (count, *shape))
    return (level.reshape(-1, *[1] * len(shape)) + noise).clip(0, 255).astype(np.uint8), labels.astype(np.uint8)


def write_idx(folder: Path) -> None:
    for prefix, count, seed in (("train", 120, 0), ("t10k", 30, 1)):
        images, labels = pictures(count, (28, 28), seed)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = struct.pack(">II", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))


def write_cifar(folder: Path) -> None:
    for name, seed in [*((f"data_batch_{i}", i) for i in range(1, 6)), ("test_batch", 9)]:
        images, labels = pictures(30, (3072,), seed)
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], images], 1).tobytes())


def write_imagenet(folder: Path) -> None:
    for split, count, seed in (("train", 40, 0), ("val", 10, 1)):
        images, labels = pictures(count, (48, 56, 3), seed)
        for i, (image, label) in enumerate(zip(images, labels)):
            place = folder / split / f"n{label:08d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{place.name}_{i}.JPEG")


WRITERS = {"fashion-mnist": write_idx, "mnist": write_idx, "cifar10": write_cifar, "imagenet": write_imagenet}


def small(name: str, folder: Path) -> Recipe:
    """The recipe with fewer and smaller pictures and steps, and nothing else changed but the rate's pace."""
    recipe = find_recipe(name)
    assert isinstance(recipe.data, Images)
    changes: dict[str, Any] = {
        "steps": SHOWN,
        "batch_size": 20,
        "eval_every": 4,
        "log_every": 1,
        "save_every": 2,
        "keep": 9,
        "schedule.warmup": 0,
    }
    if recipe.data.source in WRITERS:
        WRITERS[recipe.data.source](folder)
        changes["data.path"] = str(folder)
    if recipe.data.source == "imagenet":
        changes |= {"data.size": 32, "model.num_classes": CLASSES, "batch_size": 8}
    if recipe.optim.name == "sgd":
        changes["optim.lr"] = 0.005 if "resnet" in name else 0.03
    return recipe.with_(**changes)


def trainer(recipe: Recipe, directory: Path) -> Trainer:
    directory.mkdir(exist_ok=True)
    return Trainer(recipe, directory, world=World(torch.device("cpu")), quiet=True)


@pytest.mark.parametrize("name", recipes())
def test_recipe(name, tmp_path):
    (tmp_path / "data").mkdir()
    recipe = small(name, tmp_path / "data")
    whole = trainer(recipe, tmp_path / "whole")
    result = whole.fit()
    assert result["steps"] == SHOWN and 0 <= result["eval"]["accuracy"] <= 1

    class Died(Exception):
        pass

    def die(logs):
        if dying.step == 5:
            raise Died
        record(logs)

    dying = trainer(recipe, tmp_path / "stopped")
    record, dying._record = dying._record, die
    with pytest.raises(Died):
        dying.fit()
    resumed = trainer(recipe, tmp_path / "stopped")
    resumed.resume()
    assert resumed.step == 4
    resumed.fit()
    assert {g: digest(t) for g, t in resumed.tensors().items()} == {g: digest(t) for g, t in whole.tensors().items()}
    logs = [(tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "stopped")]
    assert logs[0] == logs[1]

    batch = whole.dataset.fetch("test", range(3))["image"]
    whole.model.eval()
    answers = recipe.task.predict(whole.model, list(batch), recipe.data, whole.dataset.facts)
    assert [answer.row()[0] in whole.dataset.facts["classes"] for answer in answers] == [True] * 3


@pytest.mark.parametrize("name", recipes())
def test_loss_falls(name, tmp_path):
    """On one batch that is seen again and again, the loss falls to less than two thirds."""
    (tmp_path / "data").mkdir()
    recipe = small(name, tmp_path / "data").with_(**{"ema": None, "steps": 100, "schedule.name": "constant"})
    recipe = recipe.with_(**{"model.dropout": 0.0, "precision": "fp32"})
    learner = trainer(recipe, tmp_path / "run")
    learner.model.train()
    batch = learner.dataset.finish(learner.dataset.batch(seed=0, step=0, batch_size=recipe.batch_size))
    losses = []
    for step in range(12 if "resnet" in name else 30):
        learner.step = step
        losses.append(learner.take_step(batch)["loss"].item())
    assert min(losses[-3:]) < 0.67 * losses[0]
