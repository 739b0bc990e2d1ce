"""Anchors that suit the data: a check by the ratio at which objects are assigned, and k-means where it fails."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

Anchors = tuple[tuple[tuple[float, float], ...], ...]
ENOUGH = 0.98
"""The share of boxes that some anchor must fit, for the anchors to be left as they are."""


def recall(sides: Float[ndarray, "n 2"], anchors: Float[ndarray, "A 2"], ratio: float) -> float:
    """The share of boxes with an anchor whose width and height differ by less than the factor `ratio`."""
    return float((_worst(sides, anchors).min(1) < ratio).mean()) if len(sides) else 1.0


def suited(anchors: Anchors, sides: Float[ndarray, "n 2"], ratio: float) -> Anchors:
    """The anchors, or new ones where these miss too many boxes and those miss fewer."""
    flat = np.array(anchors, np.float64).reshape(-1, 2)
    sides = sides[(sides >= 2).all(1)]
    before = recall(sides, flat, ratio)
    if before >= ENOUGH or len(sides) < len(flat):
        return anchors
    fitted = fit(sides, len(flat))
    if recall(sides, fitted, ratio) <= before:
        return anchors
    levels = np.round(fitted, 1).reshape(len(anchors), -1, 2)
    return tuple(tuple((float(w), float(h)) for w, h in level) for level in levels)


def fit(sides: Float[ndarray, "n 2"], count: int, *, rounds: int = 50) -> Float[ndarray, "A 2"]:
    """k-means of log widths and heights, by area: boxes that differ by one factor are equally far apart. It begins
    with boxes evenly spread over the areas, and so draws nothing at random."""
    points = np.log(sides)
    order = np.argsort(points.sum(1), kind="stable")
    centres = points[order[((np.arange(count) + 0.5) * len(points) / count).astype(int)]]
    for _ in range(rounds):
        nearest = np.square(points[:, None] - centres).sum(2).argmin(1)
        moved = np.stack([points[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)])
        if np.allclose(moved, centres):
            break
        centres = moved
    return np.exp(centres[np.argsort(centres.sum(1))])


def _worst(sides: Float[ndarray, "n 2"], anchors: Float[ndarray, "A 2"]) -> Float[ndarray, "n A"]:
    """The larger of the two sides' factors between box and anchor."""
    r = sides[:, None] / anchors
    return np.maximum(r, 1 / r).max(2)
