"""MATLAB's `imresize(..., "bicubic")`, with which super-resolution's data sets are made and its results are compared.

Keys' cubic kernel (a = -1/2), stretched by the factor where a picture is made smaller, so that nothing aliases; beyond
its border a picture is mirrored, the border's pixels counted twice. Pillow's bicubic filter is the same but for the
border, where it leaves out what is not there, and for its arithmetic.

Shapes: C channels, H rows, W columns, and h, w of the answer.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor


def cubic(x: Tensor) -> Tensor:
    """Keys' kernel, a = -1/2: 1 at 0, 0 at other whole numbers and beyond 2."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


@lru_cache(maxsize=32)
def contributions(length: int, answer: int, factor: float) -> tuple[Tensor, Tensor]:
    """Which of `length` pixels make up each of `answer` new ones, `factor` times as dense, and how much of each:
    (answer, taps) places and weights. Every row of weights sums to 1."""
    stretch = max(1.0, 1 / factor)
    taps = math.ceil(4 * stretch) + 2
    centre = (torch.arange(answer, dtype=torch.float64) + 0.5) / factor - 0.5
    first = (centre - 2 * stretch).floor()
    places = first[:, None] + torch.arange(taps)
    weights = cubic((centre[:, None] - places) / stretch)
    weights = weights / weights.sum(1, keepdim=True)
    used = weights.abs().amax(0) > 0
    mirrored = places[:, used].long() % (2 * length)  # ... 1 0 | 0 1 ... n-1 | n-1 n-2 ...
    return torch.where(mirrored < length, mirrored, 2 * length - 1 - mirrored), weights[:, used]


def resize_side(image: Tensor, dim: int, answer: int, factor: float) -> Tensor:
    """One side of a picture to `answer` pixels, `factor` times as dense; never in less than its own precision."""
    places, weights = contributions(image.shape[dim], answer, factor)
    matrix = image.new_zeros(answer, image.shape[dim])
    matrix.scatter_add_(1, places.to(image.device), weights.to(image))
    with torch.autocast(image.device.type, enabled=False):
        return torch.movedim(torch.movedim(image, dim, -1) @ matrix.T, -1, dim)


def imresize(image: Tensor, factor: float) -> Tensor:
    """(..., H, W) floats -> (..., h, w), h = ceil(factor H): `factor` times as dense, e.g. 1/4 or 4. Not clipped:
    beside an edge values may leave the range by a tenth of it."""
    height, width = (math.ceil(round(factor * side, 6)) for side in image.shape[-2:])
    return resize_side(resize_side(image, -2, height, factor), -1, width, factor)


def to_bytes(image: Tensor) -> Tensor:
    """Floats of 0 to 1 -> uint8, rounded."""
    return image.mul(255).round_().clamp_(0, 255).to(torch.uint8)
