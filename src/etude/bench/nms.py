"""From a detector's scores to boxes, this library's way against greedy suppression as it is usually written.

Usually: every (box, class) above the confidence becomes a candidate, classes are shifted apart, and in a loop the best
is kept and removes what overlaps it (torchvision's algorithm, a comparison with all that is left at a time). The
predictions are synthetic: 8,400 boxes and 80 classes, of which some stand around objects.
"""

from functools import partial

import torch
from torch import Tensor

from etude.bench import Contest, clock
from etude.nn.boxes import detections, pairwise_iou

BOXES, CLASSES, SIDE, MOST, CANDIDATES = 8_400, 80, 640, 300, 30_000
CASES = {
    # what: objects (0: none, all scores at random), confidence, IoU, all classes of a box, ultralytics' milliseconds
    "20 objects": (20, 0.25, 0.45, False, 10),
    "300 dense objects": (300, 0.25, 0.45, False, 208),
    "worst case, validation": (0, 0.001, 0.6, True, 6_060),
}


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: faster with few objects, five times faster with many; against ultralytics' figures see the notes."""
    return [_contest(what, *case) for what, case in CASES.items()]


def scene(objects: int) -> tuple[Tensor, Tensor]:
    """Boxes (8400, 4) and scores (8400, 80): about 28 boxes stand around each object, with its class."""
    g = torch.Generator().manual_seed(0)
    corner, sides = torch.rand(BOXES, 2, generator=g) * 560, torch.rand(BOXES, 2, generator=g) * 150 + 8
    boxes = torch.cat([corner, corner + sides], 1)
    if not objects:
        return boxes, torch.rand(BOXES, CLASSES, generator=g)
    scores = torch.rand(BOXES, CLASSES, generator=g) * 0.05
    rows = torch.randperm(BOXES, generator=g)[: 28 * objects]
    which = torch.arange(len(rows)) % objects
    boxes[rows] = boxes[:objects].clone()[which] + torch.randn(len(rows), 4, generator=g) * 3
    labels = torch.randint(0, CLASSES, (objects,), generator=g)[which]
    scores[rows, labels] = torch.rand(len(rows), generator=g) * 0.7 + 0.3
    return boxes, scores


def usual(boxes: Tensor, scores: Tensor, *, confidence: float, iou: float, multi_label: bool) -> tuple[Tensor, ...]:
    """Boxes, scores and classes, as most implementations find them."""
    if multi_label:
        rows, labels = (scores > confidence).nonzero(as_tuple=True)
        values = scores[rows, labels]
    else:
        values, labels = scores.max(1)
        (rows,) = (values > confidence).nonzero(as_tuple=True)
        values, labels = values[rows], labels[rows]
    order = values.argsort(descending=True, stable=True)[:CANDIDATES]
    rows, values, labels = rows[order], values[order], labels[order]
    shifted = boxes[rows] + labels[:, None] * (2 * SIDE)
    left, kept = torch.arange(len(rows)), []
    while len(left) and len(kept) < MOST:
        kept.append(left[0])
        left = left[1:][pairwise_iou(shifted[left[:1]], shifted[left[1:]])[0] <= iou]
    found = torch.stack(kept) if kept else left
    return boxes[rows[found]], values[found], labels[found]


def _contest(what: str, objects: int, confidence: float, iou: float, multi_label: bool, ultralytics: float) -> Contest:
    boxes, scores = scene(objects)
    settings = {"confidence": confidence, "iou": iou, "multi_label": multi_label}
    ours = partial(detections, boxes, scores, most=MOST, candidates=CANDIDATES, **settings)
    theirs = partial(usual, boxes, scores, **settings)
    assert all(torch.equal(a, b) for a, b in zip(ours(), theirs())), f"{what}: other boxes are kept"
    return Contest(
        name="nms",
        what=f"NMS 8,400 x 80, {what}, confidence {confidence}",
        amount=1,
        unit="pictures/s",
        ours=clock(ours),
        peer=clock(theirs),
        peer_name="greedy suppression in PyTorch",
        peer_version=torch.__version__,
        target=1.0 if objects == 20 else 5.0,
        note=f"equal boxes; ultralytics was measured at {1000 / ultralytics:.3g} pictures/s on such scores",
        rounds=15,
        warmup=3,
    )
