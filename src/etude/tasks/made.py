"""What a generative model made: sheets of pictures or clouds of points, single files, strips and films."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from etude.tasks.metrics import Metric

GAP = 2
"""Pixels between the pictures of a sheet."""


def picture(image: Tensor) -> Image.Image:
    """(C, S, S) uint8 -> a PIL image."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def sheet(images: Tensor, *, columns: int | None = None, scale: int = 1) -> Image.Image:
    """(N, C, S, S) uint8 side by side, as a square where `columns` is not given."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    side = images.shape[-1] * scale
    canvas = Image.new(
        "L" if images.shape[1] == 1 else "RGB", (columns * (side + GAP) - GAP, rows * (side + GAP) - GAP), "white"
    )
    for i, image in enumerate(images):
        tile = picture(image)
        if scale > 1:
            tile = tile.resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(tile, (i % columns * (side + GAP), i // columns * (side + GAP)))
    return canvas


def plane(points: Tensor, others: Tensor | None = None, *, side: int = 360, reach: float | None = None) -> Image.Image:
    """(N, 2) points as dots, over grey ones of `others`; the centre is 0, `reach` what still lies on the picture."""
    canvas = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(canvas, "RGBA")
    clouds = [(others, (120, 120, 120, 90))] if others is not None else []
    clouds.append((points, (37, 99, 235, 130)))
    reach = reach or 1.1 * max(float(cloud.abs().max()) for cloud, _ in clouds) + 1e-6
    for cloud, colour in clouds:
        for x, y in ((0.5 + cloud[:, :2] / (2 * reach)) * side).tolist():
            draw.ellipse((x - 1.5, side - y - 1.5, x + 1.5, side - y + 1.5), fill=colour)
    return canvas


def png(image: Image.Image) -> str:
    """A picture as base64, for figures."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def slerp(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Latents from a (Z,) to b (Z,) along the great circle, (steps, Z): on the way they are as long as draws from
    N(0, 1) are, which a straight line's middle is not."""
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    a, b = a.double(), b.double()
    angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if angle.sin() < 1e-6:
        return torch.lerp(a, b, t).float()
    return ((torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / angle.sin()).float()


@dataclass
class Kept(Metric):
    """Samples by their number, to be looked at."""

    samples: dict[int, Tensor] = field(default_factory=dict)

    def add(self, numbers: Sequence[int], samples: Tensor) -> None:
        """One sample a number."""
        self.samples |= dict(zip(numbers, samples.cpu()))

    def merge(self, other: "Kept") -> None:
        self.samples |= other.samples

    def value(self) -> list[int]:
        """The numbers that are kept."""
        return sorted(self.samples)

    def stacked(self) -> Tensor:
        """(N, ...) in the order of their numbers."""
        return torch.stack([self.samples[number] for number in self.value()])


@dataclass(frozen=True)
class Made:
    """Pictures (N, C, S, S) uint8 or points (N, F), made from latents (N, Z)."""

    suffix: ClassVar[str] = ".png"
    samples: Tensor = field(repr=False)
    latents: Tensor = field(repr=False)
    about: str
    """Which latents these are."""
    film: bool = False
    """Whether they are steps on the way from one sample to another."""

    @property
    def spread(self) -> float:
        """The standard deviation over the samples, averaged over pixels (of 255 levels) or numbers: near 0 where all
        are alike."""
        return float(self.samples.double().std(0, correction=0).mean())

    def json(self) -> dict[str, Any]:
        """As plain values; points themselves, pictures only by their number and shape."""
        shape = list(self.samples.shape[1:])
        said = {"made": len(self.samples), "shape": shape, "about": self.about, "spread": round(self.spread, 4)}
        return said | ({"points": self.samples.tolist()} if self.samples.ndim == 2 else {})

    def row(self) -> list[str]:
        """As cells of a table."""
        shape = "x".join(map(str, self.samples.shape[1:]))
        return [f"{len(self.samples)} of {shape}", self.about, f"spread {self.spread:.3g}"]

    def plot(self) -> Image.Image:
        """All of them, in a square; steps on a way in one row."""
        if self.samples.ndim == 2:
            return plane(self.samples)
        return sheet(self.samples, columns=len(self.samples) if self.film else None)

    def save(self, path: str | Path) -> None:
        """The sheet, and beside it each of several samples: NAME-0000.png ..., of a way NAME.gif; points and latents
        as .npy."""
        path = Path(path)
        self.plot().save(path)
        if self.samples.ndim == 2:
            np.save(path.with_suffix(".npy"), self.samples.numpy())
            return
        frames = [picture(image) for image in self.samples]
        if self.film:
            there_and_back = frames + frames[-2:0:-1]
            there_and_back[0].save(
                path.with_suffix(".gif"), save_all=True, append_images=there_and_back[1:], duration=80, loop=0
            )
        elif len(frames) > 1:
            for i, frame in enumerate(frames):
                frame.save(path.with_name(f"{path.stem}-{i:04d}{path.suffix}"))
        np.save(path.with_name(f"{path.stem}-latents.npy"), self.latents.numpy())
