"""ImageNet's 1,000 classes (ILSVRC2012) in the official layout: `train/nXXXXXXXX/*.JPEG` and the validation pictures.

The validation pictures (our "test": the official test labels are secret) lie either in class folders
`val/nXXXXXXXX/*.JPEG`, or all in `val/` as they come out of the archive. Then their labels are read from

- `val.txt`, in root or in val: a line a picture, "ILSVRC2012_val_00000001.JPEG 65" or "... n01751748"; or
- the devkit, `ILSVRC2012_devkit_t12/data/` in root: `ILSVRC2012_validation_ground_truth.txt`, whose numbers
  `meta.mat` maps to classes.

A class's label is its place among the sorted WordNet ids, as in every published checkpoint. Its name is the id,
followed by its first word where `LOC_synset_mapping.txt`, `synset_words.txt` or the devkit are in root.
"""

import re
import struct
import zlib
from pathlib import Path
from typing import Any

from etude.data.folder import pictures, subfolders
from etude.errors import MissingError, RefusedError, UsageError

WNID = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_devkit_t12/data"


def read(root: Path, split: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Paths, labels and class names of "train" or "test" (the official validation pictures)."""
    wnids = next((found for part in ("train", "val") if (found := _wnids(root / part))), None)
    if not wnids:
        raise MissingError(
            f"{root}: no class folders like train/n01440764 there",
            hint="give the folder that holds train and val: --data.path DIR",
        )
    place = root / ("train" if split == "train" else "val")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths: list[str] = []
    labels: list[int] = []
    if folders := _wnids(place):
        for wnid in folders:
            if wnid not in label_of:
                raise UsageError(f"{place / wnid}: there is no such class in {root / 'train'}")
            found = pictures(place / wnid)
            paths += found
            labels += [label_of[wnid]] * len(found)
    elif split == "test" and place.is_dir():
        truth = _ground_truth(root, wnids)
        paths = pictures(place)
        if unknown := [path for path in paths if Path(path).name not in truth]:
            raise UsageError(f"{unknown[0]}: its label is not known (one of {len(unknown)} such pictures)")
        labels = [truth[Path(path).name] for path in paths]
    if not paths:
        raise MissingError(f"{place}: no pictures there", hint="give the folder that holds train and val")
    words = _words(root)
    return paths, labels, tuple(f"{wnid} {words[wnid].split(',')[0]}" if wnid in words else wnid for wnid in wnids)


def wordless(name: str) -> str:
    """A class's name without the word after a synset's number, which depends on the files beside the pictures."""
    number = name.split(" ")[0]
    return number if WNID.fullmatch(number) else name


def _wnids(folder: Path) -> list[str]:
    return [name for name in subfolders(folder) if WNID.fullmatch(name)] if folder.is_dir() else []


def _ground_truth(root: Path, wnids: list[str]) -> dict[str, int]:
    """Name of a validation picture -> label."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)} | {str(label): label for label in range(len(wnids))}
    for path in (root / "val.txt", root / "val" / "val.txt"):
        if path.is_file():
            rows = [line.split() for line in path.read_text(errors="replace").splitlines() if line.strip()]
            if bad := next((row for row in rows if len(row) != 2 or row[1] not in label_of), None):
                raise UsageError(f"{path}: {' '.join(bad)!r} is not a picture and a known class")
            return {Path(name).name: label_of[wanted] for name, wanted in rows}
    truth = root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt"
    if not truth.is_file():
        raise MissingError(
            f"{root / 'val'}: the pictures are not sorted into class folders and their labels are not there",
            hint=f"unpack the devkit to {root / DEVKIT}, or write {root / 'val.txt'}",
        )
    wnid_of = {str(number): wnid for number, wnid, _ in _synsets(root)}
    labels: dict[str, int] = {}
    for index, number in enumerate(truth.read_text(errors="replace").split(), start=1):
        wnid = wnid_of.get(number)
        if wnid not in label_of:
            raise UsageError(f"{truth}: line {index}: class {number} ({wnid}) has no folder in {root / 'train'}")
        labels[f"ILSVRC2012_val_{index:08}.JPEG"] = label_of[wnid]
    return labels


def _words(root: Path) -> dict[str, str]:
    """WordNet id -> its words, from whichever list is there; empty where none is."""
    for name in ("LOC_synset_mapping.txt", "synset_words.txt"):
        if (root / name).is_file():
            rows = (line.split(maxsplit=1) for line in (root / name).read_text(errors="replace").splitlines())
            return {row[0]: row[1] for row in rows if len(row) == 2}
    return {wnid: words for _, wnid, words in _synsets(root)} if (root / DEVKIT / "meta.mat").is_file() else {}


def _synsets(root: Path) -> list[tuple[int, str, str]]:
    """(ILSVRC2012_ID, WNID, words) of each synset in the devkit's meta.mat."""
    path = root / DEVKIT / "meta.mat"
    if not path.is_file():
        raise MissingError(f"{path}: not there", hint="unpack the whole devkit, ILSVRC2012_devkit_t12.tar.gz")
    try:
        rows = read_mat(path.read_bytes())["synsets"]
        return [(int(row["ILSVRC2012_ID"]), row["WNID"], row["words"]) for row in rows]
    except Exception as error:  # damaged bytes fail in every way
        raise RefusedError(f"{path}: not the devkit's list of synsets ({error!r})") from error


_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q", 16: "B", 17: "H"}
"""Element type of a MAT-file -> struct code."""
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
LARGEST_MAT = 64_000_000


def read_mat(raw: bytes) -> dict[str, Any]:
    """Variables of a little-endian MAT-file of version 5: numbers, text, and arrays of structs (a list of dicts).

    After MathWorks' description of the level 5 MAT-file format. A 1x1 number is a plain number, other ones are lists.
    """
    if raw[126:128] != b"IM":
        raise ValueError("not a little-endian MAT-file of version 5")
    variables = {}
    for kind, body in _elements(raw[128:]):
        if kind == _COMPRESSED:
            inflate = zlib.decompressobj()
            inner = inflate.decompress(body, LARGEST_MAT)
            if inflate.unconsumed_tail:
                raise ValueError(f"a variable holds more than {LARGEST_MAT} bytes")
            kind, body = next(_elements(inner))
        if kind == _MATRIX:
            name, value = _matrix(body)
            variables[name] = value
    return variables


def _elements(raw: bytes):
    """Yields (type, bytes) of the data elements that stand one after the other."""
    at = 0
    while at < len(raw):
        kind, size = struct.unpack_from("<II", raw, at)
        if kind >> 16:  # a small element: its size is in the upper half of the type, its bytes follow at once
            yield kind & 0xFFFF, raw[at + 4 : at + 4 + (kind >> 16)]
            at += 8
        else:
            yield kind, raw[at + 8 : at + 8 + size]
            at += 8 + size + (-size % 8 if kind != _COMPRESSED else 0)


def _numbers(element: tuple[int, bytes]) -> tuple[Any, ...]:
    kind, body = element
    code = _NUMBERS[kind]
    return struct.unpack(f"<{len(body) // struct.calcsize(code)}{code}", body)


def _matrix(body: bytes) -> tuple[str, Any]:
    """(name, value) of a matrix element."""
    if not body:
        return "", []
    parts = _elements(body)
    flags, shape, name = _numbers(next(parts)), _numbers(next(parts)), next(parts)[1].decode()
    kind = flags[0] & 0xFF
    if kind == _STRUCT:
        (width,), names = _numbers(next(parts)), next(parts)[1]
        fields = [names[i : i + width].rstrip(b"\0").decode() for i in range(0, len(names), width)]
        values = [_matrix(part)[1] for _, part in parts]
        return name, [dict(zip(fields, values[i : i + len(fields)])) for i in range(0, len(values), len(fields))]
    numbers = _numbers(next(parts))
    if kind == _CHAR:
        return name, "".join(map(chr, numbers))
    return name, numbers[0] if shape == (1, 1) else list(numbers)
