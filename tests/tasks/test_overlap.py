"""Dice, IoU and the Hausdorff distance against their definitions by brute force and by scipy."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from etude.data.masks import IGNORED
from etude.tasks.overlap import Cases, Distances, Overlap, counts, hausdorff95


def test_dice_and_iou_by_hand():
    truth = torch.tensor([[[0, 1, 1], [2, 2, IGNORED]]])
    predicted = torch.tensor([[[0, 1, 2], [2, 1, 1]]])
    found = counts(predicted, truth, 4)
    assert found.tolist() == [[1, 1, 1], [1, 2, 2], [1, 2, 2], [0, 0, 0]]
    for classes, union, value in (
        ((1,), False, 0.5),
        ((1,), True, 1 / 3),
        ((1, 2, 3), False, 0.5),
        ((3,), False, None),
    ):
        measured = Overlap(classes, union=union)
        measured.add(found)
        assert measured.value() == pytest.approx(value)
    assert Overlap((1,)).value() is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_parts_in_any_order_are_the_whole(seed):
    """What three processes count, merged in any order, is what one counts; and Dice = 2 IoU / (1 + IoU)."""
    g = torch.Generator().manual_seed(seed)
    truth, predicted = (torch.randint(0, 3, (9, 5, 6), generator=g) for _ in range(2))

    def measured(rows) -> dict:
        metrics = {"dice": Overlap((2,)), "iou": Overlap((2,), union=True), "all": Overlap((1, 2)), "far": Distances()}
        for row in rows:
            for name in ("dice", "iou", "all"):
                metrics[name].add(counts(predicted[row], truth[row], 3))
            apart = hausdorff95((predicted[row] == 1).numpy(), (truth[row] == 1).numpy(), (1.0, 1.0))
            metrics["far"].found += [] if apart is None else [apart]
        return metrics

    whole = {name: metric.value() for name, metric in measured(range(9)).items()}
    for order in permutations([range(3), range(3, 7), range(7, 9)]):
        merged, *others = [measured(part) for part in order]
        for other in others:
            for name, metric in other.items():
                merged[name].merge(metric)
        assert {name: metric.value() for name, metric in merged.items()} == whole
    assert whole["dice"] == pytest.approx(2 * whole["iou"] / (1 + whole["iou"]))


def by_scipy(one: np.ndarray, other: np.ndarray, spacing) -> Any:
    edges = [mask & ~np.asarray(ndimage.binary_erosion(mask), bool) for mask in (one, other)]
    far: list[Any] = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return max(np.percentile(far[1][edges[0]], 95), np.percentile(far[0][edges[1]], 95))


@settings(max_examples=40, deadline=None)
@given(shape=st.sampled_from([(20, 27), (31, 9), (7, 8, 9)]), seed=st.integers(0, 10_000))
def test_hausdorff_equals_scipy(shape, seed):
    rng = np.random.default_rng(seed)
    one, other = (np.asarray(ndimage.binary_dilation(rng.random(shape) < 0.02, iterations=2), bool) for _ in "12")
    spacing = tuple(rng.uniform(0.5, 3, len(shape)))
    if one.any() and other.any():
        assert hausdorff95(one, other, spacing) == pytest.approx(by_scipy(one, other, spacing), rel=1e-12)


def test_hausdorff_by_brute_force_in_millimetres():
    one, other = np.zeros((40, 30), bool), np.zeros((40, 30), bool)
    one[5:20, 4:9] = True
    other[8:25, 6:20] = True
    edges = []
    for mask in (one, other):
        inside = np.pad(mask, 1)
        hidden = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        edges.append(np.argwhere(mask & ~hidden) * (0.5, 2.0))
    apart = cdist(*edges)
    expected = max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))
    assert hausdorff95(one, other, (0.5, 2.0)) == pytest.approx(expected, rel=1e-12)
    assert hausdorff95(one, one, (0.5, 2.0)) == 0


def test_hausdorff_of_nothing():
    """Both empty: no distance. One empty: the diagonal, so that a class that was missed does not go unseen."""
    nothing, something = np.zeros((3, 4), bool), np.eye(3, 4, dtype=bool)
    assert hausdorff95(nothing, nothing, (1.0, 1.0)) is None
    assert hausdorff95(nothing, something, (2.0, 1.0)) == pytest.approx((36 + 16) ** 0.5)
    assert hausdorff95(something, nothing, (2.0, 1.0)) == pytest.approx((36 + 16) ** 0.5)


def test_cases_are_ranked():
    one, other = Cases([(0.5, 3, (1, 1), b""), (0.9, 1, (1, 1), b"")]), Cases([(0.1, 2, (1, 1), b"")])
    one.merge(other)
    assert [row[1] for row in one.value()] == [2, 3, 1]
