"""`Images`: splits, purity, normalisation, Mixup by hand, folders."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from etude.data import order
from etude.data.augment import Augment
from etude.data.images import Images
from etude.errors import MissingError, UsageError

DIGITS = Images(source="digits", mean=(0.3,), std=(0.4,))


def test_splits_and_facts():
    dataset = DIGITS.open()
    assert dataset.sizes == {"train": 1437, "test": 360} and dataset.facts["classes"] == list("0123456789")
    held = Images(source="digits", mean=(0.3,), std=(0.4,), validation=200).open()
    assert held.sizes == {"train": 1237, "test": 360, "validation": 200}

    def pictures(dataset, split):
        return {tuple(row.tolist()) for row in dataset.fetch(split, range(dataset.sizes[split]))["image"].flatten(1)}

    together = pictures(held, "train") | pictures(held, "validation")
    assert together == pictures(dataset, "train")
    assert len(pictures(held, "validation") & pictures(held, "train")) <= len(dataset.sizes)  # equal drawings, if any


def test_a_subset_is_even_over_classes_and_grows():
    whole = DIGITS.open().fetch("train", range(1437))

    def rows(data):
        """Which training samples these are, told by their pixels and label."""
        batch = data.open().fetch("train", range(data.open().sizes["train"]))
        return [(int(label), *image.flatten().tolist()) for image, label in zip(batch["image"], batch["label"])]

    everything = rows(DIGITS)
    few, many = (rows(replace(DIGITS, subset=n)) for n in (25, 200))
    assert len(few) == 25 and len(many) == 200
    assert set(few) < set(many) < set(everything)
    assert few == [row for row in everything if row in set(few)]  # in the set's own order
    counts = np.bincount([row[0] for row in few])
    assert sorted(counts) == [2] * 5 + [3] * 5
    assert np.array_equal(np.bincount([row[0] for row in many]), [20] * 10)
    # where a class runs out, the others fill up
    nearly = np.bincount([row[0] for row in rows(replace(DIGITS, subset=1430))])
    sizes = np.bincount(whole["label"].numpy())
    assert nearly.sum() == 1430 and ((nearly == sizes) | (nearly >= nearly.max() - 1)).all()
    assert rows(replace(DIGITS, subset=1437)) == everything


def test_validation_is_the_same_whatever_the_subset():
    held = replace(DIGITS, validation=100)
    small = replace(held, subset=50).open()
    assert small.sizes == {"train": 50, "test": 360, "validation": 100}
    same = [data.fetch("validation", range(100))["image"] for data in (small, held.open())]
    assert torch.equal(*same)
    trained = {tuple(x.flatten().tolist()) for x in small.fetch("train", range(50))["image"]}
    left = {tuple(x.flatten().tolist()) for x in held.open().fetch("train", range(1337))["image"]}
    assert trained <= left
    assert replace(held, subset=1337).open().sizes["train"] == 1337
    late = [data.open().batch(seed=1, step=40, batch_size=32) for data in [replace(held, subset=50)] * 2]
    assert all(torch.equal(late[0][name], late[1][name]) for name in late[0])


def test_a_subset_of_a_folder(folder):
    data = Images(source="folder", path=str(folder), size=24, mean=(0.5,) * 3, std=(0.5,) * 3, subset=4)
    dataset = data.open()
    assert dataset.sizes == {"train": 4, "test": 6}
    assert dataset.fetch("train", range(4))["label"].tolist() == [0, 0, 1, 1]


def test_normalisation_by_hand():
    batch = DIGITS.open()
    raw = batch.fetch("test", [3, 1])
    done = batch.finish(raw)
    torch.testing.assert_close(done["image"], (raw["image"].float() / 255 - 0.3) / 0.4)
    assert torch.equal(done["label"], raw["label"])


def test_batches_are_pure():
    """Any process, any order, any neighbours: a sample of an epoch is always the same picture."""
    data = Images(source="digits", mean=(0.3,), std=(0.4,), augment=Augment(crop=1, flip=0.5, brightness=0.4))
    dataset, again = data.open(), data.open()
    late, early = (dataset.finish(dataset.batch(seed=1, step=s, batch_size=32), seed=1) for s in (40, 3))
    for step, batch in ((3, early), (40, late)):
        other = again.finish(again.batch(seed=1, step=step, batch_size=32), seed=1)
        assert all(torch.equal(batch[name], other[name]) for name in batch)
    halves = [again.finish(again.batch(seed=1, step=3, batch_size=32, rank=r, world=2), seed=1) for r in (0, 1)]
    assert torch.equal(torch.cat([half["image"] for half in halves]), early["image"])
    first = int(early["index"][0])
    alone = dataset.fetch("train", [first], epochs=[0], seed=1)
    assert torch.equal(dataset.finish(alone, seed=1)["image"][0], early["image"][0])
    other_epoch = dataset.fetch("train", range(64), epochs=1, seed=1)
    this_epoch = dataset.fetch("train", range(64), epochs=0, seed=1)
    assert not torch.equal(dataset.finish(other_epoch, seed=1)["image"], dataset.finish(this_epoch, seed=1)["image"])


def test_distortion_is_the_samples_own():
    """Fixed for every picture of every split: whatever the seed, the epoch, the neighbours or what is held out."""
    change = Augment(degrees=30.0, translate=(0.2, 0.2), interpolation="bilinear")
    data = Images(source="digits", mean=(0.3,), std=(0.4,), distort=change)
    dataset, plain = data.open(), DIGITS.open()
    for split in ("train", "test"):
        straight, bent = (d.fetch(split, range(50))["image"] for d in (plain, dataset))
        assert (bent != straight).flatten(1).any(1).float().mean() > 0.9
        again = dataset.fetch(split, [7, 3], epochs=5, seed=9)["image"]
        assert torch.equal(again, bent[[7, 3]])
    drawn = change.parameters(seed=0, epochs=0, indices=[4], height=8, width=8, stream=order.DISTORT_TEST)
    expected = change.apply(plain.fetch("test", [4])["image"], drawn)
    assert torch.equal(dataset.fetch("test", [4])["image"], expected)
    # a sample that is held out is the same picture as in training
    held = Images(source="digits", mean=(0.3,), std=(0.4,), distort=change, validation=100).open()
    known = {tuple(row.tolist()) for row in dataset.fetch("train", range(1437))["image"].flatten(1)}
    assert {tuple(row.tolist()) for row in held.fetch("validation", range(100))["image"].flatten(1)} <= known


def test_distortion_comes_before_augmentation_and_not_into_predictions():
    change = Augment(degrees=90.0, interpolation="bilinear")
    both = Images(source="digits", mean=(0.3,), std=(0.4,), distort=change, augment=Augment(flip=1.0)).open()
    bent = both.fetch("train", range(8))["image"]
    trained = both.finish(both.fetch("train", range(8), epochs=2, seed=1), seed=1)["image"]
    torch.testing.assert_close(trained, both.data.normalise(bent.flip(-1)))
    raw = DIGITS.open().fetch("test", [5])["image"][0]
    assert torch.equal(both.data.prepare(raw), raw)


def test_mixup_by_hand():
    """x = lambda x_i + (1 - lambda) x_j, the labels alike, lambda ~ Beta(alpha, alpha): arXiv 1710.09412."""
    plain = DIGITS.open().finish(DIGITS.open().batch(seed=4, step=2, batch_size=8), seed=4)
    data = Images(source="digits", mean=(0.3,), std=(0.4,), mixup=0.5)
    mixed = data.open().finish(data.open().batch(seed=4, step=2, batch_size=8), seed=4)
    lam = np.repeat(order.beta(4, [0] * 4, plain["index"][::2].numpy(), 0.5), 2)
    for i in range(8):
        j = i ^ 1
        expected = lam[i] * plain["image"][i] + (1 - lam[i]) * plain["image"][j]
        torch.testing.assert_close(mixed["image"][i], expected.float(), rtol=1e-5, atol=1e-6)
        assert mixed["partner"][i] == plain["label"][j]
    np.testing.assert_allclose(mixed["mix"].numpy(), lam, rtol=1e-6)
    evaluated = data.open().finish(data.open().fetch("test", range(3)))
    assert "mix" not in evaluated
    with pytest.raises(UsageError, match="odd"):
        data.open().finish(data.open().batch(seed=4, step=2, batch_size=7), seed=4)


def test_prepared_pictures_are_those_of_the_test_split(tmp_path):
    image = DIGITS.open().fetch("test", [5])["image"][0]
    Image.fromarray(image[0].numpy()).save(tmp_path / "digit.png")
    for raw in (
        tmp_path / "digit.png",
        str(tmp_path / "digit.png"),
        (tmp_path / "digit.png").read_bytes(),
        image,
        image[0].numpy(),
    ):
        assert torch.equal(DIGITS.prepare(raw), image)
    large = Image.fromarray(image[0].numpy()).convert("RGB").resize((80, 160), Image.Resampling.NEAREST)
    assert DIGITS.prepare(large).shape == (1, 8, 8)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
    return tmp_path


def test_any_folder_of_pictures(folder):
    data = Images(
        source="folder", path=str(folder), size=24, mean=(0.5,) * 3, std=(0.5,) * 3, augment=Augment(flip=0.5)
    )
    dataset = data.open()
    assert (
        dataset.sizes == {"train": 12, "test": 6}
        and dataset.facts["classes"] == ["cat", "dog"]
        and not dataset.in_memory
    )
    batch = dataset.batch(seed=0, step=1, batch_size=5)
    assert batch["image"].shape == (5, 3, 24, 24) and batch["image"].dtype == torch.uint8
    assert torch.equal(batch["image"], dataset.batch(seed=0, step=1, batch_size=5)["image"])
    crops = [dataset.fetch("train", [0], epochs=[e])["image"] for e in (0, 1)]
    assert not torch.equal(*crops)
    assert torch.equal(dataset.fetch("test", [0])["image"][0], data.prepare(folder / "val" / "cat" / "0.png"))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"source": "digit"}, UsageError, "digit"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, UsageError, "channels"),
        ({"mean": (0.5,) * 2, "std": (0.5,) * 2}, UsageError, "channels"),
        ({"std": (0.0,)}, UsageError, "positive"),
        ({"size": 16}, UsageError, "data.size"),
        ({"validation": 1437}, UsageError, "only 1437"),
        ({"mixup": -1.0}, UsageError, "mixup"),
        ({"subset": 0}, UsageError, "subset is 0"),
        ({"subset": -5}, UsageError, "positive"),
        ({"subset": 1438}, UsageError, "1438, of only 1437"),
        ({"subset": 1338, "validation": 100}, UsageError, "only 1337 .* 100 for validation"),
        ({"source": "folder"}, MissingError, "folder"),
        ({"source": "cifar10", "mean": (0.5,) * 3, "std": (0.5,) * 3}, MissingError, "cifar10"),
    ],
)
def test_bad_settings(change, error, words, monkeypatch, tmp_path):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    with pytest.raises(error, match=words):
        Images(**{"source": "digits", "mean": (0.3,), "std": (0.4,)} | change).open()


def test_another_folder_is_measured_by_the_classes_that_were_learned(folder):
    data = Images(source="folder", path=str(folder), size=8)
    own = data.open()
    known = sorted(["aardvark", *own.facts["classes"]])  # one more, first, so that the folder's own counting is another
    again = data.reopen({"source": "folder", "classes": known})
    assert again.facts["classes"] == known and again.sizes == own.sizes
    assert torch.equal(again.fetch("test", [0, 1])["label"], own.fetch("test", [0, 1])["label"] + 1)
    assert torch.equal(again.fetch("test", [0, 1])["image"], own.fetch("test", [0, 1])["image"])
    assert data.reopen({"classes": ["0", "1", "2"]}).facts == own.facts  # weights of elsewhere know numbers
    with pytest.raises(UsageError, match="which the run has not learned: it knows zebra"):
        data.reopen({"source": "folder", "classes": ["zebra"]})
    words = [known[0], "n01440764 tench"]
    synsets = Images(source="folder", path=str(folder), size=8)
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / "n01440764")
        shutil.rmtree(folder / split / "dog")
    assert synsets.reopen({"source": "folder", "classes": words}).fetch("test", [0])["label"].tolist() == [1]
