import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from etude.data.idx import read_idx
from etude.data.sources import SOURCES, ImageArrays
from etude.errors import MissingError, RefusedError

RNG = np.random.default_rng(0)


def idx_bytes(array: np.ndarray) -> bytes:
    """The official format, after the description on MNIST's page."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_set(folder: Path, sizes: dict[str, int], *, suffix: str = ".gz", side: int = 28) -> dict[str, np.ndarray]:
    """The four files; returns the arrays in them."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for prefix, size in sizes.items():
        arrays[f"{prefix}-images-idx3-ubyte"] = RNG.integers(0, 256, (size, side, side), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = RNG.integers(0, 10, size, dtype=np.uint8)
    for name, array in arrays.items():
        raw = idx_bytes(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(raw) if suffix else raw)
    return arrays


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize(("suffix", "below"), [(".gz", ""), ("", ""), (".gz", "raw"), ("", "raw")])
def test_official_files(tmp_path: Path, name: str, suffix: str, below: str):
    arrays = write_set(tmp_path / below, {"train": 7, "t10k": 3}, suffix=suffix)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        got = SOURCES[name].load(split, str(tmp_path))
        assert isinstance(got, ImageArrays)
        assert got.images.shape[1:] == (1, 28, 28) and got.images.dtype == torch.uint8
        assert np.array_equal(got.images[:, 0].numpy(), arrays[f"{prefix}-images-idx3-ubyte"])
        assert got.labels.tolist() == arrays[f"{prefix}-labels-idx1-ubyte"].tolist()
        assert got.classes == SOURCES[name].classes


def test_missing_file_and_folder(tmp_path: Path):
    write_set(tmp_path, {"train": 2})
    with pytest.raises(MissingError, match="t10k-images-idx3-ubyte"):
        SOURCES["mnist"].load("test", str(tmp_path))
    with pytest.raises(MissingError, match="no such folder"):
        SOURCES["mnist"].load("test", str(tmp_path / "nowhere"))


ARRAY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
GOOD = idx_bytes(ARRAY)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "header of 16 bytes, found 0"),
        (GOOD[:9], "header of 16 bytes, found 9"),
        (b"\0\0\x08\x01" + GOOD[4:], "0x00000803, found 0x00000801"),
        (b"\0\0\x0d\x03" + GOOD[4:], "0x00000803, found 0x00000d03"),
        (b"\1" + GOOD[1:], "found 0x01000803"),
        (GOOD[:-1], "expected 24 bytes .* found 23"),
        (GOOD + b"x", "expected 24 bytes .* found 25"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 0, 28, 28), r"found the sizes \[0, 28, 28\]"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 9), "found the sizes"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_wrong_bytes_are_refused_with_what_was_expected_and_found(tmp_path: Path, raw: bytes, said: str, zipped: bool):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    with pytest.raises(RefusedError, match=said) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_no_cut_and_no_flipped_bit_of_a_gzip_file_gives_other_pictures(tmp_path: Path):
    path = tmp_path / "x.gz"
    whole = gzip.compress(GOOD, mtime=0)
    path.write_bytes(whole)
    assert np.array_equal(read_idx(path, 3), ARRAY)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(RefusedError):
            read_idx(path, 3)
    refused = 0
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert np.array_equal(read_idx(path, 3), ARRAY)  # only gzip's own time, flags and system bytes
        except RefusedError:
            refused += 1
    assert refused > 8 * (len(whole) - 10)


def test_what_follows_the_gzip_stream_is_refused(tmp_path: Path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(GOOD) + b"more")
    with pytest.raises(RefusedError, match="goes on after its end"):
        read_idx(path, 3)


def test_a_gzip_bomb_is_not_inflated(tmp_path: Path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(200_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(RefusedError, match="found 25 or more"):
        read_idx(path, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_pictures_and_labels_have_to_fit(tmp_path: Path):
    arrays = write_set(tmp_path, {"train": 5})
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.array([0, 1, 10, 3, 4], dtype=np.uint8))))
    with pytest.raises(RefusedError, match="labels below 10, found 10"):
        SOURCES["mnist"].load("train", str(tmp_path))
    labels.write_bytes(gzip.compress(idx_bytes(arrays["train-labels-idx1-ubyte"][:4])))
    with pytest.raises(RefusedError, match="expected 5 labels, as many as pictures, found 4"):
        SOURCES["mnist"].load("train", str(tmp_path))
    write_set(tmp_path, {"train": 5}, side=27)
    with pytest.raises(RefusedError, match="28x28, found 27x27"):
        SOURCES["mnist"].load("train", str(tmp_path))
