"""CIFAR-10 and CIFAR-100 in the two official versions: "binary" (records of bytes) and "python" (pickles of Python 2).

A pickle is a program that can call anything, so nothing here unpickles. `read_pickle` walks the opcodes with
`pickletools.genops`, which only splits a file into opcodes, and knows just those that the official batches hold:
dict, list, tuple, bytes, int, None, bool and one uint8 array. Whatever else stands in a file, it is refused unread.
"""

import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.errors import MissingError, RefusedError

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

_DTYPE, _NDARRAY, _RECONSTRUCT = object(), object(), object()
_GLOBALS = {
    "numpy dtype": _DTYPE,
    "numpy ndarray": _NDARRAY,
    "numpy.core.multiarray _reconstruct": _RECONSTRUCT,
}


class _Bytes8:
    """numpy's dtype("u1") on the stack."""


class _Array:
    """A numpy array on the stack: made empty by `_reconstruct`, filled by BUILD."""

    value: NDArray[np.uint8] | None = None


def read_pickle(path: Path) -> dict[bytes, Any]:
    """The dict of an official python batch. Runs nothing; RefusedError names the first opcode that is not allowed."""
    if path.stat().st_size > LARGEST_PICKLE:
        raise RefusedError(f"{path}: {path.stat().st_size} bytes, where at most {LARGEST_PICKLE} were expected")
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    mark = object()

    def since_mark() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(mark)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def push_tuple(count: int) -> None:
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        stack.append(items)

    def put_items(items: list[Any]) -> None:
        stack[-1].update(zip(items[::2], items[1::2], strict=True))

    arg: Any
    try:
        for opcode, arg, _ in pickletools.genops(path.read_bytes()):
            match opcode.name:
                case "PROTO" | "STOP":
                    pass
                case "MARK":
                    stack.append(mark)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "BININT" | "BININT1" | "BININT2":
                    stack.append(arg)
                case "SHORT_BINSTRING" | "BINSTRING":  # genops reads Python 2's bytes as latin-1
                    stack.append(arg.encode("latin-1"))
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    push_tuple(int(opcode.name[-1]))
                case "BINPUT" | "LONG_BINPUT":
                    memo[arg] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[arg])
                case "APPEND":
                    item = stack.pop()
                    stack[-1].append(item)
                case "APPENDS":
                    items = since_mark()
                    stack[-1].extend(items)
                case "SETITEM":
                    put_items([stack.pop(-2), stack.pop()])
                case "SETITEMS":
                    put_items(since_mark())
                case "GLOBAL":
                    stack.append(_GLOBALS[arg])
                case "REDUCE":
                    args = stack.pop()
                    stack.append(_construct(stack.pop(), args))
                case "BUILD":
                    state = stack.pop()
                    _fill(stack[-1], state)
                case name:
                    raise ValueError(f"the opcode {name} is not allowed")
        (batch,) = stack
        if type(batch) is not dict:
            raise ValueError(f"it holds a {type(batch).__name__}, not a dict")
    except Exception as error:  # whatever hostile or damaged opcodes run into, the file is refused
        reason = f"{error} is not allowed" if isinstance(error, KeyError) else error
        raise RefusedError(
            f"{path}: not a CIFAR batch of the python version: {reason}",
            hint="delete it and get it again, or use the binary version",
        ) from error
    return {key: item.value if isinstance(item, _Array) else item for key, item in batch.items()}


def _construct(function: object, args: tuple[Any, ...]) -> _Array | _Bytes8:
    """What a REDUCE makes: an empty array or the dtype of bytes, in the exact words of numpy's pickles."""
    if function is _RECONSTRUCT and args == (_NDARRAY, (0,), b"b"):
        return _Array()
    if function is _DTYPE and args == (b"u1", 0, 1):
        return _Bytes8()
    raise ValueError(f"a call with the arguments {args!r:.80} is not allowed")


def _fill(item: object, state: Any) -> None:
    """What a BUILD sets: a dtype's flags, of which uint8 needs none, or an array's shape and bytes."""
    if isinstance(item, _Bytes8):
        return
    if not isinstance(item, _Array):
        raise ValueError(f"setting the state of a {type(item).__name__} is not allowed")
    _, shape, dtype, fortran, data = state
    if not isinstance(dtype, _Bytes8):
        raise ValueError("an array of another type than uint8 is not allowed")
    item.value = np.frombuffer(bytearray(data), dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _read_python(path: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows (N, 3072) and labels (N,) of one python batch; of CIFAR-100 the fine labels."""
    batch = read_pickle(path)
    rows, labels = batch.get(b"data"), batch.get(b"fine_labels" if classes == 100 else b"labels")
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
