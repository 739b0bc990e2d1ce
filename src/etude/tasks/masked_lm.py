"""Masked language modelling: which word was hidden (Devlin et al., 2018, section 3.1, task 1)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from etude.data import pieces
from etude.data.base import Batch, Data, Dataset
from etude.data.masked import UNASKED, Masked, MaskedDataset
from etude.errors import UsageError
from etude.tasks.base import Block, LossLogs, Task
from etude.tasks.language_model import coloured
from etude.tasks.metrics import Curve, Exponential, Mean, Metric
from etude.tasks.ranked import draw_bars
from etude.tasks.sentences import fits, tokenizer_of

SHOWN, AROUND = 24, 6
"""Hidden tokens that the report shows, and tokens on each side of one."""


@dataclass(frozen=True)
class MaskedLM(Task):
    """Batches hold "ids" and "target", the true token at the places that are asked for, UNASKED elsewhere."""

    measure: ClassVar[str] = "loss"

    @torch.no_grad()
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model has the text's vocabulary, and room for a window."""
        if not isinstance(dataset, MaskedDataset):
            raise UsageError(f"a text with hidden words is wanted, not {type(dataset).__name__}")
        fits(model, dataset.facts["vocabulary"])
        try:
            model.eval()(torch.zeros(1, dataset.data.length, dtype=torch.int64))
        except ValueError as error:
            raise UsageError(f"data.length is {dataset.data.length}: {error}", hint="--data.length 128") from None
        model.train()

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """Mean cross-entropy of the tokens asked for, in nats."""
        logits, target = _asked(model, batch)
        loss = F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), target)
        return loss, {"loss": loss, "accuracy": lambda: (logits.argmax(1) == target).float().mean()}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Of the tokens asked for: mean cross-entropy (nats), perplexity, the share of right first guesses; and some
        guesses."""
        loss, perplexity, accuracy, guesses = Mean(), Exponential(), Mean(), Curve()
        for batch in batches:
            logits, target = _asked(model, batch)
            losses = F.cross_entropy(logits.float(), target, reduction="none")
            confidence, guess = logits.float().softmax(1).max(1)
            loss.add(losses)
            perplexity.add(losses)
            accuracy.add(guess == target)
            row, place = (batch["target"] != UNASKED).nonzero().T
            index = batch["index"].to(row.device)[row]
            shown = index < SHOWN
            guesses.add(*(column[shown] for column in (index, place, target, guess, confidence)))
        return {"loss": loss, "perplexity": perplexity, "accuracy": accuracy, "guesses": guesses}

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """One hidden token of each of the first windows: what stood there, and what the model took it for."""
        assert isinstance(dataset, MaskedDataset)
        rows, seen = [], set()
        known = dataset.tokenizer.id_to_token
        for index, place, target, guess, confidence in measured["guesses"].value():
            if index in seen or place <= AROUND:
                continue
            seen.add(index)
            window = dataset.fetch(split, [int(index)])["ids"][0].tolist()
            at = int(place)
            around = (window[at - AROUND : at], window[at + 1 :][:AROUND])
            said = " ___ ".join(dataset.tokenizer.decode(side, skip_special_tokens=False) for side in around)
            rows.append([said, known(int(target)), known(int(guess)), f"{confidence:.0%}"])
        columns = ["text", "hidden", "guessed", "with"]
        return [{"kind": "table", "title": f"Words filled in, {split}", "columns": columns, "rows": rows[:SHOWN]}]

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> list["Filled"]:
        """What each [MASK] stands for. Inputs: sentences with one or more."""
        assert isinstance(data, Masked)
        tokenizer = tokenizer_of(model, facts)
        mask = pieces.number(tokenizer, "[MASK]")
        texts = [pieces.text(raw) for raw in inputs]
        encoded = pieces.encode(tokenizer, texts, data.length)
        for text, one in zip(texts, encoded):
            if mask not in one.ids:
                where = f"the first {len(one.ids)} tokens of " if one.cut else ""
                example = '"In the beginning God [MASK] the heavens"'
                raise UsageError(f"there is no [MASK] to fill in {where}{text[:60]!r}", hint=example)
        results = []
        for text, one in zip(texts, encoded):
            ids = torch.from_numpy(one.ids)[None].to(next(model.parameters()).device)
            logits = model(ids, chosen=ids == mask).float()
            best = logits.softmax(1).topk(5)
            guesses = tuple(
                tuple((tokenizer.id_to_token(i) or "", p) for i, p in zip(tokens, shares))
                for tokens, shares in zip(best.indices.tolist(), best.values.tolist())
            )
            results.append(Filled(text, guesses))
        return results


def _asked(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of the M tokens that are asked for, (M, V), and what they are, (M,)."""
    chosen = batch["target"] != UNASKED
    return model(batch["ids"], chosen=chosen), batch["target"][chosen]


@dataclass(frozen=True)
class Filled:
    """A sentence with [MASK] in it, and the five likeliest tokens for each."""

    suffix: ClassVar[str] = ".png"
    sentence: str
    guesses: tuple[tuple[tuple[str, float], ...], ...]

    @property
    def text(self) -> str:
        """The sentence with the likeliest token in each place."""
        text = self.sentence
        for (best, _), *_ in self.guesses:
            text = text.replace("[MASK]", best, 1)
        return text

    def json(self) -> dict[str, Any]:
        """As plain values."""
        guesses = [[{"token": token, "probability": p} for token, p in places] for places in self.guesses]
        return {"input": self.sentence, "text": self.text, "guesses": guesses}

    def row(self) -> list[str]:
        """As cells of a table: for each place its tokens with their probabilities."""
        return [", ".join(f"{token} {p:.1%}" for token, p in places[:3]) for places in self.guesses]

    def plot(self) -> Image.Image:
        """The sentence above bars of the likeliest tokens of each place."""
        heading = coloured([self.sentence], [0.0], width=520)
        height = max(len(places) for places in self.guesses) * 48 + 20
        sheet = Image.new("RGB", (520, heading.height + height * len(self.guesses)), "white")
        sheet.paste(heading, (0, 0))
        for number, places in enumerate(self.guesses):
            bars = Image.new("RGB", (520, height), "white")
            draw_bars(bars, list(places), left=14, width=492)
            sheet.paste(bars, (0, heading.height - 8 + height * number))
        return sheet

    def save(self, path: str | Path) -> None:
        """The plot, in the format that the name's ending says."""
        self.plot().save(path)
