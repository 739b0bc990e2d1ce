"""Eight Gaussians on a ring: the toy on which it shows whether a generator finds all modes (Metz et al. 2016, arXiv
1611.02163, figure 2)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from etude.data import order
from etude.data.base import Batch
from etude.data.latents import FIXED, Latents, LatentSet
from etude.errors import UsageError

MOST_MODES = 50
"""One counts as found from a hundredth of the points on, so that of more than a hundred none might."""


@dataclass(frozen=True)
class Ring(Latents):
    """Points of `modes` Gaussians, their centres evenly on a circle. A training point is drawn anew each epoch."""

    noise: int = 4
    modes: int = 8
    radius: float = 2.0
    deviation: float = 0.1
    """Standard deviation of each Gaussian, in both directions."""
    train: int = 10_000
    """Points an epoch."""
    test: int = 2_000

    def __post_init__(self) -> None:
        if self.modes < 1 or self.train < 1 or self.test < 2 or self.noise < 2:
            raise UsageError(
                f"data.modes {self.modes}, data.train {self.train}, data.test {self.test} and data.noise {self.noise} "
                "must be at least 1, 1, 2 and 2"
            )
        if self.modes > MOST_MODES:
            raise UsageError(
                f"data.modes is {self.modes}; each of more than {MOST_MODES} holds too few points to count as found",
                hint=f"--data.modes {MOST_MODES}",
            )
        if not self.radius > 0 or not self.deviation > 0:
            raise UsageError(f"data.radius {self.radius} and data.deviation {self.deviation} must be positive")

    def open(self) -> "RingSet":
        return RingSet(self)

    @property
    def centres(self) -> Tensor:
        """(modes, 2)"""
        angle = torch.arange(self.modes, dtype=torch.float64) * (2 * torch.pi / self.modes)
        return (self.radius * torch.stack([angle.cos(), angle.sin()], 1)).float()


class RingSet(LatentSet):
    """{"image": (B, 2) points, "noise": (B, N), "mix": (B,), "index": (B,)}."""

    def __init__(self, data: Ring):
        self.data, self.noise = data, data.noise
        self.shape, self.centres = (2,), data.centres
        self.sizes = {"train": data.train, "test": data.test}
        self.facts = {"source": f"{data.modes} Gaussians on a ring", "sizes": self.sizes}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        places = np.asarray(indices, dtype=np.int64)
        when = (FIXED, 0) if epochs is None else (seed, epochs)
        around = torch.from_numpy(order.normal(*when, places, 2, order.PATCH)).float()
        points = self.centres[torch.from_numpy(places % self.data.modes)] + self.data.deviation * around
        return {"image": points, "index": torch.from_numpy(places)} | self.chance(split, places, epochs, seed)
