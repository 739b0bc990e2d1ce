"""Windows of pictures and their masks, turned, scaled, bent and shaded together, as whole batches.

The bending is the paper's (arXiv 1505.04597, section 3.1): displacements on a coarse grid, 3 by 3, from a Gaussian of
some pixels' standard deviation, interpolated bicubically to every pixel. Turning, scaling, mirroring and bending are
one map, and pictures are sampled once: bilinearly, their masks at the nearest pixel. Every number is a function of
(seed, epoch, index).

Shapes: B samples, C channels, S side of what is cut out, T side of what comes out.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from etude.data import order
from etude.errors import UsageError

PLAIN = 8
"""Numbers a sample takes besides those of its grid: angle, scale, two mirrors, brightness, contrast, gamma, none."""


@dataclass(frozen=True)
class Deform:
    """How far training windows are changed; all is off by default."""

    degrees: float = 0.0
    """The angle is uniform in [-degrees, degrees]."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the enlargement, uniform in its logarithm."""
    mirror: bool = False
    """Left and right change places half of the time."""
    upside_down: bool = False
    """So do top and bottom."""
    elastic: float = 0.0
    """Standard deviation of the grid's displacements in pixels; the paper takes 10."""
    grid: int = 3
    """Displacements a side."""
    brightness: float = 0.0
    """What is added is uniform in [-brightness, brightness], as a share of the whole range."""
    contrast: float = 0.0
    """The factor about the window's mean is uniform in [1 - contrast, 1 + contrast]."""
    gamma: float = 0.0
    """The exponent is exp(u), u uniform in [-gamma, gamma]."""

    def __post_init__(self) -> None:
        limits = {
            "degrees": (0 <= self.degrees <= 180, "from 0 to 180"),
            "scale": (0 < self.scale[0] <= self.scale[1], "a range above 0, the smaller number first"),
            "elastic": (self.elastic >= 0, "0 or more pixels"),
            "grid": (self.grid >= 2, "2 or more"),
            "brightness": (0 <= self.brightness <= 1, "from 0 to 1"),
            "contrast": (0 <= self.contrast <= 1, "from 0 to 1"),
            "gamma": (self.gamma >= 0, "0 or more"),
        }
        for name, (fits, wanted) in limits.items():
            if not fits:
                raise UsageError(f"data.augment.{name} is {getattr(self, name)!r}; it must be {wanted}")

    def margin(self, side: int) -> int:
        """Pixels that must be cut out on each side around a window, for what is turned or bent into it."""
        turn = math.radians(min(self.degrees, 45))
        wide = side / 2 * (math.cos(turn) + math.sin(turn)) / self.scale[0]
        return math.ceil(wide - side / 2 + 2 * self.elastic)

    def numbers(self, *, seed: int, epochs, indices) -> Float[Tensor, "B n"]:
        """PLAIN uniform numbers of each sample, then 2 grid^2 standard normal ones."""
        count = 2 * self.grid**2
        drawn = order.uniform(seed, epochs, indices, PLAIN + count, order.ELASTIC)
        one, two = drawn[:, PLAIN::2], drawn[:, PLAIN + 1 :: 2]
        radius = np.sqrt(-2 * np.log1p(-one))  # Box and Muller (1958)
        normal = np.concatenate([radius * np.cos(2 * np.pi * two), radius * np.sin(2 * np.pi * two)], 1)
        return torch.from_numpy(np.concatenate([drawn[:, :PLAIN], normal], 1)).float()

    def positions(self, numbers: Float[Tensor, "B n"], side: int) -> Float[Tensor, "B T T 2"]:
        """Where each pixel of a window comes from: (x, y) in pixels from its centre."""
        b, device = len(numbers), numbers.device
        along = torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
        y, x = torch.meshgrid(along, along, indexing="ij")
        angle = (2 * numbers[:, 0] - 1) * math.radians(self.degrees)
        low, high = map(math.log, self.scale)
        shrink = torch.exp(-(low + numbers[:, 1] * (high - low)))
        mirrored = torch.where((numbers[:, 2] < 0.5) & self.mirror, -1.0, 1.0)
        turned = torch.where((numbers[:, 3] < 0.5) & self.upside_down, -1.0, 1.0)
        cos, sin = (shrink * angle.cos()).view(-1, 1, 1), (shrink * angle.sin()).view(-1, 1, 1)
        x, y = mirrored.view(-1, 1, 1) * x, turned.view(-1, 1, 1) * y
        found = torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
        if self.elastic:
            coarse = self.elastic * numbers[:, PLAIN:].view(b, 2, self.grid, self.grid)
            bent = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)
            found = found + bent.permute(0, 2, 3, 1)
        return found

    def shade(self, numbers: Float[Tensor, "B n"], image: Float[Tensor, "B C T T"]) -> Float[Tensor, "B C T T"]:
        """Levels of 0 to 255 with another gamma, contrast and brightness."""
        added, factor, power = ((2 * numbers[:, i] - 1).view(-1, 1, 1, 1) for i in (4, 5, 6))
        if self.gamma:
            image = 255 * (image / 255).clamp(0, 1) ** torch.exp(power * self.gamma)
        if self.contrast:
            mean = image.mean((1, 2, 3), keepdim=True)
            image = mean + (image - mean) * (1 + factor * self.contrast)
        if self.brightness:
            image = image + 255 * self.brightness * added
        return image.clamp(0, 255) if self.gamma or self.contrast or self.brightness else image

    def __call__(
        self,
        image: UInt8[Tensor, "B C S S"],
        mask: UInt8[Tensor, "B S S"],
        weight: Float[Tensor, "B S S"] | None,
        *,
        side: int,
        seed: int,
        epochs,
        indices,
    ) -> tuple[Float[Tensor, "B C T T"], UInt8[Tensor, "B T T"], Float[Tensor, "B T T"] | None]:
        """The window of T = `side` pixels amid each cut-out, changed: levels of 0 to 255, its mask, and its weights
        where it has some. What lies beyond the cut-out, which should have `margin(T)` around the window, is mirrored.
        """
        numbers = self.numbers(seed=seed, epochs=epochs, indices=indices).to(image.device)
        grid = self.positions(numbers, side) * (2 / image.shape[-1])
        found = _sample(image.float(), grid, "bilinear")
        masks = _sample(mask[:, None].float(), grid, "nearest")[:, 0].to(torch.uint8)
        weights = None if weight is None else _sample(weight[:, None], grid, "bilinear")[:, 0]
        return self.shade(numbers, found), masks, weights


def _sample(values: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(values, grid, mode, padding_mode="reflection", align_corners=False)
