"""YOLO's annotations: `images/train/NAME.jpg` with `labels/train/NAME.txt`, a line an object: "class x y w h", the
centre and the sides as shares of the picture's. A picture without a file, or with an empty one, has no objects.

Classes are named in `classes.txt`, a line each, or under `names:` in `data.yaml`; the test split is "val" or "test".
"""

import re
from pathlib import Path

from etude.data.annotations import PICTURES, Annotated, inside, numbers, text_of
from etude.errors import MissingError, UsageError

NAMES = {"train": ("train",), "test": ("val", "test")}


def read(root: Path, split: str) -> Annotated:
    """The pictures of a split and their boxes, relative. UsageError names the file and the line that is wrong."""
    known = classes(root)
    folder = next((f for name in NAMES[split] if (f := root / "images" / name).is_dir()), None)
    if folder is None:
        raise MissingError(f"{root}: no folder images/{NAMES[split][0]}", hint="images/train, images/val, labels/...")
    found = Annotated(classes=known, relative=True)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    labelled = root / "labels" / folder.name
    stems = {}
    for path in paths:
        place = labelled / path.relative_to(folder).with_suffix(".txt")
        if place in stems:
            raise UsageError(f"{path}: {stems[place].name} has the same name; both would have the boxes of {place}")
        stems[place] = path
        boxes, labels = read_file(place, len(known)) if place.is_file() else ([], [])
        found.add(path, boxes, labels)
    for place in sorted(labelled.rglob("*.txt")):
        if place not in stems and place.name != "classes.txt":
            raise MissingError(f"{place}: there is no picture {folder / place.relative_to(labelled).with_suffix('')}.*")
    if not paths:
        raise UsageError(f"{folder}: it holds no pictures ({', '.join(PICTURES)})")
    return found


def read_file(path: Path, num_classes: int) -> tuple[list[tuple[float, float, float, float]], list[int]]:
    """The boxes of one file, x1 y1 x2 y2 as shares of the picture's sides, and their classes."""
    boxes, labels, seen = [], [], {}
    for number, line in enumerate(text_of(path).splitlines(), 1):
        where, words = f"{path}, line {number}", line.split()
        if not words:
            continue
        label, x, y, w, h = numbers(words, 5, where)
        if label != int(label) or not 0 <= label < num_classes:
            raise UsageError(f"{where}: class {words[0]} of {num_classes}, which are numbered from 0")
        if (key := tuple(words)) in seen:
            raise UsageError(f"{where}: the same as line {seen[key]}")
        seen[key] = number
        boxes.append(inside((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1, 1, where, slack=0.005))
        labels.append(int(label))
    return boxes, labels


def classes(root: Path) -> tuple[str, ...]:
    """The names of the classes."""
    for path in (root / "classes.txt", root / "labels" / "classes.txt"):
        if path.is_file():
            return _unique(path, [line.strip() for line in text_of(path).splitlines() if line.strip()])
    for path in sorted(root.glob("*.yaml")):
        if names := _names(text_of(path)):
            return _unique(path, names)
    raise MissingError(f"{root}: nothing names the classes", hint="a file classes.txt there, one name a line")


def _unique(path: Path, names: list[str]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise UsageError(f"{path}: {'a class is named twice' if names else 'it names no class'}")
    return tuple(names)


def _names(text: str) -> list[str]:
    """What stands under `names:` in a data.yaml, in any of its three usual forms; no YAML otherwise."""
    match = re.search(r"^names:[ \t]*(\[[^\]]*\]|)[ \t]*(?:#.*)?$((?:\n(?:[ \t]+.*|[ \t]*-.*|[ \t]*))*)", text, re.M)
    if not match:
        return []
    inline, below = match.groups()
    if inline:
        parts = inline[1:-1].split(",")
    else:
        lines = [line.strip() for line in below.splitlines() if line.strip() and not line.strip().startswith("#")]
        parts = [re.sub(r"^(-|\d+\s*:)\s*", "", line) for line in lines]
    return [part.strip().strip("'\"") for part in parts if part.strip()]
