"""Which predictions answer for which objects, the loss by hand, what is found and how it is told."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from etude.data.detection import Detection
from etude.errors import UsageError
from etude.tasks import anchors as fitting
from etude.tasks.detect import Detect, DetectAsk, Detections, assign, back, confuse
from etude.tasks.metrics import Confusion
from etude.vision.yolo import COCO_ANCHORS, STRIDES, Config, decode

SIDE, K = 64, 2


class Fixed(nn.Module):
    """A detector that answers the maps it is given, whatever the picture."""

    def __init__(self, maps: list[torch.Tensor]):
        super().__init__()
        self.maps, self.unused = maps, nn.Parameter(torch.zeros(1))

    def anchors(self) -> torch.Tensor:
        return torch.tensor(COCO_ANCHORS)

    def forward(self, x: torch.Tensor) -> Any:
        maps = [m.expand(len(x), *m.shape[1:]) for m in self.maps]
        if self.training:
            return maps
        return decode(maps, self.anchors() / torch.tensor(STRIDES)[:, None, None]), maps


def empty(level: float = -12.0) -> list[torch.Tensor]:
    """Maps that find nothing."""
    maps = [torch.zeros(1, 3, SIDE // s, SIDE // s, 5 + K) for s in STRIDES]
    for m in maps:
        m[..., 4:] = level
    return maps


def naive_assign(boxes, labels, anchors, cells, ratio):
    """The rule, one object, anchor and cell after the other."""
    h, w = cells
    found = set()
    for b in range(len(boxes)):
        for m in range(boxes.shape[1]):
            if labels[b, m] < 0:
                continue
            x1, y1, x2, y2 = boxes[b, m].tolist()
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            for a, (aw, ah) in enumerate(anchors.tolist()):
                rw, rh = (x2 - x1) / aw, (y2 - y1) / ah
                if max(rw, 1 / rw, rh, 1 / rh) >= ratio:
                    continue
                column, row = min(int(x), w - 1), min(int(y), h - 1)
                places = {(row, column)}
                places.add(
                    (row, column - 1) if x - column < 0.5 else (row, column + 1) if x - column > 0.5 else (-1, 0)
                )
                places.add((row - 1, column) if y - row < 0.5 else (row + 1, column) if y - row > 0.5 else (-1, 0))
                for r, c in places:
                    if 0 <= r < h and 0 <= c < w:
                        place = ((b * len(anchors) + a) * h + r) * w + c
                        found.add((place, a, round(x - c, 3), round(y - r, 3), int(labels[b, m])))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_the_rule(seed):
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(3, 6, 2, generator=g) * torch.tensor([7.0, 5.0])
    sides = torch.rand(3, 6, 2, generator=g) * 4 + 0.1
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], 2)
    labels = torch.randint(-1, 4, (3, 6), generator=g)
    anchors = torch.tensor([[0.5, 0.7], [1.5, 1.0], [4.0, 3.0]])
    places, which, targets, classes = assign(boxes, labels, anchors, (5, 7), 4.0)
    found = {
        (int(p), int(a), round(float(t[0]), 3), round(float(t[1]), 3), int(c))
        for p, a, t, c in zip(places, which, targets, classes)
    }
    assert found == naive_assign(boxes, labels, anchors, (5, 7), 4.0) and len(found) == len(places) > 0
    offsets = targets[:, :2]
    assert offsets.min() >= -0.5 and offsets.max() <= 1.5  # what 2 sigmoid - 0.5 reaches


def test_no_objects_no_assignment():
    nothing = assign(torch.zeros(2, 1, 4), torch.full((2, 1), -1), torch.ones(3, 2), (4, 4), 4.0)
    assert [len(part) for part in nothing] == [0, 0, 0, 0]
    loss, logs = Detect().loss(Fixed(empty(-5.0)).train(), batch_of([]))
    assert loss.item() == pytest.approx(64 * (4 + 1 + 0.4) * math.log1p(math.exp(-5)), rel=1e-4)
    assert logs["box"] == 0 and logs["classes"] == 0  # pyright: ignore[reportOperatorIssue]


def batch_of(objects: Sequence[tuple[float, float, float, float, int]], count: int = 1) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([o[:4] for o in objects] or [[0.0] * 4]).expand(count, -1, 4)
    label = torch.tensor([o[4] for o in objects] or [-1]).expand(count, -1)
    place = torch.tensor([1.0, 0, 0, SIDE, SIDE]).expand(count, 5)
    batch = {"image": torch.zeros(count, 3, SIDE, SIDE), "boxes": boxes, "label": label, "place": place}
    return batch | {"crowd": torch.zeros(label.shape, dtype=torch.bool), "index": torch.arange(count)}


def test_loss_by_hand():
    """One object that only the two smaller anchors of stride 8 may answer for, in the middle of a cell: one cell each,
    where every logit is 0: the box predicted is the anchor itself, around the cell's middle."""
    maps = [torch.zeros(1, 3, SIDE // s, SIDE // s, 5 + K) for s in STRIDES]
    task = Detect(balance=(4.0, 1.0, 0.4))
    w, h = 4.0, 4.5
    loss, logs = task.loss(Fixed(maps).train(), batch_of([(20 - w / 2, 20 - h / 2, 20 + w / 2, 20 + h / 2, 1)]))
    overlaps = []
    for aw, ah in COCO_ANCHORS[0]:
        if max(aw / w, ah / h) < 4:  # an anchor holds the object, with the same centre
            v = 4 / math.pi**2 * (math.atan(aw / ah) - math.atan(w / h)) ** 2
            iou = w * h / (aw * ah)
            overlaps.append(iou - v * v / (1 - iou + v))
    assert len(overlaps) == 1
    box = 1 - np.mean(overlaps)
    cells = 3 * 64
    objectness = (4 + 1 + 0.4) * math.log(2)  # BCE at logit 0 is log 2, whatever the target
    assert logs["box"].item() == pytest.approx(box, rel=1e-5)  # pyright: ignore
    assert logs["objectness"].item() == pytest.approx(objectness, rel=1e-6)  # pyright: ignore
    assert loss.item() == pytest.approx(64 * (0.05 * box + objectness + 0.5 * math.log(2)), rel=1e-5)
    # at another logit the target shows: the object's own IoU in its cell, 0 elsewhere
    maps[0][..., 4] = -1.0
    found = task.loss(Fixed(maps).train(), batch_of([(18.0, 17.75, 22.0, 22.25, 1)]))[1]["objectness"]
    expected = 4 * (math.log1p(math.exp(-1)) + sum(overlaps) / cells) + 1.4 * math.log(2)
    assert found.item() == pytest.approx(expected, rel=1e-6)  # pyright: ignore


def test_crowds_are_not_learned_from():
    objects = [(18.0, 17.75, 22.0, 22.25, 1), (0.0, 0.0, 30.0, 40.0, 0)]
    model, batch = Fixed(empty(-2.0)).train(), batch_of(objects)
    batch["crowd"] = torch.tensor([[False, True]])
    assert torch.equal(Detect().loss(model, batch)[0], Detect().loss(model, batch_of(objects[:1]))[0])


def test_a_process_without_pictures_has_nothing_to_say():
    assert Detect().evaluate(Fixed(empty()).eval(), []) == {}


def test_perfect_predictions_reach_map_one():
    """Logits that decode to the objects themselves; the second of a cell's two anchors is a weaker copy."""
    maps = empty()
    for row, column, label in ((2, 3, 0), (6, 1, 1)):
        for anchor, score in ((1, 9.0), (2, 2.0)):
            maps[0][0, anchor, row, column, 4] = score
            maps[0][0, anchor, row, column, 5 + label] = score
            wanted = torch.tensor([16.0, 30.0]) / torch.tensor(COCO_ANCHORS[0][anchor])
            maps[0][0, anchor, row, column, 2:4] = torch.logit(wanted.sqrt() / 2)
    objects = [(28 - 8, 20 - 15, 28 + 8, 20 + 15, 0), (12 - 8, 52 - 15, 12 + 8, 52 + 15, 1)]
    model, task = Fixed(maps).eval(), Detect()
    measured = task.evaluate(model, [batch_of(objects, 3)])
    assert measured["mAP50_95"].value() == pytest.approx(1.0) == measured["mAP50"].value()
    assert measured["confusion"].value() == [[3, 0, 0], [0, 3, 0], [0, 0, 0]]
    wrong = [(*objects[0][:4], 1), (40, 40, 60, 60, 0)]
    measured = task.evaluate(model, [batch_of(wrong)])
    assert measured["mAP50"].value() == 0.0
    assert measured["confusion"].value() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_confusion_takes_the_largest_overlaps_first():
    confusion = Confusion(3)
    truth = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12]])
    boxes = torch.tensor([[0.0, 0, 10, 11.9], [0, 0, 10, 10], [50, 50, 60, 60]])
    confuse(confusion, (boxes, torch.ones(3), torch.tensor([1, 0, 0])), truth, torch.tensor([0, 1]))
    assert confusion.value() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    confuse(confusion, (boxes[:0], torch.ones(0), torch.zeros(0, dtype=torch.int64)), truth, torch.tensor([0, 1]))
    assert confusion.value() == [[1, 0, 1], [0, 1, 1], [1, 0, 0]]


def test_back_to_the_pictures_own_pixels():
    place = torch.tensor([0.5, 10.0, 0.0, 88, 128])
    boxes = torch.tensor([[10.0, 0, 20, 30], [0, 0, 64, 64]])
    assert back(boxes, place).tolist() == [[0, 0, 20, 60], [0, 0, 88, 128]]


# ---------------------------------------------------------------- anchors


def test_anchors_that_suit_stay():
    g = np.random.default_rng(0)
    flat = np.array(COCO_ANCHORS).reshape(-1, 2)
    sides = flat[g.integers(0, 9, 500)] * g.uniform(0.7, 1.4, (500, 2))
    assert fitting.suited(COCO_ANCHORS, sides, 4.0) == COCO_ANCHORS
    assert fitting.recall(sides, flat, 4.0) == 1.0


def test_anchors_are_fitted_to_long_thin_boxes():
    g = np.random.default_rng(0)
    sides = np.stack([g.uniform(100, 400, 600), g.uniform(5, 12, 600)], 1)
    before = fitting.recall(sides, np.array(COCO_ANCHORS).reshape(-1, 2), 4.0)
    fitted = fitting.suited(COCO_ANCHORS, sides, 4.0)
    assert before < 0.5 and fitting.recall(sides, np.array(fitted).reshape(-1, 2), 4.0) == 1.0
    areas = [w * h for level in fitted for w, h in level]
    assert areas == sorted(areas) and [len(level) for level in fitted] == [3, 3, 3]
    assert fitting.suited(fitted, sides, 4.0) == fitted  # configuring once more changes nothing


@dataclass
class Sized:
    facts: dict[str, Any]


def test_a_model_of_other_classes_is_told():
    model = Config(width=0.125, num_classes=5).build()
    with pytest.raises(UsageError, match="5 classes, the data 2") as caught:
        Detect().check(model, Sized({"classes": ["a", "b"]}))  # pyright: ignore[reportArgumentType]
    assert caught.value.hint == "--model.num-classes 2"
    assert not model.eval().training


def test_anchors_of_weights_give_way_to_fitted_ones():
    """Only where the model is about to be trained: one that is measured keeps what it has."""
    config = Config(width=0.125, num_classes=2, anchors=(((4.0, 5.0), (6.0, 7.0), (8.0, 9.0)),) * 3)
    weights = Config(width=0.125, num_classes=2).build().state_dict()
    dataset: Any = Sized({"classes": ["a", "b"]})
    for training, task, expected in (
        (True, Detect(), config.anchors),
        (True, Detect(fit_anchors=False), COCO_ANCHORS),
        (False, Detect(), COCO_ANCHORS),
    ):
        model = config.build().train(training)
        model.load_state_dict(weights)
        task.check(model, dataset)
        torch.testing.assert_close(model.anchors(), torch.tensor(expected))
        assert model.training is training


# ---------------------------------------------------------------- answers


def test_answers_are_in_the_pictures_own_pixels(tmp_path):
    """A picture of 128 x 64, asked at 64: the network sees 64 x 32, so half its maps' rows."""
    maps = [m[:, :, : max(1, m.shape[2] // 2)].clone() for m in empty()]
    maps[0][0, 1, 2, 3, 4:6] = 9.0
    picture = Image.new("RGB", (128, 64), "green")
    (found,) = Detect().predict(Fixed(maps).eval(), [picture], Detection(size=64), {"classes": ["cat", "dog"]})
    assert found.boxes[0] == pytest.approx([2 * (28 - 8), 2 * (20 - 15), 2 * (28 + 8), 64], abs=1e-3)
    assert found.row()[0] == "1 cat" and found.json()["objects"][0]["label"] == "cat"
    words = found.text().split()
    assert words[0] == "0" and [float(w) for w in words[1:5]] == pytest.approx(
        [56 / 128, 37 / 64, 32 / 128, 54 / 64], abs=1e-4
    )
    found.save(tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as drawn:
        assert drawn.size == (256, 128)  # small pictures are enlarged, for the labels to be read
    assert json.loads((tmp_path / "out.json").read_text())["width"] == 128
    assert (tmp_path / "out.txt").read_text() == found.text()
    ask = DetectAsk(confidence=0.9999)
    numbers = {"classes": [str(k) for k in range(80)]}  # of published weights, whose data is not here
    (named,) = Detect().predict(Fixed(maps).eval(), [picture], Detection(source="coco", size=64), numbers)
    assert named.row()[0] == "1 person"
    (none,) = Detect().predict(Fixed(maps).eval(), [picture], Detection(size=64), {"classes": ["cat", "dog"]}, ask)
    assert none.boxes == [] and none.row() == ["nothing", ""] and none.text() == ""
    none.plot()
    with pytest.raises(UsageError, match="confidence 2"):
        DetectAsk(confidence=2.0)


def test_drawing_at_the_edges():
    boxes = [[0.0, 0.0, 400.0, 300.0], [390.0, 295.0, 400.0, 300.0], [5.0, 5.0, 5.2, 5.1]]
    names = tuple(f"class {i}" for i in range(12))
    found = Detections(Image.new("RGB", (400, 300)), boxes, [0.9, 0.5, 0.3], [0, 11, 1], names)
    drawn = np.asarray(found.plot())
    assert drawn.shape == (300, 400, 3) and drawn.any()


def test_pictures_that_jpeg_cannot_hold_are_shrunk(tmp_path):
    found = Detections(Image.new("RGB", (80_000, 40)), [[79_000.0, 0.0, 80_000.0, 40.0]], [0.9], [0], ("cat",))
    found.save(tmp_path / "long.jpg")
    with Image.open(tmp_path / "long.jpg") as drawn:
        assert drawn.size == (65_500, 33)
    assert json.loads((tmp_path / "long.json").read_text())["objects"][0]["box"] == [79_000, 0, 80_000, 40]
