"""Pairs of pictures and masks: splits, classes, what is left out and why, windows that resume, volumes as slices."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from etude.data import decode, segmentation
from etude.data.elastic import Deform
from etude.data.masks import IGNORED
from etude.data.segmentation import Segmentation
from etude.errors import MissingError, UsageError
from segmentation_files import write_pair, write_volume

RNG = np.random.default_rng(0)


def folder(tmp_path: Path, count: int = 6, **settings) -> Segmentation:
    for i in range(count):
        write_pair(tmp_path, f"p{i}", seed=i, **settings)
    return Segmentation(path=str(tmp_path), size=16, channels=1)


def test_a_folder_is_split_by_its_names(tmp_path):
    data = folder(tmp_path, 9)
    dataset = data.open()
    assert dataset.facts["classes"] == ["background", "object"] and dataset.facts["values"] == [0, 255]
    assert sum(dataset.sizes.values()) == 9 and dataset.sizes["test"] >= 1 and dataset.in_memory
    test = {name for name, _ in dataset.samples("test", 9)}
    write_pair(tmp_path, "p9", seed=9)
    assert test - {name for name, _ in data.open().samples("test", 9)} <= test  # a set that grew keeps most places
    moved = tmp_path.parent / "moved"
    tmp_path.rename(moved)
    again = Segmentation(path=str(moved), size=16, channels=1).open()
    assert {Path(name).name for name, _ in again.samples("test", 9)} >= {Path(name).name for name in test} - {"p9.png"}


def test_any_name_will_do(tmp_path):
    """Names and folders that look like those of slices."""
    place = tmp_path / "a slice of" / "life"
    for i in range(9):
        write_pair(place, f"brain slice {i}", seed=i)
    assert all(Segmentation(path=str(place), size=16).open().sizes.values())


def test_train_and_test_folders(tmp_path):
    for i in range(3):
        write_pair(tmp_path / "train", f"p{i}", seed=i)
    write_pair(tmp_path / "val", "q", seed=8)
    dataset = Segmentation(path=str(tmp_path), size=16).open()
    assert dataset.sizes == {"train": 3, "test": 1}
    batch = dataset.batch(seed=0, step=0, batch_size=2)
    assert batch["image"].shape == (2, 3, 16, 16)  # grey pictures as three channels


def test_evaluation_takes_whole_pictures_of_one_shape(tmp_path):
    for i in range(4):
        write_pair(tmp_path / "train", f"p{i}", seed=i)
        write_pair(tmp_path / "test", f"p{i}", shape=(20, 24 + 2 * (i % 2)), seed=i)
    dataset = Segmentation(path=str(tmp_path), size=16, channels=1).open()
    for world in (1, 2, 3):
        seen = [
            list(span) for rank in range(world) for span in dataset.spans("test", batch_size=9, rank=rank, world=world)
        ]
        assert sorted(i for span in seen for i in span) == [0, 1, 2, 3]
        assert all(len({dataset.fetch("test", span)["image"].shape[-1]}) == 1 for span in seen)
    batch = dataset.finish(dataset.fetch("test", [0, 2]))
    assert batch["image"].shape == (2, 1, 20, 24) and batch["mask"].unique().tolist() == [0, 1]
    stored = decode.open_values(tmp_path / "test/images/p0.png")
    expected = (torch.from_numpy(stored.copy()).float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(batch["image"][0, 0], expected)


def test_windows_follow_from_seed_epoch_and_index(tmp_path):
    data = folder(tmp_path)
    dataset = Segmentation(**{**vars(data), "augment": Deform(degrees=20, elastic=2, mirror=True, gamma=0.2)}).open()
    one = dataset.finish(dataset.batch(seed=1, step=7, batch_size=4), seed=1)
    halves = [dataset.finish(dataset.batch(seed=1, step=7, batch_size=4, rank=r, world=2), seed=1) for r in (0, 1)]
    for name in ("image", "mask"):
        torch.testing.assert_close(one[name], torch.cat([half[name] for half in halves]), rtol=0, atol=1e-4)
    assert not torch.equal(one["image"], dataset.finish(dataset.batch(seed=2, step=7, batch_size=4), seed=2)["image"])
    alone = data.open().fetch("train", [0], epochs=3, seed=0)
    whole = data.open().fetch("test", [0])["image"].shape
    assert alone["image"].shape == (1, 1, 16, 16) and whole == (1, 1, 20, 24)


def test_a_window_larger_than_the_picture_is_mirrored(tmp_path):
    data = Segmentation(**{**vars(folder(tmp_path)), "size": 48})
    dataset = data.open()
    batch = dataset.fetch("train", [0], epochs=0)
    inner = batch["image"][0, 0, 14:34, 12:36]
    assert torch.equal(inner, dataset.fetch("train", [0])["image"][0, 0])
    assert torch.equal(batch["image"][0, 0, 13], batch["image"][0, 0, 14])


def bad(place: Path) -> dict[str, str]:
    """Files of every kind that cannot be used, and what is said of them."""
    images, masks = place / "images", place / "masks"
    said = {}

    def pair(stem: str, message: str, *, image=None, mask=None) -> None:
        write_pair(place, stem, seed=5)
        if image is not None:
            image(images / f"{stem}.png")
        if mask is not None:
            mask(masks / f"{stem}.png")
        said[stem] = message

    def gif(path: Path) -> None:
        Image.new("L", (24, 20)).save(path, "GIF", save_all=True, append_images=[Image.new("L", (24, 20), 99)])

    def twin(path: Path) -> None:
        decode.open_image(path).save(path.with_suffix(".jpg"))

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:60])

    pair("zero", "empty file", image=lambda p: p.write_bytes(b""))
    pair("corrupt", "not a picture that can be read", image=lambda p: p.write_bytes(b"garbage" * 30))
    pair("cut", "truncated or damaged", image=cut)
    pair("cutmask", "truncated or damaged", mask=cut)
    pair("animated", "2 pictures in one file", image=gif)
    pair("size", "a mask of 9 x 8 pixels, where its picture has 24 x 20", mask=lambda p: Image.new("L", (9, 8)).save(p))
    pair("colours", "a mask of colours", mask=lambda p: Image.new("RGB", (24, 20), (1, 2, 3)).save(p))
    pair("jpeg", "a mask as JPEG, which", mask=lambda p: Image.new("L", (24, 20)).save(p, "JPEG"))
    pair("twice", "images/twice.jpg, images/twice.png, masks/twice.png share a name", image=twin)
    pair("masks", "images/masks.png, masks/masks.jpg, masks/masks.png share a name", mask=twin)
    pair("lonely", "it has no mask", mask=Path.unlink)
    pair("masked", "a mask without a picture", image=Path.unlink)
    return said


def test_bad_pairs_are_left_out_with_a_line_each(tmp_path, capsys):
    folder(tmp_path)
    said = bad(tmp_path)
    write_pair(tmp_path, "cmyk")  # not bad: converted, as is 1 bit a pixel
    decode.open_image(tmp_path / "images/cmyk.png").convert("CMYK").save(tmp_path / "images/cmyk.jpg")
    (tmp_path / "images/cmyk.png").unlink()
    write_pair(tmp_path, "bit")
    decode.open_image(tmp_path / "images/bit.png").convert("1").save(tmp_path / "images/bit.png")
    dataset = Segmentation(path=str(tmp_path), size=16).open()
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "classes and their values in the masks: background 0, object 255"
    assert len(lines) == len(said) == len(dataset.left_out) and sum(dataset.sizes.values()) == 8
    for stem, message in said.items():
        (line,) = [line for line in lines if f"/{stem}." in line.split(":")[1]]
        assert line.startswith("left out: ") and message in line
    assert dataset.facts["left_out"] == dataset.left_out


def test_huge_pictures_are_refused_by_their_header(tmp_path, monkeypatch):
    data = folder(tmp_path)
    Image.new("L", (64, 64)).save(tmp_path / "images/p0.png")
    monkeypatch.setenv("ETUDE_MAX_PIXELS", "1000")
    dataset = data.open()
    assert "64 x 64 pixels, more than the limit of 1,000" in dataset.left_out[0]


def test_all_bad_is_an_error(tmp_path):
    write_pair(tmp_path, "a")
    (tmp_path / "masks/a.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no pair of picture and mask can be used; .*a\.png: empty file"):
        Segmentation(path=str(tmp_path)).open()


def test_unknown_values(tmp_path):
    """Learned classes come from training masks; another value in a test mask, or in another folder that a run is
    measured on, leaves its picture out."""
    for i in range(3):
        write_pair(tmp_path / "train", f"p{i}", seed=i)
        write_pair(tmp_path / "test", f"p{i}", seed=i, values=(0, 255 if i else 7))
    dataset = Segmentation(path=str(tmp_path), size=16).open()
    assert (
        dataset.sizes["test"] == 2 and "has the value 7, which is none of the classes' (0, 255)" in dataset.left_out[0]
    )
    with pytest.raises(
        UsageError, match=r"nothing to train with; .*the value 255, which is none of the classes' \(0, 7\)"
    ):
        Segmentation(path=str(tmp_path), size=16).reopen(dataset.facts | {"values": [0, 7]})


def test_reopened_for_other_data_keeps_the_runs_classes(tmp_path):
    facts = folder(tmp_path / "one").open().facts
    for i in range(4):
        write_pair(tmp_path / "two", f"p{i}", seed=i, values=(0, 255 if i < 3 else 0))
    assert Segmentation(path=str(tmp_path / "two"), size=16).reopen(facts).facts["values"] == [0, 255]


def test_ignored_pixels_and_named_values(tmp_path):
    write_pair(tmp_path, "a", values=(3, 9))
    write_pair(tmp_path, "b", values=(3, 7))
    data = Segmentation(path=str(tmp_path), size=16, values=(3, 9), classes=("out", "in"), ignore=7)
    dataset = data.open()
    found = {int(v) for split in dataset.sizes for v in dataset.fetch(split, [0])["mask"].unique()}
    assert found == {0, 1, IGNORED} and dataset.facts["classes"] == ["out", "in"]


def test_one_class_of_two_values_is_no_guess(tmp_path):
    for i in range(4):
        write_pair(tmp_path, f"p{i}", seed=i, values=(0, 255 if i % 2 else 1))
    with pytest.raises(UsageError, match="some masks hold 0 and 1, others 0 and 255"):
        Segmentation(path=str(tmp_path), size=16).open()
    assert len(Segmentation(path=str(tmp_path), size=16, values=(0, 1, 255)).open().classes) == 3


def test_ignored_regions_are_no_objects(tmp_path):
    """They take no pixel from an object that they touch, and weigh nothing as its neighbour."""
    mask = np.zeros((20, 24), np.uint16)
    mask[5:15, 5:12] = 1
    for stem in "ab":
        write_pair(tmp_path, stem)
        Image.fromarray(mask).save(tmp_path / f"masks/{stem}.png")
    plain = Segmentation(path=str(tmp_path), size=16, channels=1, instances=True, borders=10)
    bare = plain.open()
    mask[5:15, 12:20] = 9
    for stem in "ab":
        Image.fromarray(mask).save(tmp_path / f"masks/{stem}.png")
    ignoring = replace(plain, ignore=9).open()
    found, expected = (dataset.fetch("train", [0])["mask"][0] for dataset in (ignoring, bare))
    assert (found[5:15, 12:20] == IGNORED).all() and torch.equal(found[:, :12], expected[:, :12])
    weights = [dataset.fetch("train", [0], epochs=0)["weight"] for dataset in (ignoring, bare)]
    assert torch.equal(*weights)


def test_few_bright_pixels_keep_their_levels():
    picture = np.full((100, 100), 100, np.uint16)
    picture[0, :40] = np.arange(40) * 1000 + 1000
    assert len(Segmentation(channels=1).prepare(picture).unique()) == 41


def test_too_many_values_are_no_classes(tmp_path):
    folder(tmp_path)
    Image.fromarray(RNG.integers(0, 255, (20, 24)).astype(np.uint8)).save(tmp_path / "masks/p0.png")
    for stem in range(1, 6):
        Image.fromarray(RNG.integers(0, 255, (20, 24)).astype(np.uint8)).save(tmp_path / f"masks/p{stem}.png")
    with pytest.raises(UsageError, match="different values") as caught:
        Segmentation(path=str(tmp_path)).open()
    assert "--data.instances" in caught.value.hint
    objects = Segmentation(path=str(tmp_path), size=16, instances=True, borders=10).open()
    batch = objects.finish(objects.batch(seed=0, step=0, batch_size=2))
    assert batch["weight"].shape == (2, 16, 16) and batch["weight"].min() >= 0.99


def test_pictures_beyond_memory_are_read_again(tmp_path, monkeypatch):
    kept = folder(tmp_path).open()
    monkeypatch.setattr(segmentation, "KEPT", 3000)
    read = folder(tmp_path).open()
    assert kept.in_memory and not read.in_memory
    for one, other in zip(
        kept.batch(seed=0, step=0, batch_size=4).values(), read.batch(seed=0, step=0, batch_size=4).values()
    ):
        assert torch.equal(one, other)


def test_volumes_are_slices_and_never_split_within_one(tmp_path):
    for i in range(4):
        write_volume(tmp_path, f"v{i}")
    dataset = Segmentation(path=str(tmp_path), channels=1, size=16).open()
    assert sum(dataset.sizes.values()) == 80
    names = [{name.partition(" slice ")[0] for name, _ in dataset.samples(split, 80)} for split in ("train", "test")]
    assert not names[0] & names[1] and names[1]
    batch = dataset.fetch("test", [0, 1])
    assert batch["image"].shape == (2, 1, 14, 12) and batch["spacing"][0].tolist() == [2.0, 1.0]
    agree = ((batch["image"][:, 0] > 127) == (batch["mask"] > 0)).float().mean()
    assert agree > 0.98


def test_one_volume_is_split_by_blocks(tmp_path):
    write_volume(tmp_path, "v", (10, 12, 60))
    dataset = Segmentation(path=str(tmp_path), channels=1, size=16, guard=2).open()
    places = {split: [int(name.split()[-1]) for name, _ in dataset.samples(split, 99)] for split in dataset.sizes}
    assert places["test"] == [*range(12, 18), *range(42, 48)]
    gaps = [abs(a - b) for a in places["train"] for b in places["test"]]
    assert min(gaps) == 3 and len(places["train"]) == 60 - 12 - 8


@pytest.mark.parametrize("what", ["nan", "four", "shape", "cut", "mixed"])
def test_bad_volumes_are_left_out(tmp_path, what, capsys):
    for stem in "abc":
        write_volume(tmp_path, stem)
    image, mask = tmp_path / "images/a.nii.gz", tmp_path / "masks/a.nii"
    match what:
        case "nan":
            nib.save(nib.Nifti1Image(np.full((12, 14, 20), np.nan, np.float32), np.diag([1.0, 2, 3, 1])), image)
        case "four":
            nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 4), np.float32), np.eye(4)), image)
        case "shape":
            nib.save(nib.Nifti1Image(np.zeros((12, 14, 21), np.uint8), np.diag([1.0, 2, 3, 1])), mask)
        case "cut":
            image.write_bytes(image.read_bytes()[:3000])
        case "mixed":
            mask.unlink()
            Image.new("L", (4, 4)).save(tmp_path / "masks/a.png")
    dataset = Segmentation(path=str(tmp_path), channels=1, size=16).open()
    message = {"nan": "NaN", "four": "4 dimensions", "shape": "12 x 14 x 21 voxels, where", "cut": "truncated",
               "mixed": "must both be NIfTI"}[what]  # fmt: skip
    _, line = capsys.readouterr().err.splitlines()
    assert message in line and "/a." in line and sum(dataset.sizes.values()) == 40


def test_volumes_together_are_limited(tmp_path, monkeypatch):
    for stem in "abc":
        write_volume(tmp_path, stem)
    monkeypatch.setattr(segmentation, "VOXELS", 7000)
    dataset = Segmentation(path=str(tmp_path), channels=1, size=16).open()
    assert "the most that are kept" in dataset.left_out[0] and sum(dataset.sizes.values()) == 40


def test_levels():
    data = Segmentation(channels=1, window=(-100, 300))
    values = np.array([[-500.0, -100.0], [100.0, 900.0]])
    assert data.levels(values)[0].tolist() == [[0, 0], [128, 255]]
    assert Segmentation(channels=3).levels(np.zeros((2, 4, 5))).shape == (2, 3, 4, 5)
    wide = np.arange(100, dtype=np.uint16).reshape(10, 10) * 40
    found = Segmentation(channels=1).prepare(wide)
    assert found.max() == 255 and found.min() == 0 and len(found.unique()) > 95


def test_pictures_of_floats_are_scaled_as_volumes_are(tmp_path):
    data = folder(tmp_path)
    floats = np.random.default_rng(0).normal(1e-3, 1e-4, (20, 24)).astype(np.float32)
    for i in range(3):  # of any scale, their masks as floats too
        (tmp_path / f"images/p{i}.png").unlink()
        Image.fromarray(floats * 10**i).save(tmp_path / f"images/p{i}.tif")
    mask = np.asarray(decode.open_values(tmp_path / "masks/p1.png"))
    (tmp_path / "masks/p1.png").unlink()
    Image.fromarray(mask.astype(np.float32)).save(tmp_path / "masks/p1.tif")
    (tmp_path / "masks/p2.png").unlink()
    Image.fromarray(mask + np.float32(0.5)).save(tmp_path / "masks/p2.tif")
    path = tmp_path / "images/p0.tif"
    low, high = np.percentile(floats, (0.5, 99.5))
    expected = np.rint((floats - low) / (high - low) * 255).clip(0, 255)
    for raw in (path, str(path), path.read_bytes()):
        assert np.abs(data.prepare(raw)[0].numpy() - expected).max() <= 1  # of levels, where float32 rounds otherwise
    assert np.unique(expected).size > 150
    dataset = data.open()
    (said,) = dataset.left_out
    assert "p2.tif: a mask's values must be whole numbers" in said and sum(dataset.sizes.values()) == 5
    assert replace(data, window=(1e9, 2e9)).prepare(path).max() == 0
    for bad in (np.nan, np.inf):
        broken = floats.copy()
        broken[3, 4] = bad
        Image.fromarray(broken).save(path)
        with pytest.raises(UsageError, match=r"p0\.tif: 1 of 480 pixels are NaN or infinite"):
            data.prepare(path)
    assert "p0.tif: 1 of 480" in data.open().left_out[0]


def test_inputs_are_pictures_and_volumes(tmp_path):
    folder(tmp_path, 2)
    write_volume(tmp_path, "v")
    data = Segmentation()
    names = [Path(name).name for name, _ in data.read([str(tmp_path), str(tmp_path / "masks/p0.png")])]
    assert names == ["p0.png", "p1.png", "v.nii.gz", "p0.png"]
    for words, message in ((["none.png"], "no file"), ([str(tmp_path / "images/none")], "no file")):
        with pytest.raises(UsageError, match=message):
            data.read(words)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no pictures or volumes"):
        data.read([str(tmp_path / "empty")])
    with pytest.raises(UsageError, match="not one picture"):
        data.prepare("x.nii")


@pytest.mark.parametrize(
    ("make", "message", "kind"),
    [
        (lambda p: None, "no such folder", MissingError),
        (lambda p: p.mkdir(), "no folder images", MissingError),
        (lambda p: (p / "images").mkdir(parents=True), "no folder masks", MissingError),
        (lambda p: [(p / n).mkdir(parents=True) for n in ("images", "masks")], "no pictures there", UsageError),
        (lambda p: write_pair(p, "a"), "one picture cannot be split", UsageError),
        (lambda p: write_pair(p / "train", "a"), "neither test nor val", MissingError),
        (lambda p: [write_pair(p, s, values=(4, 4)) for s in "abc"], "1 value where 2 are needed", UsageError),
    ],
)
def test_folders_that_do_not_fit(tmp_path, make, message, kind):
    make(tmp_path / "d")
    with pytest.raises(kind, match=message):
        Segmentation(path=str(tmp_path / "d")).open()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "brains"}, "data.source is 'brains'"),
        ({"channels": 2}, "data.channels is 2"),
        ({"size": 3}, "data.size 3"),
        ({"borders": 10.0}, "data.borders"),
        ({"axis": "up"}, "data.axis is 'up'"),
        ({"window": (3.0, 3.0)}, "data.window"),
        ({"values": (0, 1), "classes": ("a",)}, "data.values has 2 entries, data.classes 1"),
        ({"values": (1, 1)}, "must differ"),
        ({"classes": ("background", "Liver", "liver")}, "has 'Liver' and 'liver', but names must differ in more than"),
        ({"classes": ("a", "left lung", "Left  lung"), "values": (0, 1, 2)}, "'left lung' and 'Left  lung'"),
        ({"values": (0, 70000)}, "between 0 and 65,535"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UsageError, match=message):
        Segmentation(**settings)
