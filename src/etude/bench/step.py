"""What contests time: a training step of the engine's, a network prepared for inference beside the plain one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import cpu
from etude.bench import Contest, Skipped
from etude.data.base import Batch
from etude.engine.evaluate import laid_out
from etude.engine.precision import DTYPES, computes_bf16, pick_device, resolve
from etude.engine.recipe import Recipe
from etude.engine.trainer import Trainer
from etude.graph.trace import FlopCounter
from etude.nn.inference import prepare_for_inference


@dataclass(frozen=True)
class Same:
    """A model configuration that hands out one given network, so that both sides train the same."""

    model: nn.Module

    def build(self) -> nn.Module:
        return self.model


def engine_step(recipe: Recipe, batch: Batch) -> Callable[[], float]:
    """A function that takes a step of `recipe` on `batch` and returns its loss. The Trainer is made by its first call,
    when it is our turn: it sets the memory allocator."""
    trainers: list[Trainer] = []

    def step() -> float:
        if not trainers:
            trainers.append(Trainer(recipe, None, quiet=True))
            trainers[0].model.train()
        logs = trainers[0].take_step(laid_out(batch, recipe))
        return next(value for name, value in logs.items() if name.split("/")[-1] == "loss").item()

    return step


def asked(
    name: str, model: nn.Module, images: Tensor, *, compile: bool = False
) -> tuple[Callable[[], None], Callable[[], Tensor]]:
    """(ours, plain): the network on these images as `etude predict` prepares it, and as it is, in eval mode. The first
    call of ours compares both answers: a cosine of 0.999 or below is an AssertionError."""
    theirs = model.eval()
    fast = prepare_for_inference(
        theirs, dtype=DTYPES[resolve("auto", images.device)], channels_last=True, compile=compile
    )
    compared: list[float] = []

    def ask(network: nn.Module) -> Tensor:
        with torch.inference_mode():
            return network(images)

    def ours() -> None:
        answer = ask(fast)
        if not compared:  # once, while warming up
            compared.append(F.cosine_similarity(answer.flatten(), ask(theirs).flatten(), dim=0).item())
            assert compared[0] > 0.999, f"the fast {name} does not answer as the plain one: cosine {compared[0]}"

    return ours, lambda: ask(theirs)


def operations_of(work: Callable[[], Any]) -> Callable[[], float]:
    """What counts the operations of matrix products and convolutions in one call of `work`, forward and backward. Those
    of packed weights are not seen."""

    def count() -> float:
        with FlopCounter() as counter:
            work()
        return float(counter.total)

    return count


def where_bf16(name: str, what: str, make: Callable[[], Contest]) -> Contest | Skipped:
    """`make()` where bf16 is the faster format; elsewhere its row says why it is not held."""
    device = pick_device()
    if computes_bf16(device):
        return make()
    if device.type != "cpu":
        return Skipped(name, what, f"not on this device: {device.type} does not compute faster in bf16")
    return Skipped(
        name, what, f"not on this CPU: bf16 products take {cpu.slowdown('bf16'):.1f} times as long as fp32's"
    )
