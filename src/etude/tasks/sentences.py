"""Classification of sentences: cross-entropy; what was hard, and where sentences lie for the model, in the report."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Tokenizer
from torch import Tensor, nn

from etude.data import pieces
from etude.data.base import Batch, Data, Dataset
from etude.data.sentences import SentenceDataset, Sentences
from etude.errors import RefusedError, UsageError
from etude.tasks.base import Block, LossLogs, Task
from etude.tasks.embedding import plane, tsne
from etude.tasks.language_model import coloured
from etude.tasks.metrics import Confusion, Curve, Mean, Metric, Worst
from etude.tasks.ranked import Ranked, confusion_block, draw_bars

TOKENS = 2048
"""Of the sentences that are computed at once: what a layer makes of so many stays in a CPU's caches."""
HARDEST = 24
DRAWN = 600
"""Sentences of a split that the report draws as points."""


@dataclass(frozen=True)
class ClassifySentences(Task):
    """Single-label classification. Batches hold "ids", "mask" and "label"; the model's last layer is its `head`."""

    label_smoothing: float = 0.0
    """eps of (1 - eps) y + eps / K (Szegedy et al., arXiv 1512.00567, section 7)."""

    measure: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")

    @torch.no_grad()
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model has the tokenizer's vocabulary, room for the longest sentence, a logit for each class."""
        if not isinstance(dataset, SentenceDataset):
            raise UsageError(f"sentences are wanted to classify, not {type(dataset).__name__}")
        fits(model, dataset.facts["vocabulary"])
        model.eval()
        try:
            outputs = model(torch.zeros(1, dataset.data.length, dtype=torch.int64)).shape[1]
        except ValueError as error:
            raise UsageError(f"data.length is {dataset.data.length}: {error}", hint="--data.length 128") from None
        model.train()
        classes = len(dataset.facts["classes"])
        if outputs != classes:
            raise UsageError(
                f"the model has {outputs} outputs, the data {classes} classes", hint=f"--model.num-labels {classes}"
            )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """The mean cross-entropy."""
        logits, labels = model(batch["ids"], batch["mask"]), batch["label"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss, {"loss": loss, "accuracy": lambda: (logits.argmax(1) == labels).float().mean()}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Accuracy, mean cross-entropy, confusion counts, the mistakes with the largest loss, and what enters the head
        for some of the sentences."""
        accuracy, loss, worst, hidden = Mean(), Mean(), Worst(HARDEST), Curve()
        confusion = None
        entered: list[Tensor] = []
        head: Any = model.head
        hook = head.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
        try:
            for batch in batches:
                logits, labels = model(batch["ids"], batch["mask"]).float(), batch["label"]
                confusion = confusion or Confusion(logits.shape[1])
                losses = F.cross_entropy(logits, labels, reduction="none")
                confidence, predicted = logits.softmax(1).max(1)
                accuracy.add(predicted == labels)
                loss.add(losses)
                confusion.add(labels, predicted)
                index = batch["index"].to(labels.device)
                wrong = predicted != labels
                worst.add(losses[wrong], *(column[wrong] for column in (index, labels, predicted, confidence)))
                drawn = index < DRAWN
                hidden.add(labels[drawn], *entered.pop()[drawn].float().T)
        finally:
            hook.remove()
        measured: dict[str, Metric] = {"accuracy": accuracy, "loss": loss, "worst": worst, "hidden": hidden}
        return measured | ({"confusion": confusion} if confusion else {})

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """The confusion matrix, the hardest sentences, and the sentences as the head sees them, in two dimensions."""
        assert isinstance(dataset, SentenceDataset)
        classes = dataset.facts["classes"]
        blocks = [confusion_block(measured, dataset, split)]
        mistakes = [
            [dataset.sentences[split][int(index)], classes[int(label)], classes[int(predicted)], f"{confidence:.1%}"]
            for index, label, predicted, confidence in measured["worst"].value()
        ]
        if mistakes:
            columns = ["sentence", "is", "taken for", "with"]
            blocks.append({"kind": "table", "title": "The hardest sentences", "columns": columns, "rows": mistakes})
        rows = np.array(measured["hidden"].value(), dtype=np.float64)
        if split == "test" and "validation" in dataset.sizes:  # once, at the end: it takes a second
            flat, x, y = tsne(rows[:, 1:]), "t-SNE of what the last layer reads", ""
        else:
            flat, (first, second) = plane(rows[:, 1:])
            x = f"first principal component of what the last layer reads ({first:.0%} of its variance)"
            y = f"second ({second:.0%})"
        series = {
            name: np.round(flat[rows[:, 0] == label], 4).tolist()
            for label, name in enumerate(classes)
            if (rows[:, 0] == label).any()
        }
        return [*blocks, {"kind": "scatter", "title": f"The sentences of {split}", "series": series, "x": x, "y": y}]

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> list["SentenceClass"]:
        """Each sentence's class and the probability of all classes. Inputs: texts."""
        assert isinstance(data, Sentences)
        tokenizer = tokenizer_of(model, facts)
        texts = [pieces.text(raw) for raw in inputs]
        encoded = pieces.encode(tokenizer, texts, data.length)
        probabilities = in_chunks(
            encoded, lambda batch: model(**batch).float().softmax(1), model, pieces.number(tokenizer, "[PAD]")
        )
        classes = tuple(facts["classes"])
        return [
            SentenceClass(p, classes, source=text, read=len(one.ids) if one.cut else 0)
            for p, text, one in zip(probabilities.tolist(), texts, encoded)
        ]


def fits(model: nn.Module, vocabulary: int) -> None:
    """UsageError where a model's vocabulary is not that large: its ids would mean other words."""
    held = getattr(model, "vocab_size", None)
    if held != vocabulary:
        raise UsageError(
            f"the vocabulary has {vocabulary:,} tokens, the model {held:,}: it is another model's"
            if held is not None
            else f"{type(model).__name__} reads no tokens",
            hint=f"--data.vocabulary vocab.txt of the model, or --model.vocab-size {vocabulary} without its weights",
        )


def tokenizer_of(model: nn.Module, facts: dict[str, Any]) -> Tokenizer:
    """The tokenizer that a run keeps; RefusedError where it is not its model's."""
    tokenizer = pieces.kept(facts)
    if tokenizer.get_vocab_size() != getattr(model, "vocab_size", None):
        raise RefusedError(
            f"the run's tokenizer.json has {tokenizer.get_vocab_size():,} tokens, its model "
            f"{getattr(model, 'vocab_size', 0):,}: it is another model's",
            hint="restore the file from a copy",
        )
    return tokenizer


def in_chunks(
    encoded: list[pieces.Pieces], answer: Callable[[Batch], Tensor], model: nn.Module, padding: int
) -> Tensor:
    """`answer` to all sentences, (B, ...) on the CPU, by batches of like lengths; in the order of the sentences."""
    device = next(model.parameters()).device
    by_length = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    chunks: list[list[int]] = []
    tokens = TOKENS
    for i in by_length:
        tokens += len(encoded[i].ids)
        if tokens > TOKENS:
            chunks.append([])
            tokens = len(encoded[i].ids)
        chunks[-1].append(i)
    answers = []
    for chunk in chunks:
        batch = pieces.pad([encoded[i].ids for i in chunk], padding)
        answers.append(answer({name: value.to(device) for name, value in batch.items()}).cpu())
    return torch.cat(answers)[torch.argsort(torch.tensor(by_length))]


@torch.no_grad()
def embed(model: nn.Module, tokenizer: Tokenizer, sentences: list[str], *, length: int = 256) -> Tensor:
    """Each sentence as a vector of length one, (B, D): of a model that answers (B, T) ids with (B, D), such as
    "bert-minilm-embedder". Sentences of more than `length` tokens are cut."""
    encoded = pieces.encode(tokenizer, [pieces.text(sentence) for sentence in sentences], length)
    return in_chunks(encoded, lambda batch: model(**batch).float(), model, pieces.number(tokenizer, "[PAD]"))


@dataclass(frozen=True)
class SentenceClass(Ranked):
    """What a sentence was taken for; `source` is the sentence."""

    read: int = 0
    """Tokens that were read, where the sentence had more; 0: all."""

    def json(self) -> dict[str, Any]:
        """As plain values; "read", a number of tokens, where the sentence was cut."""
        return super().json() | {"sentence": self.source} | ({"read": self.read} if self.read else {})

    def row(self) -> list[str]:
        """As cells of a table: the class, its probability, the runners-up, and whether all was read."""
        return super().row() + ([f"only its first {self.read} tokens were read"] if self.read else [])

    def plot(self) -> Image.Image:
        """The sentence above bars of its five most probable classes."""
        said = self.source if len(self.source) <= 600 else f"{self.source[:600]} ..."
        top = self.top()
        heading = coloured([said], [0.0], width=520)
        note = [f"only its first {self.read} tokens were read"] if self.read else []
        bars = Image.new("RGB", (520, 20 + 48 * len(top) + 24 * len(note)), "white")
        draw_bars(bars, top, left=14, width=492)
        for line in note:
            ImageDraw.Draw(bars).text((14, 20 + 48 * len(top)), line, fill="#667085", font=ImageFont.load_default(13))
        sheet = Image.new("RGB", (520, heading.height + bars.height), "white")
        sheet.paste(heading, (0, 0))
        sheet.paste(bars, (0, heading.height - 8))
        return sheet
