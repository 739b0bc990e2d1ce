"""U-Net on pictures of 256x256, batches of 4: training steps and inference against plain eager fp32 PyTorch.

The same network on both sides, milesial's. Usually: cross-entropy and Adam at their defaults. Ours: a step of the
Trainer with channels_last, bf16 where the hardware has it and fused Adam; inference with BatchNorm folded, in bf16.
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
from etude.tasks.segment import Segment

SIDE, BATCH, CLASSES = 256, 4, 2
TARGETS = {"train": 2.1, "infer": 2.2, "compiled": 3.0}


@dataclass(frozen=True)
class Noise(Data):
    """Pictures and masks of noise: speed does not depend on what they show."""

    def open(self) -> "NoiseSet":
        return NoiseSet()

    def prepare(self, raw: Any) -> Tensor:
        return raw

    def collate(self, samples: list[Tensor]) -> Batch:
        return {"image": torch.stack(samples)}


class NoiseSet(Dataset):
    def __init__(self):
        self.sizes = {"train": 10_000, "test": 10}
        self.facts = {"source": "noise", "classes": [str(i) for i in range(CLASSES)], "sizes": self.sizes}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(len(indices), 3, SIDE, SIDE, generator=generator)
        mask = torch.randint(0, CLASSES, (len(indices), SIDE, SIDE), generator=generator)
        return {"image": image, "mask": mask, "index": torch.arange(len(indices))}


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: 2.1 times in training, 2.2 in inference, 3 compiled."""
    device = pick_device()
    batch = NoiseSet().fetch("train", range(BATCH))
    batch = {key: value if key == "index" else value.to(device) for key, value in batch.items()}
    model = catalog.model("unet", num_classes=CLASSES).to(device)
    inference = [_inference(model, batch["image"], compile=False)]
    return [_training(model, batch), *inference, *([_inference(model, batch["image"], compile=True)] * compiled)]


def _training(model: nn.Module, batch: Batch) -> Contest:
    theirs = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4)

    def plain() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(theirs(batch["image"]), batch["mask"])
        loss.backward()
        optimizer.step()
        return loss.item()

    recipe = Recipe(
        name="bench.unet",
        model=Same(copy.deepcopy(model)),
        data=Noise(),
        task=Segment(loss_by="cross-entropy"),
        optim=Optim("adam", lr=1e-4),
        schedule=Schedule("constant"),
        batch_size=BATCH,
        channels_last=True,
    )
    return _contest("training", engine_step(recipe, batch), plain, TARGETS["train"])


def _inference(model: nn.Module, images: Tensor, *, compile: bool) -> Contest:
    pair = asked("U-Net", copy.deepcopy(model), images, compile=compile)
    return _contest("inference" + ", compiled" * compile, *pair, TARGETS["compiled" if compile else "infer"])


def _contest(what: str, ours: Callable[[], Any], plain: Callable[[], Any], target: float) -> Contest:
    return Contest(
        name="unet",
        what=f"unet {SIDE}x{SIDE} b{BATCH} {what}",
        amount=BATCH,
        unit="images/s",
        ours=clock(ours),
        peer=clock(plain),
        peer_name="PyTorch eager fp32",
        peer_version=torch.__version__,
        target=target,
        operations=operations_of(plain),
        rounds=5,
        warmup=1,
    )
