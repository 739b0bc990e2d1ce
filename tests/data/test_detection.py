"""Boxes in three formats, every kind of bad one, and what becomes of a picture on its way to the network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from etude.data import mosaic, voc, yolo_txt
from etude.data.detection import Detection, DetectionDataset
from etude.data.frames import Frame
from etude.data.mosaic import BoxAugment, Sample
from etude.errors import EtudeError, MissingError, UsageError

TRUE = {"a": [(10, 20, 50, 60, 1)], "b": [(0, 0, 30, 40, 0), (5, 5, 64, 48, 1)], "c": []}
"""Boxes x1, y1, x2, y2 and classes of pictures of 64 x 80 (a, c) and 64 x 48 pixels (b)."""
CLASSES = ("cat", "dog")


def size_of(name: str) -> tuple[int, int]:
    return (64, 48) if name == "b" else (64, 80)


def draw(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(ord(name)).integers(0, 256, (*size_of(name)[::-1], 3), dtype=np.uint8)
    Image.fromarray(array).save(path, quality=95)


def write_coco(root: Path) -> dict[str, Any]:
    document: dict[str, Any] = {"images": [], "annotations": []}
    document["categories"] = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    for i, (name, boxes) in enumerate(TRUE.items()):
        width, height = size_of(name)
        document["images"].append({"id": 10 + i, "file_name": f"{name}.jpg", "width": width, "height": height})
        for x1, y1, x2, y2, label in boxes:
            entry = {"id": len(document["annotations"]), "image_id": 10 + i, "category_id": (3, 7)[label]}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            document["annotations"].append(entry)
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        for name in TRUE:
            draw(root / f"{split}2017" / f"{name}.jpg", name)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    return document


def write_yolo(root: Path) -> None:
    for split in ("train", "val"):
        (root / "labels" / split).mkdir(parents=True)
        for name, boxes in TRUE.items():
            draw(root / "images" / split / f"{name}.jpg", name)
            w, h = size_of(name)
            lines = [
                f"{label} {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}\n"
                for x1, y1, x2, y2, label in boxes
            ]
            if lines:  # a picture without objects needs no file
                (root / "labels" / split / f"{name}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text("train: images/train\nnames:\n  0: cat\n  1: 'dog'\nnc: 2\n")


def write_voc(root: Path) -> None:
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, boxes in TRUE.items():
        draw(root / "JPEGImages" / f"{name}.jpg", name)
        w, h = size_of(name)
        objects = "".join(
            f"<object>\n<name>{CLASSES[label]}</name>\n<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n</object>\n"
            for x1, y1, x2, y2, label in boxes
        )
        size = f"<size><width>{w}</width><height>{h}</height><depth>3</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(
            f'<?xml version="1.0" encoding="utf-8"?>\n<annotation>\n<filename>{name}.jpg</filename>\n'
            f"{size}\n{objects}</annotation>"
        )
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("a\nb\nc\n")


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}


@pytest.mark.parametrize("source", WRITERS)
def test_formats_say_the_same(source, tmp_path):
    WRITERS[source](tmp_path)
    dataset = Detection(source=source, path=str(tmp_path), size=64).open()
    assert dataset.sizes == {"train": 3, "test": 3} and dataset.facts["classes"] == ["cat", "dog"]
    for index, (name, boxes) in enumerate(TRUE.items()):
        sample = dataset.load("train", index)
        assert sample.picture.shape[1::-1] == size_of(name)
        expected = np.array([box[:4] for box in boxes], float).reshape(-1, 4)
        np.testing.assert_allclose(sample.boxes, expected, atol=1e-9)
        assert sample.labels.tolist() == [box[4] for box in boxes]
    batch = dataset.finish(dataset.fetch("test", [0, 1, 2]))
    assert batch["image"].shape == (3, 3, 64, 64) and batch["label"].tolist() == [[1, -1], [0, 1], [-1, -1]]
    # 64 x 80 becomes 51 x 64, 6 pixels from the left
    np.testing.assert_allclose(batch["boxes"][0, 0], [6 + 8, 16, 6 + 40, 48])
    assert batch["place"][1].tolist() == [1, 0, 8, 64, 48]
    names = [name for name, _ in dataset.samples("test", 3)]
    assert names == ["test sample 0, truly dog", "test sample 1, truly cat, dog", "test sample 2, truly nothing"]
    sides = dataset.sides()
    assert sides.ravel().tolist() == pytest.approx([32, 32, 30, 40, 59, 43])  # a is 64 x 80, so shrunk


def test_sides_are_those_of_upright_pictures_without_crowds(tmp_path):
    write_yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 64)).save(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    assert Detection(source="yolo", path=str(tmp_path), size=64).open().sides()[0] == pytest.approx([32, 32])
    document = write_coco(tmp_path)
    document["annotations"][1]["iscrowd"] = 1
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    sides = Detection(source="coco", path=str(tmp_path), size=64).open().sides()
    assert sides.ravel().tolist() == pytest.approx([32, 32, 59, 43])


def test_data_of_a_run_must_have_its_classes(tmp_path):
    write_coco(tmp_path)
    data = Detection(source="coco", path=str(tmp_path), size=64)
    for classes in (["cat", "dog"], ["0", "1"]):  # numbers: of weights from elsewhere
        assert data.reopen({"classes": classes}).sizes == {"train": 3, "test": 3}
    for classes in (["dog", "cat"], ["cat", "cow"], ["cat"]):
        with pytest.raises(UsageError, match="the data has the classes cat, dog; the run has learned"):
            data.reopen({"classes": classes})


def test_voc_is_read_in_a_runs_classes(tmp_path):
    write_voc(tmp_path)
    data = Detection(source="voc", path=str(tmp_path), size=64)
    dataset = data.reopen({"classes": ["dog", "ant", "cat"]})
    assert dataset.facts["classes"] == ["dog", "ant", "cat"]
    assert isinstance(dataset, DetectionDataset) and dataset.load("test", 0).labels.tolist() == [0]
    with pytest.raises(UsageError, match="the class 'dog' is not one of ant, cat"):
        data.reopen({"classes": ["ant", "cat"]})


@pytest.mark.parametrize("source", WRITERS)
def test_a_train_split_without_boxes(source, tmp_path):
    if source == "coco":
        document = write_coco(tmp_path)
        document["annotations"] = []
        (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    elif source == "yolo":
        write_yolo(tmp_path)
        for path in (tmp_path / "labels" / "train").iterdir():
            path.write_text("")
    else:
        write_voc(tmp_path)
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("c\n")
    assert "the train split has no box" in str(opening(source, tmp_path))


def test_labels_of_yolo_that_are_elsewhere(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train").rename(tmp_path / "labels" / "training")
    error = opening("yolo", tmp_path)
    assert isinstance(error, MissingError) and "labels/train: no file NAME.txt there" in str(error)


def opening(source: str, root: Path) -> EtudeError:
    with pytest.raises(EtudeError) as caught:
        Detection(source=source, path=str(root), size=64).open()  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 1: class 2 of 2"),
        ("-1 0.5 0.5 0.1 0.1", "line 1: class -1 of 2"),
        ("0.5 0.5 0.5 0.1 0.1", "line 1: class 0.5 of 2"),
        ("0 0.95 0.5 0.2 0.1", "line 1: the box .* reaches outside its picture"),
        ("0 0.5 0.5 0.0 0.1", "line 1: the box .* has no area"),
        ("0 0.5 0.5 0.1", "line 1: expected 5 numbers, found 0 0.5 0.5 0.1"),
        ("0 0.5 nan 0.1 0.1", "line 1: expected 5 numbers"),
        ("0 a b c d", "line 1: expected 5 numbers"),
        ("0 0.5 0.5 0.1 0.1\n\n0 0.5 0.5 0.1 0.1", "line 3: the same as line 1"),
    ],
)
def test_bad_lines_of_yolo(line, said, tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text(line)
    error = opening("yolo", tmp_path)
    assert isinstance(error, UsageError)
    with pytest.raises(UsageError, match=f"a.txt, {said}"):
        yolo_txt.read(tmp_path, "train")


def test_other_faults_of_yolo(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels" / "val" / "z.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert "z.txt: there is no picture" in str(opening("yolo", tmp_path))
    (tmp_path / "labels" / "val" / "z.txt").unlink()
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe")
    assert "a.txt: not UTF-8" in str(opening("yolo", tmp_path))
    (tmp_path / "labels" / "train" / "a.txt").write_text("")
    draw(tmp_path / "images" / "train" / "a.png", "a")
    assert "a.jpg has the same name" in str(opening("yolo", tmp_path)) or "a.png" in str(opening("yolo", tmp_path))
    (tmp_path / "data.yaml").unlink()
    assert "nothing names the classes" in str(opening("yolo", tmp_path))
    assert "no such folder" in str(opening("yolo", tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, 'dog']",
        'names:\n- cat\n- "dog"',
        "nc: 2\nnames:\n  0: cat\n  1: dog\nval: x",
        "names:\n  1: dog # second\n# none\n  0: cat\n",
        "names: {1: dog, 0: 'cat'} # two",
        "names: [\n  cat, # one\n  dog,\n]",
    ],
)
def test_names_in_their_usual_forms(text, tmp_path):
    (tmp_path / "data.yaml").write_text(text)
    assert yolo_txt.classes(tmp_path) == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("names: {0: cat, 2: dog}", r"names are numbered \[0, 2\], must be 0 to 1"),
        ("names:\n  1: cat\n  1: dog", "names: cannot read '1: dog'"),
        ("names:\n  cat: 0", "names: cannot read 'cat: 0'"),
        ("names: [dog's, cat's]", "names: cannot read"),
        ("names: *others", "names: cannot read"),
        ("names:\n  - cat\n  - [dog]", "names: cannot read"),
        ("names: coco.names", "names: cannot read 'coco.names'"),
        ("names: [cat, cat]", "a class is named twice"),
    ],
)
def test_names_that_are_not_understood(text, said, tmp_path):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"data.yaml: {said}"):
        yolo_txt.classes(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: d["annotations"][1]["bbox"].__setitem__(0, 60),
            r"annotations\[1\]: the box .* outside its picture of 64 x 48",
        ),
        (lambda d: d["annotations"][0].update(category_id=4), r"annotations\[0\]: there is no category 4"),
        (lambda d: d["annotations"][1].update(id=0), r"annotations\[1\]: the id 0 comes twice"),
        (lambda d: d["annotations"][1].update(image_id=99), r"annotations\[1\]: there is no image 99"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2]), r"annotations\[0\]: bbox: expected 4 numbers"),
        (lambda d: d["annotations"][0].update(bbox=None), r"annotations\[0\]: bbox: expected 4 numbers"),
        (lambda d: d["annotations"][0].update(bbox=[9, 9, -5, 5]), r"annotations\[0\]: the box .* has no area"),
        (lambda d: d["images"][1].update(file_name="nothing.jpg"), r"images\[1\]: there is no picture .*nothing.jpg"),
        (lambda d: d["images"][1].update(file_name="../../a.jpg"), r"images\[1\]: the picture .* lies outside"),
        (lambda d: d["images"][1].update(file_name="a.jpg"), r"images\[1\]: the picture a.jpg comes twice"),
        (lambda d: d["images"][0].update(width="wide"), r"images\[0\]: expected 2 numbers"),
        (lambda d: d["categories"].append({"id": 7}), "two categories have one id"),
        (lambda d: d["categories"].append({"id": 8, "name": "cat"}), "a class is named twice"),
        (lambda d: d["categories"].append({"id": "8", "name": "cow"}), "some categories' ids are numbers"),
        (lambda d: d["images"][1].update(id=10), r"images\[1\]: the id 10 comes twice"),
        (lambda d: d["images"][1].update(file_name="./a.jpg"), r"images\[1\]: the picture ./a.jpg comes twice"),
        (lambda d: d["images"][0].update(width=0), r"images\[0\]: 0 x 80 are no picture's sides"),
        (lambda d: d["annotations"][0].update(category_id=[1]), r"annotations\[0\]: the category_id is \[1\]"),
        (lambda d: d["annotations"][0].update(image_id=[1]), r"annotations\[0\]: the image_id is \[1\]"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3, 10**400]), r"annotations\[0\]: bbox: expected 4"),
        (lambda d: d["annotations"][0].update(iscrowd="0"), r"annotations\[0\]: iscrowd is '0'"),
        (lambda d: d.pop("images"), "not COCO's format: there is no list of objects 'images'"),
    ],
)
def test_bad_entries_of_coco(change, said, tmp_path):
    document = write_coco(tmp_path)
    change(document)
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    with pytest.raises(EtudeError, match=f"instances_train2017.json: {said}"):
        Detection(source="coco", path=str(tmp_path), size=64).open()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [\n1,,', "line 2: not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("", "line 1"),
        ('{"images": ' + "1" * 5000 + "}", "not JSON that can be read"),
    ],
)
def test_json_that_is_none(text, said, tmp_path):
    write_coco(tmp_path)
    (tmp_path / "annotations" / "instances_train2017.json").write_text(text)
    assert said in str(opening("coco", tmp_path))


def test_coco_keeps_crowds_and_drops_what_has_no_area(tmp_path):
    document = write_coco(tmp_path)
    document["annotations"][1]["iscrowd"] = 1
    document["annotations"][2]["bbox"][2] = 0
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    sample = Detection(source="coco", path=str(tmp_path), size=64).open().load("train", 1)
    assert sample.crowd.tolist() == [True] and sample.labels.tolist() == [0]


BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;">]>
<annotation>&lol2;</annotation>"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<xmax>50</xmax>", "<xmax>70</xmax>", "line 5: the box .* outside its picture of 64 x 80"),
        ("<name>dog</name>", "<name>cow</name>", "line 5: the class 'cow' is not one of"),
        ("<name>dog</name>", "<name></name>", "line 5: the object has no name"),
        ("<width>64</width>", "<width>0</width>", "size: 0 x 80 are no picture's sides"),
        ("<xmin>11</xmin>", "", "line 5: bndbox: expected 4 numbers"),
        ("<width>64</width>", "", "size: expected 2 numbers"),
        ("</annotation>", "", "line 9: not XML: no element found"),
        ("<filename>a.jpg</filename>", "<filename>q.jpg</filename>", "there is no picture .*q.jpg"),
    ],
)
def test_bad_files_of_voc(old, new, said, tmp_path):
    write_voc(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    path = tmp_path / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(EtudeError, match=f"a.xml(, |: ){said}"):
        voc.read(tmp_path, "train")


def test_no_entity_is_expanded(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "Annotations" / "a.xml").write_text(BOMB)
    assert "a.xml, line 2: a DOCTYPE" in str(opening("voc", tmp_path))
    (tmp_path / "Annotations" / "a.xml").write_text("<a>" * 1000)
    assert "nested too deeply" in str(opening("voc", tmp_path))
    (tmp_path / "Annotations" / "a.xml").unlink()
    assert "line 1: there is no" in str(opening("voc", tmp_path))
    (tmp_path / "Annotations" / "a.xml").write_text((tmp_path / "Annotations" / "c.xml").read_text())
    assert "c.jpg is that of" in str(opening("voc", tmp_path))
    (tmp_path / "classes.txt").write_text("cat\ndog\ncat\n")
    assert "classes.txt: a class is named twice" in str(opening("voc", tmp_path))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("b\nc\nb\n")
    (tmp_path / "classes.txt").unlink()
    assert "train.txt, line 3: b comes twice, first on line 1" in str(opening("voc", tmp_path))


def test_voc_without_splits(tmp_path):
    write_voc(tmp_path)
    for path in (tmp_path / "ImageSets" / "Main").iterdir():
        path.unlink()
    names = [f"{i:03d}" for i in range(50)]
    both = [{name for name, _ in voc.members(tmp_path, split, names)} for split in ("train", "test")]
    assert both[0] | both[1] == set(names) and not both[0] & both[1] and 3 < len(both[1]) < 20


def test_a_picture_that_is_not_as_annotated(tmp_path):
    write_coco(tmp_path)
    draw(tmp_path / "train2017" / "a.jpg", "b")
    dataset = Detection(source="coco", path=str(tmp_path), size=64).open()
    with pytest.raises(UsageError, match=r"a\.jpg: 64 x 48 pixels, where its annotation says 64 x 80"):
        dataset.load("train", 0)
    (tmp_path / "train2017" / "a.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"a\.jpg: empty file"):
        dataset.fetch("train", [0], epochs=0)


# ---------------------------------------------------------------- geometry


def marked(size: tuple[int, int], box: tuple[int, int, int, int]) -> Sample:
    """A black picture with a white box."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    x1, y1, x2, y2 = box
    picture[y1:y2, x1:x2] = 255
    return Sample(picture, np.array([box], float), np.array([0]), np.zeros(1, bool))


def white(picture: np.ndarray, box: np.ndarray) -> tuple[float, float]:
    """Mean level within a box and outside, but for a margin of 2 pixels."""
    x1, y1, x2, y2 = box.round().astype(int)
    bright = picture.mean(2)
    inner = bright[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean()
    bright = bright.copy()
    bright[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = 0
    return inner, bright[bright != mosaic.GREY].mean() if (bright != mosaic.GREY).any() else 0.0


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (320, 200), (64, 64)])
def test_letterbox_moves_boxes_with_the_picture(size):
    found = mosaic.letterbox(marked(size, (10, 20, 50, 50)), 128)
    assert found.picture.shape == (128, 128, 3)
    inner, outer = white(found.picture, found.boxes[0])
    assert inner == 255 and outer < 1


@pytest.mark.parametrize("seed", range(6))
def test_affine_maps_move_boxes_with_the_picture(seed):
    """Without turning, the box stays exactly around what it holds; turned, it holds it."""
    uniforms = np.random.default_rng(seed).uniform(size=6)
    augment = BoxAugment(translate=0.1, scale=0.4, degrees=0 if seed < 3 else 30, shear=0 if seed < 3 else 5)
    sample = marked((128, 128), (40, 50, 90, 80))
    found = mosaic.warp(sample, mosaic.matrix(augment, uniforms, 128, 128), 128)
    inner, outer = white(found.picture, found.boxes[0])
    assert outer < 1 and (inner == 255 if seed < 3 else inner > 120)


def test_mosaic_puts_four_pictures_around_its_centre():
    samples = [marked((64, 64), (8, 8, 40, 40)) for _ in range(4)]
    found = mosaic.mosaic(samples, 64, (0.5, 0.5))
    assert found.picture.shape == (128, 128, 3) and len(found.boxes) == 4
    assert found.boxes[0].tolist() == [8, 8, 40, 40] and found.boxes[3].tolist() == [72, 72, 104, 104]
    for box in found.boxes:
        assert white(found.picture, box)[0] == 255
    moved = mosaic.mosaic(samples, 64, (0.0, 0.99))  # tiles reach beyond the canvas
    assert moved.boxes[0].tolist() == [8 - 32, 8 + 31, 40 - 32, 40 + 31]


@pytest.mark.parametrize("degrees", [0, 20])
def test_no_box_stands_on_the_grey_beyond_a_mosaic(degrees):
    """White pictures, each one box, most of the first beyond the canvas, which is shrunk: its edges are inside."""
    samples = [marked((64, 64), (0, 0, 64, 64)) for _ in range(4)]
    canvas = mosaic.mosaic(samples, 64, (0.0, 0.0))
    turned = BoxAugment(scale=0.7, degrees=degrees)
    by = mosaic.matrix(turned, np.array([1.0, 0.0, 0.5, 0.5, 0.5, 0.5]), 128, 64)
    found = mosaic.warp(canvas, by, 64)
    lit = np.argwhere((found.picture > 200).all(2))
    assert len(found.boxes) == 4 and found.boxes[:, :2].min(0) == pytest.approx(lit.min(0)[::-1], abs=1.5)
    first = Sample(canvas.picture, np.array([[-60.0, 0, 0.5, 64]]), np.array([0]), np.zeros(1, bool))
    assert not len(mosaic.warp(first, by, 64).boxes)  # nor a sliver, which turning would make wide


def test_boxes_that_leave_the_picture_are_dropped():
    sample = marked((128, 128), (0, 0, 20, 20))
    for shift, kept in ((-10, 1), (-17, 1), (-18.5, 0), (-30, 0)):
        by = np.array([[1, 0, shift], [0, 1, 0], [0, 0, 1]], float)
        assert len(mosaic.warp(sample, by, 128).boxes) == kept


def test_training_batches_are_pure_and_sound(tmp_path):
    write_yolo(tmp_path)
    augment = BoxAugment(mosaic=0.5, degrees=5, translate=0.1, scale=0.3, hue=0.1, saturation=0.5, value=0.4, flip=0.5)
    dataset = Detection(source="yolo", path=str(tmp_path), size=64, augment=augment, multi_scale=0.5).open()
    whole = dataset.finish(dataset.batch(seed=3, step=5, batch_size=4), seed=3)
    halves = [dataset.finish(dataset.batch(seed=3, step=5, batch_size=4, rank=r, world=2), seed=3) for r in (0, 1)]
    assert torch.equal(whole["image"], torch.cat([half["image"] for half in halves]))
    assert whole["image"].min() >= 0 and whole["image"].max() <= 1
    real = whole["label"] >= 0
    boxes = whole["boxes"][real]
    assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0 and boxes.max() <= whole["image"].shape[-1] + 1e-4
    sides = {dataset.finish(dataset.batch(seed=3, step=s, batch_size=2))["image"].shape[-1] for s in range(12)}
    assert sides <= {32, 64, 96} and len(sides) > 1
    assert not torch.equal(whole["image"], dataset.finish(dataset.batch(seed=4, step=5, batch_size=4), seed=4)["image"])


def test_colours_by_hand():
    """Saturation halves the distance to the largest channel; it ends where the least channel is zero."""
    image = torch.tensor([200, 100, 150], dtype=torch.uint8).view(1, 3, 1, 1).expand(3, 3, 2, 2)
    gains, bright = torch.tensor([0.5, 5.0, 1.0]), torch.tensor([1.0, 1.0, 0.5])
    found = mosaic.adjust_saturation_value(image, gains, bright)[:, :, 0, 0].tolist()
    assert found == [[200, 150, 175], [200, 0, 100], [100, 50, 75]]
    brighter = mosaic.adjust_saturation_value(image[:1], torch.ones(1), torch.tensor([1.4]))[0, :, 0, 0]
    assert brighter.tolist() == [255, 128, 191]  # colorsys: hue and saturation stay, the value ends at 1
    flip = BoxAugment(flip=1.0)
    images, boxes = flip.finish(
        image, torch.tensor([[[0.0, 0, 0.5, 1]]]).expand(3, 1, 4), seed=0, epochs=0, indices=[0, 1, 2]
    )
    assert boxes[0, 0].tolist() == [1.5, 0, 2, 1] and torch.equal(images, image)
    with pytest.raises(UsageError, match=r"hue is 0\.7"):
        BoxAugment(hue=0.7)


def test_sizes_must_suit_the_network():
    with pytest.raises(UsageError, match=r"data\.size is 100") as caught:
        Detection(size=100)
    assert caught.value.hint == "--data.size 96"
    with pytest.raises(MissingError, match="no folder is given"):
        Detection().open()


# ---------------------------------------------------------------- what is asked about


def test_pictures_are_prepared_at_the_least_size():
    data = Detection(size=64)
    for size, shape in (((128, 64), (32, 64)), ((64, 128), (64, 32)), ((100, 70), (64, 64)), ((7, 500), (64, 32))):
        prepared = data.prepare(Image.new("RGB", size, "red"))
        assert tuple(prepared.shape) == (3, *shape)
    for mode in ("1", "L", "CMYK", "P", "RGBA", "I;16"):
        assert data.prepare(Image.new(mode, (64, 64))).shape == (3, 64, 64)


def test_frames_of_moving_pictures(tmp_path):
    colours = ["red", "green", "blue"]
    pictures = [Image.new("RGB", (40, 30), colour) for colour in colours]
    for name in ("a.gif", "b.webp"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], lossless=True)
    pictures[0].save(tmp_path / "still.gif")
    (tmp_path / "bad.gif").write_bytes(b"GIF89a" + b"\0" * 9)
    data = Detection(size=64)
    found = data.read([str(tmp_path)])
    frames = [f"{name}#0000{i}.{kind}" for name, kind in (("a", "gif"), ("b", "webp")) for i in range(3)]
    assert [Path(name).name for name, _ in found] == [*frames, "bad.gif", "still.gif"]
    for frame in (found[2][1], found[0][1], found[5][1]):
        assert isinstance(frame, Frame)
        assert data.picture(frame).getpixel((5, 5)) == Image.new("RGB", (1, 1), colours[frame.number]).getpixel((0, 0))
    with pytest.raises(UsageError, match=r"bad\.gif"):
        data.picture(found[6][1])


def test_a_damaged_file_and_a_folder_called_so_end_no_job(tmp_path):
    colours = [Image.effect_noise((40, 30), sigma) for sigma in (50, 60, 70)]
    colours[0].save(tmp_path / "whole.gif", save_all=True, append_images=colours[1:])
    whole = (tmp_path / "whole.gif").read_bytes()
    data, path = Detection(size=64), tmp_path / "cut.gif"
    (tmp_path / "folder.jpg").mkdir()
    for end in range(6, len(whole), 101):
        path.write_bytes(whole[:end])
        for name, raw in data.read([str(tmp_path)]):
            try:
                data.picture(raw)
            except UsageError as error:
                assert "cut.gif" in str(error) or "cut#" in str(error), (name, str(error))
                assert "cut" in Path(name).name


def test_videos(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in (30, 120, 220):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = Detection(size=64)
    found = data.read([str(path)])
    assert [Path(name).name for name, _ in found] == [f"v#0000{i}.mp4" for i in range(3)]
    levels = [np.asarray(data.picture(found[i][1])).mean() for i in (0, 1, 2, 0)]
    np.testing.assert_allclose(levels, [30, 120, 220, 30], atol=8)
    path.write_bytes(b"no video")
    ((_, bad),) = data.read([str(tmp_path)])  # a folder's other files are still answered
    with pytest.raises(UsageError, match=r"v\.mp4: not a video that can be read"):
        data.picture(bad)
