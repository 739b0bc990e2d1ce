"""A convolutional network, this library's way against the way it is usually written, on the same weights and pictures.

Usually: the network in fp32 as it comes, torch.optim.SGD at its defaults, cross-entropy, no tuning. Ours: a step of the
Trainer with channels_last, bf16 where the hardware has it and fused SGD; inference with BatchNorm folded, in bf16.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import catalog
from etude.bench import Row, in_turns, row
from etude.data.base import Batch, Data, Dataset
from etude.engine.optim import Optim, Schedule
from etude.engine.precision import DTYPES, pick_device, resolve
from etude.engine.recipe import Recipe
from etude.engine.trainer import Trainer
from etude.nn.inference import optimise_for_inference
from etude.tasks.classify import Classify


@dataclass(frozen=True)
class Noise(Data):
    """Pictures of noise: speed does not depend on what they show."""

    side: int
    classes: int

    def open(self) -> "NoiseSet":
        return NoiseSet(self)

    def prepare(self, raw: Any) -> Tensor:
        return raw

    def collate(self, samples: list[Tensor]) -> Batch:
        return {"image": torch.stack(samples)}


class NoiseSet(Dataset):
    def __init__(self, data: Noise):
        self.data, self.sizes = data, {"train": 10_000, "test": 10}
        self.facts = {"source": "noise", "classes": [str(i) for i in range(data.classes)], "sizes": self.sizes}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(len(indices), 3, self.data.side, self.data.side, generator=generator)
        labels = torch.arange(len(indices)) % self.data.classes
        return {"image": images, "label": labels, "index": torch.arange(len(indices))}


def compare(
    name: str, settings: dict[str, Any], *, side: int, batch_size: int, targets: dict[str, float], compiled: bool
) -> list[Row]:
    """Rows for training and inference, and for compiled inference where `compiled`."""
    device = pick_device()
    classes = settings.get("num_classes", 1000)
    batch = NoiseSet(Noise(side, classes)).fetch("train", range(batch_size))
    batch = {key: value if key == "index" else value.to(device) for key, value in batch.items()}
    size = f"{name} {side}x{side} b{batch_size}"
    rows = [_training(name, settings, size, batch, Noise(side, classes), targets["train"])]
    model = catalog.model(name, **settings).to(device).eval()
    rows.append(_inference(model, f"{size} inference", name, batch["image"], targets["infer"], compiled=False))
    if compiled:
        label = f"{size} inference, compiled"
        rows.append(_inference(model, label, name, batch["image"], targets["compiled"], compiled=True))
    return rows


def _training(name: str, settings: dict[str, Any], size: str, batch: Batch, noise: Noise, target: float) -> Row:
    model = catalog.model(name, **settings).to(batch["image"].device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    recipe = Recipe(
        name=f"bench.{name}",
        model=_Same(copy.deepcopy(model)),
        data=noise,
        task=Classify(),
        optim=Optim("sgd", lr=0.01),
        schedule=Schedule("constant"),
        batch_size=len(batch["image"]),
        channels_last=True,
    )
    trainer = Trainer(recipe, None, quiet=True)
    trainer.model.train()
    ours_batch = batch | {"image": batch["image"].contiguous(memory_format=torch.channels_last)}

    def plain() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()
        return loss.item()

    def ours() -> float:
        return trainer.take_step(ours_batch)["loss"].item()

    ours_seconds, plain_seconds = in_turns(ours, plain, rounds=7, warmup=2)
    return _row(name, f"{size} training", ours_seconds, plain_seconds, len(batch["image"]), target)


@dataclass(frozen=True)
class _Same:
    """A model configuration that hands out one given network, so that both sides train the same."""

    model: nn.Module

    def build(self) -> nn.Module:
        return self.model


@torch.inference_mode()
def _inference(model: nn.Module, what: str, name: str, images: Tensor, target: float, *, compiled: bool) -> Row:
    dtype = DTYPES[resolve("auto", images.device)]
    fast = optimise_for_inference(model, dtype=dtype, channels_last=True, compile=compiled)
    theirs = model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    ours_seconds, plain_seconds = in_turns(lambda: fast(images), lambda: theirs(images), rounds=9, warmup=3)
    agreement = F.cosine_similarity(fast(images).flatten(), theirs(images).flatten(), dim=0).item()
    assert agreement > 0.999, f"the fast {name} does not answer as the plain one does: cosine {agreement}"
    return _row(name, what, ours_seconds, plain_seconds, len(images), target)


def _row(name: str, what: str, ours: float, plain: float, images: int, target: float) -> Row:
    return row(
        name, what, images / ours, images / plain, unit="images/s", peer_name="PyTorch eager fp32",
        peer_version=torch.__version__, target=target,
    )  # fmt: skip
