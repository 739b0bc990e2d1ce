"""Models that make samples of latents: measured, drawn and asked the same way, whatever taught them.

A model says `latent`, how many numbers a latent has, and `shape`, that of a sample: pictures (C, S, S) or points (F,);
its child `generator` makes samples of latents. How they are taught is said by subclasses (`tasks/adversarial.py`).

Shapes: B batch, N noise numbers of a sample, Z numbers of a latent.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.data.base import Batch, Data, Dataset
from etude.data.latents import LATENTS, Latents, LatentSet, drawn
from etude.data.pictures import PictureSet, levels, scaled
from etude.data.ring import RingSet
from etude.errors import UsageError
from etude.tasks.base import Ask, Block, Task
from etude.tasks.clouds import EMBED, Clouds, Features, Fidelity
from etude.tasks.made import Kept, Made, plane, png, sheet, slerp
from etude.tasks.metrics import Metric

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


@dataclass(frozen=True)
class Generative(Task):
    """What is common to tasks whose models make samples."""

    features: Features = "fashion"
    """In which samples are judged: see `tasks/clouds.py`."""

    measure: ClassVar[str] = "frechet"
    ask: ClassVar[type[Ask]] = Make
    exported: ClassVar[str] = "generator"

    def __post_init__(self) -> None:
        if self.features not in EMBED:
            raise UsageError(f"task.features is {self.features!r}; it must be one of {', '.join(EMBED)}")

    def check(self, model: Any, dataset: Dataset) -> None:
        """Whether the model's samples are the data's, and can be judged."""
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

    # ---------------------------------------------------------------- measuring

    def full(self, model: Any, samples: Tensor) -> Tensor:
        """Samples at the data's own size."""
        return samples

    def opinion(self, measured: dict[str, Metric], model: Any, batch: Batch, made: Tensor) -> None:
        """What else a part of an evaluation tells: samples `made` of the model's own size."""

    def evaluate(self, model: Any, batches: Iterable[Batch]) -> dict[str, Metric]:
        """As many samples as the split has, from latents that are the same for all runs: Fréchet distance, precision,
        recall and density of their features, and some of them to be looked at."""
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
            self.opinion(measured, model, batch, own)
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
