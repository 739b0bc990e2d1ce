"""Pictures and their boxes, changed together: letterbox, mosaic, random affine map, then colours and mirror images.

The geometry works on one picture at a time (`compose`), colours and mirror images on whole batches
(`BoxAugment.finish`). Every random number is a function of (seed, epoch, index), as in `data/order.py`.

The mosaic (Bochkovskiy et al., arXiv 2004.10934, section 3.3) puts four pictures around a random centre of a canvas
of twice the side; an affine map then takes a random part of it to the size of the network's input.

Shapes: S side of the input, n boxes (x1, y1, x2, y2) in pixels, B samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, radians, sin, tan

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from etude.data import order
from etude.data.augment import adjust_hue
from etude.errors import UsageError

GREY = 114
"""What fills a picture's surroundings."""
UNIFORMS = 12
"""Random numbers of one picture's geometry: mosaic or not, its centre (2), three partners (3), then rotation,
scale, shears (2) and translation (2)."""
SMALLEST, VISIBLE = 2.0, 0.1
"""A box is dropped that has fewer pixels a side, or a smaller part of its area, left inside the picture."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture, uint8 (H, W, 3), and what is in it."""

    picture: NDArray[np.uint8]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class BoxAugment:
    """How training pictures with boxes are changed; all is off by default.

    Raises UsageError for a value out of its range.
    """

    mosaic: float = 0.0
    """Probability that a picture is put together of four."""
    degrees: float = 0.0
    """The angle is uniform in [-degrees, degrees]."""
    translate: float = 0.0
    """Largest shift to either side, as a fraction of the side."""
    scale: float = 0.0
    """The enlargement is uniform in [1 - scale, 1 + scale]."""
    shear: float = 0.0
    """The shears along both axes are uniform in [-shear, shear] degrees."""
    hue: float = 0.0
    """The turn is uniform in [-hue, hue], 1 being the full circle, at most 0.5."""
    saturation: float = 0.0
    """The factor, in HSV, is uniform in [1 - saturation, 1 + saturation]."""
    value: float = 0.0
    """Likewise the factor of the brightness."""
    flip: float = 0.0
    """Probability of a mirror image, left to right."""

    def __post_init__(self) -> None:
        limits = {
            **{name: (0 <= getattr(self, name) <= 1, "a probability from 0 to 1") for name in ("mosaic", "flip")},
            **{name: (0 <= getattr(self, name) < 90, "0 to below 90 degrees") for name in ("degrees", "shear")},
            **{name: (0 <= getattr(self, name) <= 1, "from 0 to 1") for name in ("translate", "saturation", "value")},
            "scale": (0 <= self.scale < 1, "from 0 to below 1"),
            "hue": (0 <= self.hue <= 0.5, "from 0 to 0.5"),
        }
        for name, (fits, wanted) in limits.items():
            if not fits:
                raise UsageError(f"augmentation: {name} is {getattr(self, name)!r}, must be {wanted}")

    @property
    def moves(self) -> bool:
        """Whether the geometry changes at all."""
        return bool(self.mosaic or self.degrees or self.translate or self.scale or self.shear)

    def finish(
        self, images: UInt8[Tensor, "B 3 S S"], boxes: Float[Tensor, "B M 4"], *, seed: int, epochs, indices
    ) -> tuple[Tensor, Tensor]:
        """Colours and mirror images of a whole batch, of the boxes too."""
        drawn = torch.from_numpy(order.uniform(seed, epochs, indices, 4, order.AUGMENT))
        low = torch.tensor([-self.hue, 1 - self.saturation, 1 - self.value], dtype=torch.float64)
        high = torch.tensor([self.hue, 1 + self.saturation, 1 + self.value], dtype=torch.float64)
        factors = low + drawn[:, :3] * (high - low)
        if self.hue:
            images = adjust_hue(images, factors[:, 0])
        if self.saturation or self.value:
            images = adjust_saturation_value(images, factors[:, 1], factors[:, 2])
        flip = (drawn[:, 3] < self.flip).to(images.device)
        if self.flip:
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
            mirrored = torch.stack([images.shape[3] - boxes[..., 2], boxes[..., 1],
                                    images.shape[3] - boxes[..., 0], boxes[..., 3]], -1)  # fmt: skip
            boxes = torch.where(flip[:, None, None], mirrored, boxes)
        return images, boxes


def adjust_saturation_value(
    images: UInt8[Tensor, "B 3 H W"], saturation: Float[Tensor, " B"], value: Float[Tensor, " B"]
) -> UInt8[Tensor, "B 3 H W"]:
    """Both by each sample's factor, in HSV: at most to full saturation and full brightness.

    With v the largest channel, a channel is v - s v f; multiplying s by g moves it to v - g (v - channel), and s = 1 is
    reached where the least channel, v - g (v - least), would fall below 0. Multiplying v multiplies all channels alike,
    until the largest is 255: hue and saturation stay.
    """
    x = images.float()
    top, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    gain, bright = (f.to(x.device, torch.float32)[:, None, None, None] for f in (saturation, value))
    gain = torch.minimum(gain, top / (top - least).clamp(min=1e-6))
    bright = torch.minimum(bright, 255 / top.clamp(min=1))
    x = (top - gain * (top - x)) * bright
    return x.clamp_(0, 255).round_().to(torch.uint8)


def letterboxed(width: int, height: int, size: int) -> tuple[float, int, int]:
    """(scale, left, top) of a picture of these sides in the middle of a square, touching two of its edges."""
    scale = size / max(width, height)
    inner_w, inner_h = fitted(width, height, scale)
    return scale, (size - inner_w) // 2, (size - inner_h) // 2


def fitted(width: int, height: int, scale: float) -> tuple[int, int]:
    """The picture's sides under the scale, in whole pixels."""
    return max(1, round(width * scale)), max(1, round(height * scale))


def resized(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """(H, W, 3) -> (H scale, W scale, 3), bilinear, smoothed where it shrinks."""
    height, width = picture.shape[:2]
    sides = fitted(width, height, scale)
    if sides == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize(sides, Image.Resampling.BILINEAR))


def letterbox(sample: Sample, size: int) -> Sample:
    """The whole picture within a grey square (size, size, 3), its boxes moved with it."""
    height, width = sample.picture.shape[:2]
    scale, left, top = letterboxed(width, height, size)
    inner = resized(sample.picture, scale)
    if inner.shape[:2] == (size, size):
        square = inner
    else:
        square = np.full((size, size, 3), GREY, np.uint8)
        square[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    moved = sample.boxes * scale + np.array([left, top, left, top], np.float64)
    return Sample(square, moved, sample.labels, sample.crowd)


def mosaic(samples: Sequence[Sample], size: int, centre: tuple[float, float]) -> Sample:
    """Four pictures, each with a corner at the centre, on a canvas of 2 size. `centre`: two numbers in [0, 1), of the
    middle half of the canvas. Boxes are not cut where a picture reaches beyond the canvas: `warp` does that."""
    canvas = np.full((2 * size, 2 * size, 3), GREY, np.uint8)
    x, y = (int(size / 2 + u * size) for u in centre)
    boxes, labels, crowd = [], [], []
    for place, sample in enumerate(samples):
        scale = size / max(sample.picture.shape[:2])
        inner = resized(sample.picture, scale)
        h, w = inner.shape[:2]
        left, top = (x - w if place % 2 == 0 else x), (y - h if place < 2 else y)
        rows = slice(max(top, 0), min(top + h, 2 * size))
        columns = slice(max(left, 0), min(left + w, 2 * size))
        canvas[rows, columns] = inner[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        boxes.append(sample.boxes * scale + np.array([left, top, left, top], np.float64))
        labels.append(sample.labels)
        crowd.append(sample.crowd)
    return Sample(canvas, np.concatenate(boxes), np.concatenate(labels), np.concatenate(crowd))


def matrix(augment: BoxAugment, uniforms: NDArray[np.float64], canvas: int, size: int) -> NDArray[np.float64]:
    """(3, 3): canvas (x, y, 1) -> picture. The canvas's middle goes to the picture's, moved; it is turned, scaled and
    sheared about it. `uniforms`: rotation, scale, two shears, two translations."""
    angle, scale, shear_x, shear_y, x, y = uniforms * 2 - 1
    turn, grow = radians(angle * augment.degrees), 1 + scale * augment.scale
    middle = np.array([[1, 0, -canvas / 2], [0, 1, -canvas / 2], [0, 0, 1]], np.float64)
    turned = np.array([[cos(turn), -sin(turn), 0], [sin(turn), cos(turn), 0], [0, 0, 1]])
    turned[:2] *= grow
    sheared = np.array([[1, tan(radians(shear_x * augment.shear)), 0],
                        [tan(radians(shear_y * augment.shear)), 1, 0], [0, 0, 1]])  # fmt: skip
    moved = np.array([[1, 0, size * (0.5 + x * augment.translate)], [0, 1, size * (0.5 + y * augment.translate)],
                      [0, 0, 1]])  # fmt: skip
    return moved @ sheared @ turned @ middle


def warp(sample: Sample, by: NDArray[np.float64], size: int) -> Sample:
    """A picture (size, size, 3) under an affine map; boxes become the upright boxes around what is there of them: a
    mosaic's may reach beyond its canvas."""
    inverse = np.linalg.inv(by)
    picture = Image.fromarray(sample.picture).transform(
        (size, size),
        Image.Transform.AFFINE,
        tuple(inverse[:2].ravel()),
        Image.Resampling.BILINEAR,
        fillcolor=(GREY, GREY, GREY),
    )
    height, width = sample.picture.shape[:2]
    there = sample.boxes.clip(0, [width, height, width, height])
    boxes = _upright(there, by).clip(0, size)
    kept = visible(sample.boxes, there) & visible(_upright(sample.boxes, by), boxes)
    return Sample(np.asarray(picture), boxes[kept], sample.labels[kept], sample.crowd[kept])


def _upright(boxes: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
    corners = np.stack([x, y, np.ones_like(x)], -1) @ by[:2].T
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def visible(whole: NDArray[np.float64], clipped: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which boxes are still worth finding: SMALLEST pixels a side and VISIBLE of their area are inside."""
    inner, before = ((b[:, 2:] - b[:, :2]) for b in (clipped, whole))
    return (inner.min(1, initial=np.inf) >= SMALLEST) & (inner.prod(1) >= VISIBLE * before.prod(1))


def compose(load, augment: BoxAugment, uniforms: NDArray[np.float64], index: int, count: int, size: int) -> Sample:
    """The training picture of a sample: `load(index)`, alone or among three others of `count`, under a random map.

    `uniforms`: UNIFORMS numbers in [0, 1).
    """
    if uniforms[0] < augment.mosaic:
        others = [int(u * count) for u in uniforms[3:6]]
        sample = mosaic([load(i) for i in (index, *others)], size, (uniforms[1], uniforms[2]))
    else:
        sample = letterbox(load(index), size)
    if not augment.moves:
        return sample
    return warp(sample, matrix(augment, uniforms[6:12], sample.picture.shape[0], size), size)
