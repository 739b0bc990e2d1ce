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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.base import Batch, Data, Dataset
from etude.data.latents import LATENTS, Latents, LatentSet, drawn
from etude.data.pictures import PictureSet, levels, scaled
from etude.data.ring import RingSet
from etude.errors import UsageError
from etude.nn import twice
from etude.tasks.base import Ask, Block, Logs, LossLogs, Task, Update
from etude.tasks.clouds import EMBED, Clouds, Features, Fidelity
from etude.tasks.made import Kept, Made, plane, png, sheet, slerp
from etude.tasks.metrics import Mean, Metric

SHOWN = 32
"""Pictures that the report shows of every evaluation, from the same latents."""
STEPS = 10
"""On the way between two of them."""
JUDGED = 8
"""Pictures whose nearest training pictures are shown."""
LARGEST = 128
"""Pixels a side of a picture in the report."""
POINTS = 1000
CHUNK = 64
"""Samples of 64 x 64 pixels that are made at once; of larger ones fewer."""
MOST_BYTES = 1 << 30
"""Of the samples that one answer holds."""
FEWEST = 6
"""Samples whose fifth neighbour among the others can be found."""
COLLAPSED, RUNAWAY, OUTWEIGHED, WON = 0.02, 1e4, 1e3, 1e-3


@dataclass(frozen=True)
class Make(Ask):
    """What is made."""

    n: int = 16
    """Samples, where no latents are given: those of the numbers 0 ... n - 1."""
    seed: int = 0
    """Chooses the latents; the same seed and number always give the same."""
    interpolate: tuple[int, int] | None = None
    """Two numbers: the way from the one's sample to the other's, in n steps."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 100_000 or not 0 <= self.seed < 1 << 63:
            raise UsageError(f"n is {self.n} and seed {self.seed}; they must be 1 to 100,000, and not negative")
        if self.interpolate is not None and (
            self.n < 2 or min(self.interpolate) < 0 or max(self.interpolate) >= LATENTS
        ):
            raise UsageError(
                f"interpolate {self.interpolate} takes two latents' numbers, 0 to {LATENTS - 1}, and n, which is "
                f"{self.n}, must be 2 or more",
                hint="--interpolate 3 8 --n 16",
            )

    @property
    def made(self) -> str:
        """The seed, and the ends of a way."""
        ends = "" if self.interpolate is None else f"-from-{self.interpolate[0]}-to-{self.interpolate[1]}"
        return f"seed-{self.seed}{ends}"


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
class Adversarial(Task):
    """Two players. Subclasses say what they play for; batches hold "image", "noise" and "mix" (`data/latents.py`)."""

    critic_steps: int = 1
    """Steps of the critic before one of the generator."""
    features: Features = "fashion"
    """In which samples are judged: see `tasks/clouds.py`."""

    measure: ClassVar[str] = "frechet"
    ask: ClassVar[type[Ask]] = Make
    steadied: ClassVar[str] = ""
    """What else than a lower rate keeps this critic from running away."""
    balanced: ClassVar[str] = ", or other --task.critic-steps"
    """What else than a lower rate keeps one player from outweighing the other."""
    exported: ClassVar[str] = "generator"

    def __post_init__(self) -> None:
        if self.critic_steps < 1:
            raise UsageError(f"task.critic_steps is {self.critic_steps}; it must be at least 1")
        if self.features not in EMBED:
            raise UsageError(f"task.features is {self.features!r}; it must be one of {', '.join(EMBED)}")

    def check(self, model: Any, dataset: Dataset) -> None:
        """Whether the players' samples are the data's, and the data's noise is enough for their latents."""
        assert isinstance(dataset, LatentSet)
        if model.shape != dataset.shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (model.shape, dataset.shape))
            side, channels = dataset.shape[-1], dataset.shape[0]
            if len(dataset.shape) != 3:
                hint = ""
            elif side & (side - 1):
                hint = f"--data.side {1 << (side - 1).bit_length()}: a power of two, as models make"
            else:
                hint = f"--model.side {side} --model.channels {channels}"
            raise UsageError(f"the model makes {theirs} (channels x side x side), the data holds {ours}", hint=hint)
        if dataset.noise < 2 * model.latent:
            raise UsageError(
                f"a latent takes {model.latent} numbers in each player's turn, and data.noise gives "
                f"{dataset.noise} in all",
                hint=f"--data.noise {2 * model.latent}",
            )
        are_points = len(dataset.shape) == 1
        if (self.features == "points") != are_points or (self.features == "fashion" and dataset.shape[0] != 1):
            raise UsageError(
                f"task.features is {self.features!r}, and the data are {'points' if are_points else 'pictures'} of "
                f'{"x".join(map(str, dataset.shape))}: "fashion" is for grey pictures of clothes',
                hint=f"--task.features {'points' if are_points else 'thumbnails'}",
            )
        for split in ("test", "validation"):
            if (count := dataset.sizes.get(split, FEWEST)) < FEWEST:
                raise UsageError(
                    f"the {split} split has {count} samples, too few to be compared with: {FEWEST} are the least",
                    hint="more data" if split == "test" else "--data.validation 0",
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

    # ---------------------------------------------------------------- measuring

    def full(self, model: Any, samples: Tensor) -> Tensor:
        """Samples at the data's own size."""
        return samples

    def opinion(self, measured: dict[str, Metric], real: Tensor, made: Tensor) -> None:
        """What the critic's (B,) scores tell of a part of an evaluation."""

    def evaluate(self, model: Any, batches: Iterable[Batch]) -> dict[str, Metric]:
        """As many samples as the split has, from latents that are the same for all runs: Fréchet distance, precision,
        recall and density of their features, the critic's opinion, and some of them to be looked at."""
        clouds, kept, way = Clouds(), Kept(), Kept()
        measured: dict[str, Metric] = {
            name: Fidelity(clouds, name) for name in ("frechet", "precision", "recall", "density")
        }
        embed, most = EMBED[self.features], POINTS if len(model.shape) == 1 else SHOWN
        for batch in batches:
            latents = batch["noise"][:, : model.latent]
            own = model.generator(latents)
            made, index = self.full(model, own).float(), batch["index"]
            clouds.add(index, embed(batch["image"]), embed(made))
            self.opinion(measured, exact(model.critic(self.real(model, batch))), exact(model.critic(own)))
            first = [i for i in index.tolist() if i < most]
            kept.add(first, _viewed(made[: len(first)]))
            if 0 in first and len(index) > 1 and len(model.shape) == 3:
                way.add(range(STEPS), self._make(model, slerp(latents[0].cpu(), latents[1].cpu(), STEPS)))
        return measured | {"kept": kept, "way": way}

    def evaluate_on(self, dataset: Dataset, model: Any, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Of the ring also how many modes were found, and the share of points within three deviations of one."""
        measured = self.evaluate(model, batches)
        if isinstance(dataset, RingSet):
            clouds = measured["frechet"]
            assert isinstance(clouds, Fidelity)
            for name in ("modes", "near"):
                measured[name] = Modes(clouds.clouds, name, dataset.centres, 3 * dataset.data.deviation)
        return measured

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """Samples over time, the way between two of them, and the training pictures nearest to some."""
        kept, way = measured["kept"], measured["way"]
        assert isinstance(kept, Kept) and isinstance(way, Kept)
        samples = kept.stacked()
        if isinstance(dataset, RingSet):
            real = dataset.fetch("test", range(min(POINTS, dataset.sizes["test"])))["image"]
            item = {"png": png(plane(samples, real, reach=1.6 * dataset.data.radius)), "caption": "grey: the data"}
            return [{"kind": "images", "title": "Made points", "items": [item], "history": True}]
        assert isinstance(dataset, PictureSet)
        scale = max(1, 64 // samples.shape[-1])
        shown = _smaller(samples, LARGEST)
        item = {"png": png(sheet(shown, columns=8, scale=scale)), "caption": "always of the same latents"}
        blocks: list[Block] = [{"kind": "images", "title": "Made pictures", "items": [item], "history": True}]
        if way.samples:
            strip = sheet(_smaller(way.stacked(), LARGEST), columns=STEPS, scale=scale)
            item = {"png": png(strip), "caption": "along the great circle"}
            blocks.append({"kind": "images", "title": "From one latent to another", "items": [item]})
        if dataset.in_memory:
            blocks.append(_neighbours(samples[:JUDGED], dataset, split))
        return blocks

    # ---------------------------------------------------------------- answering

    @torch.no_grad()
    def predict(self, model: Any, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None) -> list[Made]:
        """Samples of each input, a latent's number or latents; without inputs, those that `ask` says."""
        assert isinstance(data, Latents)
        asked = ask or Make()
        film = asked.interpolate is not None
        if inputs and film:
            raise UsageError("interpolate says what is made; it takes no inputs beside it", hint="--interpolate 3 8")
        chosen = [self._given(model, raw, data, asked) for raw in inputs] or [self._chosen(model, asked)]
        count, most = sum(len(latents) for latents, _ in chosen), MOST_BYTES // math.prod(model.shape)
        if count > most:
            shape = "x".join(map(str, model.shape))
            raise UsageError(
                f"{count:,} samples of {shape} are more than {MOST_BYTES >> 20:,} MiB",
                hint=f"--n {most} at most; other ones of another --seed",
            )
        return [Made(self._make(model, latents), latents, about, film) for latents, about in chosen]

    def _make(self, model: Any, latents: Tensor) -> Tensor:
        """(N, Z) -> (N, ...) uint8 pictures or points on the CPU, so many at once that memory does not grow with N."""
        device, side = next(model.parameters()).device, model.shape[-1] if len(model.shape) == 3 else 1
        parts = latents.split(max(1, CHUNK * 64**2 // max(side, 64) ** 2))
        return torch.cat([_viewed(self.full(model, model.generator(part.to(device)))) for part in parts])

    def _chosen(self, model: Any, asked: Make) -> tuple[Tensor, str]:
        """(n, Z) and what they are."""
        if asked.interpolate is None:
            return drawn(asked.seed, range(asked.n), model.latent), f"0 to {asked.n - 1} of seed {asked.seed}"
        ends = drawn(asked.seed, asked.interpolate, model.latent)
        about = f"from {asked.interpolate[0]} to {asked.interpolate[1]} of seed {asked.seed}"
        return slerp(ends[0], ends[1], asked.n), about

    def _given(self, model: Any, raw: Any, data: Latents, asked: Make) -> tuple[Tensor, str]:
        """(N, Z) and what they are."""
        given = data.prepare(raw)
        if not given.is_floating_point():
            return drawn(asked.seed, given.numpy(), model.latent), f"{int(given)} of seed {asked.seed}"
        if given.shape[1] != model.latent:
            raise UsageError(
                f"a latent of {given.shape[1]} numbers was given; the generator takes {model.latent}",
                hint="etude predict RUN 7: a latent's number",
            )
        return given, f"{len(given)} given latents"


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

    def opinion(self, measured: dict[str, Metric], real: Tensor, made: Tensor) -> None:
        """How often the critic is right: 0.5 where it can no longer tell."""
        right = measured.setdefault("critic_accuracy", Mean())
        assert isinstance(right, Mean)
        right.add(torch.cat([real > 0, made <= 0]))


@dataclass(frozen=True)
class Wasserstein(Adversarial):
    """What both kinds of Wasserstein GAN share."""

    critic_steps: int = 5
    """n_critic."""

    def generator_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        """-E f(G(z))."""
        made = self.made_anew(model, batch)
        loss = -exact(model.critic(made)).mean()
        return loss, {"loss": loss, "spread": lambda: spread(made, self.real(model, batch))}

    def opinion(self, measured: dict[str, Metric], real: Tensor, made: Tensor) -> None:
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


@dataclass
class Modes(Fidelity):
    """Of points around known centres: how many centres at least a hundredth of the points lie within `radius` of, or
    the share of points that lie so near to any."""

    name: Any
    centres: Tensor
    radius: float

    def value(self) -> float:
        made = torch.cat([made for _, made in self.clouds.parts.values()])
        distance, nearest = torch.cdist(made.double(), self.centres.double()).min(1)
        near = distance <= self.radius
        if self.name == "near":
            return float(near.double().mean())
        found = nearest[near].bincount(minlength=len(self.centres))
        return float((found >= len(made) / 100).sum())


def _viewed(samples: Tensor) -> Tensor:
    """Pictures as uint8, points as they are; on the CPU."""
    return (levels(samples) if samples.ndim == 4 else samples.float()).cpu()


def _neighbours(samples: Tensor, dataset: PictureSet, split: str) -> Block:
    """Made pictures, each with the three training pictures that differ least from it, pixel by pixel; and how far held
    out real pictures are from theirs, to compare with."""
    real = dataset.pictures(split, range(min(JUDGED, dataset.sizes[split])))
    asked = torch.cat([_thumbs(samples), _thumbs(real)])
    found: list[tuple[Tensor, Tensor]] = []
    at_once = max(1, (1 << 22) // math.prod(dataset.shape))
    for start in range(0, dataset.sizes["train"], at_once):
        rows = range(start, min(start + at_once, dataset.sizes["train"]))
        distance = torch.cdist(asked, _thumbs(dataset.pictures("train", rows)))
        near = distance.topk(min(3, len(rows)), largest=False)
        found.append((near.values, near.indices + start))
    distances, places = (torch.cat([part[i] for part in found], 1) for i in (0, 1))
    nearest = distances.topk(min(3, distances.shape[1]), largest=False)
    usual = float(nearest.values[len(samples) :, 0].median()) / asked.shape[1] ** 0.5
    items = []
    for sample, their, chosen, values in zip(samples, places, nearest.indices, nearest.values[:, 0]):
        alike = dataset.pictures("train", their[chosen].tolist())
        strip = sheet(_smaller(torch.cat([sample[None], alike]), LARGEST), columns=1 + len(alike))
        items.append({"png": png(strip), "caption": f"{float(values) / asked.shape[1] ** 0.5:.3f}"})
    note = (
        "Left of each row a made picture, then the training pictures that differ least from it, with the root mean "
        f"square difference of the first. Of held out real pictures that is {usual:.3f}: a generator that learned by "
        "heart lies far below it."
    )
    if dataset.data.source == "photos":
        note += " Patches are cut at places of their own here: one that training saw a few pixels aside is not found."
    return {"kind": "images", "title": "Nearest training pictures", "note": note, "items": items}


def _thumbs(images: Tensor) -> Tensor:
    """uint8 (B, C, S, S) -> (B, C T T) in -1..1, at most 32 pixels a side."""
    return scaled(_smaller(images, 32)).flatten(1)


def _smaller(images: Tensor, side: int) -> Tensor:
    """uint8 (B, C, S, S) of at most this many pixels a side, averages where they have more."""
    if images.shape[-1] <= side:
        return images
    return F.adaptive_avg_pool2d(images.float(), side).round().to(torch.uint8)
