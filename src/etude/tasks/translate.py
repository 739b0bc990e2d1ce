"""Translation: the next token of the target, given the source; measured in BLEU and chrF of what beam search finds."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from etude.data import tokenizers
from etude.data.base import Batch, Data, Dataset
from etude.data.pairs import LONGEST_LINE, Pairs, PairsDataset, encode, lines_of, padded, special
from etude.data.text import checked
from etude.errors import RefusedError, UsageError
from etude.tasks.alignment import Alignment, drawn
from etude.tasks.base import Ask, Block, LossLogs, Task, WriteAsk
from etude.tasks.bleu import BLEU, ChrF, Tokens
from etude.tasks.metrics import Exponential, Mean, Metric

Network = Any
"""A module like `Transformer`, with its `config`, `packed`, `generate` and `attention`, which `nn.Module` lacks."""
Penalty = Literal["length", "gnmt"]
Smoothing = Literal["torch", "fairseq"]
MOST_TOKENS = 2000
"""Tokens of a source that is translated; a sentence has some thirty."""
BATCH = 3000
"""Source tokens that are translated at once."""
SHOWN = 12
"""Translations in the report."""
DRAWN = (6, 18)
"""Source tokens of the sentence whose attention the report shows."""


@dataclass(frozen=True)
class Search(WriteAsk):
    """How a translation is searched for; what is left out is as in the recipe's evaluations."""

    beam: int | None = None
    """Hypotheses that are followed; 1 is greedy."""
    length_penalty: float | None = None
    """The exponent alpha: larger prefers longer translations."""
    penalty: Penalty | None = None
    """A score is the log-probability over length^alpha ("length") or ((5 + length) / 6)^alpha ("gnmt")."""
    max_length: int | None = None
    """Tokens of a translation; by default the source's and 50 more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.penalty not in (None, "length", "gnmt"):
            raise UsageError(f"penalty is {self.penalty!r}; it must be length or gnmt", hint="--penalty gnmt")
        for name in ("beam", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        if self.length_penalty is not None and not math.isfinite(self.length_penalty):
            raise UsageError(f"length_penalty is {self.length_penalty}; it must be a number")


@dataclass
class Samples(Metric):
    """(index, source, reference, translation), in the order of the split."""

    rows: list[tuple[int, str, str, str]] = field(default_factory=list)

    def merge(self, other: "Samples") -> None:
        self.rows += other.rows

    def value(self) -> list[tuple[int, str, str, str]]:
        return sorted(self.rows)


@dataclass
class Looked(Metric):
    """The attention of one sentence: that with the smallest index of those that were shown."""

    found: dict[int, Alignment] = field(default_factory=dict)

    def merge(self, other: "Looked") -> None:
        self.found |= other.found

    def value(self) -> Alignment | None:
        return self.found[min(self.found)] if self.found else None


@dataclass(frozen=True)
class Translate(Task):
    """Teacher forcing with label smoothing. The model is one like `Transformer`, with `config`, `packed`, `generate`
    and `attention`; batches are those of `Pairs`."""

    measure: ClassVar[str] = "bleu"
    higher_is_better: ClassVar[bool] = True
    ask: ClassVar[type[Ask]] = Search
    by_line: ClassVar[bool] = True

    smoothing: float = 0.1
    """epsilon: the share of the target's probability that is spread over the vocabulary."""
    smoothing_by: Smoothing = "torch"
    """Whether it is spread over all V tokens ("torch": Szegedy et al., 2015) or the V - 1 wrong ones ("fairseq")."""
    beam: int = 4
    length_penalty: float = 0.6
    penalty: Penalty = "gnmt"
    """Of the translations in evaluations: see `Search`."""
    tokens: Tokens = "13a"
    """BLEU's tokens."""
    compounds: bool = False
    """Report compound-split BLEU too."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"task.smoothing is {self.smoothing}; it must lie in [0, 1)", hint="--task.smoothing 0.1")
        if self.beam < 1:
            raise UsageError(f"task.beam is {self.beam}; it must be at least 1", hint="--task.beam 4")

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model's vocabulary is the data's."""
        if not isinstance(dataset, PairsDataset):
            raise UsageError(f"translation learns from pairs of sentences, not from {type(dataset).__name__}")
        if amiss := _differs(model, dataset.tokenizer):
            raise UsageError(amiss[0], hint=amiss[1])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """Smoothed cross-entropy of the next token, a mean over the tokens of the whole batch, in nats."""
        logits, labels, sequence = _scored(model, batch)
        losses = smoothed(logits, labels, self.smoothing, self.smoothing_by)
        loss = (losses * batch["weight"].to(losses.dtype)[sequence]).sum() / len(batch["weight"])

        def plain() -> Tensor:
            nats = F.cross_entropy(logits.detach(), labels, reduction="none")
            return (nats * batch["weight"].to(nats.dtype)[sequence]).sum() / len(batch["weight"])

        return loss, {"loss": loss, "nll": plain}

    def evaluate_on(self, dataset: Dataset, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Cross-entropy per token without smoothing (nats) and its exponential over all pairs; BLEU and chrF of those
        that are to be translated."""
        assert isinstance(dataset, PairsDataset)
        loss, perplexity, bleu, chrf = Mean(), Exponential(), BLEU(self.tokens), ChrF()
        split_bleu, samples, looked = BLEU(self.tokens, compounds=True), Samples(), Looked()
        for batch in batches:
            logits, labels, _ = _scored(model, batch)
            nats = F.cross_entropy(logits, labels, reduction="none")
            loss.add(nats)
            perplexity.add(nats)
            chosen = batch["translated"].nonzero()[:, 0]
            if not len(chosen):
                continue
            source, lengths = batch["source"][chosen], batch["source_length"][chosen]
            ids = self._search(model, source, lengths, Search())
            indices = batch["index"][chosen.cpu()].tolist()
            decode = dataset.tokenizer.decode  # of what bytes were encoded to, so it gives the texts themselves
            for i, row in enumerate(chosen.tolist()):
                text, reference = (decode(batch[side][row].tolist()) for side in ("source", "target"))
                translation = decode(ids[i][0])
                bleu.add(translation, reference)
                split_bleu.add(translation, reference)
                chrf.add(translation, reference)
                samples.rows.append((indices[i], text, reference, translation))
                if DRAWN[0] <= lengths[i] <= DRAWN[1] and ids[i][0] and indices[i] < min(looked.found, default=1 << 62):
                    looked.found = {indices[i]: _aligned(model, source[i, : lengths[i]], ids[i][0], dataset.tokenizer)}
        measured: dict[str, Metric] = {"loss": loss, "perplexity": perplexity, "bleu": bleu, "chrf": chrf}
        if self.compounds:
            measured["bleu_compound_split"] = split_bleu
        return measured | {"samples": samples, "looked": looked}

    def notes(self, measured: dict[str, Metric]) -> dict[str, str]:
        """The signatures, without which figures cannot be compared."""
        said = {name: m.signature for name, m in measured.items() if isinstance(m, BLEU | ChrF)}
        return said | {"search": f"beam {self.beam}, {self.penalty} penalty {self.length_penalty:g}"}

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """BLEU with its signature, translations evenly over the split, and where the decoder looked."""
        rows = measured["samples"].value()
        if not rows:
            return []
        shown = [rows[i * len(rows) // min(SHOWN, len(rows))] for i in range(min(SHOWN, len(rows)))]
        said = [
            f"{name} {measured[name].value():.2f}   {note}"
            for name, note in self.notes(measured).items()
            if name in measured
        ]
        blocks: list[Block] = [
            {"kind": "text", "title": f"{len(rows):,} translations of {split}", "text": "\n".join(said)},
            {
                "kind": "table",
                "title": f"Translations of {split}",
                "columns": ["source", "reference", "translation"],
                "rows": [list(row[1:]) for row in shown],
            },
        ]
        looked = measured["looked"].value()
        if looked:
            buffer = io.BytesIO()
            drawn(looked).save(buffer, "PNG", optimize=True)
            item = {"png": base64.b64encode(buffer.getvalue()).decode(), "caption": looked.caption}
            blocks.append({"kind": "images", "title": "Where the decoder looks", "items": [item]})
        return blocks

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> Sequence["Translation | Document"]:
        """Each sentence's translation; a Path stands for a file's lines, which are translated one by one."""
        assert isinstance(data, Pairs)
        tokenizer = tokenizers.from_json(facts["files"][tokenizers.FILE], where="the run's tokenizer.json")
        if amiss := _differs(model, tokenizer):
            raise RefusedError(f"the run's tokenizer is of another model: {amiss[0]}")
        texts = [lines_of(raw) if isinstance(raw, Path) else [_sentence(raw)] for raw in inputs]
        flat = iter(self._translated(model, [text for one in texts for text in one], tokenizer, ask or Search()))
        results: list[Translation | Document] = []
        for raw, own in zip(inputs, texts):
            done = tuple(next(flat) for _ in own)
            results.append(Document(str(raw), done) if isinstance(raw, Path) else done[0])
        return results

    def _translated(self, model: nn.Module, texts: list[str], tokenizer: Tokenizer, ask: Search) -> list["Translation"]:
        """Translations in the order of the texts, those of about one length searched for together."""
        for text in texts:
            if len(text) > LONGEST_LINE:
                raise UsageError(f"a line has {len(text):,} characters ({text[:40]!r}...)", hint="one sentence a line")
        rows, _ = encode(tokenizer, texts)
        if (most := max(rows, key=len, default=np.empty(0))).size > MOST_TOKENS:
            raise UsageError(
                f"a sentence has {len(most):,} tokens, where {MOST_TOKENS:,} are the most", hint="one sentence a line"
            )
        device = next(model.parameters()).device
        results: dict[int, Translation] = {i: Translation("", "", 0.0) for i in range(len(texts))}
        waiting = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(rows[i]))
        while waiting:
            count = 1
            while count < len(waiting) and (count + 1) * len(rows[waiting[count]]) <= BATCH:
                count += 1
            chosen, waiting = waiting[:count], waiting[count:]
            batch = {name: value.to(device) for name, value in padded("source", [rows[i] for i in chosen]).items()}
            found = self._search(model, batch["source"], batch["source_length"], ask)
            for i, (ids, score) in zip(chosen, found):
                text = " ".join(tokenizer.decode(ids).split())
                look = partial(_aligned, model, torch.from_numpy(rows[i]).to(device), ids, tokenizer) if ids else None
                results[i] = Translation(texts[i], text, score, look)
        return list(results.values())

    def _search(self, model: Network, source: Tensor, lengths: Tensor, ask: Search) -> list[tuple[list[int], float]]:
        """The best hypothesis of each source, without the end token, and its score."""
        mask = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
        beam = ask.beam or self.beam
        if 2 * beam + 2 > model.config.vocab_size:
            raise UsageError(
                f"beam is {beam}, and a beam needs twice as many tokens and two more; the vocabulary has "
                f"{model.config.vocab_size:,}",
                hint="--beam 4",
            )
        found = model.generate(
            source,
            mask,
            beam=beam,
            length_penalty=self.length_penalty if ask.length_penalty is None else ask.length_penalty,
            penalty=ask.penalty or self.penalty,
            max_length=ask.max_length,
        )
        end = model.config.end
        return [([i for i in best[0].ids if i != end], float(best[0].score)) for best in found]


def smoothed(logits: Tensor, labels: Tensor, epsilon: float, by: Smoothing) -> Tensor:
    """(N, V), (N,) -> (N,) cross-entropy against smoothed labels, in nats.

    "torch": the target has 1 - epsilon + epsilon / V, any other token epsilon / V. "fairseq": 1 - epsilon, and
    epsilon / (V - 1), which is the first with epsilon V / (V - 1).
    """
    size = logits.shape[-1]
    share = epsilon * size / (size - 1) if by == "fairseq" else epsilon
    return F.cross_entropy(logits, labels, label_smoothing=share, reduction="none")


def _scored(model: Network, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, V) of the target's N tokens, the tokens (N,), and whose they are (N,)."""
    source, target = batch["source"], batch["target"]
    src_mask = torch.arange(source.shape[1], device=source.device) < batch["source_length"][:, None]
    tgt_mask = torch.arange(target.shape[1], device=target.device) < batch["target_length"][:, None]
    begin = torch.full_like(target[:, :1], model.config.begin)
    logits, packing = model.packed(source, torch.cat([begin, target[:, :-1]], 1), src_mask, tgt_mask)
    logits = logits if logits.dtype == torch.float64 else logits.float()  # float64: gradcheck
    return logits, packing.pack(target), packing.sequence


def _differs(model: Network, tokenizer: Tokenizer) -> tuple[str, str] | None:
    """What of a model's vocabulary is not the tokenizer's, and the remedy."""
    config, size = model.config, tokenizer.get_vocab_size()
    if config.vocab_size != size:
        return (
            f"the model has {config.vocab_size:,} tokens in its vocabulary, the data {size:,}",
            f"--model.vocab-size {size}",
        )
    for name, wanted in special(tokenizer).items():
        if (found := getattr(config, name)) != wanted:
            return f"the model's {name} token is {found}, the data's {wanted}", f"--model.{name} {wanted}"
    return None


def _sentence(raw: Any) -> str:
    if not isinstance(raw, str):
        raise UsageError(f"a sentence is wanted, or a Path to a file of them, not {type(raw).__name__}")
    if not raw.strip():
        raise UsageError("the text is empty; there is nothing to translate")
    return " ".join(checked(raw).split())


def _aligned(model: Network, source: Tensor, ids: list[int], tokenizer: Tokenizer) -> Alignment:
    """Where the decoder looked for each token, the mean over the heads of its last layer but one."""
    begin = torch.tensor([model.config.begin, *ids[:-1]], device=source.device)
    weights = model.attention(source, begin)
    layer = max(0, len(weights) - 2)
    mean = weights[layer].mean(0).cpu().numpy()
    words = [[tokenizer.decode([i], skip_special_tokens=False) for i in row] for row in (source.tolist(), ids)]
    return Alignment(tuple(words[0]), tuple(words[1]), mean, layer + 1, len(weights))


@dataclass(frozen=True)
class Translation:
    """A sentence and its translation."""

    suffix: ClassVar[str] = ".txt"
    source: str
    text: str
    score: float
    """The log-probability over the length penalty, by which hypotheses were compared."""
    look: Callable[[], Alignment] | None = field(default=None, repr=False, compare=False)
    """Computes the attention, which costs as much again as the translation."""

    @cached_property
    def alignment(self) -> Alignment | None:
        """Where the decoder looked; None where nothing was written."""
        return self.look() if self.look else None

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"source": self.source, "translation": self.text, "score": round(self.score, 4)}

    def row(self) -> list[str]:
        """As cells of a table: the translation."""
        return [self.text]

    def plot(self) -> Any:
        """Where the decoder looked while it wrote, as a picture. UsageError where nothing was written."""
        if self.alignment is None:
            raise UsageError("nothing was translated, so there is no attention to draw")
        return drawn(self.alignment)

    def save(self, path: str | Path) -> None:
        """The translation as a text file; as a picture where the name ends like one."""
        if Path(path).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            self.plot().save(path)
        else:
            Path(path).write_text(self.text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Document:
    """A file and its translation, line for line."""

    suffix: ClassVar[str] = ".txt"
    name: str
    lines: tuple[Translation, ...]

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"file": self.name, "lines": [line.json() for line in self.lines]}

    def row(self) -> list[str]:
        """As cells of a table: the translation, its lines below one another."""
        return ["\n".join(line.text for line in self.lines)]

    def plot(self) -> Any:
        """The attention of the first line that has any."""
        return next((line for line in self.lines if line.alignment), self.lines[0]).plot()

    def save(self, path: str | Path) -> None:
        """The translation as a text file."""
        Path(path).write_text("".join(line.text + "\n" for line in self.lines), encoding="utf-8")
