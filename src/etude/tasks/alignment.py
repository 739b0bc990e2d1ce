"""Attention between a source and its translation, drawn: a row of a grid for each target token, dark where it looks."""

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN, SIZE = 26, 12, 15
FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "Arial Unicode.ttf")
"""Tried in this order; only the first has Chinese."""
DARK, LIGHT, INK = (16, 84, 138), (255, 255, 255), "#1f2328"


@dataclass(frozen=True)
class Alignment:
    """How a decoder layer looked from each of T target tokens at S source tokens."""

    source: tuple[str, ...]
    target: tuple[str, ...]
    weights: NDArray[np.float32]
    """(T, S), each row summing to 1."""
    layer: int
    layers: int

    @property
    def caption(self) -> str:
        """What the picture shows."""
        what = f"decoder layer {self.layer} of {self.layers}, mean over heads"
        return f"{what}: a row for each token of the translation, dark where it looked before it was written"


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font(size: int) -> tuple[Font, bool]:
    """A font of this machine, and whether it has letters beyond ASCII: Pillow's own has not."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size), True
        except OSError:
            continue
    return ImageFont.load_default(size), False


def drawn(alignment: Alignment) -> Image.Image:
    """The grid, source tokens above it, target tokens to its left."""
    letters, accents = font(SIZE)
    sides = (alignment.source, alignment.target)
    source, target = ([_shown(tokens, i, accents) for i in range(len(tokens))] for tokens in sides)
    left = MARGIN + max(int(letters.getlength(token)) for token in target) + 8
    top = MARGIN + max(int(letters.getlength(token)) for token in source) + 8
    sheet = Image.new("RGB", (left + CELL * len(source) + MARGIN, top + CELL * len(target) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, weights in enumerate(alignment.weights):
        draw.text((left - 8, top + CELL * (row + 0.5)), target[row], fill=INK, font=letters, anchor="rm")
        for column, weight in enumerate(weights):
            ground = tuple(round(a + (b - a) * min(1.0, float(weight) * 1.25)) for a, b in zip(LIGHT, DARK))
            x, y = left + CELL * column, top + CELL * row
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=ground, outline="#e3e6ea")
    for column, token in enumerate(source):
        label = Image.new("RGB", (top - MARGIN - 8, CELL), "white")
        ImageDraw.Draw(label).text((0, CELL / 2), token, fill=INK, font=letters, anchor="lm")
        sheet.paste(label.rotate(90, expand=True), (left + CELL * column, MARGIN))
    return sheet


def _shown(tokens: tuple[str, ...], i: int, accents: bool) -> str:
    """A token without its space; a dot before one that goes on with a word."""
    token = tokens[i]
    inside = i > 0 and token[:1].isalnum() and tokens[i - 1][-1:].isalnum()
    text = f"·{token}" if inside else token.strip() or "␣"
    return text if accents else "".join(unicodedata.normalize("NFD", c)[0] if ord(c) > 126 else c for c in text)
