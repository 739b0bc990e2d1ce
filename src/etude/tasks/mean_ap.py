"""COCO's mean average precision: equal to pycocotools 2.0 (area "all", 100 detections a class and picture).

Detections are matched picture by picture, at ten thresholds at once; what is kept of a picture is which of its
detections were right, so that parts of a data set merge, over processes too. A detection is matched to the free object
of its class that it overlaps most; what only a crowd region overlaps is neither right nor wrong.

Shapes: n detections and g objects of a picture, T = 10 thresholds, R = 101 levels of recall, K classes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.typing import NDArray

from etude.tasks.metrics import Metric

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100
"""Detections of a class in a picture."""


@dataclass(frozen=True)
class Judged:
    """The detections of one picture, best first, and how many objects there were."""

    scores: Float[ndarray, " n"]
    labels: Int[ndarray, " n"]
    right: Bool[ndarray, "T n"]
    ignored: Bool[ndarray, "T n"]
    objects: Int[ndarray, " K"]
    """Of each class, crowds not counted."""


def judge(
    boxes: Float[ndarray, "n 4"],
    scores: Float[ndarray, " n"],
    labels: Int[ndarray, " n"],
    true_boxes: Float[ndarray, "g 4"],
    true_labels: Int[ndarray, " g"],
    crowd: Bool[ndarray, " g"],
    num_classes: int,
) -> Judged:
    """Match one picture's detections with its objects (pycocotools' evaluateImg)."""
    order = np.argsort(-scores, kind="stable")
    order = order[_rank_within(labels[order]) < MOST]
    scores, labels = scores[order].astype(np.float64), labels[order]
    right = np.zeros((len(THRESHOLDS), len(order)), bool)
    ignored = np.zeros_like(right)
    overlap = _iou(boxes[order].astype(np.float64), true_boxes.astype(np.float64), crowd)
    overlap[labels[:, None] != true_labels] = 0
    plain, crowds = overlap[:, ~crowd], overlap[:, crowd]
    taken = np.zeros((len(THRESHOLDS), plain.shape[1]), bool)
    thresholds = np.minimum(THRESHOLDS, 1 - 1e-10)
    every = np.arange(len(THRESHOLDS))
    for i in np.flatnonzero((overlap >= thresholds[0]).any(1)):
        if (plain[i] >= thresholds[0]).any():
            free = np.where(taken, -1.0, plain[i])
            best = free.shape[1] - 1 - free[:, ::-1].argmax(1)  # of equals the last
            right[:, i] = free[every, best] >= thresholds
            taken[every[right[:, i]], best[right[:, i]]] = True
        if crowds.shape[1]:
            ignored[:, i] = ~right[:, i] & (crowds[i].max() >= thresholds)
    return Judged(scores, labels, right, ignored, np.bincount(true_labels[~crowd], minlength=num_classes))


def _rank_within(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of a label come before each place."""
    order = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1]
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def _iou(a: NDArray[np.float64], b: NDArray[np.float64], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n, g) intersection over union; over the detection's own area where the object is a crowd."""
    inner = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    inner = inner.clip(0).prod(2)
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    return inner / np.maximum(np.where(crowd, area_a[:, None], area_a[:, None] + area_b - inner), 1e-300)


@dataclass
class Store:
    """Every picture's judged detections, by the picture's index, which makes merging twice the same as once."""

    num_classes: int
    pictures: dict[int, Judged] = field(default_factory=dict)
    _summary: tuple[int, NDArray[np.float64]] = (-1, np.zeros(0))

    def precision(self) -> Float[ndarray, "T R K"]:
        """Precision at each level of recall (pycocotools' accumulate); -1 for classes without objects."""
        if self._summary[0] == len(self.pictures):
            return self._summary[1]
        precision = -np.ones((len(THRESHOLDS), len(RECALLS), self.num_classes))
        held = [self.pictures[index] for index in sorted(self.pictures)]
        if held:
            objects = np.sum([one.objects for one in held], axis=0)
            scores, labels = (np.concatenate([getattr(one, name) for one in held]) for name in ("scores", "labels"))
            right, ignored = (np.concatenate([getattr(one, name) for one in held], 1) for name in ("right", "ignored"))
            order = np.lexsort((-scores, labels))  # stable: within a class best first, ties in the pictures' order
            bounds = np.searchsorted(labels[order], np.arange(self.num_classes + 1))
            for label in np.flatnonzero(objects):
                mine = order[bounds[label] : bounds[label + 1]]
                precision[:, :, label] = _curve(right[:, mine], ignored[:, mine], int(objects[label]))
        self._summary = (len(self.pictures), precision)
        return precision

    def average(self, *, at: int | None = None) -> float:
        """The mean over classes with objects, and over thresholds or at one of them; 0 without any object."""
        precision = self.precision()[slice(None) if at is None else [at]]
        known = precision > -1
        return float(precision[known].mean()) if known.any() else 0.0


def _curve(right: NDArray[np.bool_], ignored: NDArray[np.bool_], objects: int) -> NDArray[np.float64]:
    """(T, R) the largest precision at each recall or above."""
    hits = np.cumsum(right & ~ignored, 1, dtype=np.float64)
    misses = np.cumsum(~right & ~ignored, 1, dtype=np.float64)
    recall, precision = hits / objects, hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    out = np.zeros((len(right), len(RECALLS)))
    for t in range(len(right)):
        at = np.searchsorted(recall[t], RECALLS, side="left")
        reached = at < right.shape[1]
        out[t, reached] = precision[t, at[reached]]
    return out


@dataclass
class MeanAP(Metric):
    """Mean average precision over a store that several measures share: at one threshold, or over all."""

    store: Store
    at: int | None = None
    """Which of THRESHOLDS."""

    def merge(self, other: "MeanAP") -> None:
        self.store.pictures |= other.store.pictures

    def value(self) -> Any:
        return self.store.average(at=self.at)
