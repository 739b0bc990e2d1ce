"""What the engine costs: MLP 784-128-10, batches of 64, Adam, with logging, progress and checkpoints on, against a bare
PyTorch loop without any of them."""

import contextlib
import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.basics import mlp
from etude.bench import Contest
from etude.data.base import Batch, Data, Dataset
from etude.engine import fit
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.classify import Classify

BATCH, SAMPLES = 64, 20_000


@dataclass(frozen=True)
class Pixels(Data):
    """Random uint8 pictures of 28x28 in memory, normalised batch by batch as `Images` does it."""

    def open(self) -> "PixelSet":
        return PixelSet()

    def prepare(self, raw: Any) -> Tensor:
        return raw

    def collate(self, samples: list[Tensor]) -> Batch:
        return {"image": torch.stack(samples)}


class PixelSet(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (SAMPLES, 1, 28, 28), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(SAMPLES) % 10
        self.sizes = {"train": SAMPLES, "test": 1000}
        self.facts = {"source": "pixels", "classes": [str(i) for i in range(10)], "sizes": self.sizes}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        rows = torch.as_tensor(indices)
        return {"image": self.images.index_select(0, rows), "label": self.labels[rows], "index": rows}

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        return batch | {"image": batch["image"] * (1 / 255)}


def contests(*, compiled: bool = False, steps: int = 4000) -> list[Contest]:
    """Target: 0.9 of the bare loop's steps a second. `compiled` changes nothing here."""
    return [
        Contest(
            name="mlp",
            what="MLP 784-128-10 b64 training, logging and checkpoints on",
            amount=steps,
            unit="steps/s",
            ours=lambda: _engine(steps),
            peer=lambda fused=fused: _bare(steps, fused=fused),
            peer_name=f"bare loop, Adam {'fused' if fused else 'at its defaults'}",
            peer_version=torch.__version__,
            target=None if fused else 0.9,
            rounds=3,
            warmup=1,
        )
        for fused in (False, True)
    ]


def _engine(steps: int) -> float:
    """Seconds of a run from its first step to its last, checkpoints and reports included."""
    recipe = Recipe(
        name="bench.mlp",
        model=mlp.Config(in_features=784, hidden=(128,), num_classes=10),
        data=Pixels(),
        task=Classify(),
        optim=Optim("adam", lr=1e-3),
        schedule=Schedule("constant"),
        steps=steps,
        batch_size=BATCH,
        precision="fp32",
        eval_every=steps,
        save_every=1000,
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        run = fit.train(recipe, run=Path(folder) / "run", device="cpu", types=(Pixels,))
        return run.result["seconds"]


def _bare(steps: int, *, fused: bool) -> float:
    """The loop as it stands in tutorials: data as floats in memory, a shuffled index, no logging, nothing saved."""
    dataset = PixelSet()
    images, labels = dataset.images.flatten(1) / 255, dataset.labels
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused or None)
    begun, done = time.perf_counter(), 0
    while done < steps:
        shuffled = torch.randperm(SAMPLES)
        for start in range(0, SAMPLES - BATCH + 1, BATCH):
            chosen = shuffled[start : start + BATCH]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    return time.perf_counter() - begun
