"""Mean average precision against pycocotools and by hand."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from etude.tasks.mean_ap import MeanAP, Store, judge


def scene(rng: np.random.Generator, num_classes: int, *, crowds: bool, ties: bool) -> tuple[Any, ...]:
    """Objects, and detections around some of them, of the same class and of others."""
    g = int(rng.integers(0, 9))
    corner, sides = rng.uniform(0, 200, (g, 2)), rng.uniform(5, 120, (g, 2))
    true = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    labels = rng.integers(0, num_classes, g)
    crowd = rng.uniform(size=g) < 0.3 if crowds else np.zeros(g, bool)
    parts = [true + rng.normal(0, spread, true.shape).astype(np.float32) for spread in (1, 4, 12)]
    stray = rng.uniform(0, 100, (5, 4)).astype(np.float32)
    stray[:, 2:] += stray[:, :2] + 1
    boxes = np.concatenate([*parts, stray])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    guessed = np.concatenate([labels, labels, labels, rng.integers(0, num_classes, 5)])
    wrong = rng.uniform(size=len(guessed)) < 0.2
    guessed = np.where(wrong, rng.integers(0, num_classes, len(guessed)), guessed)
    scores = rng.uniform(0, 1, len(boxes)).astype(np.float32)
    if ties:
        scores = (scores * 6).round() / np.float32(6)
        boxes[: 2 * g : 3] = np.tile(true, (2, 1))[::3]  # equal overlaps too
    return boxes, scores, guessed, true, labels, crowd


def reference(scenes: list[tuple[Any, ...]], num_classes: int) -> np.ndarray:
    """pycocotools' twelve figures; mAP and mAP at 0.5 are the first two."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def sides(box: np.ndarray) -> list[float]:
        x1, y1, x2, y2 = box.astype(np.float64).tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    truth: dict[str, Any] = {"images": [{"id": i} for i in range(len(scenes))], "annotations": [], "info": {}}
    truth["categories"] = [{"id": k, "name": str(k)} for k in range(num_classes)]
    found = []
    for i, (boxes, scores, guessed, true, labels, crowd) in enumerate(scenes):
        for box, label, many in zip(true, labels.tolist(), crowd.tolist()):
            xywh = sides(box)
            entry = {"image_id": i, "category_id": label, "bbox": xywh, "area": xywh[2] * xywh[3], "iscrowd": int(many)}
            truth["annotations"].append(entry | {"id": len(truth["annotations"]) + 1})
        found += [
            {"image_id": i, "category_id": label, "bbox": sides(box), "score": score}
            for box, score, label in zip(boxes, scores.astype(np.float64).tolist(), guessed.tolist())
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground = coco.COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluated = evaluation.COCOeval(ground, ground.loadRes(found), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated.stats


def stored(scenes: list[tuple[Any, ...]], num_classes: int, first: int = 0) -> Store:
    store = Store(num_classes)
    for i, one in enumerate(scenes, first):
        store.pictures[i] = judge(*one, num_classes=num_classes)
    return store


@pytest.mark.parity
@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_pycocotools(crowds, ties, seed):
    rng = np.random.default_rng(seed)
    scenes = [scene(rng, 6, crowds=crowds, ties=ties) for _ in range(40)]
    expected = reference(scenes, 7)  # of the last class there are no objects
    store = stored(scenes, 7)
    assert store.average() == pytest.approx(expected[0], abs=1e-6)
    assert store.average(at=0) == pytest.approx(expected[1], abs=1e-6)
    assert store.average(at=5) == pytest.approx(expected[2], abs=1e-6)


@pytest.mark.parity
def test_at_most_a_hundred_of_a_class_in_a_picture():
    rng = np.random.default_rng(3)
    boxes, _, guessed, true, labels, crowd = scene(rng, 1, crowds=False, ties=False)
    many = (np.tile(boxes, (8, 1)) + rng.normal(0, 2, (8 * len(boxes), 4)).astype(np.float32)).astype(np.float32)
    many[:, 2:] = np.maximum(many[:, 2:], many[:, :2] + 1)
    crowded = (many, rng.uniform(size=len(many)).astype(np.float32), np.tile(guessed, 8), true, labels, crowd)
    assert len(many) > 100
    assert stored([crowded], 1).average() == pytest.approx(reference([crowded], 1)[0], abs=1e-6)


def test_by_hand():
    """Two objects, three detections: right, wrong, right. Precision 1 up to recall 0.5, then 2/3."""
    true = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 30]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64)
    store = Store(1, {0: judge(boxes, scores, labels, true, labels[:2], np.zeros(2, bool), 1)})
    assert store.average(at=0) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert Store(3).average() == 0.0


def test_parts_merge_in_any_order_and_more_than_once():
    rng = np.random.default_rng(5)
    scenes = [scene(rng, 3, crowds=True, ties=True) for _ in range(12)]
    whole = stored(scenes, 3).average()
    first, second = stored(scenes[:5], 3), stored(scenes[5:], 3, first=5)
    measures = [MeanAP(second, 0), MeanAP(second)]
    for measure, other in zip(measures, (MeanAP(first, 0), MeanAP(first))):
        measure.merge(other)
    assert measures[1].value() == whole
    assert measures[0].value() == stored(scenes, 3).average(at=0)
