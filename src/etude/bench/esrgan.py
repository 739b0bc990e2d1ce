"""RRDBNet x4 as ESRGAN's users have it, 23 blocks of width 64, this library's way against the plain one on the same
weights: a picture of 128x128 enlarged, and a step of the first stage on patches of 128 (32x32 at low resolution).

Plainly: the network in fp32 as it comes, torch.optim.Adam at its defaults. Ours: inference prepared as `etude predict`
prepares it, training by the Trainer, both with channels last and in bf16 where the hardware has it.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from etude import catalog
from etude.bench import Contest, clock
from etude.bench.convnet import Noise, NoiseSet
from etude.bench.step import Same, asked, engine_step, operations_of
from etude.data.base import Batch
from etude.engine.optim import Schedule
from etude.engine.precision import pick_device
from etude.recipes.esrgan import div2k

SIDE, BATCH = 32, 4


class Pairs(Noise):
    """Noise at two resolutions."""

    def open(self) -> NoiseSet:
        opened = super().open()
        opened.facts |= {"scale": 4}
        return opened


def contests(*, compiled: bool) -> list[Contest]:
    """Inference, then training."""
    torch.manual_seed(0)
    return [inference(), training()]


def inference() -> Contest:
    device = pick_device()
    model = catalog.model("rrdbnet_x4").to(device)
    pair = asked("RRDBNet", model, torch.rand(1, 3, 128, 128, device=device))
    return contest("128x128 enlarged x4", *pair, amount=1, target=2.6)


def training() -> Contest:
    device = pick_device()
    model = catalog.model("rrdbnet_x4").to(device)
    batch: Batch = {
        "low": torch.rand(BATCH, 3, SIDE, SIDE, device=device),
        "high": torch.rand(BATCH, 3, 4 * SIDE, 4 * SIDE, device=device),
        "index": torch.arange(BATCH),
    }
    theirs = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=2e-4)

    def plain() -> float:
        optimizer.zero_grad()
        loss = F.l1_loss(theirs(batch["low"]), batch["high"])
        loss.backward()
        optimizer.step()
        return loss.item()

    recipe = replace(
        div2k(),
        name="bench.esrgan",
        model=Same(copy.deepcopy(model)),
        data=Pairs(SIDE, 1),
        schedule=Schedule("constant"),
        batch_size=BATCH,
    )
    return contest(f"training, {BATCH} patches of 128", engine_step(recipe, batch), plain, amount=BATCH, target=2.0)


def contest(what: str, ours: Any, plain: Any, *, amount: int, target: float) -> Contest:
    return Contest(
        name="esrgan",
        what=f"RRDBNet x4, {what}",
        amount=amount,
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
