"""Pictures from files, bytes and arrays, safely; and the two crops of ImageNet, for training and for the test.

One look at the header decides before any pixel is decoded: at most 50 million pixels (ETUDE_MAX_PIXELS sets another
limit), and only plain picture formats (Pillow also knows some, like EPS, that start other programs). What comes out is
8-bit grey or RGB, turned as its EXIF orientation says; transparent parts lie on white; 16-bit grey is divided by 257;
palettes and CMYK become RGB as Pillow converts them.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import exp, log, sqrt
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor

from etude.errors import EtudeError, UsageError

Picture = str | Path | bytes | Image.Image | np.ndarray | Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB"}
READABLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16L", "I;16B")
"""Pillow's modes that have a fixed black and white, which its 32-bit float mode does not."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what sets the picture upright. From 5 on, width and height change places."""

TRIES = 10
CROP_UNIFORMS = 2 * TRIES + 2
"""Numbers in [0, 1) that one training crop takes: area and aspect of each try, then top and left."""
Box = tuple[int, int, int, int]
"""left, top, right, bottom: in pixels, the last two exclusive."""


def open_image(source: Picture, channels: int = 3) -> Image.Image:
    """A picture of mode "L" (1 channel) or "RGB" (3), upright, from a file, its bytes, a Pillow image or an array.

    Arrays are (H, W) or (H, W, C), tensors (H, W) or (C, H, W), C being 1, 3 or 4 (with alpha): uint8, or floats of
    0 to 1. Raises UsageError, in one line that names the file, where it cannot be read or is larger than the limit.
    """
    with header(source) as image:
        image.load()
        turn = TURNS.get(orientation(image))
    upright = convert(image if turn is None else image.transpose(turn), channels)
    upright.info.clear()  # with its orientation, which would turn it once more
    return upright


def open_values(source: Picture) -> np.ndarray:
    """The numbers that a picture stores, (H, W) or (H, W, C), upright: of a palette its indices, of 16 bits all of
    them, 32-bit floats as they are. For masks, whose values are names, and for scientific pictures, whose white is not
    65,535.

    Raises UsageError as `open_image`, for a file of several pictures, and for floats that are not finite.
    """
    name = str(source) if isinstance(source, str | Path) else "the given picture"
    with header(source, floats=True) as image:
        if (count := getattr(image, "n_frames", 1)) > 1:
            raise UsageError(f"{name}: {count} pictures in one file, animated or stacked", hint="save one as a file")
        image.load()
        turn = TURNS.get(orientation(image))
    values = np.asarray(image if turn is None else image.transpose(turn))
    if bad := int((~np.isfinite(values)).sum()) if values.dtype.kind == "f" else 0:
        raise UsageError(
            f"{name}: {bad:,} of {values.size:,} pixels are NaN or infinite",
            hint="replace them, e.g. with numpy.nan_to_num, and save the picture anew",
        )
    return values


def animation(path: str | Path) -> Image.Image:
    """A file with all its frames, its header checked as in `open_image`, held in memory; `seek` goes to a frame."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    with header(data) as image:
        return image


def load(
    path: str | Path, size: int, crop_uniforms: Sequence[float] | np.ndarray | None = None, *, channels: int = 3
) -> Tensor:
    """A file as uint8 (channels, size, size): centre crop, or the training crop that `crop_uniforms` choose.

    A training crop lets the JPEG decoder halve the picture as long as the crop keeps at least `size` pixels a side;
    evaluation decodes in full, so that it equals the reference.
    """
    if crop_uniforms is None:
        return to_tensor(evaluation_crop(open_image(path, channels), size))
    with header(path) as image:
        jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
        if not jpeg:  # PNG may put its orientation after the pixels
            image.load()
        turned = orientation(image)
        width, height = image.size
        if turned < 5:
            box = random_crop_box(width, height, crop_uniforms)
        else:
            top, left, bottom, right = random_crop_box(height, width, crop_uniforms)
            box = (left, top, right, bottom)
        if jpeg:
            by = max(by for by in (1, 2, 4, 8) if by == 1 or by * size <= min(box[2] - box[0], box[3] - box[1]))
            image.draft(image.mode, (width // by, height // by))
        image.load()
    # the box stands as if upright: where turning mirrors an axis, it counts from the other end of what is stored
    left, top, right, bottom = box
    if turned in (2, 3, 7, 8):
        left, right = width - right, width - left
    if turned in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    by = round(width / image.width)  # 1, 2, 4 or 8: what the decoder divided by
    x, y = left // by, top // by
    inner = (left / by - x, top / by - y, right / by - x, bottom / by - y)
    crop = convert(image.crop((x, y, -(-right // by), -(-bottom // by))), channels)
    crop = crop.resize((size, size), Image.Resampling.BILINEAR, box=inner)
    return to_tensor(crop if turned == 1 else crop.transpose(TURNS[turned]))


def evaluation_crop(image: Image.Image, size: int) -> Image.Image:
    """The shorter side to round(size * 256 / 224), bilinear with antialiasing, then the central size x size.

    Rounds as torchvision's Resize and CenterCrop do.
    """
    width, height = image.size
    longest = 8 * min(width, height)
    if max(width, height) > longest:  # only the middle counts, and a line of pixels would grow to gigabytes
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
        width, height = image.size
    shorter = round(size * 256 / 224)
    if width <= height:
        width, height = shorter, int(shorter * height / width)
    else:
        width, height = int(shorter * width / height), shorter
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def random_crop_box(
    width: int,
    height: int,
    uniforms: Sequence[float] | np.ndarray,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """torchvision's RandomResizedCrop as a pure function of CROP_UNIFORMS numbers in [0, 1).

    Ten tries draw an area (a share of the picture) and an aspect ratio (log-uniform); the first that fits is placed
    anywhere. If none fits, the central crop of the nearest allowed aspect.
    """
    for area_u, aspect_u in zip(uniforms[0 : 2 * TRIES : 2], uniforms[1 : 2 * TRIES : 2]):
        area = width * height * (scale[0] + area_u * (scale[1] - scale[0]))
        aspect = exp(log(ratio[0]) + aspect_u * (log(ratio[1]) - log(ratio[0])))
        w, h = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniforms[2 * TRIES] * (height - h + 1))
            left = int(uniforms[2 * TRIES + 1] * (width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Any Pillow image -> 8-bit grey (channels 1) or RGB (3). Transparency is composited on white."""
    if channels not in MODES:
        raise UsageError(f"{channels} channels: a picture has 1 (grey) or 3 (RGB)")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow may hold in 32 bits
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(wide / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(MODES[channels])


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit Pillow image -> uint8 (C, H, W)."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def max_pixels() -> int:
    """The most pixels that a picture may have: ETUDE_MAX_PIXELS, else 50 million."""
    given = os.environ.get("ETUDE_MAX_PIXELS", "50000000")
    try:
        return int(given)
    except ValueError:
        raise UsageError(f"ETUDE_MAX_PIXELS={given!r} is not a whole number") from None


@contextmanager
def header(source: Picture, *, floats: bool = False) -> Iterator[Image.Image]:
    """The picture with its header read and its size checked, `floats` among others where the caller knows what to do
    with them. Errors inside the block become one line that names it."""
    name = str(source) if isinstance(source, str | Path) else f"the given {type(source).__name__}"
    try:
        match source:
            case Image.Image():
                yield _admit(source, name, floats)
            case np.ndarray() | Tensor():
                yield _admit(_from_array(source), name, floats)
            case bytes():
                yield _identify(BytesIO(source), name, floats)
            case str() | Path():
                with open(source, "rb") as file:
                    yield _identify(file, name, floats)
            case _:
                raise UsageError(f"{name}: not a picture: give a file, bytes, a Pillow image, an array or a tensor")
    except EtudeError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{name}: a folder, not a picture") from None
    except PermissionError:
        raise UsageError(f"{name}: no permission to read it") from None
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged bytes
        raise UsageError(f"{name}: truncated or damaged picture ({error})") from error


def _identify(file: IO[bytes], name: str, floats: bool) -> Image.Image:
    """Finds the format and reads the header: Image.open less its pixel limit, which warns and is global."""
    prefix = file.read(16)
    if not prefix:
        raise UsageError(f"{name}: empty file, not a picture")
    Image.init()
    for kind in FORMATS:
        factory, accept = Image.OPEN[kind]
        if accept is None or accept(prefix) is True:
            file.seek(0)
            return _admit(factory(file, ""), name, floats)
    raise UsageError(f"{name}: not a picture that can be read", hint=f"convert it to one of {', '.join(FORMATS)}")


def _admit(image: Image.Image, name: str, floats: bool) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels():
        raise UsageError(
            f"{name}: {width:,} x {height:,} pixels, more than the limit of {max_pixels():,}",
            hint=f"make it smaller, or set ETUDE_MAX_PIXELS={width * height} if you trust it",
        )
    if image.mode not in READABLE and not (floats and image.mode == "F"):
        raise UsageError(f"{name}: pixels of the kind {image.mode} cannot be read", hint="save it as 8-bit RGB or grey")
    return image


def _from_array(array: np.ndarray | Tensor) -> Image.Image:
    """(H, W), an array's (H, W, C) or a tensor's (C, H, W) -> Pillow's image of the same pixels."""
    if isinstance(array, Tensor):
        tensor = array.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            raise UsageError(f"a picture of floats holds 0 to 1, this one {array.min():.4g} to {array.max():.4g}")
        array = np.rint(array * 255).astype(np.uint8)
    if (
        array.dtype != np.uint8
        or not array.size
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4)))
    ):
        raise UsageError(
            f"an array of {array.dtype} and the shape {array.shape} is not a picture",
            hint="give uint8 (H, W), (H, W, 3) or (H, W, 4); tensors have the channels first",
        )
    return Image.fromarray(np.ascontiguousarray(array))


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1, upright, where there is none or its bytes are damaged."""
    try:
        value = image.getexif().get(0x0112, 1)
    except (SyntaxError, struct.error, ValueError, KeyError, TypeError, OverflowError):
        return 1
    return value if value in range(1, 9) else 1
