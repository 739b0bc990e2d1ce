"""Classification of one input into one of K classes: cross-entropy, label smoothing, Mixup's two labels."""

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from etude.data.base import Batch, Data, Dataset
from etude.errors import UsageError
from etude.tasks.base import Block, LossLogs, Task, check_channels
from etude.tasks.metrics import Confusion, Mean, Metric, Worst
from etude.tasks.ranked import Ranked, confusion_block, draw_bars

CHUNK = 64
"""Inputs predicted at once."""
SHOWN = 6
"""Pictures over which the report draws where the network looks."""
UNITS = (0.3, 0.6)
"""Which units of the last maps: this part of the way down and to the right."""
COLOURS = ((37, 99, 235), (234, 88, 12))
"""Of the units' positions."""


@dataclass(frozen=True)
class Classify(Task):
    """Single-label classification. Batches hold "image" and "label"; with Mixup also "partner" labels and "mix"."""

    label_smoothing: float = 0.0
    """eps of (1 - eps) y + eps / K (Szegedy et al., arXiv 1512.00567, section 7)."""

    measure: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")

    @torch.no_grad()
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model takes the pictures, and has an output for each class."""
        image = dataset.finish(dataset.fetch("test", [0]))["image"]
        check_channels(model, image.shape[1])
        try:
            outputs = model.eval()(image).shape[1]
        except RuntimeError as error:
            taken, given = getattr(getattr(model, "config", None), "in_features", None), image[0].numel()
            raise UsageError(
                f"the model does not take pictures of shape {tuple(image.shape[1:])}: {error}",
                hint=f"--model.in-features {given}" if taken not in (None, given) else "",
            ) from error
        model.train()
        classes = len(dataset.facts["classes"])
        if outputs != classes:
            raise UsageError(
                f"the model has {outputs} outputs, the data {classes} classes", hint=f"--model.num-classes {classes}"
            )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """The mean cross-entropy."""
        logits = model(batch["image"])
        loss = self.cross_entropy(logits, batch)
        return loss, {"loss": loss, "accuracy": self.accuracy(logits, batch)}

    def cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        """Its mean over the batch; under Mixup, the two labels' losses in the same proportion as their pictures."""
        labels = batch["label"]
        if "mix" not in batch:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        mix = batch["mix"].to(logits.dtype)
        own = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        other = F.cross_entropy(logits, batch["partner"], reduction="none", label_smoothing=self.label_smoothing)
        return (mix * own + (1 - mix) * other).mean()

    @staticmethod
    def accuracy(logits: Tensor, batch: Batch) -> Callable[[], Tensor]:
        """The share of right answers, computed when it is logged."""
        return lambda: (logits.argmax(1) == batch["label"]).float().mean()

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Top-1 accuracy, mean cross-entropy (without smoothing), confusion counts and the worst mistakes; also top-5
        accuracy where there are more than ten classes, and where a model looks that says so: its
        `sampling_positions(images)` gives (B, P, Q, S, 2) pixels (y, x) for each unit of its last maps, or None."""
        measured: dict[str, Metric] = {}
        accuracy, top5, loss, worst, looked = Mean(), Mean(), Mean(), Worst(24), Worst(SHOWN)
        look: Callable[[Tensor], Tensor | None] | None = getattr(model, "sampling_positions", None)
        confusion = None
        for batch in batches:
            logits, labels = model(batch["image"]).float(), batch["label"]
            if look and confusion is None:  # once on every process, as all take part in a sharded model
                _look(look(batch["image"][:SHOWN]), batch["index"][:SHOWN], looked)
            confusion = confusion or Confusion(logits.shape[1])
            losses = F.cross_entropy(logits, labels, reduction="none")
            confidence, predicted = logits.softmax(1).max(1)
            accuracy.add(predicted == labels)
            loss.add(losses)
            confusion.add(labels, predicted)
            if logits.shape[1] > 10:
                top5.add((logits.topk(5).indices == labels[:, None]).any(1))
            wrong = predicted != labels
            columns = (batch["index"].to(labels.device), labels, predicted, confidence)
            worst.add(losses[wrong], *(column[wrong] for column in columns))
        measured |= {"accuracy": accuracy, "loss": loss}
        if top5.count:
            measured["accuracy_top5"] = top5
        if looked.records:
            measured["looked"] = looked
        return measured | ({"confusion": confusion} if confusion else {}) | {"worst": worst}

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """The confusion matrix, the mistakes with the largest loss as pictures, and where the model looked, if it says
        so."""
        classes = dataset.facts["classes"]
        blocks = [confusion_block(measured, dataset, split)]
        mistakes = measured["worst"].value()
        if mistakes:
            images = dataset.fetch(split, [int(index) for index, *_ in mistakes])["image"]
            items = [
                {
                    "png": _png(image),
                    "caption": f"{classes[int(label)]}, taken for {classes[int(predicted)]} ({confidence:.0%})",
                    "detail": f"{split} sample {int(index)}",
                }
                for image, (index, label, predicted, confidence) in zip(images, mistakes)
            ]
            blocks.append({"kind": "images", "title": "The worst mistakes", "items": items})
        if "looked" in measured:
            records = measured["looked"].value()
            images = dataset.fetch(split, [int(index) for index, *_ in records])["image"]
            items = [
                {"png": _base64(_drawn(image, positions)), "caption": f"{split} sample {int(index)}"}
                for image, (index, *positions) in zip(images, records)
            ]
            title = "Where two units of the last maps look"
            blocks.append({"kind": "images", "title": title, "items": items, "study": True})
        return blocks

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> list["Classification"]:
        """Each input's class and the probability of all classes. Inputs: paths, bytes, PIL images, arrays, tensors."""
        device = next(model.parameters()).device
        results = []
        for start in range(0, len(inputs), CHUNK):
            chunk = inputs[start : start + CHUNK]
            samples = [data.prepare(raw) for raw in chunk]
            probabilities = model(data.collate(samples)["image"].to(device)).float().softmax(1).tolist()
            classes = tuple(facts["classes"])
            results += [
                Classification(p, classes, sample, source=_name(raw))
                for p, sample, raw in zip(probabilities, samples, chunk)
            ]
        return results


@dataclass(frozen=True)
class Classification(Ranked):
    """What a picture was taken for."""

    image: Tensor = field(repr=False)
    """(C, H, W) uint8: what the model saw."""

    def plot(self) -> Image.Image:
        """The picture beside bars of its five most probable classes."""
        height, bar = 240, 260
        picture = _pil(self.image)
        scale = height / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.convert("RGB").resize(
            size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
        )
        sheet = Image.new("RGB", (height + bar + 60, height + 40), "white")
        sheet.paste(picture, (20 + (height - size[0]) // 2, 20 + (height - size[1]) // 2))
        draw_bars(sheet, self.top(), left=height + 40, width=bar)
        return sheet


def _pil(image: Tensor) -> Image.Image:
    """(C, H, W) uint8, one channel or three -> a PIL image."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _png(image: Tensor) -> str:
    return _base64(_pil(image))


def _base64(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _look(positions: Tensor | None, index: Tensor, looked: Worst) -> None:
    """Keep the positions of two units for the samples of the smallest indices."""
    if positions is None:
        return
    p, q = positions.shape[1:3]
    units = [positions[:, round(part * p), round(part * q)].flatten(1) for part in UNITS]
    looked.add(-index.float(), index, *(unit.cpu() for unit in units))


def _drawn(image: Tensor, units: list[list[float]]) -> Image.Image:
    """The picture, enlarged to about 200 pixels, with the positions (y, x, y, x ...) of each unit in its own colour, as
    far as they lie inside or up to a quarter of the side outside."""
    scale = max(1, 200 // image.shape[1])
    picture = _pil(image).convert("RGB")
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    margin = picture.height // 4
    sheet = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), "white")
    sheet.paste(picture, (margin, margin))
    draw = ImageDraw.Draw(sheet, "RGBA")
    for positions, colour in zip(units, COLOURS):
        places = [[margin + (along + 0.5) * scale for along in place] for place in zip(positions[1::2], positions[::2])]
        radius, opacity = (6, 220) if len(places) < 50 else (2, 90)
        for x, y in places:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*colour, opacity))
    return sheet


def _name(raw: Any) -> str:
    return str(raw) if isinstance(raw, str | Path) else type(raw).__name__
