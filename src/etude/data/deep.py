"""Pictures as they are, for work that gives back what it took: with 8 or 16 bits a channel, and with transparency.

Grey, grey with alpha, RGB or RGBA, upright; palettes, CMYK and 1-bit pictures become 8-bit RGB or grey. 16 bits come
from PNG (and grey from TIFF) and go to PNG, but for grey with alpha of 16 bits, which Pillow reads as RGBA of 8. The
limits and errors are `decode`'s; what holds several pictures, as an animation does, is refused, but for the JPEG files
of cameras, whose further pictures are previews of the first.

Shapes: C channels (1 grey, 2 grey and alpha, 3 RGB, 4 RGBA), H rows, W columns.
"""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

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
    holds more than one picture, or numbers beyond 16 bits. A Pillow image that is loaded already has 8 bits, but for
    grey; one that is not is read from its file."""
    name = str(source) if isinstance(source, str | Path) else f"the given {type(source).__name__}"
    with decode.header(source) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise UsageError(f"{name}: {frames} pictures in one file, as in an animation", hint="save one as PNG")
        png = isinstance(image, PngImagePlugin.PngImageFile)
        deep = png and bool(image.tile) and image.tile[0].args in LOW_BYTES
        whole = _file(image) if deep else b""
        image.load()
        turn = decode.TURNS.get(decode.orientation(image))
        pixels = _array(image, turn, keyed=not deep)
        if image.mode == "I" and not 0 <= pixels.min() <= pixels.max() <= 65535:
            raise UsageError(
                f"{name}: numbers of {pixels.min()} to {pixels.max()}; a picture's are of 16 bits, 0 to 65535"
            )
        clear = image.info.get("transparency") if png and (deep or image.mode.startswith("I")) else None
    if deep:
        with decode.header(whole) as image:
            image.tile = [tile._replace(args=LOW_BYTES[tile.args]) for tile in image.tile]  # pyright: ignore
            image.load()
            pixels = (pixels.astype(np.uint16) << 8) | _array(image, turn, keyed=False)
    elif image.mode.startswith("I"):
        pixels = pixels.astype(np.uint16)
    if clear is not None:  # one colour that is to be seen through
        same = (pixels == np.array(clear).reshape(-1, 1, 1)).all(0, keepdims=True)
        pixels = np.concatenate((pixels, np.where(same, 0, 65535).astype(np.uint16)))
    return torch.from_numpy(pixels)


def profile(source: decode.Picture, channels: int) -> bytes | None:
    """The ICC profile of a file, its bytes or a Pillow image, where it is one of grey (1 or 2 channels) or RGB."""
    if not isinstance(source, str | Path | bytes | Image.Image):
        return None
    with decode.header(source) as image:
        found = image.info.get("icc_profile") or b""
    return found if found[16:20] == (b"GRAY" if channels < 3 else b"RGB ") else None


def _file(image: Any) -> bytes:
    """The whole file of an image that is not loaded yet, which reads on afterwards where it stood."""
    place = image.fp.tell()
    image.fp.seek(0)
    whole = image.fp.read()
    image.fp.seek(place)
    return whole


def _array(image: Image.Image, turn: Image.Transpose | None, *, keyed: bool) -> np.ndarray:
    """The pixels, channels first, of 8 bits or as wide as they are stored. `keyed`: a colour that stands for what is
    transparent becomes alpha."""
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):
        return np.array(upright)[None]
    grey = upright.mode in ("1", "L", "LA")
    clear = upright.has_transparency_data and (keyed or upright.mode != "RGB")
    kind = ("LA" if grey else "RGBA") if clear else "L" if grey else "RGB"
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


def save_png(picture: Tensor, path: str | Path, *, icc: bytes | None = None) -> None:
    """(C, H, W) uint8 or uint16 -> a PNG file of the same depth and channels, with this ICC profile; it appears when it
    is whole."""
    path = Path(path)
    beside = path.with_name(f"{path.name}.tmp")
    try:
        beside.write_bytes(png(picture, icc))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def png(picture: Tensor, icc: bytes | None = None) -> bytes:
    """What `save_png` writes."""
    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    if picture.dtype == torch.uint8:
        buffer = BytesIO()
        Image.fromarray(pixels[..., 0] if len(picture) == 1 else pixels).save(buffer, "PNG", icc_profile=icc)
        return buffer.getvalue()
    channels, height, width = picture.shape
    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1)
    # each row as its difference from the row above (filter 2), which packs better than the values do
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, PNG_KINDS[channels], 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"".join((b"\x89PNG\r\n\x1a\n", *parts))
