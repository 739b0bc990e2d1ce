import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from etude.data import digits
from etude.data.sources import SOURCES, ImageArrays, source
from etude.errors import UsageError


def test_both_splits_together_are_scikit_learns_digits():
    ours = [SOURCES["digits"].load(split) for split in ("train", "test")]
    values, targets = load_digits(return_X_y=True)
    order = np.argsort(targets, kind="stable")
    test = np.sort(order[::5])
    train = np.setdiff1d(order, test)
    for split, wanted in zip(ours, (train, test), strict=True):
        assert isinstance(split, ImageArrays)
        assert split.labels.tolist() == targets[wanted].tolist()
        # value * 255 / 16, rounded: 16 is white
        assert torch.equal(split.images.flatten(1), torch.from_numpy(np.rint(values[wanted] * 255 / 16)).byte())


def test_sizes_types_and_balance():
    train, test = (SOURCES["digits"].load(split) for split in ("train", "test"))
    assert isinstance(train, ImageArrays) and isinstance(test, ImageArrays)
    assert (len(train), len(test)) == (1_437, 360) == tuple(SOURCES["digits"].splits.values())
    assert train.images.shape == (1_437, 1, 8, 8) and train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    assert train.images.min() == 0 and train.images.max() == 255
    assert set(test.labels.bincount().tolist()) <= {35, 36, 37}
    assert train.classes == tuple("0123456789")


def test_shipped_file_is_small_and_its_licence_is_named():
    assert digits.FILE.stat().st_size < 100_000
    assert SOURCES["digits"].licence == "CC BY 4.0"
    assert "Alpaydin" in SOURCES["digits"].attribution and "10.24432/C50P49" in SOURCES["digits"].attribution


@pytest.mark.parametrize(("split", "path"), [("validation", ""), ("train", "/somewhere")])
def test_unknown_split_and_needless_path_are_usage_errors(split: str, path: str):
    with pytest.raises(UsageError):
        SOURCES["digits"].load(split, path)


def test_unknown_name_gives_the_nearest():
    assert source("digits") is SOURCES["digits"]
    with pytest.raises(UsageError) as caught:
        source("fashion_mnist")
    assert "fashion-mnist" in caught.value.hint


def test_class_counts_of_the_table():
    counts = {name: len(entry.classes) for name, entry in SOURCES.items()}
    wanted = {
        "digits": 10,
        "fashion-mnist": 10,
        "mnist": 10,
        "cifar10": 10,
        "cifar100": 100,
        "imagenet": 0,
        "folder": 0,
    }
    assert counts == wanted
    assert SOURCES["cifar100"].classes == tuple(sorted(set(SOURCES["cifar100"].classes)))
