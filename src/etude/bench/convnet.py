"""A convolutional network, this library's way against the way it is usually written, on the same weights and pictures.

Usually: the network in fp32 as it comes, torch.optim.SGD at its defaults, cross-entropy, no tuning. Ours: a step of the
Trainer with channels_last, bf16 where the hardware has it and fused SGD; inference with BatchNorm folded, in bf16.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import catalog
from etude.bench import Contest, clock
from etude.bench.step import Same, asked, engine_step, operations_of
from etude.data.base import Batch, Data, Dataset
from etude.engine.optim import Optim, Schedule
from etude.engine.precision import pick_device
from etude.engine.recipe import Recipe
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
) -> list[Contest]:
    """Training and inference, and compiled inference where `compiled`."""
    device = pick_device()
    noise = Noise(side, settings.get("num_classes", 1000))
    batch = noise.open().fetch("train", range(batch_size))
    batch = {key: value if key == "index" else value.to(device) for key, value in batch.items()}
    model = catalog.model(name, **settings).to(device)
    what = f"{name} {side}x{side} b{batch_size}"
    pairs = [_training(name, model, batch, noise, f"{what} training", targets["train"])]
    for compile in (False, True) if compiled else (False,):
        label = f"{what} inference" + ", compiled" * compile
        target = targets["compiled" if compile else "infer"]
        pairs.append(_inference(name, model, batch["image"], label, target, compile=compile))
    return pairs


def _training(name: str, model: nn.Module, batch: Batch, noise: Noise, what: str, target: float) -> Contest:
    theirs = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)

    def plain() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(theirs(batch["image"]), batch["label"])
        loss.backward()
        optimizer.step()
        return loss.item()

    recipe = Recipe(
        name=f"bench.{name}",
        model=Same(copy.deepcopy(model)),
        data=noise,
        task=Classify(),
        optim=Optim("sgd", lr=0.01),
        schedule=Schedule("constant"),
        batch_size=len(batch["image"]),
        channels_last=True,
    )
    return _contest(name, what, engine_step(recipe, batch), plain, len(batch["image"]), target)


def _inference(name: str, model: nn.Module, images: Tensor, what: str, target: float, *, compile: bool) -> Contest:
    pair = asked(name, copy.deepcopy(model), images, compile=compile)
    return _contest(name, what, *pair, len(images), target)


def _contest(
    name: str, what: str, ours: Callable[[], Any], plain: Callable[[], Any], images: int, target: float
) -> Contest:
    return Contest(
        name=name,
        what=what,
        amount=images,
        unit="images/s",
        ours=clock(ours),
        peer=clock(plain),
        peer_name="PyTorch eager fp32",
        peer_version=torch.__version__,
        target=target,
        operations=operations_of(plain),
    )
