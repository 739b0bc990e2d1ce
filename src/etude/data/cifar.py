"""CIFAR-10 and CIFAR-100 in the two official versions: "binary" (records of bytes) and "python" (pickles of Python 2).

A pickle is a program that can call anything, so nothing here unpickles: `read_pickle` has the batches executed by the
machine of `etude.weights`, which runs nothing that a file names, and takes one uint8 array out of its records.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.errors import MissingError, RefusedError
from etude.weights.pickle_machine import Inert, Machine, array

PIXELS = 3 * 32 * 32
FOLDERS = {10: ("cifar-10-batches-bin", "cifar-10-batches-py"), 100: ("cifar-100-binary", "cifar-100-python")}
FILES = {
    (10, "train"): tuple(f"data_batch_{i}" for i in range(1, 6)),
    (10, "test"): ("test_batch",),
    (100, "train"): ("train",),
    (100, "test"): ("test",),
}
LARGEST_PICKLE = 400_000_000
"""Bytes. CIFAR-100's largest is 155 million."""


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict of an official python batch, Python 2's strings as text. RefusedError says what is amiss."""
    size = path.stat().st_size
    if size > LARGEST_PICKLE:
        raise RefusedError(f"{path}: {size} bytes, where at most {LARGEST_PICKLE} were expected")
    try:
        with open(path, "rb") as stream:
            machine = Machine(size, "inert")
            batch = machine.run(stream)
        machine.check(batch)
        if type(batch) is not dict:
            raise ValueError(f"it holds a {type(batch).__name__}, not a dict")
        return {key: array(value, ("u1",)) if isinstance(value, Inert) else value for key, value in batch.items()}
    except Exception as error:  # whatever hostile or damaged instructions run into, the file is refused
        raise RefusedError(
            f"{path}: not a CIFAR batch of the python version: {error}",
            hint="delete it and get it again, or use the binary version",
        ) from error


def _read_python(path: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows (N, 3072) and labels (N,) of one python batch; of CIFAR-100 the fine labels."""
    batch = read_pickle(path)
    rows, labels = batch.get("data"), batch.get("fine_labels" if classes == 100 else "labels")
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != PIXELS:
        found = rows.shape if isinstance(rows, np.ndarray) else type(rows).__name__
        raise RefusedError(f"{path}: expected data of the shape (N, {PIXELS}), found {found}")
    if not isinstance(labels, list) or len(labels) != len(rows) or {type(label) for label in labels} != {int}:
        raise RefusedError(f"{path}: expected a list of {len(rows)} whole numbers as labels")
    return rows, np.array(labels, dtype=np.int64)


def _read_binary(path: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows (N, 3072) and labels (N,) of one file of records: the label (CIFAR-100: coarse, fine), then the pixels."""
    raw = np.fromfile(path, dtype=np.uint8)
    head = 2 if classes == 100 else 1
    if not len(raw) or len(raw) % (head + PIXELS):
        raise RefusedError(
            f"{path}: expected whole records of {head + PIXELS} bytes, found {len(raw)} bytes",
            hint="delete it and get it again",
        )
    records = raw.reshape(-1, head + PIXELS)
    return records[:, head:], records[:, head - 1].astype(np.int64)


def read(root: Path, split: str, *, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (N, 3, 32, 32) and labels (N,) of CIFAR-10 or CIFAR-100 (fine labels), of either version.

    `root` is the unpacked folder itself or the one that holds it.
    """
    binary, python = FOLDERS[classes]
    names = FILES[classes, split]
    for folder in (root, root / binary, root / python):
        if all((folder / f"{name}.bin").is_file() for name in names):
            parts = [(path := folder / f"{name}.bin", *_read_binary(path, classes)) for name in names]
            break
        if all((folder / name).is_file() for name in names):
            parts = [(path := folder / name, *_read_python(path, classes)) for name in names]
            break
    else:
        raise MissingError(
            f"{root}: neither {names[0]}.bin ... nor {names[0]} ... there, nor in {binary} or {python} below it",
            hint=f"give the folder that holds {binary} or {python}",
        )
    for path, _, labels in parts:
        if labels.min() < 0 or labels.max() >= classes:
            raise RefusedError(f"{path}: expected labels of 0 to {classes - 1}, found {labels.min()} to {labels.max()}")
    images = np.concatenate([rows for _, rows, _ in parts]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([labels for _, _, labels in parts])
