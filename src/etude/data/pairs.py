"""`Pairs`: sentences and their translations, in one joint vocabulary, batched by tokens.

Whatever may be told apart only by its split comes from whole documents: which split a document is in follows from its
name alone, so no document is in two, and a set that grows keeps its splits.

A batch holds as many pairs as have `batch_size` tokens on the longer side, and a multiple of `multiple` pairs, so that
it divides evenly over processes and accumulated parts. The pairs of a batch are of about one length: each epoch is
shuffled, sorted by length within pools of it, cut, and its batches shuffled.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as library
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from etude.data import debian_pairs, fetch, order, remotes, tokenizers
from etude.data.base import Batch, Data, Dataset, same_source
from etude.data.text import is_file, lines_named, read_file
from etude.errors import MissingError, UsageError

PADDING, BEGIN, END = "<pad>", "<s>", "</s>"
"""Ids 0, 1, 2 of every vocabulary that is learned here."""
SPLITS = ("train", "validation", "test")
POOL = 8192
"""Pairs among which those of about one length are put together."""
LONGEST_LINE = 100_000
"""Characters of a line; no sentence has as many, and a file without line ends has more."""
Texts = list[str]


@dataclass(frozen=True)
class Pairs(Data):
    """Text in one language and its translation."""

    source: str = "en-de"
    """The two languages, "en-de", "en-fr" or "en-zh" from Debian (`etude data get en-de`); with `path` any two."""
    path: str = ""
    """Your own: a TSV file of source and target, or document, source and target; or a folder (or the beginning of file
    names) with train.en and train.de, if the source is "en-de", and as many of validation.en, ... test.de as there are.
    What has no validation or test part gets them by document, or where there are none by sentence."""
    vocab_size: int = 8000
    """Tokens of the joint byte-level BPE that is learned on both sides of the training split."""
    vocabulary: str = ""
    """A tokenizer.json to take instead, such as a run's."""
    longest: int = 128
    """Tokens of a side; longer pairs are left out of training, never out of an evaluation."""
    validation: float = 0.02
    """The share of documents on which the best weights are chosen."""
    test: float = 0.02
    translated: int = 400
    """Pairs of validation that are translated at each evaluation; all of test are at the end."""
    multiple: int = 8
    """A batch holds a multiple of this many pairs."""
    limit: int = 0
    """Pairs taken, for short runs; 0 takes all."""

    def __post_init__(self) -> None:
        if self.longest < 2 or self.multiple < 1 or self.limit < 0 or self.translated < 1:
            raise UsageError(
                f"data.longest {self.longest} must be at least 2, data.multiple {self.multiple} and data.translated "
                f"{self.translated} at least 1, and data.limit {self.limit} not negative"
            )
        if not (self.validation >= 0 and self.test > 0 and self.validation + self.test < 1):
            raise UsageError(
                f"data.validation {self.validation} and data.test {self.test} must be shares of the documents that "
                "leave some for training",
                hint="--data.validation 0.02 --data.test 0.02",
            )
        if self.source.count("-") != 1 or not all(self.source.split("-")):
            raise UsageError(f"data.source is {self.source!r}; it must name two languages", hint="--data.source en-de")

    @property
    def languages(self) -> tuple[str, str]:
        """What is translated from and to."""
        first, _, second = self.source.partition("-")
        return first, second

    def open(self) -> "PairsDataset":
        """Read the pairs, learn the vocabulary or find it where it was kept, and number the tokens."""
        return PairsDataset(self)

    def reopen(self, facts: dict[str, Any]) -> "PairsDataset":
        """These pairs in a run's own tokens. Other pairs than the run's are all the test part, as nothing was learned
        from them; of a folder, its test files."""
        tokenizer = tokenizers.from_json(facts["files"][tokenizers.FILE], where="the run's tokenizer.json")
        return PairsDataset(self, tokenizer, None if same_source(facts, self) else {"test": load_all(self)})

    def read(self, words: Sequence[str]) -> list[tuple[str, str | Path]]:
        """A file's name stands for the lines that the file holds, "-" for those of standard input, anything else for
        itself."""
        inputs: list[tuple[str, str | Path]] = []
        for word in words:
            inputs += lines_named([word]) if word == "-" else [(word, Path(word) if is_file(word) else word)]
        return inputs

    def lines(self, path: Path) -> Texts:
        """The lines of a file. UsageError where it is empty, no UTF-8, or has a line that is too long."""
        return lines_of(path)

    def prepare(self, raw: Any) -> Tensor:
        """A sentence -> (S,) ids with the end token. Reads the whole data for its vocabulary; a run keeps that."""
        return torch.from_numpy(encode(self.open().tokenizer, [raw])[0][0])

    def collate(self, samples: list[Tensor]) -> Batch:
        """Ids of sentences -> {"source": (B, S), "source_length": (B,)}."""
        return padded("source", [sample.numpy() for sample in samples])


# ---------------------------------------------------------------- reading


def load(data: Pairs) -> dict[str, tuple[Texts, Texts]]:
    """Sources and targets of each split. MissingError where they are not on this machine, UsageError where they are no
    pairs."""
    path = Path(data.path).expanduser() if data.path else fetch.path(_known(data.source)) / debian_pairs.FILE
    if path.is_file():
        return _split(_tsv(path), data, str(path))
    prefix = f"{path}/" if path.is_dir() else f"{path}."
    files = {split: tuple(Path(f"{prefix}{split}.{language}") for language in data.languages) for split in SPLITS}
    parts = {
        split: _aligned(*both)
        for split, both in files.items()
        if any(file.is_file() for file in both) or (split == "train" and path.is_dir())
    }
    if "train" not in parts:
        raise MissingError(
            f"{path}: there is neither such a file nor {files['train'][0]} and {files['train'][1].name}",
            hint="--data.path PAIRS.tsv, or a folder with train.en and train.de",
        )
    if data.limit:
        parts["train"] = (parts["train"][0][: data.limit], parts["train"][1][: data.limit])
    if "test" in parts and ("validation" in parts or data.validation == 0):
        return {split: (list(a), list(b)) for split, (a, b) in parts.items()}
    own = [(text, text, translation) for text, translation in zip(*parts.pop("train"))]
    return _split(own, data, str(files["train"][0]), taken=tuple(parts)) | {
        s: (list(a), list(b)) for s, (a, b) in parts.items()
    }


def load_all(data: Pairs) -> tuple[Texts, Texts]:
    """All sources and targets of a table; of a folder, those of test.*, or train.* where there are none."""
    path = Path(data.path).expanduser() if data.path else fetch.path(_known(data.source)) / debian_pairs.FILE
    if path.is_file():
        rows = _tsv(path)
        return [text for _, text, _ in rows], [translation for _, _, translation in rows]
    prefix = f"{path}/" if path.is_dir() else f"{path}."
    files = [tuple(Path(f"{prefix}{split}.{language}") for language in data.languages) for split in ("test", "train")]
    return _aligned(*next((both for both in files if both[0].is_file()), files[0]))


def _known(source: str) -> str:
    if source not in remotes.REMOTES:
        raise UsageError(
            f"there are no pairs {source!r}", hint="en-de, en-fr or en-zh, or pairs of your own: --data.path PAIRS.tsv"
        )
    return source


def lines_of(path: Path) -> Texts:
    """The lines of a UTF-8 file, which only a line feed ends. UsageError names what is amiss, and the line."""
    lines = read_file(path).removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE:
            raise UsageError(
                f"{path}, line {number:,}: {len(line):,} characters, where {LONGEST_LINE:,} are the most",
                hint="one sentence a line",
            )
    return [line.removesuffix("\r") for line in lines]


def _aligned(source: Path, target: Path) -> tuple[Texts, Texts]:
    for path in (source, target):
        if not path.is_file():
            raise MissingError(f"{path}: no such file", hint="sources and targets lie in two files, line for line")
    a, b = lines_of(source), lines_of(target)
    if len(a) != len(b):
        raise UsageError(
            f"{source} has {len(a):,} lines and {target.name} {len(b):,}; line for line, one must translate the other"
        )
    kept = [(x.strip(), y.strip()) for x, y in zip(a, b) if x.strip() and y.strip()]
    if not kept:
        raise UsageError(f"{source} and {target.name} hold no pair: in each line one side is empty")
    return [x for x, _ in kept], [y for _, y in kept]


def _tsv(path: Path) -> list[tuple[str, str, str]]:
    """(document, source, target) of each line; a pair without a document is its own, under its source's text."""
    rows = []
    for number, line in enumerate(lines_of(path), 1):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) not in (2, 3):
            raise UsageError(
                f"{path}, line {number:,}: {len(cells)} column{'s' * (len(cells) != 1)}; there must be two (source, "
                "target) or three (document, source, target), with a tab between"
            )
        if cells[-1] and cells[-2]:
            rows.append((cells[0], cells[-2], cells[-1]))
    if not rows:
        raise UsageError(f"{path} holds no pair: in each line one side is empty")
    return rows


def share(document: str) -> float:
    """A number in [0, 1) that follows from a document's name alone."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) / 2**64


def _split(
    rows: list[tuple[str, str, str]], data: Pairs, where: str, *, taken: tuple[str, ...] = ()
) -> dict[str, tuple[Texts, Texts]]:
    """Rows by document into the splits that are not taken, in their order."""
    wanted = {"test": data.test * ("test" not in taken), "validation": data.validation * ("validation" not in taken)}
    parts: dict[str, tuple[Texts, Texts]] = {split: ([], []) for split in SPLITS}
    for document, text, translation in rows[: data.limit or len(rows)]:
        at = share(document)
        split = "test" if at < wanted["test"] else "validation" if at < sum(wanted.values()) else "train"
        parts[split][0].append(text)
        parts[split][1].append(translation)
    parts = {split: parts[split] for split in SPLITS if split == "train" or wanted[split]}
    if empty := [split for split, (a, _) in parts.items() if not a]:
        raise UsageError(
            f"the {empty[0]} part of {where} is empty: it has {len(rows):,} pairs",
            hint="more pairs, or larger shares: --data.validation 0.2 --data.test 0.2",
        )
    return parts


# ---------------------------------------------------------------- tokens


def joint_bpe(parts: tuple[Texts, Texts], vocab_size: int) -> Tokenizer:
    """One byte-level BPE for both languages, learned once and kept under `fetch.home()` by what it was learned from."""
    sha = hashlib.sha256(f"{library.__version__} {vocab_size}\n".encode())
    for side in parts:
        for text in side:
            sha.update(text.encode("utf-8", "surrogatepass") + b"\n")
    kept = fetch.home() / "tokenizers" / f"{sha.hexdigest()}.json"
    if kept.is_file():
        return tokenizers.read(kept)
    learned = tokenizers.train_bpe((t for side in parts for t in side), vocab_size, special=(PADDING, BEGIN, END))
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{hashlib.sha256(str(id(learned)).encode()).hexdigest()[:8]}.part")
    part.write_text(tokenizers.to_json(learned), encoding="utf-8")
    part.replace(kept)
    return learned


def encode(tokenizer: Tokenizer, texts: Texts) -> tuple[list[NDArray[np.int64]], int]:
    """(T,) ids of each text with the end token, and that token's id. UsageError where the vocabulary has none."""
    end = special(tokenizer)["end"]
    tokenizer.encode_special_tokens = True  # "</s>" in a text is text
    encoded = tokenizer.encode_batch([text.strip() for text in texts], add_special_tokens=False)
    return [np.array([*one.ids, end], dtype=np.int64) for one in encoded], end


def special(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of padding, begin and end."""
    names = {"padding": PADDING, "begin": BEGIN, "end": END}
    found = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    ids = {name: number for name, number in found.items() if number is not None}
    if lacking := [token for name, token in names.items() if name not in ids]:
        raise UsageError(f"the vocabulary is of another kind: it has no {', '.join(lacking)}")
    return ids


def padded(name: str, rows: Sequence[NDArray[np.int64]]) -> Batch:
    """Rows of ids, padded on the right with 0, and their lengths: {name: (B, T), name + "_length": (B,)}."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return {name: torch.from_numpy(ids), f"{name}_length": torch.from_numpy(lengths)}


@dataclass(frozen=True)
class _Side:
    """Texts as tokens, laid end to end."""

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def rows(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [self.ids[self.starts[i] : self.starts[i + 1]].astype(np.int64) for i in indices]


def _side(tokenizer: Tokenizer, texts: Texts) -> _Side:
    ids: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for first in range(0, len(texts), 20_000):  # a part at a time: the library's objects are many times the ids
        rows, _ = encode(tokenizer, texts[first : first + 20_000])
        ids.append(np.concatenate(rows).astype(np.int32))
        lengths += map(len, rows)
    return _Side(np.concatenate(ids), np.cumsum([0, *lengths]))


# ---------------------------------------------------------------- batches


class PairsDataset(Dataset):
    """Opened pairs. A batch: {"source": (B, S), "target": (B, T)} with the end token, padded on the right with 0, their
    "source_length" and "target_length": (B,), "index": (B,), and in training "weight": (B,), by which each pair's loss,
    a sum over its tokens, is multiplied so that a mean over the batch's pairs, parts and processes is the mean over its
    tokens; in evaluation "translated": (B,), whether the pair counts for BLEU."""

    def __init__(
        self, data: Pairs, tokenizer: Tokenizer | None = None, texts: dict[str, tuple[Texts, Texts]] | None = None
    ):
        """`tokenizer` and `texts`: a run's own, and what it is measured on, where these are given."""
        self.data = data
        self.texts = texts or load(data)
        given = data.vocabulary and tokenizers.read(Path(data.vocabulary).expanduser())
        self.tokenizer = tokenizer or given or joint_bpe(self.texts["train"], data.vocab_size)
        self._sides = {s: tuple(_side(self.tokenizer, side) for side in both) for s, both in self.texts.items()}
        learned = self._sides.get("train") or self._sides["test"]
        longer = np.maximum(*(side.lengths for side in learned))
        self._kept = np.flatnonzero(longer <= data.longest)
        if len(self._kept) < data.multiple and "train" in self.texts:
            raise UsageError(
                f"{data.path or data.source}: {len(self._kept):,} of {len(longer):,} training pairs have at most "
                f"{data.longest} tokens a side, and a batch takes {data.multiple}",
                hint="--data.longest 512, or more pairs",
            )
        self._longer = longer[self._kept]
        self.sizes = {s: len(self._kept) if s == "train" else len(a) for s, (a, _) in self.texts.items()}
        tokens = {s: [len(side.ids) for side in sides] for s, sides in self._sides.items()}
        self.facts = {
            "source": data.path or data.source,
            "languages": list(data.languages),
            "vocab_size": self.tokenizer.get_vocab_size(),
            **special(self.tokenizer),
            "sizes": self.sizes,
            "tokens": tokens,
            "left_out": len(longer) - len(self._kept),
        }
        self.files = {tokenizers.FILE: tokenizers.to_json(self.tokenizer)}
        self._plan = lru_cache(maxsize=2)(self._planned)
        self._begins: dict[tuple[int, int], list[int]] = {}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        """These pairs. In training the batch is taken for a whole one."""
        places = np.asarray(indices, dtype=np.int64)
        rows = self._kept[places] if split == "train" else places
        source, target = (side.rows(rows) for side in self._sides[split])
        batch = padded("source", source) | padded("target", target) | {"index": torch.from_numpy(places)}
        if epochs is not None:
            tokens = int(batch["target_length"].sum())
            return batch | {"weight": torch.full((len(places),), len(places) / tokens)}
        return batch | {"translated": torch.from_numpy(self._translated(split, places))}

    def _translated(self, split: str, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether pairs are translated in an evaluation: all of test, of others an even choice."""
        size, wanted = self.sizes[split], self.data.translated
        if split == "test" or wanted >= size:
            return np.ones(len(places), dtype=bool)
        return places * wanted // size != (places + 1) * wanted // size

    def batch(self, *, seed: int, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """This process's share of the batch of `step`: every `world`-th of its pairs, of all lengths."""
        if self.data.multiple % world:
            raise UsageError(
                f"a batch holds a multiple of {self.data.multiple} pairs, which do not divide over {world} processes",
                hint=f"--data.multiple {world * max(1, 8 // world)}",
            )
        epoch = self._epoch(seed, step, batch_size)
        chosen = self._plan(seed, epoch, batch_size)[step - self._begins[seed, batch_size][epoch]]
        batch = self.fetch("train", chosen[rank::world], epochs=epoch, seed=seed)
        tokens = self._sides["train"][1].lengths[self._kept[chosen]].sum()
        return batch | {"weight": torch.full((len(chosen) // world,), len(chosen) / tokens)}

    def stretch(self, *, seed: int, start: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """Refused: where a batch that is counted in tokens begins depends on those before it."""
        raise UsageError("batches of pairs are counted in tokens, and their size cannot ramp", hint="--ramp.first 0")

    def _epoch(self, seed: int, step: int, batch_size: int) -> int:
        """The epoch that a step is in; notes where each begins."""
        begins = self._begins.setdefault((seed, batch_size), [0])
        while begins[-1] <= step:
            begins.append(begins[-1] + len(self._plan(seed, len(begins) - 1, batch_size)))
        return int(np.searchsorted(begins, step, side="right")) - 1

    def _planned(self, seed: int, epoch: int, batch_size: int) -> list[NDArray[np.int64]]:
        """The batches of an epoch: every pair once, and a few twice where the pairs are no multiple of `multiple`."""
        size, multiple = len(self._kept), self.data.multiple
        shuffled = order.permutation(seed, epoch, size)
        shuffled = np.concatenate([shuffled, shuffled[: -size % multiple]])
        batches: list[NDArray[np.int64]] = []
        pool = POOL // multiple * multiple
        for first in range(0, len(shuffled), pool):
            members = shuffled[first : first + pool]
            members = members[np.argsort(self._longer[members], kind="stable")]
            batches += _cut(members, self._longer[members], batch_size, multiple)
        return [batches[i] for i in order.permutation(seed, epoch, len(batches))]

    def epochs(self, step: float, batch_size: int) -> float:
        """How many epochs the batches before `step` make up, by the tokens of the longer sides."""
        return step * batch_size / self._longer.sum()

    def spans(self, split: str, *, batch_size: int, rank: int = 0, world: int = 1) -> list[Sequence[int]]:
        """Every pair once, in batches of about one length and at most `batch_size` tokens, or one pair."""
        longer = np.maximum(*(side.lengths for side in self._sides[split]))
        longer = longer[self._kept] if split == "train" else longer
        members = np.argsort(longer, kind="stable")
        return [span.tolist() for span in _cut(members, longer[members], batch_size, 1)[rank::world]]

    def samples(self, split: str, count: int) -> list[tuple[str, str]]:
        """Sentences of a split, evenly spread."""
        size = self.sizes[split]
        chosen = [i * size // min(count, size) for i in range(min(count, size))]
        return [(f"{split} {i}", self.texts[split][0][i]) for i in chosen]


def _cut(members: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int, multiple: int) -> list[NDArray[np.int64]]:
    """Cut a row of sorted members into batches of `tokens`, each a multiple of `multiple` members, and at least one
    multiple."""
    ends = np.concatenate([[0], lengths.cumsum()])
    batches, first = [], 0
    while first < len(members):
        last = int(np.searchsorted(ends, ends[first] + tokens, side="right")) - 1
        last = first + max(multiple, (last - first) // multiple * multiple)
        batches.append(members[first:last])
        first = last
    return batches
