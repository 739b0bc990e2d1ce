"""The learning-rate range test (Smith, 2015, arXiv 1506.01186, section 3.3): a few steps at growing rates.

The rate grows exponentially from step to step, and the loss tells where learning begins, where it is fastest and where
it breaks. Nothing of it is kept but the curve: `etude train RECIPE --find-lr`.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from etude.engine.evaluate import arrive
from etude.engine.monitor import NonFinite
from etude.engine.optim import Schedule, by_player
from etude.engine.prefetch import prefetch
from etude.engine.recipe import Recipe
from etude.engine.trainer import Trainer
from etude.errors import UsageError
from etude.report import lr_finder as page

BROKEN = 4.0
"""The smoothed loss at this multiple of its best ends the test."""


@dataclass(frozen=True)
class Sweep(Schedule):
    """Rates from `low` to `high` times the optimiser's own, equally far apart on a logarithmic scale."""

    low: float = 1e-6
    high: float = 100.0

    def factor(self, step: float, steps: float) -> float:
        return self.low * (self.high / self.low) ** (step / max(1, steps - 1))


@dataclass(frozen=True)
class Found:
    """The curve, and what follows from it. With several players, rates are the first one's and the others' grow in
    proportion."""

    recipe: str
    flag: str
    """The flag that sets the rate; "" with several players."""
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    """Exponential mean of the losses, corrected for its start."""
    suggestion: float
    """Where the smoothed loss falls fastest over the logarithm of the rate, before its minimum."""
    largest: float
    """Where the smoothed loss is lowest: at larger rates it rises."""
    broke: bool
    """Whether the loss broke before the last rate."""


def find_lr(
    recipe: Recipe,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 100,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
) -> Found:
    """Take up to `steps` steps of the recipe at rates from `low` to `high`. UsageError where nothing can be told."""
    if not 0 < low < high or steps < 20:
        raise UsageError(f"a sweep needs 0 < low < high and at least 20 steps, not {low}, {high} and {steps}")
    reference = next(iter(by_player(recipe.optim).values())).lr
    sweep = Sweep("constant", low=low / reference, high=high / reference)
    swept = replace(recipe, schedule=sweep, steps=steps, ema=None)
    trainer = Trainer(swept, None, device=device, workers=workers, quiet=quiet)
    trainer.model.train()
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    broke = False
    batches = prefetch(trainer.make_batch, 0, steps, workers=trainer.workers)
    begun = time.monotonic()
    trainer.log.begin(0, steps)
    for batch in batches:
        try:
            logs = trainer.take_step(arrive(batch, trainer.dataset, recipe, trainer.device))
        except NonFinite:
            broke = True
            break
        loss = next(value for name, value in logs.items() if name.split("/")[-1] == "loss").item()
        trainer.step += 1
        mean = 0.9 * mean + 0.1 * loss
        losses.append(loss)
        pace = (time.monotonic() - begun) / len(losses)
        left = pace * (steps - len(losses))
        trainer.log.progress(len(losses), steps, {"loss": loss}, recipe.batch_size / max(pace, 1e-9), left)
        smoothed.append(mean / (1 - 0.9 ** len(losses)))
        best = min(smoothed)
        if len(losses) > 10 and smoothed[-1] > best + (BROKEN - 1) * abs(best):
            broke = True
            break
    batches.close()
    trainer.log.close()
    rates = [low * (high / low) ** (i / (steps - 1)) for i in range(len(losses))]
    suggestion, largest = suggest(rates, smoothed)
    flag = "--optim.lr" if len(by_player(recipe.optim)) == 1 else ""
    return Found(recipe.name, flag, rates, losses, smoothed, suggestion, largest, broke)


def suggest(rates: list[float], smoothed: list[float]) -> tuple[float, float]:
    """(rate of the steepest fall, rate of the lowest loss). The fall is that of a line through nine neighbours."""
    if len(smoothed) < 12:
        raise UsageError("the loss broke at once: there is no curve to read a rate from", hint="a smaller --optim.lr")
    lowest = int(np.argmin(smoothed))
    x, y = np.log(rates), np.array(smoothed)
    middles = range(4, max(5, min(lowest + 1, len(y) - 4)))
    slopes = [np.polyfit(x[i - 4 : i + 5], y[i - 4 : i + 5], 1)[0] for i in middles]
    steepest = int(np.argmin(slopes))
    if slopes[steepest] >= 0:
        raise UsageError("the loss fell at no rate that was tried", hint="look at the data and the model first")
    return _rounded(rates[steepest + 4]), _rounded(rates[lowest])


def _rounded(rate: float) -> float:
    """To two digits: the curve does not tell more."""
    return float(f"{rate:.2g}")


def write(found: Found, folder: Path) -> Path:
    """The curve as a page, lr-finder-N.html in `folder` with the first free N. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = page.render(asdict(found))
    number = 1
    while True:
        try:
            with open(folder / f"lr-finder-{number}.html", "x", encoding="utf-8") as file:
                file.write(content)
                return folder / f"lr-finder-{number}.html"
        except FileExistsError:
            number += 1
