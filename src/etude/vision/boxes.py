"""Boxes (x1, y1, x2, y2): overlaps, their generalisations, and exact non-maximum suppression. The arithmetic stands in
`etude/nn/boxes.py`, as tasks use it too."""

from etude.nn.boxes import (
    aligned_complete_iou,
    batched_nms,
    complete_iou,
    detections,
    from_centre,
    generalized_iou,
    nms,
    pairwise_iou,
)

__all__ = [
    "aligned_complete_iou",
    "batched_nms",
    "complete_iou",
    "detections",
    "from_centre",
    "generalized_iou",
    "nms",
    "pairwise_iou",
]

sizes = {}
RENAME: dict[str, tuple[tuple[str, str], ...]] = {}
