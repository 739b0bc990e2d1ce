"""Attention between a source and its translation, drawn: a row of a grid for each target token, dark where it looks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL, MARGIN, SIZE = 26, 12, 15
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
        return f"decoder layer {self.layer} of {self.layers}, mean over heads; rows: the translation's tokens, each before it is written"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's, which has accents, Greek and Cyrillic."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def drawn(alignment: Alignment) -> Image.Image:
    """The grid, source tokens above it, target tokens to its left."""
    letters = font(SIZE)
    source, target = ([_shown(token) for token in tokens] for tokens in (alignment.source, alignment.target))
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


def _shown(token: str) -> str:
    """A token that begins a word without its space, one that goes on with a word with a dot before it."""
    if token.startswith("<") and token.endswith(">"):
        return token
    return token[1:] if token.startswith(" ") else f"·{token}"
