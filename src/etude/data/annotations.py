"""Boxes as annotated: what the readers of COCO's json, YOLO's txt and VOC's xml have in common."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.errors import MissingError, UsageError

SLACK = 2.0
"""Pixels by which a box may reach outside its picture, as rounding and COCO's own polygons do; it is clipped."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Annotated:
    """Pictures of one split and the boxes in them."""

    classes: tuple[str, ...]
    paths: list[str] = field(default_factory=list)
    boxes: list[NDArray[np.float64]] = field(default_factory=list)
    """(n, 4) a picture: x1, y1, x2, y2 in pixels; as shares of its sides where `relative`."""
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    crowd: list[NDArray[np.bool_]] = field(default_factory=list)
    """COCO's iscrowd: a region of many objects, on which no detection is wrong; always False elsewhere."""
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    """(width, height) of each picture as its annotation says, or None where it does not."""
    relative: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def add(
        self,
        path: Path,
        boxes: Sequence[Box],
        labels: Sequence[int],
        *,
        crowd: Sequence[bool] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Take in a picture; its boxes have been checked."""
        self.paths.append(str(path))
        self.boxes.append(np.array(boxes, np.float64).reshape(-1, 4))
        self.labels.append(np.array(labels, np.int64))
        self.crowd.append(np.zeros(len(labels), bool) if crowd is None else np.array(crowd, bool))
        self.sizes.append(size)


def inside(box: Box, width: float, height: float, where: str, *, slack: float = SLACK) -> Box:
    """The box, clipped to its picture. UsageError, beginning with `where`, for one that is none or reaches outside."""
    x1, y1, x2, y2 = box
    said = f"({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
    if not (np.isfinite(box).all() and x1 < x2 and y1 < y2):
        raise UsageError(f"{where}: the box {said} has no area")
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        raise UsageError(f"{where}: the box {said} reaches outside its picture of {width:g} x {height:g}")
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def whole_sides(values: Iterable[Any], where: str) -> tuple[int, int]:
    """A picture's width and height, or a UsageError."""
    width, height = numbers(values, 2, where)
    if min(width, height) < 1 or width != int(width) or height != int(height):
        raise UsageError(f"{where}: {width:g} x {height:g} are no picture's sides")
    return int(width), int(height)


def unique(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The names of classes. UsageError where there are none or one comes twice."""
    if not names or len(set(names)) < len(names):
        raise UsageError(f"{path}: {'a class is named twice' if names else 'it names no class'}")
    return tuple(names)


def numbers(values: Iterable[Any], count: int, where: str) -> list[float]:
    """So many numbers, or a UsageError."""
    found = list(values)
    try:
        parsed = [float(value) for value in found if not isinstance(value, bool)]
    except (TypeError, ValueError, OverflowError):
        parsed = []
    if len(found) != count or len(parsed) != count or not np.isfinite(parsed).all():
        raise UsageError(f"{where}: expected {count} numbers, found {' '.join(str(v)[:20] for v in found[:8])}")
    return parsed


def picture_beside(folder: Path, name: str, where: str) -> Path:
    """The picture of this name in the folder or below; MissingError, beginning with `where`, if there is none."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"{where}: the picture {name} lies outside {folder}")
    path = folder / name
    if not path.is_file():
        raise MissingError(f"{where}: there is no picture {path}")
    return path


def text_of(path: Path) -> str:
    """A small text file, UTF-8. UsageError where it is not that, MissingError where it is not there."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})") from None
