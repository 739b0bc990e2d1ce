"""A training step of the engine's, which the contests of training time."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from etude.data.base import Batch
from etude.engine.evaluate import laid_out
from etude.engine.recipe import Recipe
from etude.engine.trainer import Trainer


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
