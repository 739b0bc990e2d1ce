"""PASCAL VOC's annotations: `Annotations/NAME.xml` beside `JPEGImages/NAME.jpg`, splits in `ImageSets/Main/SPLIT.txt`.

The test split is "val" or "test"; without ImageSets, a fifth of the pictures, chosen by their names. Classes are those
that occur, in alphabetical order, or the lines of `classes.txt`. Documents with a DOCTYPE are refused, so that no
entity is ever expanded; pixels are counted from 1.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from etude.data.annotations import Annotated, Box, inside, numbers, picture_beside, text_of, unique, whole_sides
from etude.errors import MissingError, UsageError

NAMES = {"train": ("train", "trainval"), "test": ("val", "test")}
DEPTH = 50


@dataclass
class Node:
    """An element: the pieces of its text, its children, the line on which it begins."""

    name: str
    line: int
    pieces: list[str] = field(default_factory=list)
    children: list["Node"] = field(default_factory=list)

    def all(self, name: str) -> list["Node"]:
        return [child for child in self.children if child.name == name]

    def get(self, path: str) -> str:
        """The text of the first element of this path, "" where there is none."""
        first, _, rest = path.partition("/")
        for child in self.all(first):
            return child.get(rest) if rest else "".join(child.pieces).strip()
        return ""


def read(root: Path, split: str, classes: Sequence[str] = ()) -> Annotated:
    """The pictures of a split and their boxes. UsageError names the file and the line that is wrong.

    `classes`: those that are known already, of a run.
    """
    files = sorted((root / "Annotations").glob("*.xml"))
    if not files:
        raise MissingError(f"{root}: no Annotations/*.xml there", hint="Annotations/, JPEGImages/, ImageSets/Main/")
    documents = {path.stem: (path, parse(path)) for path in files}
    for path, document in documents.values():
        for item in document.all("object"):
            if not item.get("name"):
                raise UsageError(f"{path}, line {item.line}: the object has no name")
    if classes:
        known = tuple(classes)
    elif (listed := root / "classes.txt").is_file():
        known = unique(listed, [line.strip() for line in text_of(listed).splitlines() if line.strip()])
    else:
        known = tuple(sorted({o.get("name") for _, document in documents.values() for o in document.all("object")}))
    found = Annotated(classes=known)
    pictures: dict[Path, Path] = {}
    for name, where in members(root, split, list(documents)):
        if name not in documents:
            raise MissingError(f"{where}: there is no {root / 'Annotations' / name}.xml")
        path, document = documents[name]
        width, height = whole_sides((document.get("size/width"), document.get("size/height")), f"{path}: size")
        boxes: list[Box] = []
        labels, seen = [], {}
        for item in document.all("object"):
            where = f"{path}, line {item.line}"
            if item.get("name") not in known:
                raise UsageError(f"{where}: the class {item.get('name')!r} is not one of {', '.join(known)}")
            sides = [item.get(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
            x1, y1, x2, y2 = numbers(sides, 4, f"{where}: bndbox")
            key = (item.get("name"), x1, y1, x2, y2)
            if key in seen:
                raise UsageError(f"{where}: the same object as on line {seen[key]}")
            seen[key] = item.line
            boxes.append(inside((x1 - 1, y1 - 1, x2, y2), width, height, where))
            labels.append(known.index(item.get("name")))
        picture = picture_beside(root / "JPEGImages", document.get("filename") or f"{name}.jpg", str(path))
        if picture in pictures:
            raise UsageError(f"{path}: the picture {picture} is that of {pictures[picture]} too")
        pictures[picture] = path
        found.add(picture, boxes, labels, size=(width, height))
    if not found.paths:
        raise UsageError(f"{root}: the {split} split holds no pictures")
    return found


def members(root: Path, split: str, names: list[str]) -> list[tuple[str, str]]:
    """(name, where it is listed) of a split's pictures."""
    folder = root / "ImageSets" / "Main"
    for path in (folder / f"{name}.txt" for name in NAMES[split]):
        if path.is_file():
            seen: dict[str, int] = {}
            for number, line in enumerate(text_of(path).splitlines(), 1):
                if line.strip():
                    if (name := line.split()[0]) in seen:
                        raise UsageError(f"{path}, line {number}: {name} comes twice, first on line {seen[name]}")
                    seen[name] = number
            return [(name, f"{path}, line {number}") for name, number in seen.items()]
    if folder.is_dir() and any(folder.glob("*.txt")):
        raise MissingError(f"{folder}: no {NAMES[split][0]}.txt there")
    wanted = split == "test"
    return [(name, str(root)) for name in names if (zlib.crc32(name.encode()) % 5 == 0) is wanted]


def parse(path: Path) -> Node:
    """The document's root element. Nothing outside the file is read, and no entity is expanded."""
    parser = expat.ParserCreate()
    stack = [Node("", 0)]

    def begin(name: str, attributes: dict[str, str]) -> None:
        if len(stack) > DEPTH:
            raise UsageError(f"{path}, line {parser.CurrentLineNumber}: nested too deeply")
        node = Node(name, parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)

    def end(name: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].pieces.append(data)

    def refuse(*declared: object) -> None:
        raise UsageError(f"{path}, line {parser.CurrentLineNumber}: a DOCTYPE, which annotations have no use for")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(text_of(path), True)
    except expat.ExpatError as error:
        raise UsageError(f"{path}, line {error.lineno}: not XML: {expat.ErrorString(error.code)}") from None
    return stack[0].children[0]
