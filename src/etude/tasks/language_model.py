"""Language modelling: which token comes next; measured in bits per character, and shown by continuing a prompt."""

import base64
import io
import math
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from etude.data import order
from etude.data.base import Batch, Data, Dataset
from etude.data.corpus import CorpusDataset, Tokens
from etude.data.text import TextDataset, Texts, TextTokens
from etude.errors import UsageError
from etude.nn import generation
from etude.tasks.base import Ask, Block, LossLogs, Task, WriteAsk
from etude.tasks.metrics import Exponential, Mean, Metric

SHOWN = 600
"""Tokens of held-out text whose bits the report shows."""
PROMPT, WRITTEN = 40, 400
"""Tokens of held-out text that the report's sample begins with, and tokens that it goes on for."""


@dataclass(frozen=True)
class Continue(WriteAsk):
    """How a prompt is continued."""

    length: int = 400
    """Tokens to write at most: less where the text ends."""
    temperature: float = 0.7
    """Divides the logits: below 1 the likely becomes likelier; 0 always takes the likeliest."""
    top_k: int = 0
    """Choose among so many likeliest tokens only; 0: among all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens only that together are so probable."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the text holds already become less likely (CTRL, arXiv 1909.05858)."""
    stop: str = ""
    """Text before which to stop."""
    seed: int = 0
    """The same seed writes the same text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise UsageError(f"length is {self.length}; it must be at least 1", hint="--length 400")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature is {self.temperature}; it must not be negative", hint="--temperature 0.7")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must lie above 0 and be 1 at most", hint="--top-p 0.95")
        if not 0 < self.repetition_penalty < math.inf:
            raise UsageError(
                f"repetition_penalty is {self.repetition_penalty}; it must be positive", hint="--repetition-penalty 1.1"
            )
        if self.top_k < 0 or self.seed < 0:
            raise UsageError(f"top_k {self.top_k} and seed {self.seed} must not be negative")


@dataclass
class First(Metric):
    """Tokens with the bits that each cost, of the first part of a split: (prompt ids, ids, bits)."""

    prompt: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)

    def merge(self, other: "First") -> None:
        """Parts come in the order of the text: the first that holds any stays."""
        if not self.ids:
            self.prompt, self.ids, self.bits = other.prompt, other.ids, other.bits

    def value(self) -> tuple[list[int], list[int], list[float]]:
        return self.prompt, self.ids, self.bits


@dataclass(frozen=True)
class LanguageModel(Task):
    """Next-token prediction. The model takes (B, T) ids and returns (B, T, V) logits, alone or before the state that
    they leave. Batches are those of `Text` and `Corpus`."""

    measure: ClassVar[str] = "bits_per_character"
    ask: ClassVar[type[Ask]] = Continue
    streams: ClassVar[bool] = True

    def configure(self, model: Any, dataset: Dataset) -> Any:
        """A vocabulary of size 0 becomes the text's."""
        if getattr(model, "vocab_size", None) != 0 or not isinstance(dataset, TextDataset | CorpusDataset):
            return model
        return replace(model, vocab_size=len(dataset.vocabulary))

    @torch.no_grad()
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model has a logit for each token of the text, and takes its windows."""
        if not isinstance(dataset, TextDataset | CorpusDataset):
            raise UsageError(f"a language model learns from a text, not from {type(dataset).__name__}")
        model.eval()
        outputs, wanted = logits_of(model(torch.zeros(1, 1, dtype=torch.int64))).shape[-1], len(dataset.vocabulary)
        if outputs != wanted:
            other = ""
            if (
                isinstance(dataset, CorpusDataset)
                and dataset.data.tokens == "bpe"
                and dataset.data.vocab_size != outputs
            ):
                other = f", or --data.vocab-size {outputs}"
            raise UsageError(
                f"the model has {outputs:,} tokens in its vocabulary, the text {wanted:,}",
                hint=f"--model.vocab-size {wanted}{other}",
            )
        width, context = max(dataset.width, dataset.length), context_of(model)
        if context is not None and width > context:
            length = context if isinstance(dataset, CorpusDataset) else context - context // 2
            raise UsageError(
                f"a window has {width:,} tokens, and the model reads {context:,} at most",
                hint=f"--data.length {length} --data.context {context // 2}",
            )
        model.train()

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """Mean cross-entropy of the next token, in nats."""
        tokens = batch["tokens"]
        logits = logits_of(model(tokens[:, :-1]))
        logits = logits if logits.dtype == torch.float64 else logits.float()  # float64: gradcheck
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return loss, {"loss": loss}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Over the tokens that each window counts: bits per character and, of a corpus, per byte; mean cross-entropy
        per token (nats), its exponential, and how many were the likeliest. And the beginning of the split, read and
        continued."""
        bits = {name: Mean() for name in ("bytes", "characters")}
        loss, accuracy, read, written = Exponential(), Mean(), First(), First()
        for batch in batches:
            targets, counted = batch["tokens"][:, 1:], batch["counted"]
            logits = logits_of(model(batch["tokens"][:, :-1]))
            losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)
            width = losses.shape[1]
            own = torch.arange(width, device=losses.device) >= width - counted[:, None]
            loss.add(losses[own])
            accuracy.add((logits.argmax(-1) == targets)[own].float())
            for name, mean in bits.items():
                if name in batch:
                    mean.total += losses[own].double().sum().item() / math.log(2)
                    mean.count += batch[name].sum().item()  # of wordpiece no whole number
            if not read.ids:
                first = batch["tokens"][0].tolist()
                read.ids, read.bits = first[1 : 1 + SHOWN], (losses[0, :SHOWN] / math.log(2)).tolist()
                written.prompt = first[1 : 1 + PROMPT]
                written.ids, written.bits = write(model, written.prompt, Continue(length=WRITTEN))
        measured: dict[str, Metric] = {
            f"bits_per_{name.removesuffix('s')}": mean for name, mean in bits.items() if mean.count
        }
        plain = Mean(loss.total, loss.count)
        return measured | {"loss": plain, "perplexity": loss, "accuracy": accuracy, "read": read, "written": written}

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """The split's beginning, coloured by the bits of each character; and a continuation of its first words."""
        assert isinstance(dataset, TextDataset | CorpusDataset)
        blocks: list[Block] = []
        _, ids, bits = measured["read"].value()
        if ids:
            texts = list(dataset.vocabulary.texts(ids))
            each = sum(bits) / max(1, sum(map(len, texts)))
            caption = f"{each:.2f} bits a character here; white: none, red: 6 and more"
            item = {"png": _png(coloured(texts, bits)), "caption": caption}
            blocks.append({"kind": "images", "title": f"What was hard to foresee in {split}", "items": [item]})
        prompt, ids, _ = measured["written"].value()
        if ids:
            begun, gone_on = dataset.vocabulary.decode(prompt), dataset.vocabulary.decode(ids)
            title = f"Written by the model, from the first {PROMPT} tokens of {split} on"
            blocks.append({"kind": "text", "title": title, "text": f"{begun}▸{gone_on}", "history": True})
        return blocks

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> list["Continuation"]:
        """Each prompt's continuation. Inputs: texts, or Paths of files that hold one."""
        assert isinstance(data, Texts)
        asked, vocabulary = ask or Continue(), data.vocabulary_of(facts)
        prompts = [data.text(raw) for raw in inputs]
        ids = [_encoded(model, vocabulary, prompt) for prompt in prompts]
        together = [ids] if hasattr(model, "cache") else [[one] for one in ids]
        results = []
        for batch in together:
            steps = list(written(model, batch, asked, vocabulary))
            for i in range(len(batch)):
                made = [one for step in steps if (one := step[i])]
                tokens = zip(vocabulary.texts(token for token, _ in made), (bits for _, bits in made))
                pieces = tuple(until(tokens, asked.stop))
                results.append(Continuation(prompts[len(results)], "".join(text for text, _ in pieces), pieces))
        return results

    def stream(self, model: nn.Module, raw: Any, data: Data, facts: dict[str, Any], ask: Any = None) -> Iterator[str]:
        """The prompt, and its continuation while it is written."""
        assert isinstance(data, Texts)
        asked, vocabulary = ask or Continue(), data.vocabulary_of(facts)
        prompt = data.text(raw)
        ids = _encoded(model, vocabulary, prompt)
        yield prompt
        tokens = (one[0] for step in written(model, [ids], asked, vocabulary) if (one := step[0]))
        yield from (text for text, _ in until(((text, 0.0) for text in vocabulary.texts(tokens)), asked.stop))


def _encoded(model: nn.Module, vocabulary: TextTokens, prompt: str) -> list[int]:
    """The prompt's ids, which the model can read."""
    if not prompt:
        raise UsageError("the prompt is empty; at least one character is needed")
    ids, context = vocabulary.encode(prompt).tolist(), context_of(model)
    if context is not None and len(ids) > context:
        raise UsageError(
            f"the prompt has {len(ids):,} tokens, and the model reads {context:,} at most",
            hint="a shorter prompt, such as its last part",
        )
    return ids


def logits_of(outputs: Any) -> Tensor:
    """What a language model returns -> its (B, T, V) logits."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def until(tokens: Iterable[tuple[str, float]], stop: str) -> Iterator[tuple[str, float]]:
    """(text, bits) of each token, up to where `stop` begins in the text; none is taken after that. What may become
    `stop` is held back until it is known."""
    held: list[tuple[str, float]] = []
    for token in tokens:
        held.append(token)
        text = "".join(part for part, _ in held)
        if stop and stop in text:
            left = text.index(stop)
            for part, bits in held:
                if left > 0:
                    yield part[:left], bits
                left -= len(part)
            return
        kept = max((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), default=0)
        while held and sum(len(part) for part, _ in held[1:]) >= kept:
            yield held.pop(0)
    yield from held


Step = list[tuple[int, float] | None]
"""What was written of each text: a token and the bits it cost, or None where the text is over."""


def written(
    model: Any, prompts: list[list[int]], ask: Continue, vocabulary: TextTokens | None = None
) -> Iterator[Step]:
    """Continue prompts together, token by token, what the model has read carried along.

    Token n is drawn by the n-th number of a counter-based generator, so a text is a function of the model, its prompt
    and `ask`, on any device and beside any others, up to the rounding of the probabilities. It is over where the
    vocabulary's token between documents is drawn. A model that reads so many tokens and no more goes on from the last
    half of a text's own where that is full.
    """
    context, device = context_of(model), next(model.parameters()).device
    drawn = torch.from_numpy(order.uniform(ask.seed, 0, np.arange(ask.length), 1, order.AUGMENT))
    chosen_by = {name: getattr(ask, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    end = vocabulary.end if isinstance(vocabulary, Tokens) else None
    texts, over = [list(prompt) for prompt in prompts], [False] * len(prompts)
    rows, done = list(texts), 0
    while done < ask.length:
        longest = max(map(len, rows))
        read = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
        padding, state = torch.tensor([longest - len(row) for row in rows], device=device), None
        if padding.any():
            state = model.cache(len(rows), padding=padding)
        seen = None
        if vocabulary is not None and ask.repetition_penalty != 1:
            seen = torch.zeros(len(texts), len(vocabulary), dtype=torch.bool, device=device)
            for marks, text in zip(seen, texts):
                marks[text] = True
        steps = ask.length - done if context is None else min(ask.length - done, context - longest + 1)
        before = [len(text) for text in texts]
        numbers = drawn[done : done + steps].expand(steps, len(rows))
        for chosen, p in generation.write(model, read, numbers, state=state, seen=seen, **chosen_by):
            step: Step = []
            for i, (token, probability) in enumerate(zip(chosen.tolist(), p.tolist())):
                over[i] = over[i] or token == end
                step.append(None if over[i] else (token, -math.log2(max(probability, 1e-30))))
                texts[i].append(token)
            yield step
            if all(over):
                return
        done += steps
        for i, text in enumerate(texts):  # each as if it were alone
            row = rows[i] + text[before[i] :]
            rows[i] = text[-max(1, context // 2) :] if context is not None and len(row) > context else row


def context_of(model: Any) -> int | None:
    """How many tokens the model reads at most; None where it reads on for ever."""
    return getattr(getattr(model, "config", None), "context", None)


def write(model: nn.Module, prompt: list[int], ask: Continue) -> tuple[list[int], list[float]]:
    """All tokens of a continuation, and their bits."""
    made = [one for step in written(model, [prompt], ask) if (one := step[0])]
    return [token for token, _ in made], [bits for _, bits in made]


@dataclass(frozen=True)
class CorpusModel(LanguageModel):
    """A language model of documents, compared by bits per byte: whatever its tokens are, they are of the same bytes."""

    measure: ClassVar[str] = "bits_per_byte"


@dataclass(frozen=True)
class Continuation:
    """A prompt, and what the model wrote after it."""

    suffix: ClassVar[str] = ".txt"
    prompt: str
    text: str
    """The continuation alone."""
    tokens: tuple[tuple[str, float], ...] = field(repr=False)
    """Each token as text, and the bits that it cost under the probabilities it was drawn from."""

    def json(self) -> dict[str, Any]:
        """As plain values."""
        bits = sum(cost for _, cost in self.tokens)
        return {"prompt": self.prompt, "text": self.text, "tokens": len(self.tokens), "bits": round(bits, 3)}

    def row(self) -> list[str]:
        """As cells of a table: the continuation."""
        return [self.text]

    def plot(self) -> Image.Image:
        """Prompt and continuation as a picture, coloured by how unlikely each character was; the prompt is white."""
        texts, bits = [*self.prompt], [0.0] * len(self.prompt)
        for text, cost in self.tokens:
            texts.append(text)
            bits.append(cost)
        return coloured(texts, bits)

    def save(self, path: str | Path) -> None:
        """Prompt and continuation as a text file; as a picture where the name ends like one."""
        if Path(path).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            self.plot().save(path)
        else:
            Path(path).write_text(self.prompt + self.text, encoding="utf-8")


def coloured(texts: list[str], bits: list[float], *, width: int = 880) -> Image.Image:
    """Text on grounds from white (0 bits a character) to red (6 and more), a token's bits shared by its characters;
    lines are broken where words end."""
    font, margin, height = ImageFont.load_default(16), 14, 24
    places: list[tuple[float, int, str, float]] = []
    x, y, word = float(margin), margin, 0
    for text, cost in zip(texts, bits):
        for character in text:
            if character == "\n":
                x, y, word = float(margin), y + height, len(places)
                continue
            character = _drawable(character)
            places.append((x, y, character, cost / len(text)))
            x += font.getlength(character)
            if character == " ":
                word = len(places)
            elif x > width - margin:  # the word begun moves to the next line, or is broken where it fills one
                moved = places[word:] if places[word][0] > margin else places[-1:]
                shift = moved[0][0] - margin
                places[-len(moved) :] = [(px - shift, py + height, c, b) for px, py, c, b in moved]
                x, y = x - shift, y + height
    sheet = Image.new("RGB", (width, y + height + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for px, py, character, cost in places:
        share = min(cost / 6, 1.0)
        ground = tuple(round(255 - (255 - end) * share) for end in (244, 110, 96))
        draw.rectangle((px, py, px + font.getlength(character), py + height - 4), fill=ground)
    for px, py, character, _ in places:
        draw.text((px, py), character, fill="#1f2328", font=font)
    return sheet


def _drawable(character: str) -> str:
    """What stands for a character in Pillow's own font, which has neither dashes nor accents."""
    if unicodedata.category(character) == "Pd":
        return "-"
    return unicodedata.normalize("NFD", character)[0]


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.quantize(64).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
