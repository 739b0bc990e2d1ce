"""Exact Euclidean distances to a set of pixels or voxels, in physical units, without scipy.

Squared distances separate over the axes (Saito and Toriwaki, 1994; Felzenszwalb and Huttenlocher, 2012, equation 1):
d2(p) = min over q_n of (p_n - q_n)^2 + ... + min over q_1 of (p_1 - q_1)^2 + [q in the set]. The first axis is two
sweeps; every further one takes the minimum over its own line, in time that grows with the line's length alone (their
algorithm 1, for many lines together), or for few given pixels by looking at all of it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 22
"""Numbers that are looked at together."""
SHORT = 100
"""Pixels of a line up to which looking at all of it for each of them is faster."""
FEW = 16
"""Pixels a line, on average, up to which looking at all of it for each of them is faster."""


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
    few = at is not None and last > 0 and len(at) * inside.shape[last] <= FEW * inside.size
    for axis in range(1, last + (not few)):
        squares = _along(squares, axis, spacing[axis])
    if at is None:
        return np.sqrt(squares)
    if not few:
        return np.sqrt(squares[tuple(at.T)])
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
    moved = np.moveaxis(squares, axis, 0)
    lines = np.ascontiguousarray(moved).reshape(len(moved), -1)
    if len(lines) <= SHORT:
        found = _all_of(lines, spacing)
    else:
        step = max(1, CHUNK // len(lines))
        parts = np.split(lines, range(step, lines.shape[1], step), 1)
        found = np.concatenate([_lowest(part, spacing) for part in parts], 1)
    return np.moveaxis(found.reshape(moved.shape), 0, axis)


def _all_of(lines: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """The formula itself, along the first axis."""
    places = np.arange(len(lines), dtype=np.float64)[:, None]
    found = np.full_like(lines, np.inf)
    for place, line in enumerate(lines):
        np.minimum(found, line + ((places - place) * spacing) ** 2, out=found)
    return found


def _lowest(lines: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """The same by the lower envelope of parabolas, one from each place: those that are seen from below are kept in a
    stack a line, each with the first pixel where it is the lowest. A place's parabola takes away those above whose
    first pixel it lies lower already; where two are equal, the earlier one counts."""
    size, count = lines.shape
    place, first = np.zeros((2, size, count), dtype=np.int32)
    held = np.zeros(count, dtype=np.int32)
    for q in range(size):
        live = np.flatnonzero(np.isfinite(lines[q]))
        begins = np.zeros(len(live), dtype=np.int32)
        left = np.flatnonzero(held[live])  # places in `live`, of lines that hold parabolas to compare this one with
        while len(left):
            line = live[left]
            top = held[line] - 1
            p = place[top, line]
            meet = (q + p) / 2 + (lines[q, line] - lines[p, line]) / (2 * spacing**2 * (q - p))
            begins[left] = np.floor(meet).clip(-1, size - 1).astype(np.int32) + 1
            above = begins[left] <= first[top, line]
            left = left[above]
            held[line[above]] -= 1
            left = left[held[live[left]] > 0]
        seen = begins < size
        live = live[seen]
        place[held[live], live], first[held[live], live] = q, begins[seen]
        held[live] += 1
    kept = np.arange(size)[:, None] < held
    lowest = np.zeros((size, count), dtype=np.int32)
    lowest[first[kept], np.nonzero(kept)[1]] = place[kept]
    lowest = np.maximum.accumulate(lowest, 0)  # from its first pixel on, until the next one's
    ways = (np.arange(size)[:, None] - lowest) * spacing
    return np.take_along_axis(lines, lowest, 0) + ways**2


def surface(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a set that have a face outside it; what lies beyond the array is outside."""
    padded = np.pad(inside, 1)
    core = (slice(1, -1),) * inside.ndim
    hidden = inside.copy()
    for axis in range(inside.ndim):
        for step in (-1, 1):
            hidden &= np.roll(padded, step, axis)[core]
    return inside & ~hidden
