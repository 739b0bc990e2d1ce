"""COCO's annotations: `annotations/instances_SPLIT2017.json` beside a folder of pictures, `SPLIT2017` or `images`.

Any file of this format will do: `annotations/*train*.json`, or `train.json` in the folder itself; the test split is
"val", or "test" where there is no val. Categories are numbered in the order of their ids.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from etude.data.annotations import Annotated, inside, numbers, picture_beside, text_of, unique, whole_sides
from etude.errors import MissingError, UsageError

CLASSES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush""".replace("\n   ", "").split(", ")
)
"""Of COCO 2017, in the order of their ids."""
NAMES = {"train": ("train",), "test": ("val", "test")}


def read(root: Path, split: str) -> Annotated:
    """The pictures of a split and their boxes. UsageError names the file and the entry that is wrong."""
    path = find(root, split)
    document = load(path)
    folders = [root / path.stem.rpartition("_")[2], root / "images" / path.stem.rpartition("_")[2]]
    folders += [root / "images", root / split, root]
    folder = next(folder for folder in folders if folder.is_dir())

    ids = [_id(c, f"{path}: categories[{i}]") for i, c in enumerate(document["categories"])]
    if len({type(category) for category in ids}) > 1:
        raise UsageError(f"{path}: some categories' ids are numbers, others text")
    ids.sort()  # pyright: ignore[reportCallIssue, reportArgumentType] - of one type
    names = {c["id"]: str(c.get("name", c["id"])) for c in document["categories"]}
    if len(names) < len(ids):
        raise UsageError(f"{path}: two categories have one id")
    number = {category: i for i, category in enumerate(ids)}

    boxes = defaultdict(list)
    seen: set[Any] = set()
    for i, entry in enumerate(document["annotations"]):
        where = f"{path}: annotations[{i}]"
        own = _id(entry, where)
        if own in seen:
            raise UsageError(f"{where}: the id {own} comes twice")
        seen.add(own)
        if (category := _id(entry, where, "category_id")) not in number:
            raise UsageError(f"{where}: there is no category {category!r}")
        boxes[_id(entry, where, "image_id")].append((where, entry))

    found = Annotated(classes=unique(path, [names[category] for category in ids]))
    images: set[Any] = set()
    pictures: set[Path] = set()
    for i, entry in enumerate(document["images"]):
        where = f"{path}: images[{i}]"
        own, name = _id(entry, where), str(entry.get("file_name"))
        if own in images:
            raise UsageError(f"{where}: the id {own} comes twice")
        images.add(own)
        if Path(name) in pictures:
            raise UsageError(f"{where}: the picture {name} comes twice")
        pictures.add(Path(name))
        width, height = whole_sides((entry.get("width"), entry.get("height")), where)
        mine, labels, crowd = [], [], []
        for at, annotation in boxes.pop(own, []):
            x, y, w, h = numbers(_listed(annotation.get("bbox")), 4, f"{at}: bbox")
            if w == 0 or h == 0:  # COCO's own files hold a few
                continue
            mine.append(inside((x, y, x + w, y + h), width, height, at))
            labels.append(number[annotation["category_id"]])
            if (many := annotation.get("iscrowd", 0)) not in (0, 1):
                raise UsageError(f"{at}: iscrowd is {many!r}, must be 0 or 1")
            crowd.append(bool(many))
        found.add(picture_beside(folder, name, where), mine, labels, crowd=crowd, size=(width, height))
    if boxes:
        image_id, ((where, _), *_) = next(iter(boxes.items()))
        raise UsageError(f"{where}: there is no image {image_id!r}")
    if not found.paths:
        raise UsageError(f"{path}: it lists no images")
    return found


def find(root: Path, split: str) -> Path:
    """The annotation file of a split."""
    for name in NAMES[split]:
        inner = sorted((root / "annotations").glob(f"*{name}*.json"))
        for path in (*(p for p in inner if p.name.startswith("instances")), *inner, root / f"{name}.json"):
            if path.is_file():
                return path
    raise MissingError(
        f"{root}: no annotations of the {split} split",
        hint=f"annotations/instances_{NAMES[split][0]}2017.json, or {NAMES[split][0]}.json in the folder itself",
    )


def load(path: Path) -> dict[str, Any]:
    """The document, with its three lists."""
    try:
        document = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:  # Python reads no number of thousands of digits
        raise UsageError(f"{path}: not JSON that can be read: {error}") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply to be COCO's format") from None
    for name in ("images", "annotations", "categories"):
        entries = document.get(name) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UsageError(f"{path}: not COCO's format: there is no list of objects {name!r}")
    return document


def _id(entry: dict[str, Any], where: str, name: str = "id") -> int | str:
    if not isinstance(found := entry.get(name), int | str):
        raise UsageError(f"{where}: the {name} is {found!r}")
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
