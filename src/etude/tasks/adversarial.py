"""Generative adversarial training: GAN, WGAN, WGAN-GP. Each task's `step` is its paper's Algorithm 1.

- `GAN` (Goodfellow et al. 2014, arXiv 1406.2661): min over G, max over D of E log D(x) + E log(1 - D(G(z))); in
  practice the generator ascends E log D(G(z)) instead, whose gradient does not fade while D wins.
- `WGAN` (Arjovsky et al. 2017, arXiv 1701.07875): the critic's scores have no bound, its weights do; its best gain
  E f(x) - E f(G(z)) is the Wasserstein-1 distance up to a factor.
- `WGANGP` (Gulrajani et al. 2017, arXiv 1704.00028): in place of the bound a penalty on the slope of f between real and
  made samples, so that the gain is the distance itself.

A step's batch is cut into `critic_steps` minibatches, so `batch_size` is critic_steps times the papers' m. The critic
sees each once; the generator then takes its turn with latents of its own. The model has two children, `generator` and
`critic`, and says `latent`, `shape` and, of the critic, whether it `joins` two batches in one pass.

Shapes: B batch, N noise numbers of a sample, Z numbers of a latent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.base import Batch, Dataset
from etude.data.latents import LatentSet
from etude.errors import UsageError
from etude.nn import twice
from etude.tasks.base import Logs, LossLogs, Update
from etude.tasks.generative import Generative
from etude.tasks.metrics import Mean, Metric

COLLAPSED, RUNAWAY, OUTWEIGHED, WON = 0.02, 1e4, 1e3, 1e-3
BEHIND = 6
"""A minibatch's estimate may be below 0 by chance, even three times in a row."""


def minibatches(batch: Batch, count: int) -> list[Batch]:
    """A batch in `count` parts: the k-th holds samples k, k + count, ... So the parts of the shares that processes hold
    make up the parts of the whole batch."""
    size = len(batch["index"])
    if size % count:
        raise UsageError(
            f"{size} samples a process do not divide into {count} minibatches of the critic",
            hint=f"--batch-size {max(1, size // count) * count}",
        )
    return [{name: value[k::count] for name, value in batch.items()} for k in range(count)]


def judged(critic: Any, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) scores of both, in one pass where no sample's score depends on others in it."""
    if critic.joins(len(real)):
        real_scores, made_scores = critic(torch.cat([real, made])).chunk(2)
    else:
        real_scores, made_scores = critic(real), critic(made)
    return exact(real_scores), exact(made_scores)


def exact(x: Tensor) -> Tensor:
    """In fp32 at least: sums and exponentials of bf16 lose digits. float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def gradient_penalty(critic: Any, real: Tensor, made: Tensor, mix: Tensor) -> Tensor:
    """The mean of (|grad f(x)| - 1)^2 at x = mix * real + (1 - mix) * made, mix (B,) (arXiv 1704.00028, Algorithm 1,
    lines 6 and 7).

    In fp32, also under autocast, as the gradient's norm is a sum of many small squares; only the gradients of this
    penalty by the weights are then computed in autocast's type, as those of any loss are.
    """
    if critic._compiled_call_impl is not None:
        raise UsageError("a gradient penalty has a second derivative, which torch cannot compile", hint="--no-compile")
    kind = real.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.enable_grad(), torch.autocast(kind, enabled=False), twice.backward_in(low):
        x = torch.lerp(exact(made), exact(real), mix.view(-1, *[1] * (real.ndim - 1))).detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()


@torch.no_grad()
def clip_weights(module: nn.Module, bound: float) -> None:
    """All weights into [-bound, bound]."""
    for parameter in module.parameters():
        parameter.clamp_(-bound, bound)


@torch.no_grad()
def spread(made: Tensor, real: Tensor) -> Tensor:
    """The standard deviation over made samples over that of real ones, each averaged over pixels: 0 where all are
    alike."""
    return exact(made).std(0).mean() / exact(real).std(0).mean().clamp_min(1e-12)


@dataclass(frozen=True)
class Adversarial(Generative):
    """Two players. Subclasses say what they play for; batches hold "image", "noise" and "mix" (`data/latents.py`)."""

    critic_steps: int = 1
    """Steps of the critic before one of the generator."""

    steadied: ClassVar[str] = ""
    """What else than a lower rate keeps this critic from running away."""
    balanced: ClassVar[str] = ", or other --task.critic-steps"
    """What else than a lower rate keeps one player from outweighing the other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_steps < 1:
            raise UsageError(f"task.critic_steps is {self.critic_steps}; it must be at least 1")

    def check(self, model: Any, dataset: Dataset) -> None:
        """Also whether the data's noise is enough for the latents of both turns."""
        super().check(model, dataset)
        assert isinstance(dataset, LatentSet)
        if dataset.noise < 2 * model.latent:
            raise UsageError(
                f"a latent takes {model.latent} numbers in each player's turn, and data.noise gives "
                f"{dataset.noise} in all",
                hint=f"--data.noise {2 * model.latent}",
            )

    def check_batch(self, model: Any, batch: Batch, processes: int, parts: int) -> None:
        """Whether it divides into minibatches, and these into parts of two samples or more."""
        self._check_share(len(minibatches(batch, self.critic_steps)[0]["index"]), parts)

    def _check_share(self, size: int, parts: int) -> None:
        """Whether a process's share of a minibatch can be computed in parts, and its spread be measured."""
        if size % parts or size // parts < 2:
            over = f", in {parts} parts (accumulate)" if parts > 1 else ""
            raise UsageError(
                f"a process has {size} samples of a minibatch{over}; each takes two or more, all alike many",
                hint="a larger --batch-size, or --accumulate 1",
            )

    # ---------------------------------------------------------------- training

    def real(self, model: Any, batch: Batch) -> Tensor:
        """The real samples, as the critic sees them."""
        return batch["image"]

    def made(self, model: Any, batch: Batch) -> Tensor:
        """Samples for the critic's turn; the generator learns nothing from them."""
        with torch.no_grad():
            return model.generator(batch["noise"][:, : model.latent])

    def made_anew(self, model: Any, batch: Batch) -> Tensor:
        """Samples for the generator's turn, of other latents."""
        return model.generator(batch["noise"][:, model.latent : 2 * model.latent])

    def alarms(self, logs: dict[str, float]) -> dict[str, str]:
        """Collapse, a runaway critic, and a player that outweighs the other."""
        amiss: dict[str, str] = {}
        nan = float("nan")
        wide, loss = logs.get("generator/spread", nan), logs.get("critic/loss", nan)
        if wide < COLLAPSED:
            amiss["collapse"] = (
                f"collapse: the generator's samples vary {wide:.1%} as much as the data. What usually helps: WGAN-GP "
                "in place of the plain GAN, a lower --optim.generator.lr, larger batches"
            )
        if abs(loss) > RUNAWAY:
            amiss["runaway"] = (
                f"divergence: the critic's loss is {loss:.3g} and runs away. What usually helps: a lower "
                f"--optim.critic.lr{self.steadied}"
            )
        norms = {player: logs.get(f"{player}/grad_norm", nan) for player in ("critic", "generator")}
        for player, other in (("critic", "generator"), ("generator", "critic")):
            if norms[player] > OUTWEIGHED * norms[other]:
                amiss["imbalance"] = (
                    f"imbalance: the {player}'s gradient ({norms[player]:.3g}) is more than a thousand times the "
                    f"{other}'s ({norms[other]:.3g}). What usually helps: a lower --optim.{player}.lr{self.balanced}"
                )
        return amiss

    def opinion(self, measured: dict[str, Metric], model: Any, batch: Batch, made: Tensor) -> None:
        """What the critic says of real and made samples."""
        self.verdict(measured, exact(model.critic(self.real(model, batch))), exact(model.critic(made)))

    def verdict(self, measured: dict[str, Metric], real: Tensor, made: Tensor) -> None:
        """What the critic's (B,) scores tell."""


@dataclass(frozen=True)
class GAN(Adversarial):
    """Algorithm 1 of arXiv 1406.2661; `critic_steps` is its k."""

    objective: Literal["non-saturating", "minimax"] = "non-saturating"
    """Whether the generator ascends E log D(G(z)), or descends E log(1 - D(G(z)))."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in ("non-saturating", "minimax"):
            raise UsageError(f"task.objective is {self.objective!r}; it must be non-saturating or minimax")

    def step(self, model: nn.Module, batch: Batch, update: Update) -> Logs:
        """k steps of the critic, each on a minibatch of its own, then one of the generator."""
        logs: Logs = {}
        parts = minibatches(batch, self.critic_steps)
        for part in parts:
            logs = update(self.critic_loss, part, "critic")
        return logs | update(self.generator_loss, parts[-1], "generator")

    def critic_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        """-E log D(x) - E log(1 - D(G(z))), D being the sigmoid of a score."""
        real, made = judged(model.critic, self.real(model, batch), self.made(model, batch))
        loss = F.softplus(-real).mean() + F.softplus(made).mean()
        return loss, {"loss": loss, "real": lambda: real.sigmoid().mean(), "made": lambda: made.sigmoid().mean()}

    def generator_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        """-E log D(G(z)), or E log(1 - D(G(z)))."""
        made = self.made_anew(model, batch)
        score = exact(model.critic(made))
        loss = F.softplus(-score).mean() if self.objective == "non-saturating" else -F.softplus(score).mean()
        return loss, {"loss": loss, "spread": lambda: spread(made, self.real(model, batch))}

    def alarms(self, logs: dict[str, float]) -> dict[str, str]:
        """Also a critic that has won, from which nothing can be learned."""
        amiss = super().alarms(logs)
        if logs.get("critic/loss", 1.0) < WON:
            amiss["won"] = (
                f"the critic has won: its loss is {logs['critic/loss']:.1e}, and the generator learns nothing from it. "
                "What usually helps: a lower --optim.critic.lr, the non-saturating objective, WGAN-GP"
            )
        return amiss

    def verdict(self, measured: dict[str, Metric], real: Tensor, made: Tensor) -> None:
        """How often the critic is right: 0.5 where it can no longer tell."""
        right = measured.setdefault("critic_accuracy", Mean())
        assert isinstance(right, Mean)
        right.add(torch.cat([real > 0, made <= 0]))


@dataclass(frozen=True)
class Wasserstein(Adversarial):
    """What both kinds of Wasserstein GAN share."""

    alarmed_after: ClassVar[Mapping[str, int]] = {"behind": BEHIND}
    critic_steps: int = 5
    """n_critic."""

    def alarms(self, logs: dict[str, float]) -> dict[str, str]:
        """Also a critic that lags behind: it holds made samples for more real than real ones, again and again."""
        amiss = super().alarms(logs)
        if logs.get("critic/wasserstein", 0.0) < 0:
            amiss["behind"] = (
                f"the critic lags behind: its estimate of the distance was below 0 in {BEHIND} logged steps in a row, "
                "and the generator learns little from it. What usually helps: a lower --optim.generator.lr, then also "
                "a lower --optim.critic.lr"
            )
        return amiss

    def generator_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        """-E f(G(z))."""
        made = self.made_anew(model, batch)
        loss = -exact(model.critic(made)).mean()
        return loss, {"loss": loss, "spread": lambda: spread(made, self.real(model, batch))}

    def verdict(self, measured: dict[str, Metric], real: Tensor, made: Tensor) -> None:
        """The critic's estimate of the Wasserstein-1 distance (of a clipped critic: up to a factor)."""
        gain = measured.setdefault("wasserstein", Mean())
        assert isinstance(gain, Mean)
        gain.add(real - made)


@dataclass(frozen=True)
class WGAN(Wasserstein):
    """Algorithm 1 of arXiv 1701.07875."""

    clip: float = 0.01
    """The critic's weights stay in [-clip, clip]."""
    steadied: ClassVar[str] = ", a tighter bound (--task.clip)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.clip < math.inf:
            raise UsageError(f"task.clip is {self.clip}; it must be positive", hint="--task.clip 0.01")

    def step(self, model: Any, batch: Batch, update: Update) -> Logs:
        """n_critic steps of the critic, its weights clipped after each, then one of the generator."""
        logs: Logs = {}
        parts = minibatches(batch, self.critic_steps)
        for part in parts:
            logs = update(self.critic_loss, part, "critic")
            clip_weights(model.critic, self.clip)
        return logs | update(self.generator_loss, parts[-1], "generator")

    def critic_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        """E f(G(z)) - E f(x)."""
        real, made = judged(model.critic, self.real(model, batch), self.made(model, batch))
        gain = real.mean() - made.mean()
        return -gain, {"loss": -gain, "wasserstein": gain}


@dataclass(frozen=True)
class WGANGP(Wasserstein):
    """Algorithm 1 of arXiv 1704.00028."""

    penalty: float = 10.0
    """lambda."""
    second_order: ClassVar[bool] = True
    steadied: ClassVar[str] = ", a stronger penalty (--task.penalty)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.penalty < math.inf:
            raise UsageError(f"task.penalty is {self.penalty}; it must be positive", hint="--task.penalty 10")

    def check(self, model: Any, dataset: Dataset) -> None:
        """Also whether the critic's slope is one sample's."""
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.critic.modules()):
            raise UsageError(
                "the critic normalises over the batch, and its penalty is of one sample's slope",
                hint="--model.critic-norm layer",
            )
        super().check(model, dataset)

    def step(self, model: nn.Module, batch: Batch, update: Update) -> Logs:
        """n_critic steps of the critic, then one of the generator."""
        logs: Logs = {}
        parts = minibatches(batch, self.critic_steps)
        for part in parts:
            logs = update(self.critic_loss, part, "critic")
        return logs | update(self.generator_loss, parts[-1], "generator")

    def critic_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        """E f(G(z)) - E f(x) + lambda (|grad f| - 1)^2."""
        x, y = self.real(model, batch), self.made(model, batch)
        real, made = judged(model.critic, x, y)
        gain, penalty = real.mean() - made.mean(), gradient_penalty(model.critic, x, y, batch["mix"])
        loss = -gain + self.penalty * penalty
        return loss, {"loss": loss, "wasserstein": gain, "penalty": penalty}
