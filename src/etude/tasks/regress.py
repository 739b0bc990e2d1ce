"""Regression: real numbers from a network, by the mean squared error."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from etude.data.base import Batch, Data, Dataset
from etude.errors import UsageError
from etude.tasks.base import Block, LossLogs, Task
from etude.tasks.metrics import Curve, Mean, Metric, Root


@dataclass(frozen=True)
class Regress(Task):
    """Batches hold "x" (B, F), "y" (B, 1) and, for the picture of the fit, "at": the unscaled x, (B,)."""

    measure: ClassVar[str] = "rmse"
    higher_is_better: ClassVar[bool] = False

    @torch.no_grad()
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the network takes x and gives one number."""
        batch = dataset.fetch("test", [0])
        try:
            shape = tuple(model.eval()(batch["x"]).shape)
        except RuntimeError as error:
            raise UsageError(f"the model does not take inputs of shape {tuple(batch['x'].shape)}: {error}") from error
        model.train()
        if shape != tuple(batch["y"].shape):
            raise UsageError(
                f"the model answers {shape} where {tuple(batch['y'].shape)} is asked", hint="--model.num-classes 1"
            )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """Mean squared error."""
        loss = F.mse_loss(model(batch["x"]), batch["y"])
        return loss, {"loss": loss}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Root of the mean squared error, mean absolute error, and the points of the fit."""
        squared, absolute, curve = Root(), Mean(), Curve()
        for batch in batches:
            answer, truth = model(batch["x"]).float().squeeze(1), batch["y"].squeeze(1)
            squared.add((answer - truth).square())
            absolute.add((answer - truth).abs())
            curve.add(batch["at"], truth, answer)
        return {"rmse": squared, "mae": absolute, "fit": curve}

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """The function and its fit."""
        points = measured["fit"].value()
        series = {"target": [(x, y) for x, y, _ in points], "fit": [(x, y) for x, _, y in points]}
        return [{"kind": "lines", "title": "The function and its fit", "x": "x", "y": "y", "series": series}]

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> list["Value"]:
        """The network's answer to each number."""
        samples = [data.prepare(raw) for raw in inputs]
        device = next(model.parameters()).device
        answers = model(data.collate(samples)["x"].to(device)).float().squeeze(1).tolist()
        return [Value(float(x), y, str(facts.get("source", "f"))) for x, y in zip(samples, answers)]


@dataclass(frozen=True)
class Value:
    """y at x."""

    x: float
    y: float
    function: str = field(default="f", repr=False)

    suffix: ClassVar[str] = ".png"

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"x": self.x, "y": self.y}

    def row(self) -> list[str]:
        """As cells of a table."""
        return [f"{self.y:.6g}"]

    def plot(self) -> Image.Image:
        """The two numbers, written."""
        sheet = Image.new("RGB", (420, 80), "white")
        text = f"{self.function}\nx = {self.x:.6g}:  y = {self.y:.6g}"
        ImageDraw.Draw(sheet).text((16, 16), text, fill="#222222", font=ImageFont.load_default(16))
        return sheet

    def save(self, path: str | Path) -> None:
        """The plot, in the format that the name's ending says."""
        self.plot().save(path)
