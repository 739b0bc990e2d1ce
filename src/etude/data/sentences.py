"""`Sentences`: labelled sentences of any source, as WordPiece ids.

Batches are padded on the right and come with a mask; models that pack compute with tokens alone, so sentences are not
sorted by length: what is in a batch stays a function of (seed, step) with nothing lost.
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from etude.data import fetch, order, pieces, tokenizers
from etude.data.base import Batch, Data, Dataset, same_source
from etude.data.text import lines_named, read_file
from etude.errors import MissingError, UsageError

REVIEWS = "movieReviewSnippets_GroundTruth.txt"
DECIDED = 0.5
"""Reviews rated between minus and plus this, of -4 to 4, are neither positive nor negative and left out."""
SPLIT = 0x5EED
"""Seed of which sentences are held out: always the same ones."""
LABELS = ("label", "class", "sentiment", "target")
TEXTS = ("sentence", "text", "review")
Rows = list[tuple[str, str]]
"""(label, sentence)"""


@dataclass(frozen=True)
class Sentences(Data):
    """Sentences with one label each."""

    source: str = "reviews"
    """"reviews": snippets of film reviews, positive or negative by the sign of their mean rating; "sst2": the official
    files of GLUE at `path`; or any name, for a table of your own at `path`."""
    path: str = ""
    """A .tsv or .csv file of labels and sentences (columns so named, or in this order); a folder with train.tsv, and
    dev.tsv or test.tsv or both; of "reviews" the folder with the file of ratings."""
    vocabulary: str = "minilm"
    """The WordPiece vocabulary of the model that is trained: a vocab.txt, a tokenizer.json, a folder with one, or a set
    that `etude data get` gets."""
    lowercase: bool = True
    """As uncased models read: in lower case, without accents. (A tokenizer.json says it itself.)"""
    length: int = 128
    """Most tokens of a sentence, [CLS] and [SEP] included; longer ones are cut."""
    validation: int = 1000
    """Sentences held out to choose by, where no file of them is given."""
    test: int = 1000
    """Sentences held out to measure by, where no file of them is given: the same whatever else is asked for."""

    def __post_init__(self) -> None:
        if self.length < 3:
            raise UsageError(f"data.length is {self.length}; [CLS], a token and [SEP] are 3", hint="--data.length 128")
        if self.validation < 0 or self.test < 1:
            raise UsageError(
                f"data.validation {self.validation} must not be negative, and data.test {self.test} must be positive"
            )

    def open(self) -> "SentenceDataset":
        """Read the files, hold out, and encode all sentences."""
        return SentenceDataset(self)

    def reopen(self, facts: dict[str, Any]) -> "SentenceDataset":
        """The sentences in a run's own tokens and classes. Of other sentences than the run's nothing was learned: all
        of a table are the test split, of a folder those of its test split or, where there is none, all."""
        return SentenceDataset(self, facts)

    def tokenizer(self) -> Tokenizer:
        """Of the vocabulary; a run keeps it."""
        return pieces.find(self.vocabulary, lowercase=self.lowercase)

    def read(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """What is named on a command line: "-" is standard input and a file's name its content, one sentence a line;
        anything else is a sentence."""
        return lines_named(words)

    def prepare(self, raw: Any) -> Tensor:
        """A sentence -> (T,) ids."""
        return torch.from_numpy(pieces.encode(self.tokenizer(), [pieces.text(raw)], self.length)[0].ids)

    def collate(self, samples: list[Tensor]) -> Batch:
        """(T,) ids each -> {"ids": (B, T), "mask": (B, T)}; padding is token 0, which no mask lets through."""
        return pieces.pad(samples, 0)

    def tables(self, *, whole: bool = False) -> dict[str, Rows]:
        """Each split's rows, held out where there is no file of its own; of a `whole` set all that is to be measured,
        as "test"."""
        if self.source == "reviews":
            folder = Path(self.path).expanduser() if self.path else fetch.path("reviews")
            rows = read_reviews(folder)
            return {"test": rows} if whole else self.hold_out({"train": rows})
        if not self.path:
            if self.source == "sst2":
                hint = "--data.path glue/SST-2, the folder with train.tsv and dev.tsv"
                raise MissingError("the files of SST-2 are not among those that etude gets", hint=hint)
            hint = "reviews, sst2, or a table of your own: --data.path FILE"
            raise UsageError(f"there are no sentences {self.source!r}", hint=hint)
        tables = read_tables(Path(self.path).expanduser())
        if self.source == "sst2":
            named = {"0": "negative", "1": "positive"}
            for split, rows in tables.items():
                tables[split] = [(named.get(label, label), sentence) for label, sentence in rows]
        return {"test": tables.get("test", tables["train"])} if whole else self.hold_out(tables)

    def hold_out(self, tables: dict[str, Rows]) -> dict[str, Rows]:
        """Take what lacks from the training rows. The test split is drawn first, among sentences that occur once."""
        rows = tables["train"]
        occurs = Counter(sentence for _, sentence in rows)
        shuffled = [int(i) for i in order.permutation(SPLIT, 0, len(rows)) if occurs[rows[i][1]] == 1]
        wanted = {split: getattr(self, split) for split in ("test", "validation") if split not in tables}
        wanted = {split: count for split, count in wanted.items() if count}
        if sum(wanted.values()) >= len(shuffled):
            raise UsageError(
                f"{len(rows):,} sentences are too few to hold out {sum(wanted.values()):,} ({', '.join(wanted)})",
                hint=f"--data.test {max(1, len(rows) // 10)} --data.validation {len(rows) // 10}",
            )
        held: set[int] = set()
        parts = dict(tables)
        for split, count in wanted.items():
            taken = shuffled[len(held) : len(held) + count]  # shuffled: files are often sorted by class
            parts[split] = [rows[i] for i in taken]
            held |= set(taken)
        parts["train"] = [row for i, row in enumerate(rows) if i not in held]
        return {split: parts[split] for split in ("train", "validation", "test") if split in parts}


def read_reviews(folder: Path) -> Rows:
    """Hutto and Gilbert's reviews, 2014 (lines of number, mean rating from -4 to 4, sentence), labelled by sign."""
    path = folder / REVIEWS
    if not path.is_file():
        raise MissingError(f"{folder} holds no {REVIEWS}", hint="etude data get reviews")
    rows = []
    for number, line in enumerate(read_file(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            _, rating, sentence = line.rstrip("\r").split("\t")
            decided = float(rating)
        except ValueError:
            raise UsageError(f"{path} line {number} is not number, rating, sentence: {line[:80]!r}") from None
        if abs(decided) >= DECIDED:
            rows.append(("positive" if decided > 0 else "negative", sentence))
    return rows


def read_tables(path: Path) -> dict[str, Rows]:
    """A file is "train" alone. Of a folder, test.tsv is the test split if it has labels, which GLUE's have not, and
    dev.tsv validation; else dev.tsv is what is measured by."""
    if path.is_file():
        return {"train": read_table(path)}
    if not path.is_dir():
        raise MissingError(
            f"{path}: no such file or folder", hint="--data.path FILE, a .tsv or .csv of labels and sentences"
        )
    found = {
        split: next((p for name in names for end in (".tsv", ".csv") if (p := path / (name + end)).is_file()), None)
        for split, names in {"train": ["train"], "dev": ["dev", "validation"], "test": ["test"]}.items()
    }
    if found["train"] is None:
        raise MissingError(f"{path} holds no train.tsv or train.csv", hint="--data.path FILE_OR_FOLDER")
    tables = {"train": read_table(found["train"])}
    test = read_table(found["test"]) if found["test"] and _labelled(found["test"]) else None
    dev = read_table(found["dev"]) if found["dev"] else None
    if test:
        tables["test"] = test
        if dev:
            tables["validation"] = dev
    elif dev:
        tables["test"] = dev
    return tables


def _cells(path: Path) -> list[list[str]]:
    content = read_file(path)
    if path.suffix.lower() == ".csv":
        csv.field_size_limit(1 << 27)
        return list(csv.reader(io.StringIO(content, newline="")))
    return [line.rstrip("\r").split("\t") for line in content.split("\n")]  # GLUE's files quote nothing


def _columns(first: list[str]) -> tuple[int, int] | None:
    """Where label and sentence stand, if the first row names them."""
    names = [cell.strip().lower() for cell in first]
    label, said = (next((names.index(n) for n in known if n in names), None) for known in (LABELS, TEXTS))
    return None if label is None or said is None else (label, said)


def _labelled(path: Path) -> bool:
    """Whether a table has labels: two columns that are not GLUE's index and sentence."""
    first = next(iter(_cells(path)), [])
    return len(first) > 1 and first[0].strip().lower() != "index"


def read_table(path: Path) -> Rows:
    """Labels and sentences of a .csv file, or of one with tabs. UsageError names the line that has not both."""
    cells = _cells(path)
    columns = _columns(cells[0])
    label, said = columns or (0, 1)
    rows = []
    for number, row in enumerate(cells[columns is not None :], 1 + (columns is not None)):
        if not any(cell.strip() for cell in row):
            continue
        if max(label, said) >= len(row) or not row[label].strip() or not row[said].strip():
            raise UsageError(
                f"{path} line {number} has no label and sentence: {' '.join(row)[:80]!r}",
                hint="columns: label, sentence, with tabs between (.tsv) or commas (.csv)",
            )
        rows.append((row[label].strip(), row[said].strip()))
    if not rows:
        raise UsageError(f"{path} holds no sentences")
    return rows


class SentenceDataset(Dataset):
    """Encoded sentences: {"ids": (B, T), "mask": (B, T), "label": (B,), "index": (B,)}."""

    def __init__(self, data: Sentences, facts: dict[str, Any] | None = None):
        """`facts`: of the run that is measured, if it is one."""
        self.data = data
        tables = data.tables(whole=facts is not None and not same_source(facts, data))
        classes = facts["classes"] if facts else sorted({label for label, _ in tables["train"]})
        if len(classes) < 2:
            raise UsageError(f"all sentences are of one class, {classes[0]!r}: there is nothing to learn")
        tokenizer = pieces.kept(facts) if facts else data.tokenizer()
        self.padding = pieces.number(tokenizer, "[PAD]")
        self.sentences = {split: [sentence for _, sentence in rows] for split, rows in tables.items()}
        self._labels = {split: _numbered(split, rows, classes) for split, rows in tables.items()}
        encoded = {split: pieces.encode(tokenizer, texts, data.length) for split, texts in self.sentences.items()}
        self._ids = {split: [one.ids for one in all_] for split, all_ in encoded.items()}
        self.sizes = {split: len(rows) for split, rows in tables.items()}
        self.files = {tokenizers.FILE: tokenizers.to_json(tokenizer)}
        self.facts = {
            "source": data.path or data.source,
            "classes": classes,
            "sizes": self.sizes,
            "length": data.length,
            "cut": {split: sum(one.cut for one in all_) for split, all_ in encoded.items()},
            "vocabulary": tokenizer.get_vocab_size(),
        }

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        """These sentences, padded to the longest of them."""
        places = np.asarray(indices, dtype=np.int64)
        batch = pieces.pad([self._ids[split][i] for i in places.tolist()], self.padding)
        return batch | {"label": torch.from_numpy(self._labels[split][places]), "index": torch.from_numpy(places)}

    def samples(self, split: str, count: int) -> list[tuple[str, str]]:
        """Sentences of a split."""
        sentences = self.sentences[split]
        count = min(count, len(sentences))
        return [(sentences[i], sentences[i]) for i in (n * len(sentences) // count for n in range(count))]


def _numbered(split: str, rows: Rows, classes: list[str]) -> np.ndarray:
    number = {name: i for i, name in enumerate(classes)}
    if unknown := sorted({label for label, _ in rows} - number.keys()):
        raise UsageError(f"the {split} split has labels that training has not: {', '.join(unknown)[:200]}")
    return np.array([number[label] for label, _ in rows], dtype=np.int64)
