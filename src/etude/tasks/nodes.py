"""Classification of the nodes of a graph: messages pass over all of it, the loss is over the labelled nodes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from etude.data.base import Batch, Data, Dataset
from etude.errors import UsageError
from etude.tasks.base import Block, LossLogs, Task
from etude.tasks.embedding import plane, tsne
from etude.tasks.metrics import Confusion, Curve, Mean, Metric
from etude.tasks.ranked import Ranked, confusion_block, draw_bars

DRAWN = 2000
"""Nodes of a split whose embedding is kept and drawn."""
NEIGHBOURLY = 600
"""Of them, those that t-SNE draws."""


@dataclass(frozen=True)
class ClassifyNodes(Task):
    """Single-label classification of nodes. Batches hold "x", "edges", and the rows "target" of x with "label"."""

    first_decay: float = 0.0
    """lambda of lambda / 2 |W0|^2 in the loss, W0 being the first layer's weights: where GCN's authors have their
    weight decay. `optim.weight_decay` decays all layers."""

    measure: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.first_decay < float("inf"):
            raise UsageError(f"task.first_decay is {self.first_decay}; it must not be negative")

    @torch.no_grad()
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model takes the nodes' features, and has an output for each class."""
        batch = dataset.finish(dataset.fetch("test", [0]))
        features = batch["x"].shape[1]
        try:
            outputs = model.eval()(batch["x"], batch["edges"]).shape[1]
        except RuntimeError as error:
            raise UsageError(
                f"the model does not take nodes of {features} features: {str(error).splitlines()[0]}",
                hint=f"--model.in-features {features}",
            ) from error
        model.train()
        classes = len(dataset.facts["classes"])
        if outputs != classes:
            raise UsageError(
                f"the model has {outputs} outputs, the data {classes} classes", hint=f"--model.num-classes {classes}"
            )
        fanout, layers = dataset.facts.get("fanout", ()), len(_layers(model))
        if fanout and len(fanout) != layers:
            raise UsageError(
                f"data.fanout has {len(fanout)} steps, the model {layers} layers, each of which looks a step further",
                hint="--data.fanout " + " ".join(["10"] * layers),
            )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """Mean cross-entropy over the batch's nodes, and the first layer's decay."""
        logits, labels = model(batch["x"], batch["edges"])[batch["target"]], batch["label"]
        entropy = loss = F.cross_entropy(logits, labels)
        if self.first_decay:
            loss = entropy + self.first_decay / 2 * _layers(model)[0].linear.weight.square().sum()
        return loss, {"loss": entropy, "accuracy": lambda: (logits.argmax(1) == labels).float().mean()}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Accuracy, mean cross-entropy, confusion counts, and what enters the last layer of some of the nodes."""
        accuracy, loss, hidden = Mean(), Mean(), Curve()
        confusion = None
        entered: list[Tensor] = []
        hook = _layers(model)[-1].register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
        try:
            for batch in batches:
                logits, labels = model(batch["x"], batch["edges"])[batch["target"]].float(), batch["label"]
                confusion = confusion or Confusion(logits.shape[1])
                accuracy.add(logits.argmax(1) == labels)
                loss.add(F.cross_entropy(logits, labels, reduction="none"))
                confusion.add(labels, logits.argmax(1))
                drawn = batch["index"].to(labels.device) < DRAWN
                embedding = entered.pop()[batch["target"][drawn]].float()
                hidden.add(labels[drawn], *embedding.T)
        finally:
            hook.remove()
        measured: dict[str, Metric] = {"accuracy": accuracy, "loss": loss, "hidden": hidden}
        return measured | ({"confusion": confusion} if confusion else {})

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """The nodes as the last layer sees them, in two dimensions, and the confusion matrix."""
        classes = dataset.facts["classes"]
        rows = np.array(measured["hidden"].value(), dtype=np.float64)
        if split == "test" and "validation" in dataset.sizes:  # once, at the end: it takes a second
            rows = rows[:: -(-len(rows) // NEIGHBOURLY)]
            flat, x, y = tsne(rows[:, 1:]), "t-SNE of the last hidden layer", ""
        else:
            flat, (first, second) = plane(rows[:, 1:])
            x = f"first principal component of the last hidden layer ({first:.0%} of its variance)"
            y = f"second ({second:.0%})"
        series = {
            name: np.round(flat[rows[:, 0] == label], 4).tolist()
            for label, name in enumerate(classes)
            if (rows[:, 0] == label).any()
        }
        return [
            {
                "kind": "scatter",
                "title": f"Embedding of the nodes, {split}",
                "series": series,
                "x": x,
                "y": y,
            },
            confusion_block(measured, dataset, split),
        ]

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> list["NodeClass"]:
        """Each node's class and the probability of all classes. Inputs: names of nodes, or their numbers."""
        device = next(model.parameters()).device
        batch = {name: value.to(device) for name, value in data.collate([data.prepare(raw) for raw in inputs]).items()}
        logits = model(batch["x"], batch["edges"])[batch["target"]].float()
        classes = tuple(facts["classes"])
        return [NodeClass(p, classes, source=str(raw)) for raw, p in zip(inputs, logits.softmax(1).tolist())]


def _layers(model: Any) -> Any:
    """The layers of a graph network, which it calls `convs`."""
    return model.convs


@dataclass(frozen=True)
class NodeClass(Ranked):
    """What a node was taken for; `source` is its name or number, as it was asked for."""

    def plot(self) -> Image.Image:
        """Bars of its five most probable classes below the node's name."""
        top = self.top()
        sheet = Image.new("RGB", (340, 60 + 48 * len(top)), "white")
        ImageDraw.Draw(sheet).text((20, 14), self.source, fill="#222222", font=ImageFont.load_default(16))
        bars = Image.new("RGB", (340, 20 + 48 * len(top)), "white")
        draw_bars(bars, top, left=20, width=300)
        sheet.paste(bars, (0, 40))
        return sheet
