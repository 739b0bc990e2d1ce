"""A folder of pictures sorted into one folder a class, as torchvision's ImageFolder reads it.

`root/train/CLASS/...` and `root/test/CLASS/...` (or `val`), or `root/CLASS/...` alone, which is then split by a hash
of each picture's path below root: about one in five goes to the test, always the same ones, on every machine, also
after pictures were added. So that each class has both kinds, its lowest hash always goes to the test and its highest
to training.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from etude.errors import MissingError, UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEST_SHARE = 0.2


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted by code point; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def pictures(folder: Path) -> list[str]:
    """Paths of all pictures in `folder` and below, sorted; told by suffix, hidden ones left out."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [f"{place}/{name}" for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return sorted(found)


def named(words: Sequence[str], *, endings: tuple[str, ...] = SUFFIXES, what: str = "pictures") -> list[Path]:
    """What is named on a command line: files as they are named, folders as the files with these endings in them and
    below. A missing one is a UsageError before anything is done."""
    found: list[Path] = []
    for path in map(Path, words):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.name.lower().endswith(endings) and p.is_file())
            inside = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
            if not inside:
                raise UsageError(f"the folder {path} holds no {what} ({', '.join(endings)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UsageError(f"there is no file {path}")
    return found


def read(root: Path, split: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Paths, labels and classes of "train" or "test". Classes are the names of train's folders, sorted."""
    if not root.is_dir():
        raise MissingError(f"{root}: no such folder", hint="give the folder of pictures: --data.path DIR")
    train = root / "train"
    if not train.is_dir():
        return _read_split(root, split)
    places = {"train": train, "test": next((root / n for n in ("test", "val") if (root / n).is_dir()), None)}
    place = places[split]
    if place is None:
        raise MissingError(f"{root}: it has a train folder, but neither test nor val", hint=f"make {root}/test/CLASS/")
    classes = _classes(train)
    if unknown := set(subfolders(place)) - set(classes):
        raise UsageError(f"{place}: the class {sorted(unknown)[0]!r} is not in {train}")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = pictures(place / name)
        if not found and split == "train":
            raise UsageError(f"{place / name}: no pictures there", hint="remove the folder, or fill it")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise UsageError(f"{place}: no pictures there", hint=f"their names end in {', '.join(SUFFIXES)}")
    return paths, labels, classes


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(subfolders(folder))
    if not names:
        raise UsageError(f"{folder}: no folders in it, one a class", hint=f"sort the pictures into {folder}/CLASS/")
    return names


def path_hash(path: str, root: Path) -> float:
    """A number in [0, 1) that the path below root decides."""
    relative = Path(path).relative_to(root).as_posix()
    return int.from_bytes(hashlib.sha256(relative.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _read_split(root: Path, split: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    """One split of `root/CLASS/...`, chosen by hash."""
    classes = _classes(root)
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        hashes = {path: path_hash(path, root) for path in pictures(root / name)}
        if len(hashes) < 2:
            raise UsageError(f"{root / name}: {len(hashes)} pictures, where a class needs 2 or more to be split")
        lowest, highest = min(hashes.values()), max(hashes.values())
        for path, value in hashes.items():
            is_test = value == lowest or (value < TEST_SHARE and value != highest)
            if is_test == (split == "test"):
                paths.append(path)
                labels.append(label)
    return paths, labels, classes
