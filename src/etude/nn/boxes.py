"""Boxes: overlaps and their generalisations, and exact non-maximum suppression.

`nms` and `batched_nms` keep the same boxes as torchvision 0.29.1's, in the same order; `generalized_iou` (Rezatofighi
et al., arXiv 1902.09630) and `complete_iou` (Zheng et al., arXiv 1911.08287, equations 7 to 11) equal its
`generalized_box_iou` and `complete_box_iou` (`etude verify boxes`).

Shapes: N, M boxes as (x1, y1, x2, y2), left, top, right, bottom.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

Boxes = Float[Tensor, "N 4"]
BLOCK = 512
"""Boxes of one class among which suppression is decided at once."""
TILE = 1 << 16
"""Pairs whose overlaps are computed at once: float32 intermediates of this many stay in a core's cache."""


def areas(boxes: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B"]:
    """Width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(a: Boxes, b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection over union of each of `a` with each of `b`."""
    return _overlap(a[:, None], b)[0]


def generalized_iou(a: Boxes, b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """IoU less the share of the smallest enclosing box that neither fills: in (-1, 1]."""
    a = a[:, None]
    iou, union = _overlap(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return iou - (hull - union) / hull


def complete_iou(a: Boxes, b: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """IoU less the distance of the centres and the difference of the aspect ratios."""
    return aligned_complete_iou(a[:, None], b)


def aligned_complete_iou(a: Float[Tensor, "*A 4"], b: Float[Tensor, "*B 4"], *, eps: float = 1e-7) -> Tensor:
    """`complete_iou` of the boxes that broadcasting puts side by side: a loss's.

    The weight of the aspect ratio, alpha, gets no gradient (the paper's section on optimisation). Heights count as
    `eps` at least: of a box too thin for its corners to differ, the gradient would be NaN.
    """
    iou, _ = _overlap(a, b)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    diagonal = hull.clamp(min=0).square().sum(-1) + eps
    distance = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)
    angle_a, angle_b = (torch.atan((x[..., 2] - x[..., 0]) / (x[..., 3] - x[..., 1]).clamp(min=eps)) for x in (a, b))
    v = 4 / math.pi**2 * (angle_a - angle_b).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return iou - distance / diagonal - alpha * v


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union of boxes side by side, by broadcasting."""
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = areas(a) + areas(b) - inner
    return inner / union, union


def from_centre(boxes: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """(centre x, centre y, width, height) -> (x1, y1, x2, y2)."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)


# ---------------------------------------------------------------- non-maximum suppression


def nms(boxes: Shaped[Tensor, "N 4"], scores: Shaped[Tensor, " N"], iou: float) -> Int[Tensor, " K"]:
    """Indices of the boxes that greedy suppression keeps, best first.

    From the best box down, each that is kept removes those after it whose IoU with it is above `iou`. Exact: the same
    boxes as by one comparison after the other. Of boxes of one score the first comes first.
    """
    return batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64), iou)


def batched_nms(
    boxes: Shaped[Tensor, "N 4"], scores: Shaped[Tensor, " N"], classes: Int[Tensor, " N"], iou: float
) -> Int[Tensor, " K"]:
    """`nms` within each class; the indices of all classes together, best first. Computed on the CPU."""
    if not 0 <= iou <= 1:
        raise ValueError(f"iou is {iou}; the threshold must lie between 0 and 1")
    order = torch.argsort(scores.detach(), descending=True, stable=True).cpu().numpy()
    return torch.from_numpy(order[_kept(boxes, classes, order, iou)]).to(boxes.device)


def detections(
    boxes: Boxes,
    scores: Float[Tensor, "N C"],
    *,
    confidence: float,
    iou: float,
    most: int = 300,
    candidates: int = 30_000,
    multi_label: bool = False,
) -> tuple[Float[Tensor, "K 4"], Float[Tensor, " K"], Int[Tensor, " K"]]:
    """What a detector has found: boxes, scores and classes, best first, after class-wise suppression.

    A box is a candidate for its best class, or with `multi_label` for every class, where the score is above
    `confidence`. Of the best `candidates`, at most `most` of what `batched_nms` keeps. What becomes of a candidate
    follows from better ones alone: so a beginning of the ranking is decided first, and a longer one only where too few
    were kept of it.
    """
    rows = (scores.amax(1) > confidence).nonzero().squeeze(1)
    some = scores[rows]
    if multi_label:
        ranked, best, width = some.flatten(), None, some.shape[1]
    else:
        (ranked, best), width = some.max(1), 1
    whole = len(ranked)
    count = 4 * most
    while True:
        count = min(count, candidates)
        if count < whole:
            # all that tie with the last come along, so that ties go by index as in the whole
            limit = torch.topk(ranked, count, sorted=False).values.min()
            chosen = (ranked >= limit).nonzero().squeeze(1)
        else:
            chosen = torch.arange(whole, device=ranked.device)
        chosen = chosen[ranked[chosen] > confidence]
        values, classes = ranked[chosen], chosen % width if best is None else best[chosen]
        found = boxes[rows[torch.div(chosen, width, rounding_mode="floor")]]
        kept = batched_nms(found, values, classes, iou)[:most]
        if len(kept) == most or count >= min(whole, candidates):
            return found[kept], values[kept], classes[kept]
        count *= 8


def _kept(boxes: Tensor, classes: Tensor, order: NDArray[np.int64], iou: float) -> NDArray[np.int64]:
    """The places in `order` that are kept, increasing."""
    # as (4, N), so that a coordinate of all boxes lies together
    boxes = boxes.detach().cpu()
    plain = boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()
    sides = np.ascontiguousarray(plain.numpy()[order].T)
    labels = classes.cpu().numpy()[order]
    by_class = np.argsort(labels, kind="stable")
    bounds = np.flatnonzero(np.diff(labels[by_class])) + 1
    threshold = sides.dtype.type(iou)
    kept = [rows if len(rows) < 2 else rows[_greedy(sides[:, rows], threshold)] for rows in np.split(by_class, bounds)]
    return np.sort(np.concatenate(kept))


def _greedy(sides: NDArray, iou: np.floating) -> NDArray[np.int64]:
    """Which of one class's boxes (4, n), best first, are kept.

    A block at a time: within it, the boxes that one removes are the bits of a number, so that the greedy choice is an
    operation on numbers of 512 bits for each box kept; what is kept then removes from all boxes behind the block.
    """
    places, kept = np.arange(sides.shape[1]), []
    while len(places):
        block, sides = sides[:, :BLOCK], sides[:, BLOCK:]
        n = block.shape[1]
        removes = np.empty((n, -(-n // 8)), np.uint8)
        for rows in _slices(n, n):
            removes[rows] = np.packbits(_overlapping(block[:, rows], block, iou), axis=1, bitorder="little")
        chosen = _choose(removes)
        kept.append(places[:n][chosen])
        places = places[n:]
        if len(places):
            picked, gone = np.ascontiguousarray(block[:, chosen]), np.zeros(len(places), bool)
            for columns in _slices(len(places), min(len(chosen), 128)):
                ahead = np.ascontiguousarray(sides[:, columns])
                for some in range(0, len(chosen), 128):
                    gone[columns] |= _overlapping(picked[:, some : some + 128], ahead, iou).any(0)
            places, sides = places[~gone], sides[:, ~gone]
    return np.concatenate(kept)


def _choose(removes: NDArray[np.uint8]) -> list[int]:
    """The greedy choice among boxes, best first; bit j of row i says that i removes j."""
    n, width = removes.shape
    data = removes.tobytes()
    left, chosen = (1 << n) - 1, []
    while left:
        first = left & -left
        i = first.bit_length() - 1
        chosen.append(i)
        left = (left ^ first) & ~int.from_bytes(data[i * width : (i + 1) * width], "little")
    return chosen


def _slices(count: int, width: int) -> Iterator[slice]:
    """Parts of `count` lines that hold about TILE pairs each, at `width` pairs a line."""
    step = max(1, TILE // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _overlapping(a: NDArray, b: NDArray, iou: np.floating) -> NDArray[np.bool_]:
    """Whether the IoU of boxes a (4, n) and b (4, m) is above the threshold: (n, m).

    One side of the intersection may stay negative: with the other not, the product then is not above zero.
    """
    inner = np.minimum(a[2][:, None], b[2])
    inner -= np.maximum(a[0][:, None], b[0])
    np.maximum(inner, 0, out=inner)
    other = np.minimum(a[3][:, None], b[3])
    other -= np.maximum(a[1][:, None], b[1])
    inner *= other
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    np.add(area_a[:, None], area_b, out=other)
    other -= inner
    with np.errstate(divide="ignore", invalid="ignore"):  # of boxes without an area, which overlap nothing
        inner /= other
    return inner > iou
