import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from etude.data import imagenet
from etude.data.sources import SOURCES, ImageFiles
from etude.errors import MissingError, RefusedError, UsageError


def picture(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (10, 8), grey).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")


def load(name: str, split: str, root: Path) -> ImageFiles:
    got = SOURCES[name].load(split, str(root))
    assert isinstance(got, ImageFiles)
    assert got.labels.dtype == torch.int64 and len(got) == len(got.paths)
    return got


def relative(got: ImageFiles, root: Path) -> list[tuple[str, str]]:
    return [(Path(path).relative_to(root).as_posix(), got.classes[label]) for path, label in zip(got.paths, got.labels)]


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders(tmp_path: Path, test_name: str):
    for name in ("dog/b.jpg", "dog/a.JPG", "cat/deep/er/c.png", "cat/z.jpeg"):
        picture(tmp_path / "train" / name)
    picture(tmp_path / test_name / "dog" / "t.png", grey=255)
    for stray in ("train/.hidden/x.jpg", "train/cat/._z.jpg", "train/readme.jpg"):
        picture(tmp_path / stray)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    train, test = load("folder", "train", tmp_path), load("folder", "test", tmp_path)
    assert train.classes == test.classes == ("cat", "dog")
    assert relative(train, tmp_path / "train") == [
        ("cat/deep/er/c.png", "cat"),
        ("cat/z.jpeg", "cat"),
        ("dog/a.JPG", "dog"),
        ("dog/b.jpg", "dog"),
    ]
    assert relative(test, tmp_path / test_name) == [("dog/t.png", "dog")]
    assert torch.equal(test.decode(0, 8), torch.full((3, 8, 8), 255, dtype=torch.uint8))


def touch_all(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_one_folder_is_split_by_a_hash_that_never_changes(tmp_path: Path):
    names = [f"{kind}/{number:03}.jpg" for kind in ("a", "b") for number in range(200)]
    touch_all(tmp_path / "one", names)
    train, test = (relative(load("folder", split, tmp_path / "one"), tmp_path / "one") for split in ("train", "test"))
    assert sorted(train + test) == [(name, name[0]) for name in names]
    assert 0.14 < len(test) / len(names) < 0.26
    # written down once: a change of the rule would mix test pictures into the training of earlier runs
    assert [name for name, _ in test][:5] == FIRST_TEST_PICTURES
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    touch_all(tmp_path / "elsewhere" / "two", [f"a/new{number}.jpg" for number in range(100)])
    later = relative(load("folder", "test", tmp_path / "elsewhere" / "two"), tmp_path / "elsewhere" / "two")
    assert [row for row in later if "new" not in row[0]] == test
    assert any("new" in name for name, _ in later)


FIRST_TEST_PICTURES = ["a/022.jpg", "a/024.jpg", "a/037.jpg", "a/043.jpg", "a/044.jpg"]
"""By the shell: those whose `printf PATH | sha256sum` begins below 0.2 * 2^16 = 0x3333."""


def test_small_classes_have_both_kinds(tmp_path: Path):
    touch_all(tmp_path, [f"{kind}/{number}.png" for kind in "abcdefgh" for number in range(2)])
    for split in ("train", "test"):
        assert load("folder", split, tmp_path).labels.tolist() == list(range(8))


def test_folder_mistakes(tmp_path: Path):
    with pytest.raises(MissingError, match="no such folder"):
        SOURCES["folder"].load("train", str(tmp_path / "nowhere"))
    with pytest.raises(MissingError) as caught:
        SOURCES["folder"].load("train")
    assert "--data.path" in caught.value.hint
    with pytest.raises(UsageError, match="no folders in it"):
        SOURCES["folder"].load("train", str(tmp_path))
    touch_all(tmp_path, ["one/a/1.png", "one/b/1.png", "one/b/2.png"])
    with pytest.raises(UsageError, match="1 pictures, where a class needs 2"):
        SOURCES["folder"].load("test", str(tmp_path / "one"))
    touch_all(tmp_path, ["two/train/a/1.png"])
    with pytest.raises(MissingError, match="neither test nor val"):
        SOURCES["folder"].load("test", str(tmp_path / "two"))
    touch_all(tmp_path, ["two/test/b/1.png"])
    with pytest.raises(UsageError, match="the class 'b' is not in"):
        SOURCES["folder"].load("test", str(tmp_path / "two"))
    (tmp_path / "two" / "train" / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: no pictures"):
        SOURCES["folder"].load("train", str(tmp_path / "two"))


WNIDS = ["n01440764", "n01443537", "n02012849", "n03126707"]
WORDS = ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane"]
DEVKIT_IDS = [3, 1, 4, 2]
"""ILSVRC2012_ID of each wnid: not their sorted order, as in the official devkit."""
VALIDATION = [2, 0, 3, 1, 1]
"""Labels of the five validation pictures."""


def validation_name(index: int) -> str:
    return f"ILSVRC2012_val_{index + 1:08}.JPEG"


def write_imagenet(root: Path, *, flat: bool) -> None:
    for label, wnid in enumerate(WNIDS):
        for number in range(label + 1):
            picture(root / "train" / wnid / f"{wnid}_{number}.JPEG")
    for index, label in enumerate(VALIDATION):
        picture(root / "val" / ("" if flat else WNIDS[label]) / validation_name(index))


def write_devkit(root: Path, *, compress: bool = True) -> None:
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    kinds += [("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]
    synsets = np.zeros((len(WNIDS) + 1, 1), dtype=kinds)
    for row, (number, wnid, words) in enumerate(zip(DEVKIT_IDS, WNIDS, WORDS)):
        no_children = np.zeros((1, 0), dtype=np.uint8)
        synsets[row, 0] = (float(number), wnid, words, "a gloss", 0.0, no_children, 0.0, 1300.0)
    synsets[-1, 0] = (1001.0, "n00001740", "entity", "", 2.0, np.array([[1.0, 300.0]]), 19.0, 0.0)
    scipy.io.savemat(data / "meta.mat", {"synsets": synsets}, do_compression=compress)
    truth = "".join(f"{DEVKIT_IDS[label]}\n" for label in VALIDATION)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


def check_imagenet(root: Path) -> ImageFiles:
    train, test = load("imagenet", "train", root), load("imagenet", "test", root)
    assert train.labels.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    got = {Path(path).name: int(label) for path, label in zip(test.paths, test.labels)}
    assert got == {validation_name(index): label for index, label in enumerate(VALIDATION)}
    return test


def test_imagenet_in_class_folders(tmp_path: Path):
    write_imagenet(tmp_path, flat=False)
    assert check_imagenet(tmp_path).classes == tuple(WNIDS)
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{w} {t}\n" for w, t in zip(WNIDS, WORDS)))
    assert check_imagenet(tmp_path).classes == (
        "n01440764 tench",
        "n01443537 goldfish",
        "n02012849 crane",
        "n03126707 crane",
    )


@pytest.mark.parametrize("by", ["number", "wnid"])
@pytest.mark.parametrize("place", ["val.txt", "val/val.txt"])
def test_imagenet_flat_with_val_txt(tmp_path: Path, by: str, place: str):
    write_imagenet(tmp_path, flat=True)
    rows = [(validation_name(i), label if by == "number" else WNIDS[label]) for i, label in enumerate(VALIDATION)]
    (tmp_path / place).write_text("".join(f"{name} {label}\n" for name, label in rows))
    check_imagenet(tmp_path)
    (tmp_path / place).write_text("".join(f"{name} {label}\n" for name, label in rows[:-1]))
    with pytest.raises(UsageError, match=r"val_00000005.JPEG: its label is not known"):
        load("imagenet", "test", tmp_path)
    (tmp_path / place).write_text("ILSVRC2012_val_00000001.JPEG 4\n")
    with pytest.raises(UsageError, match=r"val_00000001.JPEG 4' is not a picture and a known class"):
        load("imagenet", "test", tmp_path)


@pytest.mark.parametrize("compress", [True, False])
def test_imagenet_flat_with_the_devkit(tmp_path: Path, compress: bool):
    write_imagenet(tmp_path, flat=True)
    write_devkit(tmp_path, compress=compress)
    assert check_imagenet(tmp_path).classes[0] == "n01440764 tench"


def test_mat_reader_agrees_with_scipy(tmp_path: Path):
    write_devkit(tmp_path)
    path = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    ours = imagenet.read_mat(path.read_bytes())["synsets"]
    theirs = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
    assert len(ours) == len(theirs) == 5
    for mine, other in zip(ours, theirs):
        assert list(mine) == list(other.dtype.names)
        assert [mine["ILSVRC2012_ID"], mine["WNID"], mine["words"]] == [other[n] for n in list(mine)[:3]]
        assert list(mine["children"]) == np.atleast_1d(other["children"]).tolist()


def test_imagenet_mistakes(tmp_path: Path):
    with pytest.raises(MissingError) as caught:
        SOURCES["imagenet"].load("train")
    assert "image-net.org" in str(caught.value) and "--data.path" in caught.value.hint
    with pytest.raises(MissingError, match="no class folders like train/n01440764"):
        load("imagenet", "train", tmp_path)
    write_imagenet(tmp_path, flat=True)
    with pytest.raises(MissingError, match="not sorted into class folders") as caught:
        load("imagenet", "test", tmp_path)
    assert "val.txt" in caught.value.hint
    write_devkit(tmp_path)
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    good = (data / "meta.mat").read_bytes()
    for bad in (good[:200], good[:-30], b"x" * 300, good[:140] + b"\xff" * 20 + good[160:]):
        (data / "meta.mat").write_bytes(bad)
        with pytest.raises(RefusedError, match=r"meta\.mat: not the devkit's"):
            load("imagenet", "test", tmp_path)
    (data / "meta.mat").write_bytes(good)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1001\n")
    with pytest.raises(UsageError, match="line 2: class 1001"):
        load("imagenet", "test", tmp_path)
    shutil.rmtree(data)
    picture(tmp_path / "val" / "n09999999" / "x.JPEG")
    with pytest.raises(UsageError, match="n09999999: there is no such class"):
        load("imagenet", "test", tmp_path)
