"""Pictures as they are, for work that gives back what it took: with 8 or 16 bits a channel, and with transparency.

Grey, grey with alpha, RGB or RGBA, upright; palettes, CMYK and 1-bit pictures become 8-bit RGB or grey. 16 bits come
from PNG (and grey from TIFF) and go to PNG. The limits and errors are `decode`'s; what holds several pictures, as an
animation does, is refused.

Shapes: C channels (1 grey, 2 grey and alpha, 3 RGB, 4 RGBA), H rows, W columns.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from etude.data import decode
from etude.data.resize import to_bytes
from etude.errors import UsageError

PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels -> PNG's colour type."""
LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""How Pillow unpacks 16-bit colours to 8 bits, and how it would if they were the other way round: it takes the higher
byte in the order that it is told, so that the other order gives the lower one."""


def open_picture(source: decode.Picture) -> Tensor:
    """(C, H, W) uint8 or uint16. UsageError, in one line that names the file, as of `decode.open_image`, and where it
    holds more than one picture."""
    with decode.header(source) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            name = str(source) if isinstance(source, str | Path) else f"the given {type(source).__name__}"
            raise UsageError(f"{name}: {frames} pictures in one file, as in an animation", hint="save one as PNG")
        deep = isinstance(image, PngImagePlugin.PngImageFile) and image.tile[0].args in LOW_BYTES
        image.load()
        turn = decode.TURNS.get(decode.orientation(image))
        high = _array(image, turn)
    if not deep:
        return torch.from_numpy(high)
    with decode.header(source) as image:
        image.tile = [tile._replace(args=LOW_BYTES[tile.args]) for tile in image.tile]  # pyright: ignore
        image.load()
        low = _array(image, turn)
    return torch.from_numpy((high.astype(np.uint16) << 8) | low)


def _array(image: Image.Image, turn: Image.Transpose | None) -> np.ndarray:
    """The pixels, channels first."""
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):
        return np.asarray(upright).clip(0, 65535).astype(np.uint16)[None]
    grey = upright.mode in ("1", "L", "LA")
    kind = ("LA" if grey else "RGBA") if upright.has_transparency_data else "L" if grey else "RGB"
    pixels = np.array(upright.convert(kind))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def split_alpha(picture: Tensor) -> tuple[Tensor, Tensor | None]:
    """(C, H, W) -> (1 or 3, H, W) and (1, H, W) or None, floats of 0 to 1."""
    floats = picture.to(torch.int32).float() / torch.iinfo(picture.dtype).max
    if len(picture) in (1, 3):
        return floats, None
    return floats[:-1], floats[-1:]


def quantise(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats of 0 to 1 -> uint8 or uint16, rounded."""
    if dtype == torch.uint8:
        return to_bytes(image)
    return image.double().mul(65535).round_().clamp_(0, 65535).to(torch.int32).to(torch.uint16)


def save_png(picture: Tensor, path: str | Path) -> None:
    """(C, H, W) uint8 or uint16 -> a PNG file of the same depth and channels."""
    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    if picture.dtype == torch.uint8:
        Image.fromarray(pixels[..., 0] if len(picture) == 1 else pixels).save(path, "PNG")
        return
    channels, height, width = picture.shape
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1)
    # each row as its difference from the row above (filter 2), which packs better than the values do
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    head = struct.pack(">IIBBBBB", width, height, 16, PNG_KINDS[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b""))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
