"""What all classification has in common: classes ranked by their probability, and the confusion matrix."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageDraw, ImageFont

from etude.data.base import Dataset
from etude.tasks.base import Block
from etude.tasks.metrics import Metric


@dataclass(frozen=True)
class Ranked:
    """What an input was taken for. Subclasses say how it is drawn."""

    suffix: ClassVar[str] = ".png"
    probabilities: list[float]
    classes: tuple[str, ...]
    source: str = field(default="", kw_only=True)
    """The input's name."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.top(1)[0][0]

    @property
    def confidence(self) -> float:
        """Its probability."""
        return self.top(1)[0][1]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most probable classes with their probabilities, best first."""
        order = sorted(range(len(self.classes)), key=lambda i: -self.probabilities[i])
        return [(self.classes[i], self.probabilities[i]) for i in order[:k]]

    def json(self) -> dict[str, Any]:
        """As plain values."""
        top = [{"label": label, "probability": p} for label, p in self.top()]
        return {"input": self.source, "label": self.label, "confidence": self.confidence, "top": top}

    def row(self) -> list[str]:
        """As cells of a table: the class, its probability, the runners-up."""
        (label, p), *others = self.top(3)
        return [label, f"{p:.1%}", ", ".join(f"{other} {q:.1%}" for other, q in others)]

    def plot(self) -> Image.Image:
        """The input with its five most probable classes."""
        raise TypeError(f"{type(self).__name__} does not define plot")

    def save(self, path: str | Path) -> None:
        """The plot, in the format that the name's ending says."""
        self.plot().save(path)


def draw_bars(sheet: Image.Image, top: list[tuple[str, float]], *, left: int, width: int) -> None:
    """Classes with their probabilities as bars, below each other."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (label, p) in enumerate(top):
        y = 20 + row * 48
        draw.text((left, y), f"{label}  {p:.1%}", fill="#222222", font=font)
        draw.rectangle((left, y + 22, left + width, y + 32), fill="#e6e8eb")
        if p * width >= 1:
            draw.rectangle((left, y + 22, left + p * width, y + 32), fill="#2563eb" if row == 0 else "#93a3b8")


def confusion_block(measured: dict[str, Metric], dataset: Dataset, split: str) -> Block:
    """The confusion matrix of a split."""
    return {
        "kind": "matrix",
        "title": f"Confusion on {split}",
        "labels": dataset.facts["classes"],
        "values": measured["confusion"].value(),
        "row": "true class",
        "column": "predicted class",
    }
