"""How well predicted regions lie on true ones: Dice, IoU and the 95 % Hausdorff distance.

Dice = 2 |A and B| / (|A| + |B|) and IoU = |A and B| / |A or B| count the pixels of the whole split, so they are the
same for any division into batches and over processes; Dice = 2 IoU / (1 + IoU), never to be confused. The Hausdorff
distance belongs to a case (a picture, a slice) and is averaged over cases.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.data.distance import distance, surface
from etude.data.masks import IGNORED
from etude.tasks.metrics import Metric


def counts(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(..., H, W) classes -> (K, 3): pixels in both, in the prediction, in the truth. Ignored ones do not count."""
    known = truth != IGNORED
    predicted, truth = predicted[known], truth[known]
    both = torch.bincount(truth[predicted == truth], minlength=num_classes)
    sizes = (torch.bincount(part, minlength=num_classes) for part in (predicted, truth))
    return torch.stack([both, *sizes], 1).cpu()


@dataclass
class Overlap(Metric):
    """Dice or IoU of some classes, their mean. A class that is neither there nor predicted has none, and is left out;
    None where that is so of all."""

    classes: tuple[int, ...]
    union: bool = False
    """IoU instead of Dice."""
    counted: Tensor | None = None
    """(K, 3) as in `counts`."""

    def add(self, found: Tensor) -> None:
        self.counted = found.clone() if self.counted is None else self.counted + found

    def merge(self, other: "Overlap") -> None:
        if other.counted is not None:
            self.add(other.counted)

    def value(self) -> float | None:
        if self.counted is None:
            return None
        both, predicted, truth = self.counted[list(self.classes)].double().unbind(1)
        sizes = predicted + truth
        shares = both / (sizes - both) if self.union else 2 * both / sizes
        shares = shares[sizes > 0]
        return shares.mean().item() if len(shares) else None


@dataclass
class Distances(Metric):
    """The mean of distances over cases, None of no case; exact in any order of merging."""

    found: list[float] = field(default_factory=list)

    def merge(self, other: "Distances") -> None:
        self.found += other.found

    def value(self) -> float | None:
        return float(np.mean(sorted(self.found))) if self.found else None


@dataclass
class Cases(Metric):
    """(Dice, index, (rows, columns), the predicted classes, packed) of each case, for pictures in the report."""

    rows: list[tuple[float, int, tuple[int, int], bytes]] = field(default_factory=list)

    def merge(self, other: "Cases") -> None:
        self.rows += other.rows

    def value(self) -> list[tuple[float, int, tuple[int, int], bytes]]:
        """From the worst to the best."""
        return sorted(self.rows, key=lambda row: row[:2])


def hausdorff95(one: NDArray[np.bool_], other: NDArray[np.bool_], spacing: tuple[float, ...]) -> float | None:
    """The 95 % Hausdorff distance of two regions of any number of dimensions, in the units of `spacing`, a pixel's
    sides: of the distances from each surface pixel of one to the nearest of the other the 95th percentile (linearly
    interpolated), and the larger of the two directions. None where both are empty; where one is, the diagonal of the
    whole, beyond which no distance lies.

    Surface pixels have a face outside their region. After Huttenlocher et al., 1993, section II; exact, not sampled.
    """
    if not one.any() and not other.any():
        return None
    if not one.any() or not other.any():
        return float(np.linalg.norm(np.array(one.shape) * spacing))
    where = np.nonzero(one | other)
    box = tuple(slice(places.min(), places.max() + 1) for places in where)  # what lies around both changes nothing
    padded = tuple(np.pad(region[box], 1) for region in (one, other))
    edges = [surface(region) for region in padded]
    found = [
        distance(edges[1 - i], spacing=spacing, at=np.stack(np.nonzero(edges[i]), 1).astype(np.int64)) for i in (0, 1)
    ]
    return float(max(np.percentile(distances, 95) for distances in found))
