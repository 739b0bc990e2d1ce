"""A picture of any size through a network piece by piece: the overlap-tile strategy (arXiv 1505.04597, figure 2).

Shapes: C channels in, K out, H rows, W columns; the network enlarges by `scale`.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from etude.errors import UsageError

Progress = Callable[[int, int], None]
"""Called with tiles done and tiles in all."""
Span = tuple[int, int, int, int]
"""Along one side: first and end of what is kept, first and end of what the network sees for it."""


def spans(length: int, *, tile: int, context: int, multiple: int = 1) -> list[Span]:
    """`length` pixels in pieces of nearly the same size, at most `tile`, each seen with at least `context` around it
    as far as there is any; what is seen begins at a multiple of `multiple`."""
    count = -(-length // tile)
    edges = [length * i // count for i in range(count + 1)]
    return [
        (first, end, max(0, (first - context) // multiple * multiple), min(length, end + context))
        for first, end in itertools.pairwise(edges)
    ]


def tiled(
    call: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    tile: int,
    context: int,
    scale: int = 1,
    multiple: int = 1,
    blend: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """(1, C, H, W) -> (1, K, scale H, scale W), what `call` makes of the picture; it sees windows of at most `tile` +
    2 `context` + `multiple` pixels a side, and of its answers only the insides are kept.

    Where `context` less `blend` covers all that one output value depends on, this equals one call on the whole picture,
    its border included, because a window ends where the picture ends. A network that halves the picture n times wants
    `multiple` 2^n, so that windows are halved where the whole would be. Where it covers less, pieces differ where they
    meet: `blend` pixels to either side one fades into the other. In memory are the picture, one window's work and the
    answer; `call` may reduce its answer pixel by pixel (to classes, to bytes; without `blend`) and read any type of
    picture.

    Raises UsageError for a tile without pixels, a negative context, or a blend beyond it or a quarter of a tile.
    """
    if tile < 1 or context < 0 or not 0 <= blend <= min(context, tile // 4):
        raise UsageError(
            f"tile {tile}, context {context} and blend {blend}: a tile has 1 or more pixels, its surroundings 0 or "
            "more, and what is blended reaches neither beyond these nor beyond a quarter of a tile"
        )
    height, width = image.shape[-2:]
    sizes = {"tile": tile, "context": context, "multiple": multiple}
    windows = [(row, column) for row in spans(height, **sizes) for column in spans(width, **sizes)]
    whole = torch.empty(0)
    for done, (row, column) in enumerate(windows):
        answer = call(image[..., row[2] : row[3], column[2] : column[3]])
        (top, bottom, down), (left, right, across) = (
            _kept(span, length, blend, scale) for span, length in ((row, height), (column, width))
        )
        inside = answer[..., top - row[2] * scale : bottom - row[2] * scale, left - column[2] * scale :
                        right - column[2] * scale]  # fmt: skip
        if done == 0:
            whole = inside.new_zeros((*inside.shape[:-2], height * scale, width * scale))
        if blend:
            whole[..., top:bottom, left:right] += inside * (down[:, None] * across).to(inside)
        else:
            whole[..., top:bottom, left:right] = inside
        if progress:
            progress(done + 1, len(windows))
    return whole


def _kept(span: Span, length: int, blend: int, scale: int) -> tuple[int, int, Tensor]:
    """First and end of what is taken of a piece's answer along one side, and with which weights: they rise from 0 to 1
    where the piece before it fades, so that all pieces' weights add up to 1."""
    first, end = span[:2]
    low, high = blend * (first > 0), blend * (end < length)
    begin, stop = (first - low) * scale, (end + high) * scale
    weights = torch.ones(stop - begin)
    ramp = (torch.arange(2 * blend * scale) + 0.5) / max(1, 2 * blend * scale)
    if low:
        weights[: len(ramp)] = ramp
    if high:
        weights[-len(ramp) :] = 1 - ramp
    return begin, stop, weights
