"""YOLO's annotations: `images/train/NAME.jpg` with `labels/train/NAME.txt`, a line an object: "class x y w h", the
centre and the sides as shares of the picture's. A picture without a file, or with an empty one, has no objects.

Classes are named in `classes.txt`, a line each, or under `names:` in `data.yaml`; the test split is "val" or "test".
"""

import re
from itertools import takewhile
from pathlib import Path

from etude.data.annotations import Annotated, inside, numbers, text_of, unique
from etude.data.folder import SUFFIXES
from etude.errors import MissingError, UsageError

NAME = r"""(?P<quoted>'[^']+'|"[^"]+")|(?P<plain>[^'"\[\]{}&*!|>%@`-][^\[\]{}]*)"""
ENTRY = rf"(?P<number>\d{{1,9}})\s*:\s*(?:{NAME})"
NAMES = {"train": ("train",), "test": ("val", "test")}


def read(root: Path, split: str) -> Annotated:
    """The pictures of a split and their boxes, relative. UsageError names the file and the line that is wrong."""
    known = classes(root)
    folder = next((f for name in NAMES[split] if (f := root / "images" / name).is_dir()), None)
    if folder is None:
        raise MissingError(f"{root}: no folder images/{NAMES[split][0]}", hint="images/train, images/val, labels/...")
    found = Annotated(classes=known, relative=True)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    labelled = root / "labels" / folder.name
    if not any(place.name != "classes.txt" for place in labelled.rglob("*.txt")):
        raise MissingError(f"{labelled}: no file NAME.txt there, for the boxes of {folder}/NAME.*")
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
        raise UsageError(f"{folder}: it holds no pictures ({', '.join(SUFFIXES)})")
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
            return unique(path, [line.strip() for line in text_of(path).splitlines() if line.strip()])
    for path in sorted(root.glob("*.yaml")):
        if names := _names(path):
            return unique(path, names)
    raise MissingError(f"{root}: nothing names the classes", hint="a file classes.txt there, one name a line")


def _names(path: Path) -> list[str]:
    """What stands under `names:` in a data.yaml: a list or numbered names, in brackets or a line each; [] where there
    is none. UsageError for other YAML."""
    lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in text_of(path).splitlines()]
    first = next((number for number, line in enumerate(lines) if line.startswith("names:")), None)
    if first is None:
        return []
    below = takewhile(lambda line: line[:1] in ("", " ", "\t", "-", "]", "}"), lines[first + 1 :])
    body = [line.strip() for line in (lines[first].removeprefix("names:"), *below) if line.strip()]
    whole = " ".join(body)
    if inline := re.fullmatch(r"\[(.*)\]|\{(.*)\}", whole):
        # a comma between quotation marks is a name's
        parts = [
            part for part in re.findall(r"(?:'[^']*'|\"[^\"]*\"|[^,])+", inline[1] or inline[2] or "") if part.strip()
        ]
        numbered = whole[0] == "{"
    else:
        numbered = not whole.startswith("-")
        parts = body if numbered else [part.removeprefix("-") for part in body]
    found: dict[int, str] = {}
    for place, part in enumerate(parts):
        entry = re.fullmatch(ENTRY if numbered else NAME, part.strip())
        number = int(entry["number"]) if entry and numbered else place
        if not entry or number in found or (inline and "," in (entry["plain"] or "")):
            raise UsageError(f"{path}: names: cannot read {part.strip()[:60]!r}", hint="a line '  0: NAME' each")
        found[number] = entry["plain"] or entry["quoted"][1:-1]
    if sorted(found) != list(range(len(found))):
        raise UsageError(f"{path}: names are numbered {sorted(found)[:20]}, must be 0 to {len(found) - 1}")
    return [found[number] for number in range(len(found))]
