"""Detection by anchors: which cells and anchors answer for an object, the loss, mAP, and what was found in a picture.

The model gives raw maps (B, A, h, w, 5 + K) at each level in training, and (decoded (B, N, 5 + K), maps) in eval mode:
centre, width and height in pixels, objectness, classes. Its `anchors()` are (L, A, 2) widths and heights in pixels.
"""

import base64
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from etude.data.base import Batch, Dataset
from etude.data.detection import BoxDataset, Boxed
from etude.errors import UsageError
from etude.nn.boxes import aligned_complete_iou, detections, from_centre, pairwise_iou
from etude.tasks.anchors import suited
from etude.tasks.base import Ask, Block, LossLogs, Task
from etude.tasks.mean_ap import RECALLS, THRESHOLDS, MeanAP, Store, judge
from etude.tasks.metrics import Confusion, Metric, Worst

SHOWN = 12
"""Pictures of an evaluation that the report shows."""
LARGEST = 65_500
"""Pixels of a side that JPEG can hold."""
CONFIDENT = 0.25
"""The score from which a detection is shown, and counted in the confusion matrix."""
Found = tuple[Tensor, Tensor, Tensor]
"""Boxes (n, 4), scores (n,) and classes (n,)."""


@dataclass(frozen=True)
class DetectAsk(Ask):
    confidence: float = CONFIDENT
    """The score above which something counts as found."""
    iou: float = 0.45
    """The overlap above which the weaker of two boxes of a class is dropped."""
    most: int = 300
    """Objects a picture at most."""

    def __post_init__(self) -> None:
        if not (0 <= self.confidence < 1 and 0 <= self.iou <= 1 and self.most >= 1):
            shares = f"confidence {self.confidence} and iou {self.iou}"
            raise UsageError(f"{shares} must lie between 0 and 1, most {self.most} must be positive")


@dataclass(frozen=True)
class Detect(Task):
    """Boxes and classes by anchors, as YOLOv5 7.0 learns them."""

    box: float = 0.05
    """Weight of 1 - CIoU."""
    objectness: float = 1.0
    classes: float = 0.5
    balance: tuple[float, ...] = (4.0, 1.0, 0.4)
    """Of the objectness of the levels, finest first."""
    ratio: float = 4.0
    """An anchor may answer for an object whose width and height differ from its own by less than this factor."""
    nominal: int = 64
    """The loss is multiplied by this: v7.0's is the mean times the batch, and batches add up to 64 before a step."""
    confidence: float = 0.001
    """In an evaluation: every box of every class above it is a candidate."""
    iou: float = 0.6
    most: int = 300
    fit_anchors: bool = True
    """Fit anchors to the training boxes where the model's own suit fewer than 98 % of them."""

    measure: ClassVar[str] = "mAP50_95"
    higher_is_better: ClassVar[bool] = True
    ask: ClassVar[type[Ask]] = DetectAsk
    one_by_one: ClassVar[bool] = True

    def configure(self, model: Any, dataset: Dataset) -> Any:
        """As many classes as the data has, where the model leaves that open, and anchors that suit it."""
        assert isinstance(dataset, BoxDataset)
        changes: dict[str, Any] = {}
        if model.num_classes == 0:
            changes["num_classes"] = len(dataset.facts["classes"])
        if self.fit_anchors:
            changes["anchors"] = suited(model.anchors, dataset.sides(), self.ratio)
        return dataclasses.replace(model, **changes)

    @torch.no_grad()
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model has an output for each class. A model to be trained that began with weights has their
        anchors by now; it gets those of its configuration, which were chosen for the data."""
        training = model.training
        found = model.eval()(torch.zeros(1, 3, 64, 64))[0].shape[2] - 5
        model.train(training)
        classes = len(dataset.facts["classes"])
        if found != classes:
            raise UsageError(
                f"the model has {found} classes, the data {classes}", hint=f"--model.num-classes {classes}"
            )
        if training and self.fit_anchors:
            model.set_anchors(model.config.anchors)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]

    # ---------------------------------------------------------------- training

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """The weighted sum of the three losses, each a mean, times `nominal`."""
        maps: list[Tensor] = model(batch["image"])
        side = batch["image"].shape[-1]
        box = objectness = classes = maps[0].new_zeros((), dtype=torch.float32)
        labelled = batch["label"].masked_fill(batch["crowd"], -1)  # a region of many objects is none to learn from
        for raw, anchors, balance in zip(maps, _anchors(model), self.balance, strict=True):
            stride = side / raw.shape[3]
            anchors = anchors / stride
            cells, which, targets, labels = assign(
                batch["boxes"] / stride, labelled, anchors, raw.shape[2:4], self.ratio
            )
            rows = raw.permute(0, 2, 3, 1, 4)  # as channels-last memory holds it, so that gradients need no copy
            sure = rows[..., 4].float()  # only this and the objects' cells are read, and made float32
            goal = torch.zeros(raw.shape[:4], device=raw.device)
            if len(cells):
                b, a, j, i = torch.unravel_index(cells, raw.shape[:4])
                picked = rows[b, j, i, a].float()
                places, sides = 2 * picked[:, :2].sigmoid() - 0.5, (2 * picked[:, 2:4].sigmoid()).square()
                predicted = torch.cat([places, sides * anchors[which]], 1)
                overlap = aligned_complete_iou(from_centre(predicted), from_centre(targets))
                box = box + (1 - overlap).mean()
                # of several objects in one place, the one found best; the order of writing does not matter
                goal.view(-1).scatter_reduce_(0, cells, overlap.detach().clamp(min=0), "amax")
                if raw.shape[-1] > 6:  # of a single class there is nothing to tell
                    truth = F.one_hot(labels, raw.shape[-1] - 5).to(picked.dtype)
                    classes = classes + F.binary_cross_entropy_with_logits(picked[:, 5:], truth)
            objectness = objectness + balance * F.binary_cross_entropy_with_logits(sure, goal.permute(0, 2, 3, 1))
        total = self.box * box + self.objectness * objectness + self.classes * classes
        logs = {"box": box.detach(), "objectness": objectness.detach(), "classes": classes.detach()}
        return self.nominal * total, {"loss": total.detach(), **logs}

    # ---------------------------------------------------------------- evaluation

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """COCO's mAP at IoU 0.5 and over 0.5 to 0.95, in the pictures' own pixels; confusion at a score of 0.25 and
        an IoU of 0.5, its last row and column being the background; the detections of the first pictures."""
        store, confusion, shown = None, None, Worst(SHOWN)
        for batch in batches:
            decoded = model(batch["image"])[0].float()
            num_classes = decoded.shape[2] - 5
            store, confusion = store or Store(num_classes), confusion or Confusion(num_classes + 1)
            for i, prediction in enumerate(decoded):
                real = batch["label"][i] >= 0
                truth, labels, crowd = (batch[name][i][real].cpu() for name in ("boxes", "label", "crowd"))
                place, index = batch["place"][i].cpu(), int(batch["index"][i])
                found = self.found(prediction, self.confidence, self.iou, self.most, multi_label=True)
                boxes, scores, classes = (part.cpu() for part in found)
                boxes, truth = back(boxes, place), back(truth, place)
                answer = (boxes.numpy(), scores.numpy(), classes.numpy())
                store.pictures[index] = judge(*answer, truth.numpy(), labels.numpy(), crowd.numpy(), num_classes)
                sure = scores >= CONFIDENT
                seen = (boxes[sure], scores[sure], classes[sure])
                confuse(confusion, seen, truth[~crowd], labels[~crowd])
                if index < SHOWN:
                    record = (tuple(part.flatten().tolist()) for part in seen)
                    shown.records.append((-float(index), (index, *record)))
        if store is None or confusion is None:  # fewer pictures than processes
            return {}
        measured: dict[str, Metric] = {"mAP50": MeanAP(store, 0), "mAP50_95": MeanAP(store)}
        return measured | {"confusion": confusion, "shown": shown}

    @staticmethod
    def found(
        prediction: Float[Tensor, "N D"], confidence: float, iou: float, most: int, *, multi_label: bool = False
    ) -> Found:
        """One picture's decoded predictions -> what is found in it. A score is objectness times class."""
        some = prediction[prediction[:, 4] > confidence]
        scores = some[:, 5:] * some[:, 4:5]
        return detections(
            from_centre(some[:, :4]), scores, confidence=confidence, iou=iou, most=most, multi_label=multi_label
        )

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """Labelled pictures, precision over recall, average precision by class, and what was taken for what."""
        assert isinstance(dataset, BoxDataset)
        classes = tuple(dataset.facts["classes"])
        store = measured["mAP50"].store  # pyright: ignore[reportAttributeAccessIssue]
        items = []
        for index, boxes, scores, labels in measured["shown"].value():
            sample = dataset.load(split, int(index))
            boxes = np.reshape(boxes, (-1, 4)).tolist()
            found = Detections(Image.fromarray(sample.picture), boxes, list(scores), list(labels), classes)
            there = ", ".join(f"{n} {classes[label]}" for label, n in sorted(Counter(sample.labels.tolist()).items()))
            items.append({"png": _png(found.plot()), "caption": f"{split} picture {int(index)}",
                          "detail": f"there: {there or 'nothing'}"})  # fmt: skip
        precision = store.precision()
        known = [label for label in range(len(classes)) if precision[0, 0, label] > -1]
        curves = {classes[k]: np.stack([RECALLS, precision[0, :, k]], 1).tolist() for k in known[:8]}
        if known:
            curves["all classes"] = np.stack([RECALLS, precision[0][:, known].mean(1)], 1).tolist()
        by_class = [
            [classes[k], f"{precision[0, :, k].mean():.3f}", f"{precision[:, :, k].mean():.3f}"]
            for k in sorted(known, key=lambda k: precision[:, :, k].mean())
        ]
        return [
            {"kind": "images", "title": f"Detections on {split}", "items": items},
            {"kind": "lines", "title": f"Precision over recall on {split}, at IoU 0.5", "series": curves,
             "x": "recall", "y": "precision"},
            {"kind": "table", "title": f"Average precision on {split}, by class",
             "columns": ["class", "at IoU 0.5", "at 0.5 to 0.95"], "rows": by_class},
            {"kind": "matrix", "title": f"Confusion on {split}, at IoU 0.5", "labels": [*classes, "background"],
             "values": measured["confusion"].value(), "row": "true class", "column": "found as"},
        ]  # fmt: skip

    # ---------------------------------------------------------------- answers

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Any, facts: dict[str, Any], ask: Any = None
    ) -> list["Detections"]:
        """What is in each picture: paths, bytes, PIL images, arrays, tensors, or frames of a video."""
        assert isinstance(data, Boxed)
        asked = ask or DetectAsk()
        assert isinstance(asked, DetectAsk)
        device, results, names = next(model.parameters()).device, [], data.named(facts["classes"])
        for raw in inputs:
            image = data.picture(raw)
            tensor, place = data.placed(image)
            decoded = model(data.collate([tensor])["image"].to(device))[0][0].float()
            boxes, scores, classes = self.found(decoded, asked.confidence, asked.iou, asked.most)
            boxes = back(boxes.cpu(), torch.tensor((*place, *image.size), dtype=torch.float32))
            name = str(raw) if isinstance(raw, str | Path) or hasattr(raw, "number") else type(raw).__name__
            results.append(Detections(image, boxes.tolist(), scores.tolist(), classes.tolist(), names, name))
        return results


def _anchors(model: Any) -> Tensor:
    return getattr(model, "module", model).anchors()


def assign(
    boxes: Float[Tensor, "B M 4"],
    labels: Int[Tensor, "B M"],
    anchors: Float[Tensor, "A 2"],
    cells: tuple[int, int] | torch.Size,
    ratio: float,
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, "n 4"], Int[Tensor, " n"]]:
    """Which predictions of a level answer for which objects. All lengths in units of the level's stride.

    An object is assigned to every anchor whose sides differ from its own by less than the factor `ratio`, in its own
    cell and in the two neighbours nearest to its centre, as far as they exist. Returns places in the flattened map
    (B A h w), anchors, targets (centre from the cell's corner, width, height), and classes.
    """
    h, w = cells
    picture, column = (labels >= 0).nonzero(as_tuple=True)
    label, box = labels[picture, column], boxes[picture, column]
    sides, centre = box[:, 2:] - box[:, :2], (box[:, :2] + box[:, 2:]) / 2
    r = sides[:, None] / anchors
    fits = torch.maximum(r, 1 / r).amax(2) < ratio
    row, which = fits.nonzero(as_tuple=True)

    offsets = torch.tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]], device=boxes.device)
    limits = torch.tensor([w, h], device=boxes.device)
    home = centre[row].long().clamp(min=0).minimum(limits - 1)
    into = centre[row] - home
    near = torch.cat([torch.ones_like(into[:, :1], dtype=torch.bool), into < 0.5, into > 0.5], 1)
    place = home[:, None] + offsets
    near &= ((place >= 0) & (place < limits)).all(2)
    item, side = near.nonzero(as_tuple=True)
    row, which, place = row[item], which[item], place[item, side]
    index = ((picture[row] * len(anchors) + which) * h + place[:, 1]) * w + place[:, 0]
    return index, which, torch.cat([centre[row] - place, sides[row]], 1), label[row]


def back(boxes: Float[Tensor, "n 4"], place: Float[Tensor, " 5"]) -> Float[Tensor, "n 4"]:
    """From the input's pixels to the picture's own, and not beyond it. `place`: scale, left, top, width, height."""
    scale, left, top, width, height = place.tolist()
    moved = (boxes - torch.tensor([left, top, left, top])) / scale
    return torch.minimum(moved.clamp(min=0), torch.tensor([width, height, width, height]))


def confuse(confusion: Confusion, found: Found, truth: Float[Tensor, "g 4"], labels: Int[Tensor, " g"]) -> None:
    """Count detections against objects of any class that they overlap by half, the largest overlaps first; what has no
    partner belongs to the background."""
    boxes, _, classes = found
    background = confusion.num_classes - 1
    overlap = pairwise_iou(truth, boxes)
    partner = torch.full((len(truth),), -1)
    free = torch.ones(len(boxes), dtype=torch.bool)
    pairs = (overlap >= float(THRESHOLDS[0])).nonzero()
    order = overlap[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)
    for g, d in pairs[order].tolist():
        if partner[g] < 0 and free[d]:
            partner[g], free[d] = d, False
    taken = torch.where(partner >= 0, classes[partner.clamp(min=0)] if len(boxes) else partner, background)
    confusion.add(labels, taken)
    confusion.add(torch.full((int(free.sum()),), background), classes[free])


@dataclass(frozen=True)
class Detections:
    """What was found in a picture, best first."""

    image: Image.Image = field(repr=False)
    boxes: list[list[float]]
    """x1, y1, x2, y2 in the picture's pixels."""
    scores: list[float]
    labels: list[int]
    classes: tuple[str, ...] = field(repr=False)
    source: str = ""
    suffix: ClassVar[str] = ".jpg"

    def json(self) -> dict[str, Any]:
        """As plain values."""
        found = [
            {"label": self.classes[label], "class": label, "score": score, "box": box}
            for box, score, label in zip(self.boxes, self.scores, self.labels)
        ]
        width, height = self.image.size
        return {"input": self.source, "width": width, "height": height, "objects": found}

    def row(self) -> list[str]:
        """As cells of a table: how many of each class, and the best score."""
        counts = Counter(self.classes[label] for label in self.labels)
        said = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        return [said or "nothing", f"best {max(self.scores):.1%}" if self.scores else ""]

    def text(self) -> str:
        """As YOLO's txt: class, centre, width and height as shares of the picture's sides, then the score."""
        width, height = self.image.size
        lines = []
        for (x1, y1, x2, y2), score, label in zip(self.boxes, self.scores, self.labels):
            place = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label} {' '.join(f'{p:.6f}' for p in place)} {score:.6f}\n")
        return "".join(lines)

    def plot(self) -> Image.Image:
        """The picture with its boxes, their classes and scores; small pictures are enlarged, and those shrunk that
        JPEG could not hold."""
        grow = min(max(1, round(320 / max(self.image.size))), LARGEST / max(self.image.size))
        sheet = self.image.convert("RGB")
        sides = [max(1, round(side * grow)) for side in sheet.size]
        sheet = sheet.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(sheet)
        line = max(2, round(max(sheet.size) / 400))
        font = ImageFont.load_default(max(11, round(max(sheet.size) / 60)))
        for box, score, label in reversed(list(zip(self.boxes, self.scores, self.labels))):  # the best on top
            colour, x1, y1 = _colour(label), box[0] * grow, box[1] * grow
            draw.rectangle((x1, y1, max(x1, box[2] * grow - 1), max(y1, box[3] * grow - 1)), outline=colour, width=line)
            said = f"{self.classes[label]} {score:.2f}"
            wide, high = draw.textbbox((0, 0), said, font=font)[2:]
            x, y = max(0, min(x1, sheet.width - wide - 4)), y1 - high - 4 if y1 > high + 4 else y1
            draw.rectangle((x, y, x + wide + 4, y + high + 4), fill=colour)
            draw.text((x + 2, y + 1), said, fill="white", font=font)
        return sheet

    def save(self, path: str | Path) -> None:
        """The drawn picture, and beside it YOLO's txt and the JSON."""
        path = Path(path)
        self.plot().save(path, quality=92)
        path.with_suffix(".txt").write_text(self.text(), encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps(self.json(), indent=1), encoding="utf-8")


COLOURS = ("#2563eb", "#c2410c", "#15803d", "#a21caf", "#b91c1c", "#0e7490", "#7c3aed", "#a16207", "#be185d", "#475569")


def _colour(label: int) -> str:
    return COLOURS[label % len(COLOURS)]


def _png(picture: Image.Image, largest: int = 400) -> str:
    picture.thumbnail((largest, largest))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
