"""The IDX format of MNIST and the sets that took its place: a magic number, the sizes, then bytes; mostly gzipped.

Magic: two zero bytes, the type (0x08 is uint8), the number of dimensions; each size is a big-endian uint32.
"""

import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etude.errors import MissingError, RefusedError

UINT8 = 8
LARGEST = 1 << 31
"""Bytes: no file claims more. MNIST's largest holds 47 million."""


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """The array of `dims` dimensions in an IDX file of uint8, gzipped or plain.

    Raises RefusedError, with what was expected and what was found, where any byte is missing, too many or damaged.
    """

    def refuse(what: str) -> RefusedError:
        return RefusedError(f"{path}: not a whole IDX file: {what}", hint="delete it and get it again")

    raw, head = path.read_bytes(), 4 + 4 * dims
    gz = zlib.decompressobj(wbits=31) if raw[:2] == b"\x1f\x8b" else None
    try:
        header = gz.decompress(raw, head) if gz else raw[:head]
        if len(header) < head:
            raise refuse(f"expected a header of {head} bytes, found {len(header)}")
        magic, *shape = struct.unpack(f">{dims + 1}I", header)
        if magic != UINT8 << 8 | dims:
            raise refuse(f"expected the magic number {UINT8 << 8 | dims:#010x}, found {magic:#010x}")
        size = math.prod(shape)
        if not 0 < size <= LARGEST:
            raise refuse(f"expected 1 to {LARGEST} bytes, found the sizes {shape}")
        # one byte more than announced: it tells a file that goes on, and lets zlib reach and check its CRC
        body = gz.decompress(gz.unconsumed_tail, size + 1) if gz else raw[head:]
    except zlib.error as error:
        raise refuse(f"its gzip stream is damaged ({error})") from error
    if len(body) != size:
        more = "or more" if gz and len(body) > size else ""
        raise refuse(f"expected {size} bytes for the sizes {shape}, found {len(body)}{more and ' ' + more}")
    if gz and (not gz.eof or gz.unused_data):
        raise refuse("its gzip stream " + ("goes on after its end" if gz.eof else "is truncated"))
    return np.frombuffer(bytearray(body), dtype=np.uint8).reshape(shape)


def find(root: Path, name: str) -> Path:
    """`root/name` or `root/name.gz`, or the same in `root/raw`, where torchvision unpacks them."""
    for path in (root / f"{name}.gz", root / name, root / "raw" / f"{name}.gz", root / "raw" / name):
        if path.is_file():
            return path
    raise MissingError(f"{root}: no {name}.gz or {name} there", hint="give the folder that holds the four IDX files")


def read(root: Path, split: str, *, classes: int = 10, side: int = 28) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (N, 1, side, side) and labels (N,) of MNIST's four files, or of any set with the same names."""
    prefix = {"train": "train", "test": "t10k"}[split]
    images_at, labels_at = find(root, f"{prefix}-images-idx3-ubyte"), find(root, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_at, 3), read_idx(labels_at, 1)
    if images.shape[1:] != (side, side):
        raise RefusedError(
            f"{images_at}: expected pictures of {side}x{side}, found {images.shape[1]}x{images.shape[2]}"
        )
    if len(images) != len(labels):
        raise RefusedError(f"{labels_at}: expected {len(images)} labels, as many as pictures, found {len(labels)}")
    if labels.max() >= classes:
        raise RefusedError(f"{labels_at}: expected labels below {classes}, found {labels.max()}")
    return images[:, None], labels.astype(np.int64)
