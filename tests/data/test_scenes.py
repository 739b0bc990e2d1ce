"""Scenes: pure, exactly annotated, with nothing shared between train and test."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from etude.data import photos
from etude.data.remotes import REMOTES
from etude.data.scenes import FRAME, GROUND, SPLITS, Scenes, _estranged
from etude.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plain photographs, each of a grey of its own, and pieces of clothing that fill known rectangles."""
    debian = REMOTES["photos"].debian
    assert debian is not None
    for i, file in enumerate(debian.files):
        (tmp_path / file.name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (700, 600), (10 * i, 10 * i, 10 * i)).save(tmp_path / file.name, quality=100)
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 4:24, 8:20] = 200
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    return tmp_path


def scenes(folder: Path, **changes) -> Scenes:
    return Scenes(path=str(folder), clothes=str(folder), train=30, test=8, **changes)


def test_scenes_are_pure(folder):
    first, second = scenes(folder).open(), scenes(folder).open()
    for index in (0, 7):
        a, b = first.load("train", index, seed=3, epoch=2), second.load("train", index, seed=3, epoch=2)
        assert (a.picture == b.picture).all() and (a.boxes == b.boxes).all() and (a.labels == b.labels).all()
        other = first.load("train", index, seed=3, epoch=3)
        assert a.picture.shape == other.picture.shape and (a.picture != other.picture).any()
        assert (first.load("test", index, seed=3).picture == second.load("test", index, seed=9).picture).all()
    whole = first.fetch("train", range(6), epochs=1, seed=5)
    parts = [first.fetch("train", rows, epochs=1, seed=5) for rows in ([0, 1, 2], [3, 4, 5])]
    assert torch.equal(whole["image"], torch.cat([part["image"] for part in parts]))


def test_boxes_hold_their_objects_exactly(folder):
    """One object on a plain ground, without a training scene's decoys: what differs from the ground is what the box
    says."""
    data = scenes(folder, most=1, smallest=0.4, largest=0.5).open()
    for index in range(20):
        sample = data.load("test", index)
        assert len(sample.boxes) == 1 and 0 <= sample.labels[0] < 8
        corners = sample.picture[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        ground = np.median(corners, axis=0)
        rows, columns = np.nonzero(np.abs(sample.picture - ground).max(2) > 60)
        x1, y1, x2, y2 = sample.boxes[0]
        if len(rows) < 200:  # an object as grey as its ground
            continue
        assert x1 <= columns.min() and columns.max() < x2 and y1 <= rows.min() and rows.max() < y2
        assert columns.min() - x1 <= 2 and x2 - columns.max() <= 3


def test_objects_are_hardly_covered(folder):
    data = scenes(folder, most=8, smallest=0.2, largest=0.5).open()
    counts = []
    for index in range(30):
        boxes = data.load("train", index, epoch=0).boxes
        counts.append(len(boxes))
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                w, h = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
                shared = max(0, w) * max(0, h)
                assert shared <= 0.25 * min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) + 1e-9
        assert boxes.min(initial=1) >= 0 and boxes.max(initial=0) <= 128
    assert max(counts) > 4 and min(counts) >= 1


def test_splits_share_no_photograph():
    of = {split: {name for part in parts for name in photos.files(part, "/x")} for split, parts in SPLITS.items()}
    assert not of["train"] & of["test"] and of["train"] | of["test"] == set(photos.files(None, "/x"))


def test_what_is_wrong_is_told(folder):
    with pytest.raises(UsageError, match="must be positive"):
        Scenes(most=0)
    with pytest.raises(UsageError, match="shares of the side"):
        Scenes(smallest=0.6, largest=0.5)
    with pytest.raises(UsageError, match="there is no 'Bagg'") as caught:
        Scenes(kinds=("Bagg",))
    assert caught.value.hint == "did you mean Bag?"
    with pytest.raises(UsageError, match="each once"):
        Scenes(kinds=("Bag", "Bag"))
    with pytest.raises(UsageError, match=r"Aqua\.jpg: no such file"):
        Scenes(path=str(folder / "nowhere"), clothes=str(folder)).open()


def test_training_scenes_hold_what_is_no_object(folder):
    """Decoys and a second ground change a training scene, never its boxes; a test scene is without."""
    data = scenes(folder, most=1).open()
    plain = np.full((32, 32, 3), 255, np.uint8)
    numbers = np.random.default_rng(0).random((40, FRAME - GROUND))
    changed = [(_estranged(plain.copy(), data.photos["train"], u) != plain).any() for u in numbers]
    assert 0.5 < np.mean(changed) < 1
