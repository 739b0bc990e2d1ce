"""Masks drawn over pictures: regions tinted, their borders solid, one colour a class."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from etude.data.distance import surface

COLOURS = ((37, 99, 235), (234, 88, 12), (22, 163, 74), (192, 38, 211), (202, 138, 4), (8, 145, 178), (220, 38, 38))
"""Of classes 1, 2, ..., again from the first after the last; class 0, the background, is left as it is."""
TINT = 0.35
GAP = 6


def colour(label: int) -> tuple[int, int, int]:
    """A class's colour."""
    return COLOURS[(label - 1) % len(COLOURS)]


def overlay(picture: Image.Image, mask: NDArray[np.integer]) -> Image.Image:
    """An RGB picture with the classes (H, W) of its pixels drawn over it."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
    for label in np.unique(mask[mask > 0]):
        inside = mask == label
        tone = np.array(colour(int(label)), dtype=np.float32)
        pixels[inside] += TINT * (tone - pixels[inside])
        pixels[surface(inside)] = tone
    return Image.fromarray(pixels.astype(np.uint8))


def beside(pictures: Sequence[Image.Image], *, columns: int | None = None) -> Image.Image:
    """Pictures of about one size in rows of `columns`, by default all in one."""
    columns = columns or len(pictures)
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return sheet


def legend(picture: Image.Image, classes: Sequence[str]) -> Image.Image:
    """The picture with the classes' colours named below it."""
    font = ImageFont.load_default(13)
    line, names = 20, list(enumerate(classes))[1:]
    widths = [int(font.getlength(name)) + 32 for _, name in names]
    width = max(picture.width, *widths)
    places, x, y = [], 0, 0
    for taken in widths:
        if x and x + taken > width:
            x, y = 0, y + line
        places.append((x, y))
        x += taken
    sheet = Image.new("RGB", (width, picture.height + y + line + GAP), "white")
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for (label, name), (x, y) in zip(names, places):
        top = picture.height + GAP + y
        draw.rectangle((x, top + 2, x + 12, top + 14), fill=colour(label))
        draw.text((x + 18, top), name, fill="#222222", font=font)
    return sheet


def shrunk(picture: Image.Image, side: int, *, nearest: bool = False) -> Image.Image:
    """At most `side` pixels a side; a smaller picture as it is."""
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)


def png(picture: Image.Image) -> str:
    """As base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
