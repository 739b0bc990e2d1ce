"""`Masked`: a text in which words are hidden, to be filled in again (Devlin et al., 2018, section 3.1, task 1).

The parts are train, validation and test in the text's own order. Which tokens are hidden, and what stands in their
place, follows from (seed, epoch, index) alone; in held-out parts it is always the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from etude.data import order, pieces, tokenizers
from etude.data.base import Batch, Data, Dataset, same_source
from etude.data.text import Text, lines_named
from etude.errors import UsageError

UNASKED = -100
"""The target of tokens that are not asked for."""
HIDDEN, REPLACED = 0.8, 0.1
"""Of the chosen tokens: the share that [MASK] stands for, and the share that another token does; the rest stays."""
HELD_OUT = 0x5EED
"""Seed of what is hidden in held-out parts."""
CHUNK, LINE = 2_000, 100_000
"""Lines that are encoded at once, and characters of a line that are taken for one."""


@dataclass(frozen=True)
class Masked(Data):
    """A text as windows of WordPiece tokens, [CLS] before and [SEP] after each, some of them hidden."""

    source: str = "bible"
    """"bible", the World English Bible; or any name, for a text of your own at `path`."""
    path: str = ""
    """A UTF-8 text file, or a folder of .txt files."""
    vocabulary: str = ""
    """A published WordPiece vocabulary, as `data.sentences` takes it; empty: one is learned from the training part."""
    vocab_size: int = 8192
    """Tokens of a vocabulary that is learned."""
    lowercase: bool = True
    length: int = 128
    """Tokens of a window, [CLS] and [SEP] included."""
    share: float = 0.15
    """Of the tokens, those chosen."""
    whole_words: bool = False
    """Choose words, all pieces of each, rather than pieces."""
    validation: float = 0.05
    """The share of the text before the test part."""
    test: float = 0.05
    """The share at the end of the text."""
    limit: int = 0
    """Characters taken from the text's beginning, for short runs; 0 takes all."""

    def __post_init__(self) -> None:
        if self.length < 3 or self.limit < 0:
            raise UsageError(f"data.length {self.length} must be at least 3, and data.limit {self.limit} not negative")
        if not 0 < self.share < 1:
            raise UsageError(f"data.share is {self.share}; it must lie between 0 and 1", hint="--data.share 0.15")
        if not (self.validation >= 0 and self.test > 0 and self.validation + self.test < 1):
            raise UsageError(
                f"data.validation {self.validation} and data.test {self.test} must be shares of the text that leave "
                "some for training",
                hint="--data.validation 0.05 --data.test 0.05",
            )

    def open(self) -> "MaskedDataset":
        """Read the text, learn its vocabulary if none is given, and number its tokens."""
        return MaskedDataset(self)

    def reopen(self, facts: dict[str, Any]) -> "MaskedDataset":
        """The text in a run's own tokens. Of another text than the run's nothing was learned: all of it is the test
        part."""
        return MaskedDataset(self, pieces.kept(facts), own=same_source(facts, self))

    def read(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Sentences, files of them, or "-" for standard input."""
        return lines_named(words)

    def prepare(self, raw: Any) -> Tensor:
        """A sentence with [MASK] in it -> (T,) ids. Reads the whole text for its vocabulary; a run keeps that."""
        tokenizer = tokenizers.from_json(self.open().files[tokenizers.FILE])
        return torch.from_numpy(pieces.encode(tokenizer, [pieces.text(raw)], self.length)[0].ids)

    def collate(self, samples: list[Tensor]) -> Batch:
        """(T,) ids each -> {"ids": (B, T), "mask": (B, T)}"""
        return pieces.pad(samples, 0)


class MaskedDataset(Dataset):
    """Windows: {"ids": (B, T) with what is hidden, "target": (B, T), the true token where one is asked for, UNASKED
    elsewhere, "index": (B,)}."""

    def __init__(self, data: Masked, tokenizer: Tokenizer | None = None, *, own: bool = True):
        """`tokenizer`: a run's, if there is one; and whether the text is the run's own."""
        self.data = data
        text = Text(source=data.source, path=data.path).load()
        text = text[: data.limit or len(text)]
        first, last = (round(len(text) * share) for share in (1 - data.validation - data.test, 1 - data.test))
        parts = {"train": text[:first], "validation": text[first:last], "test": text[last:]}
        if data.validation == 0:
            del parts["validation"]
        if not own:
            parts = {"test": text}
        if tokenizer is not None:
            self.tokenizer = tokenizer
        elif data.vocabulary:
            self.tokenizer = pieces.find(data.vocabulary, lowercase=data.lowercase)
        else:
            lines = parts["train"].split("\n")
            self.tokenizer = tokenizers.train_wordpiece(lines, data.vocab_size, lowercase=data.lowercase)
        self._ids = {split: encode_text(self.tokenizer, part) for split, part in parts.items()}
        self._inner = data.length - 2
        self.sizes = {split: len(ids) // self._inner for split, ids in self._ids.items()}
        if empty := [split for split, size in self.sizes.items() if size == 0]:
            split = empty[0]
            raise UsageError(
                f"the {split} part of {data.path or data.source} has {len(self._ids[split]):,} tokens, fewer than one "
                f"window of {self._inner}",
                hint=f"--data.length {max(3, len(self._ids[split]))}, or a longer text",
            )
        tokens = [self.tokenizer.id_to_token(i) or "" for i in range(self.tokenizer.get_vocab_size())]
        self._continues = np.array([token.startswith("##") for token in tokens])
        self._words = np.array([i for i, token in enumerate(tokens) if token not in tokenizers.WORDPIECE_SPECIAL])
        self._mask = pieces.number(self.tokenizer, "[MASK]")
        self.files = {tokenizers.FILE: tokenizers.to_json(self.tokenizer)}
        self.facts = {
            "source": data.path or data.source,
            "vocabulary": len(tokens),
            "tokens": {split: len(ids) for split, ids in self._ids.items()},
            "sizes": self.sizes,
        }

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        """These windows. In training they lie side by side, all moved by a random part of a window from epoch to
        epoch."""
        ids, places = self._ids[split], np.asarray(indices, dtype=np.int64)
        starts = places * self._inner
        if epochs is not None:
            moved = order.uniform(seed, epochs, np.zeros_like(places), 1, order.CROP)[:, 0]
            starts = ((places + moved) * self._inner).astype(np.int64).clip(max=len(ids) - self._inner)
        tokens = ids[starts[:, None] + np.arange(self._inner)].astype(np.int64)
        drawing = (seed, epochs) if epochs is not None else (HELD_OUT, 0)
        drawn = order.uniform(*drawing, places, 3 * self._inner)
        hidden, chosen = self.hide(tokens, drawn)
        begin, end = (pieces.number(self.tokenizer, token) for token in ("[CLS]", "[SEP]"))
        around = ((0, 0), (1, 1))
        seen = np.pad(hidden, around, constant_values=begin)
        seen[:, -1] = end
        target = np.pad(np.where(chosen, tokens, UNASKED), around, constant_values=UNASKED)
        return {"ids": torch.from_numpy(seen), "target": torch.from_numpy(target), "index": torch.from_numpy(places)}

    def hide(
        self, tokens: NDArray[np.int64], drawn: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(B, W) tokens and (B, 3 W) numbers in [0, 1) -> the tokens with some hidden, and which are asked for."""
        first, second, third = np.split(drawn, 3, axis=1)
        words = self._continues[tokens] if self.data.whole_words else np.zeros_like(tokens, dtype=bool)
        chosen = choose(words, first, self.data.share)
        others = self._words[(third * len(self._words)).astype(np.int64)]
        hidden = np.where(second < HIDDEN, self._mask, np.where(second < HIDDEN + REPLACED, others, tokens))
        return np.where(chosen, hidden, tokens), chosen

    def samples(self, split: str, count: int) -> list[tuple[str, str]]:
        """Pieces of a split's sentences, one word hidden in each."""
        ids = self._ids[split]
        span = min(24, (self._inner + 1) // 2)
        count = min(count, max(1, len(ids) // span))
        found = []
        for start in (i * (len(ids) - span) // count for i in range(count)):
            piece = ids[start : start + span].tolist()
            whole = [i for i in range(1, span - 1) if not self._continues[piece[i : i + 2]].any()] or [0]
            at = whole[len(whole) // 2]
            before, after = self.tokenizer.decode(piece[:at]), self.tokenizer.decode(piece[at + 1 :])
            found.append((f"{split}, token {start + at:,}", f"{before} [MASK] {after}".strip()))
        return found


def choose(continues: NDArray[np.bool_], drawn: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Which tokens are asked for: in each row words are taken in the order of their random numbers while no more than
    `share` of the tokens are taken, and at least one word.

    (B, W): whether a token continues the word before it, and numbers in [0, 1), of which a word's first token's counts.
    """
    width = continues.shape[1]
    starts = np.where(continues, 0, np.arange(width))
    starts[:, 0] = 0
    starts = np.maximum.accumulate(starts, axis=1)
    keys = np.take_along_axis(drawn, starts, axis=1)
    ranked = np.lexsort((starts, keys), axis=1)  # the tokens of a word stay together
    most = max(1, round(share * width))
    word = np.take_along_axis(starts, ranked, axis=1)
    ends = np.broadcast_to(np.arange(1, width + 1), word.shape).copy()
    for at in reversed(range(width - 1)):  # where the word that a token belongs to ends, in that order
        ends[:, at] = np.where(word[:, at] == word[:, at + 1], ends[:, at + 1], ends[:, at])
    taken = (ends <= most) | (ends == ends[:, :1])
    chosen = np.zeros_like(continues)
    np.put_along_axis(chosen, ranked, taken, axis=1)
    return chosen


def encode_text(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
    """A text's ids, without special tokens, line by line."""
    lines = [line[at : at + LINE] for line in text.split("\n") for at in range(0, len(line), LINE)]
    parts = [
        np.array(encoding.ids, dtype=np.int32)
        for start in range(0, len(lines), CHUNK)
        for encoding in tokenizer.encode_batch_fast(lines[start : start + CHUNK], add_special_tokens=False)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
