"""Patches: what a batch holds, that it is pure, that nothing leaks between splits, and what is refused."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from etude.data.patches import MARGIN, Patches, distinct, mirrored, turned
from etude.data.resize import imresize, to_bytes
from etude.errors import MissingError, UsageError


def write(folder: Path, count: int = 3, size: tuple[int, int] = (60, 52), seed: int = 0) -> Path:
    """Noise whose left half is flat, so that there is little to see in it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        pixels[:, : size[0] // 2] = 100
        Image.fromarray(pixels).save(folder / f"p{i}.png")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Patches:
    write(tmp_path / "train")
    write(tmp_path / "test", 2, (43, 37), seed=1)
    return Patches(source="folder", path=str(tmp_path), scale=4, size=16, per_picture=8)


def test_a_batch_is_low_and_high(data: Patches):
    opened = data.open()
    assert opened.sizes == {"train": 24, "test": 2} and opened.facts["pictures"] == {"test": ["test/p0", "test/p1"]}
    raw = opened.batch(seed=0, step=0, batch_size=6)
    assert raw["image"].shape == (6, 3, 16 + 16, 16 + 16) and raw["image"].dtype == torch.uint8
    batch = opened.finish(raw)
    assert batch.keys() == {"low", "high", "index"}
    assert batch["low"].shape == (6, 3, 4, 4) and batch["high"].shape == (6, 3, 16, 16)
    again = opened.finish(opened.batch(seed=0, step=0, batch_size=6))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    other = opened.finish(opened.batch(seed=1, step=0, batch_size=6))
    assert not torch.equal(batch["high"], other["high"])


def test_ranks_share_the_batch_of_one(data: Patches):
    opened = data.open()
    whole = opened.finish(opened.batch(seed=3, step=2, batch_size=8), seed=3)
    parts = [opened.finish(opened.batch(seed=3, step=2, batch_size=8, rank=r, world=2), seed=3) for r in (0, 1)]
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts]))


def test_low_is_a_part_of_the_whole_picture_made_smaller(data: Patches):
    """Also at the border, where both are mirrored."""
    opened = data.open()
    image = opened._load("train", 1)
    whole = to_bytes(imresize(image.float() / 255, 1 / 4))
    cumulated, across = opened._places(1)
    for place in range(len(cumulated)):
        before = cumulated[place - 1] if place else 0.0
        crop = opened._crop(1, (before + cumulated[place]) / 2)
        row, column = divmod(place, across)
        assert torch.equal(crop[:, 8:24, 8:24], image[:, 8 * row :, 8 * column :][:, :16, :16])
        low = to_bytes(imresize(crop.float() / 255, 1 / 4))[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
        assert torch.equal(low, whole[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4])


def test_patches_lie_where_there_is_much_to_see(data: Patches):
    opened = data.open()
    image = opened.fetch("train", range(24), epochs=0)["image"][:, :, 8:24, 8:24].float()
    flat = image.std((1, 2, 3)) < 1
    assert flat.float().mean() < 0.1  # of places, about half are flat
    cumulated, across = opened._places(0)
    shares = np.diff(cumulated, prepend=0).reshape(-1, across)
    assert shares.sum() == pytest.approx(1) and shares[:, 0].max() < 0.01 * shares[:, -1].min()


def test_low_and_high_are_turned_alike(data: Patches):
    opened = data.open()
    batch = opened.finish(opened.fetch("train", range(24), epochs=np.zeros(24, int), seed=5), seed=5)
    means = torch.nn.functional.avg_pool2d(batch["high"], 4)
    error = (means - batch["low"]).abs().mean((1, 2, 3))
    mirrored_error = (means.flip(-1) - batch["low"]).abs().mean((1, 2, 3))
    busy = batch["high"].std((1, 2, 3)) > 0.1
    assert (error[busy] < mirrored_error[busy]).all()
    x = torch.arange(9.0).view(1, 3, 3)
    assert len({tuple(turned(x, way).flatten().tolist()) for way in range(8)}) == 8


def test_measuring_takes_whole_pictures(data: Patches):
    opened = data.open()
    assert [list(span) for span in opened.spans("test", batch_size=500)] == [[0], [1]]
    batch = opened.finish(opened.fetch("test", [1]))
    assert batch["high"].shape == (1, 3, 36, 40) and batch["low"].shape == (1, 3, 9, 10)  # of 43 x 37
    names, raws = zip(*opened.samples("test", 5))
    assert names == ("test/p0", "test/p1") and raws[1].dtype == torch.uint8
    assert torch.equal(raws[1].float() / 255, batch["low"][0])


def test_reduce_halves_first(data: Patches, tmp_path: Path):
    from dataclasses import replace

    opened = replace(data, reduce=2, size=8).open()
    path = tmp_path / "train" / "p0.png"
    whole = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1).float() / 255
    assert torch.equal(opened._load("train", 0), to_bytes(imresize(whole, 0.5))[:, :24, :28])


def test_some_are_held_out_and_links_do_not_leak(tmp_path: Path):
    write(tmp_path / "deep" / "er", 12)
    os.symlink(tmp_path / "deep" / "er" / "p0.png", tmp_path / "deep" / "a-link.png")
    files = Patches(source="folder", path=str(tmp_path), size=16).files()
    assert all(files.values())
    targets = [{path.resolve() for path in named.values()} for named in files.values()]
    assert not targets[0] & targets[1] and len(targets[0] | targets[1]) == 12
    assert distinct([str(tmp_path / "deep" / "a-link.png")] * 2) == [tmp_path / "deep" / "a-link.png"]


def test_div2k_as_it_unpacks(tmp_path: Path):
    write(tmp_path / "DIV2K_train_HR", 2)
    write(tmp_path / "DIV2K_valid_HR", 1)
    opened = Patches(source="div2k", path=str(tmp_path), size=16, per_picture=5).open()
    assert opened.sizes == {"train": 10, "test": 1}
    with pytest.raises(MissingError, match="DIV2K_train_HR"):
        Patches(source="div2k", path=str(tmp_path / "DIV2K_train_HR")).open()


def test_what_cannot_be_learned_from_is_told_in_one_line(data: Patches, tmp_path: Path):
    from dataclasses import replace

    with pytest.raises(UsageError, match=r"p0\.png: 60 x 52 pixels, smaller than a patch of 64") as caught:
        replace(data, size=64).open()
    assert "--data.size 48" in caught.value.hint
    (tmp_path / "train" / "p1.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"p1\.png: empty"):
        data.open()
    (tmp_path / "train" / "p1.png").unlink()
    with pytest.raises(UsageError, match=r"multiple of data\.scale"):
        replace(data, size=18)
    with pytest.raises(UsageError, match="1, 2, 4 or 8"):
        replace(data, scale=3, size=18)
    with pytest.raises(UsageError, match="need a folder"):
        Patches(source="folder")
    with pytest.raises(MissingError, match="no such folder"):
        replace(data, path=str(tmp_path / "nowhere")).open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no pictures for train"):
        replace(data, path=str(tmp_path / "empty")).open()


def test_what_a_command_line_names(data: Patches, tmp_path: Path):
    found = data.read([str(tmp_path / "train"), str(tmp_path / "test" / "p0.png")])
    assert [Path(name).name for name, _ in found] == ["p0.png", "p1.png", "p2.png", "p0.png"]
    with pytest.raises(UsageError, match="no file"):
        data.read([str(tmp_path / "nothing.png")])
    assert data.collate([torch.full((3, 2, 2), 255, dtype=torch.uint8)])["low"].max() == 1


def test_mirrored_places():
    assert mirrored(torch.arange(-4, 8), 3).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0, 1]


def test_pictures_of_one_name_in_two_folders_are_two(tmp_path: Path):
    for folder in ("train/a", "train/b", "test"):
        write(tmp_path / folder, 1)
    opened = Patches(source="folder", path=str(tmp_path), size=16, per_picture=1).open()
    assert opened.sizes == {"train": 2, "test": 1}


def test_photographs_held_back_or_learned_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    held = Patches(path=str(tmp_path)).files()
    learned = Patches(path=str(tmp_path), validation=False).files()
    assert [len(held[split]) for split in ("train", "validation", "test")] == [16, 2, 5]
    assert [len(learned[split]) for split in ("train", "test")] == [18, 5] and "validation" not in learned
    assert (
        learned["test"] == held["test"] and learned["train"].keys() == held["train"].keys() | held["validation"].keys()
    )


def test_added_pictures_leave_the_others_where_they_are(tmp_path: Path):
    data = Patches(source="folder", path=str(write(tmp_path, 12)), size=16)
    before, facts = data.files(), data.open().facts
    assert data.reopen(facts).facts == facts
    write(tmp_path / "added", 30)
    after = data.files()
    assert before["train"].items() <= after["train"].items()
    moved = before["test"].keys() - after["test"].keys()
    assert len(moved) <= 1 and after["test"]  # the one that was held out as there was no other
    with pytest.raises(UsageError, match="are others than when"):
        data.reopen(facts)


def test_a_link_from_train_to_test_is_refused(data: Patches, tmp_path: Path):
    os.symlink(tmp_path / "test" / "p0.png", tmp_path / "train" / "again.png")
    with pytest.raises(UsageError, match="is in train and in test"):
        data.open()


def test_all_of_another_folder_is_measured_on(tmp_path: Path):
    data = Patches(source="folder", path=str(write(tmp_path / "own", 12)), size=16)
    facts = data.open().facts
    other = replace(data, path=str(write(tmp_path / "other", 1))).reopen(facts)  # of one, training would leave none
    assert other.sizes == {"test": 1} and other.facts["pictures"] == {"test": ["p0"]}
    same_names = write(tmp_path / "namesakes", 12, size=(64, 52))
    assert replace(data, path=str(same_names)).reopen(facts).sizes == {"test": 12}
    assert replace(data, path=str(same_names)).reopen({"classes": []}).sizes == {"test": 12}  # weights of elsewhere
    old = {name: fact for name, fact in facts.items() if name != "bytes"}  # of a run that did not note sizes
    assert replace(data, path=str(same_names)).reopen(old).sizes == facts["sizes"]
    write(tmp_path / "other" / "test", 2)
    assert replace(data, path=str(tmp_path / "other")).reopen(facts).sizes == {"test": 2}
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no pictures for train"):
        replace(data, path=str(tmp_path / "none")).reopen(facts)


def test_a_moved_folder_is_the_runs_own(tmp_path: Path):
    data = Patches(source="folder", path=str(write(tmp_path / "own", 12)), size=16)
    facts = data.open().facts
    (tmp_path / "own").rename(tmp_path / "moved")
    moved = replace(data, path=str(tmp_path / "moved"))
    assert moved.reopen(facts).facts | {"folder": ""} == facts | {"folder": ""}
    write(tmp_path / "moved" / "added", 30)  # so that others are held back too: none learned from may be measured on
    with pytest.raises(UsageError, match="are others than when"):
        moved.reopen(facts)
    apart = Patches(source="folder", path=str(tmp_path / "apart"), size=16)
    for part in ("train", "test"):
        write(tmp_path / "apart" / part, 2)
    facts = apart.open().facts
    (tmp_path / "copy").mkdir()
    shutil.copytree(tmp_path / "apart" / "test", tmp_path / "copy" / "test")
    assert replace(apart, path=str(tmp_path / "copy")).reopen(facts).sizes == {"test": 2}
