"""Masks: a number for every pixel, which names its class or its object; and the paper's weights around touching cells.

Shapes: H rows, W columns.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etude.data import decode
from etude.data.distance import distance, surface
from etude.errors import UsageError

IGNORED = 255
"""The class of pixels that are neither learned from nor measured."""
MOST_CLASSES = 32
"""Different values of masks that are taken for classes without being named; more are likely objects or a photograph."""
LOSSY = ("JPEG", "MPO", "WEBP")
"""Pillow's formats that do not give back the values that were saved (WebP need not, and does not say)."""


def word(name: str) -> str:
    """A class's name as part of a measure's."""
    return "_".join(name.lower().split())


def read(path: Path, shape: tuple[int, int]) -> NDArray[np.uint16]:
    """A mask as it is stored, whole numbers from 0 to 65,535, of a picture of this shape. UsageError names the file."""
    with decode.header(path, floats=True) as image:
        if image.format in LOSSY or image.info.get("compression") == "jpeg":
            raise UsageError(
                f"{path}: a mask as {image.format}, which does not keep its values", hint="save masks as PNG or TIFF"
            )
    values = decode.open_values(path)
    if values.ndim == 3:
        colours = values[..., : 3 if values.shape[2] > 2 else 1]
        if values.shape[2] > 4 or not (colours == colours[..., :1]).all():
            raise UsageError(
                f"{path}: a mask of colours; it must hold one number a pixel", hint="save it in grey or with a palette"
            )
        values = colours[..., 0]
    if values.shape != shape:
        (h, w), (rows, columns) = values.shape, shape
        raise UsageError(f"{path}: a mask of {w} x {h} pixels, where its picture has {columns} x {rows}")
    return whole(values, str(path))


def whole(values: NDArray, name: str) -> NDArray[np.uint16]:
    """Values as whole numbers from 0 to 65,535."""
    if values.size and (values.min() < 0 or values.max() > 65535 or (values != np.round(values)).any()):
        raise UsageError(f"{name}: a mask's values must be whole numbers from 0 to 65,535; these are not")
    return values.astype(np.uint16)


def classes_of(values: NDArray[np.integer], named: tuple[int, ...], ignore: int | None, name: str) -> NDArray[np.uint8]:
    """Stored values -> places in `named`, and IGNORED. UsageError lists what is neither."""
    table = np.full(65536, -1, dtype=np.int16)
    table[list(named)] = np.arange(len(named))
    if ignore is not None:
        table[ignore] = IGNORED
    found = table[values]
    if (found < 0).any():
        unknown = np.unique(values[found < 0])[:5].tolist()
        raise UsageError(
            f"{name}: the mask has the value {', '.join(map(str, unknown))}, which is none of the classes' "
            f"({', '.join(map(str, named[:12]))})",
            hint="--data.ignore VALUE leaves pixels out",
        )
    return found.astype(np.uint8)


def cells(objects: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Numbered objects -> 1 within one, 0 outside, and 0 where an object touches another, so that they stay apart."""
    inside = objects > 0
    touching = np.zeros_like(inside)
    for axis in (0, 1):
        one, other = np.moveaxis(objects, axis, 0)[:-1], np.moveaxis(objects, axis, 0)[1:]
        differ = (one != other) & (one > 0) & (other > 0)
        moved = np.moveaxis(touching, axis, 0)
        moved[:-1] |= differ
        moved[1:] |= differ
    return (inside & ~touching).astype(np.uint8)


def border_weights(objects: NDArray[np.integer], *, w0: float = 10.0, sigma: float = 5.0) -> NDArray[np.float32]:
    """1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) (equation 2 with w_c = 1): d1 and d2 are a pixel's distances to the border
    of the nearest object and of the second nearest, in pixels. Beyond d1 + d2 = 6 sigma, where what is added is below
    w0 e^-18, it is taken as nothing."""
    reach = int(np.ceil(6 * sigma))
    nearest = np.full((2, *objects.shape), np.inf)
    for number in np.unique(objects[objects > 0]):
        rows, columns = np.nonzero(objects == number)
        top, left = max(0, rows.min() - reach), max(0, columns.min() - reach)
        window = (slice(top, rows.max() + reach + 1), slice(left, columns.max() + reach + 1))
        found = distance(surface(objects[window] == number))
        first, second = nearest[0][window], nearest[1][window]
        nearest[1][window] = np.minimum(second, np.maximum(first, found))
        nearest[0][window] = np.minimum(first, found)
    total = nearest.sum(0)
    return (1 + w0 * np.exp(-(total**2) / (2 * sigma**2))).astype(np.float32)
