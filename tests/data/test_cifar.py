import contextlib
import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etude.data.cifar import read_pickle
from etude.data.sources import SOURCES, ImageArrays
from etude.errors import MissingError, RefusedError

RNG = np.random.default_rng(0)


class Python2Pickler:
    """Writes what Python 2's cPickle wrote at protocol 2, opcode by opcode: the format of the official batches."""

    def __init__(self):
        self.out = io.BytesIO()
        self.memos = 0

    def put(self):
        self.out.write(b"q" + bytes([self.memos]) if self.memos < 256 else b"r" + struct.pack("<I", self.memos))
        self.memos += 1

    def write(self, item: Any):
        out = self.out
        match item:
            case bytes():
                out.write(b"U" + bytes([len(item)]) if len(item) < 256 else b"T" + struct.pack("<i", len(item)))
                out.write(item)
                self.put()
            case int() if 0 <= item < 256:
                out.write(b"K" + bytes([item]))
            case int() if 0 <= item < 65536:
                out.write(b"M" + struct.pack("<H", item))
            case int():
                out.write(b"J" + struct.pack("<i", item))
            case list():
                out.write(b"]")
                self.put()
                out.write(b"(")
                for part in item:
                    self.write(part)
                out.write(b"e")
            case dict():
                out.write(b"}")
                self.put()
                out.write(b"(")
                for key, value in item.items():
                    self.write(key)
                    self.write(value)
                out.write(b"u")
            case np.ndarray():
                out.write(b"cnumpy.core.multiarray\n_reconstruct\n")
                self.put()
                out.write(b"cnumpy\nndarray\n")
                self.put()
                out.write(b"K\x00\x85")
                self.put()
                self.write(b"b")
                out.write(b"\x87")
                self.put()
                out.write(b"R")
                self.put()
                out.write(b"(K\x01")
                self.write(item.shape[0])
                self.write(item.shape[1])
                out.write(b"\x86")
                self.put()
                out.write(b"cnumpy\ndtype\n")
                self.put()
                self.write(b"u1")
                out.write(b"K\x00K\x01\x87")
                self.put()
                out.write(b"R")
                self.put()
                out.write(b"(K\x03")
                self.write(b"|")
                out.write(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t")
                self.put()
                out.write(b"b\x89")
                self.write(item.tobytes())
                out.write(b"t")
                self.put()
                out.write(b"b")


def python2_pickle(item: Any) -> bytes:
    pickler = Python2Pickler()
    pickler.out.write(b"\x80\x02")
    pickler.write(item)
    return pickler.out.getvalue() + b"."


def batch(size: int, classes: int) -> dict[bytes, Any]:
    """A batch with the official keys."""
    data = RNG.integers(0, 256, (size, 3072), dtype=np.uint8)
    names = [f"picture_{i}.png".encode() for i in range(size)]
    labels = RNG.integers(0, classes, size).tolist()
    common = {b"batch_label": b"training batch 1 of 5", b"data": data, b"filenames": names}
    if classes == 10:
        return common | {b"labels": labels}
    return common | {b"coarse_labels": RNG.integers(0, 20, size).tolist(), b"fine_labels": labels}


def write_python(folder: Path, classes: int, size: int = 3) -> dict[str, list[dict[bytes, Any]]]:
    folder.mkdir(parents=True, exist_ok=True)
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)] if classes == 10 else ["train"], "test": ["test_batch"]}
    names["test"] = ["test_batch"] if classes == 10 else ["test"]
    batches = {split: [batch(size, classes) for _ in files] for split, files in names.items()}
    for split, files in names.items():
        for name, content in zip(files, batches[split], strict=True):
            (folder / name).write_bytes(python2_pickle(content))
    return batches


def write_binary(folder: Path, classes: int, batches: dict[str, list[dict[bytes, Any]]]) -> None:
    """The same batches as records: label (CIFAR-100: coarse, then fine), 3072 bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, contents in batches.items():
        for number, content in enumerate(contents, start=1):
            if classes == 10:
                name, heads = f"data_batch_{number}" if split == "train" else "test_batch", [content[b"labels"]]
            else:
                name, heads = split, [content[b"coarse_labels"], content[b"fine_labels"]]
            rows = (bytes(head) + row.tobytes() for *head, row in zip(*heads, content[b"data"], strict=True))
            (folder / f"{name}.bin").write_bytes(b"".join(rows))


def test_the_reader_agrees_with_pickle_on_the_official_format(tmp_path: Path):
    for content in (batch(300, 10), batch(300, 100)):
        raw = python2_pickle(content)
        (tmp_path / "batch").write_bytes(raw)
        ours, theirs = read_pickle(tmp_path / "batch"), pickle.loads(raw, encoding="latin1")
        assert np.array_equal(ours.pop("data"), theirs.pop("data"))
        assert ours == theirs


def test_fortran_order_is_kept(tmp_path: Path):
    content = batch(4, 10)
    raw = python2_pickle(content).replace(b"b\x89T", b"b\x88T")
    (tmp_path / "batch").write_bytes(raw)
    assert np.array_equal(read_pickle(tmp_path / "batch")["data"], pickle.loads(raw, encoding="latin1")["data"])


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("inside", [True, False])
def test_both_versions_give_the_same_pictures(tmp_path: Path, classes: int, inside: bool):
    name = f"cifar{classes}"
    names = {10: ("cifar-10-batches-bin", "cifar-10-batches-py"), 100: ("cifar-100-binary", "cifar-100-python")}
    binary, python = names[classes]
    batches = write_python(tmp_path / "p" / python, classes)
    write_binary(tmp_path / "b" / binary, classes, batches)
    roots = [tmp_path / "p" / python, tmp_path / "b" / binary] if inside else [tmp_path / "p", tmp_path / "b"]
    for split, contents in batches.items():
        key = b"labels" if classes == 10 else b"fine_labels"
        for root in roots:
            got = SOURCES[name].load(split, str(root))
            assert isinstance(got, ImageArrays)
            assert got.images.shape == (3 * len(contents), 3, 32, 32) and got.images.dtype == torch.uint8
            rows = np.concatenate([content[b"data"] for content in contents])
            assert np.array_equal(got.images.flatten(1).numpy(), rows)
            assert got.labels.tolist() == [label for content in contents for label in content[key]]
            assert got.images[0, 1, 0, 0] == rows[0, 1024]  # the second 1,024 bytes are green
            assert got.classes == SOURCES[name].classes


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


EVIL = {
    "os.system": pickle.dumps(Evil(), protocol=2),
    "os.system in a dict": pickle.dumps({"data": Evil()}, protocol=2),
    "newer protocol": pickle.dumps(Evil(), protocol=4),
    "text protocol": pickle.dumps(Evil(), protocol=0),
    "INST": b"(S'touch evil-was-here'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nU\x13touch evil-was-hereo.",
    "NEWOBJ": b"\x80\x02cos\nsystem\nU\x13touch evil-was-here\x85\x81.",
    "eval": b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
    "an allowed global called with other arguments": b"\x80\x02cnumpy\nndarray\nK\x05\x85R.",
    "a huge dtype": b"\x80\x02cnumpy\ndtype\nU\x03V99K\x00K\x01\x87R.",
    "a number called": b"\x80\x02K\x01)R.",
    "BUILD on a dict": b"\x80\x02}}b.",
    "persistent id": b"\x80\x02U\x01aQ.",
    "extension registry": b"\x80\x02\x82\x01.",
    "missing memo": b"\x80\x02h\x07.",
    "no mark": b"\x80\x02K\x01t.",
    "empty stack": b"\x80\x02.",
    "a list, not a dict": b"\x80\x02].",
    "odd items": b"\x80\x02}(K\x01u.",
    "not a pickle": b"<html>",
    "empty": b"",
}


@pytest.mark.parametrize("raw", EVIL.values(), ids=EVIL.keys())
def test_hostile_pickles_are_refused_and_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(raw)
    with pytest.raises(RefusedError, match="data_batch_1: not a CIFAR batch"):
        read_pickle(tmp_path / "data_batch_1")
    assert not (tmp_path / "evil-was-here").exists()


def test_the_evil_ones_are_really_evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(EVIL["os.system"])
    assert (tmp_path / "evil-was-here").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_batches_are_read_or_refused_never_anything_else(tmp_path: Path, data: st.DataObject):
    raw = bytearray(python2_pickle({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2], b"x": {b"y": [3]}}))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "batch").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(RefusedError):
        assert type(read_pickle(tmp_path / "batch")) is dict


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({b"labels": [0, 1, 10]}, "labels of 0 to 9, found 0 to 10"),
        ({b"labels": [0, -1, 1]}, "labels of 0 to 9, found -1 to 1"),
        ({b"labels": [0, 1]}, "list of 3 whole numbers"),
        ({b"labels": [0, 1, b"2"]}, "list of 3 whole numbers"),
        ({b"labels": b"012"}, "list of 3 whole numbers"),
        ({b"data": np.zeros((3, 3071), np.uint8)}, r"shape \(N, 3072\), found \(3, 3071\)"),
        ({b"data": b"bytes"}, "found str"),
    ],
)
def test_python_batches_with_wrong_contents_are_refused(tmp_path: Path, change: dict[bytes, Any], said: str):
    batches = write_python(tmp_path, 10)
    (tmp_path / "data_batch_4").write_bytes(python2_pickle(batches["train"][3] | change))
    with pytest.raises(RefusedError, match=said) as caught:
        SOURCES["cifar10"].load("train", str(tmp_path))
    assert "data_batch_4" in str(caught.value)


def test_binary_files_with_wrong_contents_are_refused(tmp_path: Path):
    path = tmp_path / "test_batch.bin"
    record = bytes([9]) + bytes(3072)
    path.write_bytes(record * 2)
    assert len(SOURCES["cifar10"].load("test", str(tmp_path))) == 2
    for raw, said in (
        (record * 2 + b"x", "records of 3073 bytes, found 6147 bytes"),
        (record[:-1], "found 3072 bytes"),
        (b"", "found 0 bytes"),
        (record + bytes([10]) + bytes(3072), "labels of 0 to 9, found 9 to 10"),
    ):
        path.write_bytes(raw)
        with pytest.raises(RefusedError, match=said):
            SOURCES["cifar10"].load("test", str(tmp_path))


def test_missing_batches(tmp_path: Path):
    write_python(tmp_path, 10)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(MissingError, match=r"neither data_batch_1\.bin"):
        SOURCES["cifar10"].load("train", str(tmp_path))
