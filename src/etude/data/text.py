"""`Text`: any text as characters or bytes, split by contiguous parts, cut into windows.

The parts are train, validation and test in the text's own order, so no held-out character is ever learned from; each
held-out character is predicted exactly once, with at least `context` characters before it wherever there are so many
within the part.
"""

import codecs
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.data import documents, fetch
from etude.data.base import Batch, Data
from etude.data.windows import Windows
from etude.errors import UsageError

UNKNOWN = "\ufffd"
"""Stands for those characters of held-out parts that the training part does not have, if there are any."""
NAMES = {".txt", ".text", ".md", ".tsv", ".csv", ".json", ".jsonl", ".html", ".xml"}
"""Endings of words that name a file, there or not."""
NAMED = 60
"""Characters of a sentence by which an answer to it is named."""
LOOKED = 100_000
"""Characters of a text that are looked at to see whether it is one."""
SAMPLE = 120
"""Characters of a sample of a split, as `predict` continues it."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a text: its characters in the order of their code points, or the 256 bytes of UTF-8."""

    characters: str
    """Empty for bytes."""

    def __len__(self) -> int:
        return len(self.characters) or 256

    def encode(self, text: str) -> NDArray[np.int64]:
        """(T,) ids. UsageError names characters that the vocabulary lacks."""
        if not self.characters:
            return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64)
        known, points = code_points(self.characters), code_points(text)
        ids = np.searchsorted(known, points).clip(max=len(known) - 1)
        if (missing := known[ids] != points).any():
            lacking = "".join(chr(point) for point in np.unique(points[missing]))
            raise UsageError(
                f"the text holds {_shown(lacking)}, which the training text does not",
                hint=f"use its {len(known)} characters: {_shown(self.characters)}",
            )
        return ids.astype(np.int64)

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        if not self.characters:
            return bytes(int(i) for i in ids).decode("utf-8", "replace")
        return "".join(self.characters[int(i)] for i in ids)

    def texts(self, ids: Iterable[int]) -> Iterator[str]:
        """Each token as text; of bytes, a character comes with its last."""
        return incremental(bytes([i]) if not self.characters else self.characters[i].encode() for i in ids)


def incremental(parts: Iterable[bytes]) -> Iterator[str]:
    """The text of each part of UTF-8; a character that is divided comes with its last part."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return (decoder.decode(part) for part in parts)


def code_points(text: str) -> NDArray[np.uint32]:
    """(T,) numbers of the characters."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _shown(characters: str, most: int = 100) -> str:
    return repr(characters[:most]) + (f" and {len(characters) - most} more" if len(characters) > most else "")


class TextTokens(Protocol):
    """The tokens that a text is made of."""

    def __len__(self) -> int: ...

    def encode(self, text: str) -> NDArray[np.int64]:
        """(T,) ids. UsageError names what has none."""
        ...

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of ids."""
        ...

    def texts(self, ids: Iterable[int]) -> Iterator[str]:
        """Each token as text, as the ids come; a character of several tokens comes with the last of them."""
        ...


class Texts(Data):
    """What data of texts have in common: what their raw inputs are."""

    @abstractmethod
    def vocabulary_of(self, facts: dict[str, Any]) -> "TextTokens":
        """The tokens of a run, from its facts."""

    def read(self, words: Sequence[str]) -> list[tuple[str, str | Path]]:
        """A file's name stands for what the file holds, "-" for what stdin gives, anything else for itself."""
        return [(word, stdin() if word == "-" else Path(word) if is_file(word) else word) for word in words]

    def text(self, raw: Any) -> str:
        """A raw input's text: itself, or what a path's file holds."""
        if isinstance(raw, Path):
            return read_file(raw)
        if not isinstance(raw, str):
            raise UsageError(f"a text is wanted, or a Path to one, not {type(raw).__name__}")
        return checked(raw)

    def prepare(self, raw: Any) -> Tensor:
        """A text, or a Path to one -> (T,) ids. Reads the whole text for its vocabulary; a run keeps that in its
        facts."""
        return torch.from_numpy(self.open().vocabulary.encode(self.text(raw)))  # pyright: ignore[reportAttributeAccessIssue]

    def collate(self, samples: list[Tensor]) -> Batch:
        """Ids of texts of one length -> {"tokens": (B, T)}."""
        return {"tokens": torch.stack(samples)}


@dataclass(frozen=True)
class Text(Texts):
    """A text to predict token by token."""

    source: str = "bible"
    """"bible", the World English Bible; or any name, for a text of your own at `path`."""
    path: str = ""
    """A UTF-8 text file, a folder of .txt files (joined in the order of their names) or of SWORD's zText files."""
    tokens: Literal["characters", "bytes"] = "characters"
    length: int = 256
    """Tokens that a training sequence predicts."""
    context: int = 256
    """Tokens before each evaluated window that are read but not counted."""
    validation: float = 0.05
    """The share of the text before the test part on which the best weights are chosen."""
    test: float = 0.05
    """The share at the end of the text."""
    limit: int = 0
    """Characters taken from the text's beginning, for short runs; 0 takes all."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.context < 0 or self.limit < 0:
            raise UsageError(
                f"data.length {self.length} must be positive, and data.context {self.context} and data.limit "
                f"{self.limit} must not be negative"
            )
        if not (self.validation >= 0 and self.test > 0 and self.validation + self.test < 1):
            raise UsageError(
                f"data.validation {self.validation} and data.test {self.test} must be shares of the text that leave "
                "some for training",
                hint="--data.validation 0.05 --data.test 0.05",
            )

    def open(self) -> "TextDataset":
        """Read the text and number its tokens."""
        return TextDataset(self)

    def reopen(self, facts: dict[str, Any]) -> "TextDataset":
        """The text in the run's characters."""
        return TextDataset(self, self.vocabulary_of(facts))

    def load(self) -> str:
        """The text. MissingError where it is not on this machine, UsageError where it is none."""
        if not self.path and self.source != "bible":
            raise UsageError(f"there is no text {self.source!r}", hint="bible, or a text of your own: --data.path FILE")
        folder = Path(self.path).expanduser() if self.path else fetch.path("bible")
        return "\n".join(read_file(file) for file in documents.files_of(folder))

    def vocabulary_of(self, facts: dict[str, Any]) -> Vocabulary:
        """The run's characters, or bytes."""
        return Vocabulary(facts["vocabulary"])


def stdin() -> str:
    """Standard input; UsageError names the first byte that is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not UTF-8 text: byte {error.start:,} is 0x{error.object[error.start]:02x}"
        ) from None


def checked(raw: str) -> str:
    """A text; UsageError where Python read it from bytes that are not UTF-8, as of a command line."""
    if any(0xD800 <= ord(character) <= 0xDFFF for character in raw[:LOOKED]):
        raise UsageError("the text is not UTF-8")
    return raw


def is_file(word: str) -> bool:
    """Whether a word of a command line names a file. UsageError for one that looks like a file's name and is none, as
    it would be taken for a text."""
    try:
        path = Path(word)
        if path.is_file():
            return True
    except (OSError, ValueError):  # too long for a name, or no name at all
        return False
    if len(word.split()) == 1 and path.suffix.lower() in NAMES:
        raise UsageError(f"there is no file {word}", hint=f"ls, or a text that does not end in {path.suffix}")
    return False


def lines_named(words: Sequence[str]) -> list[tuple[str, str]]:
    """What is named on a command line: "-" is standard input and a file's name its content, one sentence a line;
    anything else is a sentence. Each with a name."""
    inputs: list[tuple[str, str]] = []
    for word in words:
        if word == "-":
            inputs += _lines(stdin(), "standard input")
        elif is_file(word):
            inputs += _lines(read_file(Path(word)), word)
        else:
            inputs.append((_short(word), word))
    return inputs


def _lines(content: str, where: str) -> list[tuple[str, str]]:
    """Each line that is not blank, with its number. UsageError if there is none."""
    numbered = [(number, line.strip()) for number, line in enumerate(content.split("\n"), 1)]
    lines = [(f"{number}: {_short(line)}", line) for number, line in numbered if line]
    if not lines:
        raise UsageError(f"there is no sentence in {where}")
    return lines


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= NAMED else f"{sentence[:NAMED]}..."


def read_file(path: Path) -> str:
    """A UTF-8 file's text; UsageError where it is empty, or names the first byte that is not UTF-8."""
    text = "".join(documents.decoded(path))
    if not text:
        raise UsageError(f"{path} is empty")
    return text


class TextDataset(Windows):
    """An opened text. In evaluation a window says how many "characters" its own predictions are."""

    def __init__(self, data: Text, known: Vocabulary | None = None):
        """`known`: tokens to read it in, where these are not the training part's own."""
        self.data = data
        text = data.load()
        text = text[: data.limit or len(text)]
        name = data.path or data.source
        first, last = (round(len(text) * share) for share in (1 - data.validation - data.test, 1 - data.test))
        parts = {"train": text[:first], "validation": text[first:last], "test": text[last:]}
        if data.validation == 0:
            del parts["validation"]
        if len(parts["train"]) < data.length + 1:
            raise UsageError(
                f"{name} is shorter than a sequence: {len(parts['train']):,} of its {len(text):,} characters are for "
                f"training, and a sequence takes {data.length + 1:,}",
                hint=f"--data.length {max(1, len(parts['train']) // 8)}, or a longer text",
            )
        if empty := [split for split, part in parts.items() if not part]:
            raise UsageError(
                f"the {empty[0]} part of {name} is empty: the text has {len(text):,} characters",
                hint=f"a longer text, or a larger share: --data.{empty[0]} 0.2",
            )
        self.vocabulary, ids, unknown = _number(parts, data.tokens, known)
        # a held-out part begins with the token before it, so that its first one is predicted too
        before = np.concatenate(list(ids.values()))
        starts = np.cumsum([0, *map(len, ids.values())])
        rows = {split: before[max(0, a - 1) : b] for split, a, b in zip(ids, starts, starts[1:])}
        super().__init__(rows, length=data.length, context=data.context, stride=data.length)
        self.facts = {
            "source": name,
            "tokens": data.tokens,
            "vocabulary": self.vocabulary.characters,
            "characters": {split: len(part) for split, part in parts.items()},
            "sizes": self.sizes,
            "unknown": unknown,
        }

    def amounts(self, split: str, targets: Tensor, own: Tensor) -> Batch:
        """Characters of bytes are those that are no continuation."""
        if self.data.tokens == "bytes":
            own = own & (targets & 0xC0 != 0x80)
        return {"characters": own.sum(1)}

    def samples(self, split: str, count: int) -> list[tuple[str, str]]:
        """Pieces of a split, as prompts."""
        ids = self.ids[split][1:]
        count = min(count, max(1, len(ids) // SAMPLE))
        starts = [i * len(ids) // count for i in range(count)]
        return [(f"{split}, token {at:,}", self.vocabulary.decode(ids[at : at + SAMPLE])) for at in starts]


def _number(
    parts: dict[str, str], tokens: str, given: Vocabulary | None
) -> tuple[Vocabulary, dict[str, NDArray[Any]], int]:
    """The training part's vocabulary or that given, each part as its ids, and how many characters it lacks."""
    if tokens == "bytes":
        return Vocabulary(""), {split: np.frombuffer(part.encode(), np.uint8) for split, part in parts.items()}, 0
    points = {split: code_points(part) for split, part in parts.items()}
    known = code_points(given.characters) if given else np.unique(points["train"])
    lacking = {split: ~np.isin(part, known) for split, part in points.items()}
    unknown = sum(int(missing.sum()) for missing in lacking.values())
    if unknown and given and UNKNOWN not in given.characters:
        given.encode("".join(parts.values()))  # tells which
    if unknown:
        known = np.union1d(known, code_points(UNKNOWN))
    ids = {
        split: np.searchsorted(known, np.where(lacking[split], ord(UNKNOWN), part)).astype(np.int32)
        for split, part in points.items()
    }
    return Vocabulary("".join(map(chr, known.tolist()))), ids, unknown
