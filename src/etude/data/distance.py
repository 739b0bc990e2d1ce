"""Exact Euclidean distances to a set of pixels or voxels, in physical units, without scipy.

Squared distances separate over the axes (Saito and Toriwaki, 1994; Felzenszwalb and Huttenlocher, 2012, equation 1):
d2(p) = min over q_n of (p_n - q_n)^2 + ... + min over q_1 of (p_1 - q_1)^2 + [q in the set]. The first axis is two
sweeps; every further one takes the minimum over its own line, for all pixels or for given ones alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 22
"""Numbers that are looked at together for given points."""


def distance(
    inside: NDArray[np.bool_], *, spacing: Sequence[float] | None = None, at: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Distance to the nearest True pixel, infinite where there is none.

    `inside` has any number of axes, a pixel's sides are `spacing` (default 1 each). Without `at`, an array like
    `inside`; with it, (N, axes) pixels -> (N,).
    """
    spacing = spacing or (1.0,) * inside.ndim
    squares = _first(inside) * spacing[0]
    squares *= squares
    last = inside.ndim - 1
    for axis in range(1, last + (at is None)):
        squares = _along(squares, axis, spacing[axis])
    if at is None:
        return np.sqrt(squares)
    if inside.ndim == 1:
        return np.sqrt(squares[at[:, 0]])
    size, found = inside.shape[last], np.empty(len(at))
    places = np.arange(size)
    for start in range(0, len(at), step := max(1, CHUNK // size)):
        points = at[start : start + step]
        lines = squares[tuple(points[:, :last].T)]
        found[start : start + step] = (lines + ((places - points[:, last:]) * spacing[last]) ** 2).min(1)
    return np.sqrt(found)


def _first(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Pixels to the nearest True along the first axis, in either direction."""
    size = len(inside)
    places = np.arange(size, dtype=np.float64).reshape(-1, *[1] * (inside.ndim - 1))
    before = np.maximum.accumulate(np.where(inside, places, -np.inf), 0)
    after = np.minimum.accumulate(np.where(inside, places, np.inf)[::-1], 0)[::-1]
    return np.minimum(places - before, after - places)


def _along(squares: NDArray[np.float64], axis: int, spacing: float) -> NDArray[np.float64]:
    """The minimum over a line of what stands there plus the squared way to it."""
    squares = np.moveaxis(squares, axis, 0)
    places = np.arange(len(squares), dtype=np.float64).reshape(-1, *[1] * (squares.ndim - 1))
    found = np.full_like(squares, np.inf)
    for place, line in enumerate(squares):
        if np.isfinite(line).any():
            np.minimum(found, line + ((places - place) * spacing) ** 2, out=found)
    return np.moveaxis(found, 0, axis)


def surface(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a set that have a face outside it; what lies beyond the array is outside."""
    padded = np.pad(inside, 1)
    core = (slice(1, -1),) * inside.ndim
    hidden = inside.copy()
    for axis in range(inside.ndim):
        for step in (-1, 1):
            hidden &= np.roll(padded, step, axis)[core]
    return inside & ~hidden
