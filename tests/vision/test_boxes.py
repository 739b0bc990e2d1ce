"""Suppression against one comparison after the other, and overlaps by hand. Equality with torchvision: tests/verify."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.vision.boxes import (
    aligned_complete_iou,
    batched_nms,
    complete_iou,
    detections,
    from_centre,
    generalized_iou,
    nms,
    pairwise_iou,
)


def plain_nms(boxes: torch.Tensor, scores: torch.Tensor, iou: float) -> list[int]:
    """The definition: the best box left is kept, and removes what overlaps it."""
    above = (pairwise_iou(boxes, boxes) > iou).tolist()
    left, kept = torch.argsort(scores, descending=True, stable=True).tolist(), []
    while left:
        best, *left = left
        kept.append(best)
        left = [i for i in left if not above[best][i]]
    return kept


def drawn(seed: int, count: int, *, clustered: bool = False, levels: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(count, 2, generator=g) * 100, torch.rand(count, 2, generator=g) * 40 + 1
    if clustered:
        corner, sides = (
            corner[:1] + torch.rand(count, 2, generator=g) * 4,
            sides[:1] + torch.rand(count, 2, generator=g),
        )
    scores = torch.rand(count, generator=g)
    return torch.cat([corner, corner + sides], 1), (scores * levels).round() / levels if levels else scores


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(0, 120),
    iou=st.sampled_from([0.0, 0.3, 0.45, 0.6, 1.0]),
    clustered=st.booleans(),
    levels=st.sampled_from([0, 5]),
)
def test_nms_is_the_definition(seed, count, iou, clustered, levels):
    boxes, scores = drawn(seed, max(count, 1), clustered=clustered, levels=levels)
    boxes, scores = boxes[:count], scores[:count]
    assert nms(boxes, scores, iou).tolist() == plain_nms(boxes, scores, iou)


@pytest.mark.parametrize("clustered", [False, True])
def test_nms_over_several_blocks(clustered):
    """More boxes than are decided at once, so that what is kept of a block removes from those behind it."""
    boxes, scores = drawn(3, 1700, clustered=clustered)
    assert nms(boxes, scores, 0.4).tolist() == plain_nms(boxes, scores, 0.4)


def test_classes_do_not_meet():
    boxes, scores = drawn(5, 300)
    classes = torch.arange(300) % 4
    kept = batched_nms(boxes, scores, classes, 0.3)
    expected = []
    for label in range(4):
        (rows,) = (classes == label).nonzero(as_tuple=True)
        expected += rows[plain_nms(boxes[rows], scores[rows], 0.3)].tolist()
    assert sorted(kept.tolist()) == sorted(expected)
    assert (scores[kept].diff() <= 0).all()
    moved = batched_nms(boxes + 1e6, scores, classes, 0.3)  # no trick of shifting classes apart, which costs digits
    assert moved.dtype == torch.int64 and len(batched_nms(boxes[:0], scores[:0], classes[:0], 0.3)) == 0


def test_boxes_without_area_overlap_nothing():
    boxes = torch.tensor([[0.0, 0, 0, 5], [0, 0, 0, 5], [0, 0, 4, 5]])
    assert nms(boxes, torch.tensor([3.0, 2, 1]), 0.1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"iou is 1\.5"):
        nms(boxes, torch.ones(3), 1.5)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("most", [3, 40, 5000])
def test_detections_are_the_first_of_the_whole(multi_label, most):
    """Deciding a beginning of the ranking gives what deciding all of it would."""
    boxes, _ = drawn(7, 400)
    scores = (torch.rand(400, 5, generator=torch.Generator().manual_seed(1)) * 50).round() / 50  # many ties
    if multi_label:
        rows, labels = (scores > 0.1).nonzero(as_tuple=True)
        values = scores[rows, labels]
    else:
        values, labels = scores.max(1)
        (rows,) = (values > 0.1).nonzero(as_tuple=True)
        values, labels = values[rows], labels[rows]
    kept = batched_nms(boxes[rows], values, labels, 0.5)[:most]
    found = detections(boxes, scores, confidence=0.1, iou=0.5, most=most, multi_label=multi_label)
    assert torch.equal(found[0], boxes[rows[kept]])
    assert torch.equal(found[1], values[kept]) and torch.equal(found[2], labels[kept])


def test_no_detections():
    boxes, scores, classes = detections(torch.rand(9, 4), torch.zeros(9, 3), confidence=0.5, iou=0.5)
    assert boxes.shape == (0, 4) and scores.shape == classes.shape == (0,)


def test_overlaps_by_hand():
    """Two squares of 4 that share 2 x 2; hull 6 x 6; centres 2 apart on both axes."""
    a, b = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[2.0, 2, 6, 6], [8, 0, 10, 1]])
    assert pairwise_iou(a, b)[0].tolist() == pytest.approx([4 / 28, 0])
    assert generalized_iou(a, b)[0].tolist() == pytest.approx([4 / 28 - 8 / 36, 0 - (40 - 18) / 40])
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    distance = (7**2 + 1.5**2) / (10**2 + 4**2)
    assert complete_iou(a, b)[0].tolist() == pytest.approx([4 / 28 - 8 / 72, -distance - v * v / (1 + v)], rel=1e-5)
    assert from_centre(torch.tensor([3.0, 4, 2, 6])).tolist() == [2, 1, 4, 7]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64])
def test_nms_of_other_numbers(dtype):
    boxes = (drawn(2, 60)[0] * 2).to(dtype)
    scores = drawn(2, 60)[1]
    assert torch.equal(nms(boxes, scores, 0.4), nms(boxes.float(), scores, 0.4))


def test_gradients_of_thin_boxes_are_finite():
    """So far from the corner that float32 does not tell its edges apart."""
    centred = torch.tensor([[40.0, 40, 3, 1e-7], [40, 40, 1e-7, 3], [40, 40, 1e-7, 1e-7]], requires_grad=True)
    boxes = from_centre(centred)
    assert (boxes[0, 3] - boxes[0, 1]).item() == 0
    found = aligned_complete_iou(boxes, torch.tensor([[39.0, 38, 42, 41]]))
    found.sum().backward()
    assert centred.grad is not None and found.isfinite().all() and centred.grad.isfinite().all()


def test_gradients_of_complete_iou():
    """As finite differences where the aspect ratios agree, so that alpha is zero; alpha itself gets no gradient."""
    a = drawn(11, 6)[0].double()
    grown = torch.cat([a[:, :2] - 1, a[:, :2] - 1 + 1.5 * (a[:, 2:] - a[:, :2])], 1)
    assert torch.autograd.gradcheck(aligned_complete_iou, (a.requires_grad_(), grown), atol=1e-4)
    b = drawn(12, 6)[0].double()
    (gradient,) = torch.autograd.grad(aligned_complete_iou(a, b).sum(), a)
    overlap = pairwise_iou(a, b).diagonal()
    angle = [torch.atan((x[:, 2] - x[:, 0]) / (x[:, 3] - x[:, 1])) for x in (a, b)]
    v = 4 / math.pi**2 * (angle[0] - angle[1]).square()
    frozen = (v / (1 - overlap + v)).detach()
    rest = aligned_complete_iou(a, b) + frozen * v  # as if there were no aspect ratio
    (without,) = torch.autograd.grad(rest.sum(), a, retain_graph=True)
    (aspect,) = torch.autograd.grad((frozen * v).sum(), a)
    torch.testing.assert_close(gradient, without - aspect, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(complete_iou(a, b).diagonal(), aligned_complete_iou(a, b))
