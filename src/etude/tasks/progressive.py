"""Training a generator and a critic that grow (ProGAN, Karras et al. 2017, arXiv 1710.10196, section 2 and appendix A).

WGAN-GP with one critic step and a drift term that keeps the critic's scores near zero. How many images were shown is
all that resolution and blending depend on, and the model keeps that number (`generative/progan.py`); the optimisers
begin anew at each resolution. The moving average of the generator that is evaluated is the recipe's `ema`, which moves
once a step.

A step's batch is cut into minibatches of the present resolution's size, each for one turn of the critic and one of the
generator; `batch_size` must be a multiple of all sizes. One that would begin a new resolution within a step keeps the
size of the step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, lcm
from typing import Any, ClassVar

import torch
from torch import Tensor

from etude.data.base import Batch, Dataset
from etude.data.latents import LatentSet
from etude.errors import UsageError
from etude.tasks.adversarial import WGANGP, exact, gradient_penalty, judged, minibatches
from etude.tasks.base import Logs, LossLogs, Update
from etude.tasks.metrics import Mean, Metric


@dataclass(frozen=True)
class Progressive(WGANGP):
    """Progressive growing."""

    balanced: ClassVar[str] = ""
    stage: ClassVar[str] = "side"
    critic_steps: int = 1
    drift: float = 0.001
    """Of the mean of f(x)^2 over real samples."""
    batch_sizes: tuple[int, ...] = (16, 16, 16, 16, 16, 16, 8, 4, 4)
    """Samples of a minibatch, over all processes, at 4, 8, 16 ... pixels a side; the last counts for all beyond."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.batch_sizes or min(self.batch_sizes) < 1 or not 0 <= self.drift < inf or self.critic_steps != 1:
            raise UsageError(
                f"task.batch_sizes {self.batch_sizes} must be positive, task.drift {self.drift} not negative, and "
                f"task.critic_steps {self.critic_steps} 1"
            )

    def check(self, model: Any, dataset: Dataset) -> None:
        """Also whether the pictures are large enough for all stages."""
        assert isinstance(dataset, LatentSet)
        side = dataset.shape[-1]
        if model.config.side > side:
            raise UsageError(
                f"the model grows to {model.config.side} x {model.config.side} pixels, and the data's pictures have "
                f"{side} x {side}",
                hint=f"--model.side {side}, or --data.side {model.config.side}",
            )
        super().check(model, dataset)

    def size_at(self, level: int) -> int:
        """Samples of a minibatch at a level."""
        return self.batch_sizes[min(level, len(self.batch_sizes) - 1)]

    def check_batch(self, model: Any, batch: Batch, processes: int, parts: int) -> None:
        """Whether it divides into minibatches at every resolution, and these into the same groups of samples (of which
        the critic takes deviations) however they are spread."""
        whole, pieces = len(batch["index"]) * processes, processes * parts
        for size in self.batch_sizes:
            if whole % size or size % processes:
                over = f" over {processes} processes" if processes > 1 else ""
                raise UsageError(
                    f"a batch of {whole}{over} does not divide into minibatches of {size} (task.batch_sizes)",
                    hint=f"--batch-size {lcm(*self.batch_sizes)}",
                )
            self._check_share(size // processes, parts)
            if pieces > 1 and not model.critic.joins(size // pieces):
                raise UsageError(
                    f"a minibatch of {size} (task.batch_sizes) in {pieces} pieces tears apart the groups of samples of "
                    "which the critic takes deviations",
                    hint="larger --task.batch-sizes, --accumulate 1, or fewer processes",
                )

    def step(self, model: Any, batch: Batch, update: Update) -> Logs:
        """For each minibatch a turn of the critic, a turn of the generator, and the images counted."""
        logs: Logs = {}
        size = self.size_at(model.level)
        for part in minibatches(batch, len(batch["index"]) * update.processes // size):
            logs = update(self.critic_loss, part, "critic")
            logs |= update(self.generator_loss, part, "generator")
            before = model.level
            model.advance(size)
            if model.level != before:
                update.reset("critic")
                update.reset("generator")
        return logs

    def real(self, model: Any, batch: Batch) -> Tensor:
        """Real pictures at the present resolution, blended within a fade as made ones are."""
        return model.as_seen(batch["image"])

    def full(self, model: Any, samples: Tensor) -> Tensor:
        """Samples at the last resolution's size."""
        return model.full(samples)

    def evaluate(self, model: Any, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Also the resolution that was reached, whose pictures these are."""
        side = Mean()
        side.add(torch.tensor([4.0 * 2**model.level]))
        return super().evaluate(model, batches) | {"side": side}

    def critic_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        """WGAN-GP's, and drift E f(x)^2."""
        x, y = self.real(model, batch), self.made(model, batch)
        real, made = judged(model.critic, x, y)
        gain, penalty = real.mean() - made.mean(), gradient_penalty(model.critic, x, y, batch["mix"])
        loss = -gain + self.penalty * penalty + self.drift * exact(real).square().mean()
        return loss, {
            "loss": loss,
            "wasserstein": gain,
            "penalty": penalty,
            "side": lambda: gain.new_tensor(4.0 * 2**model.level),
            "alpha": lambda: gain.new_tensor(model.alpha),
        }
