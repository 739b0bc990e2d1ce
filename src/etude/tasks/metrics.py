"""Measures that are exact over batches and processes: each keeps what can be merged, none averages averages."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Metric(ABC):
    """Something counted over samples. `merge` joins two parts of a data set, in any order."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Take in the other part."""

    @abstractmethod
    def value(self) -> Any:
        """The measure over all samples seen, JSON-able."""


@dataclass
class Mean(Metric):
    """A mean as (sum, count), in float64."""

    total: float = 0.0
    count: float = 0

    def add(self, values: Tensor) -> None:
        """One value a sample: (B,)."""
        self.total += values.cpu().double().sum().item()
        self.count += values.numel()

    def merge(self, other: "Mean") -> None:
        self.total += other.total
        self.count += other.count

    def value(self) -> float:
        return self.total / max(1, self.count)


@dataclass
class Root(Mean):
    """The root of a mean: of squares, the root mean square."""

    def value(self) -> float:
        return super().value() ** 0.5


@dataclass
class Exponential(Mean):
    """The exponential of a mean: of cross-entropies in nats, the perplexity."""

    def value(self) -> float:
        return math.exp(min(super().value(), 700.0))  # beyond, it is no float


@dataclass
class Curve(Metric):
    """Points of a curve, kept whole; sorted by the first column, so that merging has no order."""

    points: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, *columns: Tensor) -> None:
        """(B,) each."""
        self.points += zip(*(column.double().tolist() for column in columns))

    def merge(self, other: "Curve") -> None:
        self.points += other.points

    def value(self) -> list[tuple[float, ...]]:
        return sorted(self.points)


@dataclass
class Confusion(Metric):
    """Counts[i][j]: samples of class i that were taken for class j."""

    num_classes: int
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    def add(self, labels: Tensor, predicted: Tensor) -> None:
        """(B,) true classes and (B,) predicted ones."""
        pairs = (labels * self.num_classes + predicted).cpu()
        self.counts += torch.bincount(pairs, minlength=self.num_classes**2).view_as(self.counts)

    def merge(self, other: "Confusion") -> None:
        self.counts += other.counts

    def value(self) -> list[list[int]]:
        return self.counts.tolist()


@dataclass
class Worst(Metric):
    """The `keep` records with the largest score; ties go to the smaller record, so merging has no order."""

    keep: int
    records: list[tuple[float, tuple]] = field(default_factory=list)

    def add(self, scores: Tensor, *columns: Tensor) -> None:
        """(B,) scores and further (B,) columns that describe each sample."""
        top = torch.topk(scores, min(self.keep, len(scores))).indices
        picked = [column[top].tolist() for column in columns]
        self.records += [(score, row) for score, row in zip(scores[top].tolist(), zip(*picked))]
        self._trim()

    def merge(self, other: "Worst") -> None:
        self.records += other.records
        self._trim()

    def _trim(self) -> None:
        self.records = sorted(self.records, key=lambda record: (-record[0], record[1]))[: self.keep]

    def value(self) -> list[tuple]:
        return [row for _, row in self.records]
