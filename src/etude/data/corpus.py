"""`Corpus`: documents of plain text as rows of token ids, cut into windows.

The files are read twice, a piece at a time: once to number and check the documents, once to write each part's tokens.
What is written lies in `$ETUDE_HOME/tokens/DIGEST`, named by a digest of the documents and of all that bears on their
tokens, so it is made once; a folder appears when it is whole, so a kill leaves nothing half-made. The rows are mapped
from there, never read whole.

A part's row is END document END document ... END: each document, the first too, is predicted from the token before it.
Parts do not leak: where there are many documents, which part one belongs to follows from its content, so that equal
ones stay together; few are laid end to end and cut into contiguous parts. A tokenizer is trained on the training part.
"""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from etude import progress
from etude.data import documents, fetch, tokenizers
from etude.data.base import Batch
from etude.data.documents import Documents
from etude.data.text import SAMPLE, Texts, incremental
from etude.data.windows import Windows
from etude.errors import RefusedError, UsageError

Kind = Literal["bytes", "bpe", "gpt2", "wordpiece"]
SOURCES = ("bible", "descriptions")
"""The texts that `etude data get` gets."""
RECEIPT = "corpus.json"
FORMAT = 1
"""Counts the changes of what is written, so that no version takes another's files for its own."""
MANY = 100
"""From so many documents on, whole ones are held out."""
AT_ONCE = 1 << 22
"""Characters that are tokenised together, on all cores."""
END_OF_BYTES = 256
"""The id between documents of bytes."""
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus(Texts):
    """Documents to predict token by token."""

    source: str = "bible"
    """"bible", the World English Bible; "descriptions", what Debian's packages say of themselves (documents are between
    blank lines); or any name, for texts of your own at `path`."""
    path: str = ""
    """A UTF-8 text file, a folder of .txt files, or a folder of tokens that was made from such."""
    documents: Documents = "file"
    """What a document is: a whole file, what stands between blank lines, or a line."""
    tokens: Kind = "bpe"
    """bytes; bpe, learned from the training part; or a published vocabulary: gpt2's, or BERT's wordpiece."""
    vocab_size: int = 8192
    """Tokens that bpe learns, the bytes and the one between documents included."""
    vocabulary: str = ""
    """Of gpt2 and wordpiece: the folder of the published vocabulary, or the set of `etude data get` that holds it
    (default: gpt2-bpe, minilm)."""
    length: int = 256
    """Tokens that a window predicts."""
    context: int = 128
    """Tokens of an evaluated window that are predicted but not counted, as the window before has counted them: each
    token that counts has at least so many before it. The more, the truer and slower."""
    validation: float = 0.05
    """The share of the text on which the best weights are chosen."""
    test: float = 0.05
    """The share that is held out to the end."""
    parts: Literal["auto", "documents", "contiguous"] = "auto"
    """How they are held out: whole documents, or contiguous parts of the text in its order, training first; auto holds
    out documents where there are a hundred or more."""

    def __post_init__(self) -> None:
        if not 0 <= self.context < self.length:
            raise UsageError(
                f"data.context {self.context} must be less than data.length {self.length}, and neither negative",
                hint=f"--data.context {self.length // 2}",
            )
        if not (self.validation >= 0 and self.test > 0 and self.validation + self.test < 1):
            raise UsageError(
                f"data.validation {self.validation} and data.test {self.test} must be shares of the text that leave "
                "some for training",
                hint="--data.validation 0.05 --data.test 0.05",
            )

    def open(self) -> "CorpusDataset":
        """Map the tokens, which are made first where they are not there yet."""
        return CorpusDataset(self, self._folder(None))

    def reopen(self, facts: dict[str, Any]) -> "CorpusDataset":
        """These documents in a run's own tokens. Where they are the run's own documents, so are the parts; of others
        nothing was learned from, and all is the test part."""
        dataset = CorpusDataset(self, self._folder(facts))
        if dataset.facts["tokenizer"] != facts.get("tokenizer"):
            raise UsageError(
                f"{dataset.folder} holds tokens of another tokenizer than the run's",
                hint="--data-path FILE, the text itself",
            )
        return dataset

    def vocabulary_of(self, facts: dict[str, Any]) -> "Tokens":
        """The run's tokens."""
        return Tokens.from_json(None if facts["tokens"] == "bytes" else facts["files"][tokenizers.FILE])

    def files(self) -> list[Path]:
        """The text files."""
        if not self.path and self.source not in SOURCES:
            raise UsageError(
                f"there is no text {self.source!r}",
                hint=f"{' or '.join(SOURCES)}, or texts of your own: --data.path FILE_OR_FOLDER",
            )
        folder = Path(self.path).expanduser() if self.path else fetch.path(self.source)
        return documents.files_of(folder)

    def _folder(self, facts: dict[str, Any] | None) -> Path:
        """The folder of tokens."""
        given = Path(self.path).expanduser() if self.path else None
        if given and (given / RECEIPT).is_file():
            return given
        survey = Survey.of(self.files(), self.documents, self.path or self.source)
        settings = {name: value for name, value in asdict(self).items() if name in SETTINGS}
        tokens = None
        if facts is not None and survey.digest != facts.get("content"):
            settings |= {"validation": 0.0, "test": 1.0}
            tokens = self.vocabulary_of(facts)
        elif self.tokens != "bpe":
            tokens = Tokens(self.published())
        made_of = {"format": FORMAT, "content": survey.digest, **settings}
        # with a tokenizer that is to be trained, the name follows from what it is trained on
        made_of |= {"tokenizer": tokens.digest if tokens else f"bpe {self.vocab_size}"}
        name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
        folder = fetch.home() / "tokens" / name
        if not folder.is_dir():
            make(self, folder, survey, settings, tokens)
        return folder

    def published(self) -> Tokenizer | None:
        """The tokenizer of a published vocabulary; None for bytes."""
        if self.tokens == "bytes":
            return None
        default = "gpt2-bpe" if self.tokens == "gpt2" else "minilm"
        named = Path(self.vocabulary).expanduser()
        folder = named if self.vocabulary and named.exists() else fetch.path(self.vocabulary or default)
        if self.tokens == "gpt2":
            return tokenizers.gpt2(folder)
        return tokenizers.wordpiece(folder / "vocab.txt" if folder.is_dir() else folder)


SETTINGS = ("documents", "validation", "test", "parts")
"""What, besides the documents and the tokenizer, bears on the tokens."""


class Tokens:
    """The tokens of a corpus: those of a tokenizer, or (None) the 256 bytes and one between documents."""

    def __init__(self, tokenizer: Tokenizer | None):
        self.tokenizer = tokenizer
        if tokenizer is None:
            self.end = END_OF_BYTES
            return
        tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document is text
        found = [tokenizer.token_to_id(name) for name in (tokenizers.END_OF_TEXT, "[SEP]")]
        ends = [id for id in found if id is not None]
        if not ends:
            raise RefusedError(f"the tokenizer has no token between documents, {tokenizers.END_OF_TEXT} or [SEP]")
        self.end: int = ends[0]

    @staticmethod
    def from_json(document: str | None) -> "Tokens":
        """From a run's tokenizer.json; None stands for bytes."""
        return Tokens(tokenizers.from_json(document) if document is not None else None)

    @cached_property
    def digest(self) -> str:
        """Tells tokens from others."""
        document = tokenizers.to_json(self.tokenizer) if self.tokenizer else "bytes"
        return hashlib.sha256(document.encode()).hexdigest()

    @cached_property
    def bytes(self) -> list[bytes] | None:
        """What each token stands for, of the one between documents nothing; None for wordpiece, which keeps neither
        space nor case."""
        if self.tokenizer is None:
            return [*(bytes([i]) for i in range(256)), b""]
        return tokenizers.token_bytes(self.tokenizer)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size() if self.tokenizer else 257

    def encode(self, text: str) -> NDArray[np.int64]:
        """(T,) ids of a text."""
        if self.tokenizer is None:
            return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64)
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def encode_all(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """(T,) ids of each text."""
        if self.tokenizer is None:
            return [self.encode(text) for text in texts]
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in found]

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        if self.bytes is None:
            assert self.tokenizer
            return self.tokenizer.decode([int(i) for i in ids])
        return b"".join(self.bytes[int(i)] for i in ids).decode("utf-8", "replace")

    def texts(self, ids: Iterable[int]) -> Iterator[str]:
        """Each token as text; a character of several tokens comes with the last of them."""
        known = self.bytes
        if known is None:
            yield from (self.decode([i]) + " " for i in ids)
        else:
            yield from incremental(known[i] for i in ids)


# ---------------------------------------------------------------- making


@dataclass(frozen=True)
class Survey:
    """What a first reading tells of documents."""

    files: list[Path]
    kind: Documents
    bytes: int
    characters: int
    digest: str
    """Of the documents in their order."""
    draws: "array[float]"
    """A number in [0, 1) for each document, the same for the same content."""

    @staticmethod
    def of(files: list[Path], kind: Documents, name: str) -> "Survey":
        """Read the files once. UsageError where there is no text, or none that is UTF-8."""
        whole, one, draws = hashlib.sha256(), hashlib.sha256(), array("d")
        bytes_, characters, total = 0, 0, sum(file.stat().st_size for file in files)
        with progress.bar("reading", total) as moved:
            for text, last in documents.pieces(files, kind):
                content = text.encode()
                one.update(content)
                bytes_, characters = bytes_ + len(content), characters + len(text)
                moved(len(content))
                if last:
                    whole.update(one.digest())
                    draws.append(int.from_bytes(one.digest()[:6]) / 2**48)
                    one = hashlib.sha256()
        if not draws:
            raise UsageError(f"{name} holds no text")
        return Survey(files, kind, bytes_, characters, whole.hexdigest(), draws)

    def parted(self, settings: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
        """(part, text, whether a document ends there), in the order of the files."""
        test, held_out = settings["test"], settings["test"] + settings["validation"]
        if settings["parts"] == "documents" or (settings["parts"] == "auto" and len(self.draws) >= MANY):
            at = 0
            for text, last in documents.pieces(self.files, self.kind):
                draw = self.draws[at]
                yield "test" if draw < test else "validation" if draw < held_out else "train", text, last
                at += last
            return
        ends = [round(self.characters * share) for share in (1 - held_out, 1 - test)]
        part, done = 0, 0
        for text, last in documents.pieces(self.files, self.kind):
            while part < len(ends) and done + len(text) > ends[part]:
                room = ends[part] - done
                if room:
                    yield PARTS[part], text[:room], False
                text, done, part = text[room:], ends[part], part + 1
            done += len(text)
            yield PARTS[part], text, last


class _Row:
    """A part's file of ids while it is written."""

    def __init__(self, path: Path, dtype: np.dtype[Any], end: int):
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 - open until close()
        self._dtype, self._end = dtype, end
        self._sha256 = hashlib.sha256()
        self.counts = {"tokens": 0, "bytes": 0, "characters": 0, "documents": 0}
        self._open = False
        self._write(np.array([end]))

    def _write(self, ids: NDArray[Any]) -> None:
        content = ids.astype(self._dtype).tobytes()
        self._file.write(content)
        self._sha256.update(content)
        self.counts["tokens"] += len(ids)

    def add(self, text: str, ids: NDArray[np.int64], last: bool) -> None:
        """A piece of a document."""
        self.counts["bytes"] += len(text.encode())
        self.counts["characters"] += len(text)
        self._write(ids)
        self._open = True
        if last:
            self.end()

    def end(self) -> None:
        """The document is over."""
        if self._open:
            self._write(np.array([self._end]))
            self.counts["documents"] += 1
            self._open = False

    def close(self) -> dict[str, Any]:
        """What a receipt says of the row."""
        self.end()
        self._file.close()
        return self.counts | {"sha256": self._sha256.hexdigest()}


def make(data: Corpus, folder: Path, survey: Survey, settings: dict[str, Any], tokens: Tokens | None) -> None:
    """Write a folder of tokens: a file of little-endian uint16 or uint32 a part, tokenizer.json, and a receipt. Without
    tokens, byte-pair encoding is learned from the training part."""
    with fetch.lock(folder, None):
        if folder.is_dir():  # another process was faster
            return
        work = folder.with_name(f".{folder.name}.making")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if tokens is None:
            with progress.bar("learning tokens", survey.bytes) as moved:
                texts = (text for part, text, _ in survey.parted(settings) if part == "train")
                tokens = Tokens(tokenizers.train_bpe(progress.watched(texts, moved), data.vocab_size))
        dtype = np.dtype("<u2" if len(tokens) <= 1 << 16 else "<u4")
        shares = {"train": 1 - settings["validation"] - settings["test"], **settings}
        rows = {part: _Row(work / f"{part}.bin", dtype, tokens.end) for part in PARTS if shares[part] > 1e-9}
        with progress.bar("tokenising", survey.bytes) as moved:
            for together in _batched(survey.parted(settings)):
                for (part, text, last), ids in zip(together, tokens.encode_all([text for _, text, _ in together])):
                    rows[part].add(text, ids, last)
                moved(sum(len(text) for _, text, _ in together))
        receipt = {
            "format": FORMAT,
            "tokens": data.tokens,
            "tokenizer": tokens.digest,
            "content": survey.digest,
            "dtype": dtype.str,
            "parts": {part: row.close() for part, row in rows.items()},
        }
        if tokens.tokenizer:
            (work / tokenizers.FILE).write_text(tokenizers.to_json(tokens.tokenizer), encoding="utf-8")
        (work / RECEIPT).write_text(json.dumps(receipt, indent=1), encoding="utf-8")
        os.replace(work, folder)


def _batched(parted: Iterator[tuple[str, str, bool]]) -> Iterator[list[tuple[str, str, bool]]]:
    """Pieces of some AT_ONCE characters together."""
    held, size = [], 0
    for piece in parted:
        held.append(piece)
        size += len(piece[1])
        if size >= AT_ONCE:
            yield held
            held, size = [], 0
    if held:
        yield held


# ---------------------------------------------------------------- reading


class CorpusDataset(Windows):
    """Opened tokens. In evaluation a window says how many "bytes" and "characters" its own predictions are; of a token
    that ends within a character, the character counts where it begins."""

    def __init__(self, data: Corpus, folder: Path):
        self.data, self.folder = data, folder
        receipt = _receipt(folder)
        if receipt["tokens"] != data.tokens:
            raise UsageError(
                f"{folder} holds tokens of {receipt['tokens']}, and {data.tokens} are wanted",
                hint=f"--data.tokens {receipt['tokens']}",
            )
        document = None
        if data.tokens != "bytes":
            try:
                document = (folder / tokenizers.FILE).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise _damaged(folder, f"{tokenizers.FILE} cannot be read ({error})") from None
        self.vocabulary = Tokens.from_json(document)
        if self.vocabulary.digest != receipt["tokenizer"]:
            raise _damaged(folder, f"{tokenizers.FILE} is not the tokenizer that its tokens were made with")
        counts = receipt["parts"]
        rows = {part: self._row(part, receipt) for part in PARTS if part in counts}
        self._check(rows)
        super().__init__(rows, length=data.length, context=data.context, stride=data.length - data.context)
        self.files = {tokenizers.FILE: document} if document is not None else {}
        self.facts = {
            "source": data.path or data.source,
            "tokens": data.tokens,
            "tokenizer": receipt["tokenizer"],
            "content": receipt["content"],
            "vocab_size": len(self.vocabulary),
            **{name: {part: counts[part][name] for part in rows} for name in ("documents", "characters", "bytes")},
            "sizes": self.sizes,
        }
        self._bytes = self._characters = None
        if (known := self.vocabulary.bytes) is not None:
            self._bytes = torch.tensor([len(token) for token in known])
            self._characters = torch.tensor([sum(byte & 0xC0 != 0x80 for byte in token) for token in known])

    def _row(self, part: str, receipt: dict[str, Any]) -> NDArray[Any]:
        path, said, dtype = self.folder / f"{part}.bin", receipt["parts"][part], np.dtype(receipt["dtype"])
        size = path.stat().st_size if path.is_file() else 0
        if size != said["tokens"] * dtype.itemsize:
            raise _damaged(self.folder, f"{path.name} has {size:,} bytes of {said['tokens'] * dtype.itemsize:,}")
        sha256, largest = hashlib.sha256(), 0
        with open(path, "rb") as file:  # not through the map, whose pages would stay
            while content := file.read(documents.CHUNK):
                sha256.update(content)
                largest = max(largest, int(np.frombuffer(content, dtype).max()))
        if sha256.hexdigest() != said["sha256"]:
            raise _damaged(self.folder, f"{path.name} is not as its sha256 says")
        if largest >= len(self.vocabulary):
            raise _damaged(self.folder, f"{path.name} holds token {largest:,} of {len(self.vocabulary):,}")
        return np.memmap(path, dtype, mode="r")

    def _check(self, rows: dict[str, NDArray[Any]]) -> None:
        """Whether there is enough text."""
        name, length = self.data.path or self.data.source, self.data.length
        if "train" in rows and len(rows["train"]) < length + 1:
            raise UsageError(
                f"{name} is shorter than a sequence: its training part has {len(rows['train']):,} tokens, and a "
                f"sequence takes {length + 1:,}",
                hint=f"--data.length {max(1, len(rows['train']) // 8)}, or a longer text",
            )
        for part, row in rows.items():
            if len(row) < 2:
                raise UsageError(
                    f"the {part} part of {name} is empty",
                    hint=f"a longer text, or a larger share: --data.{part} 0.2",
                )

    def amounts(self, split: str, targets: Tensor, own: Tensor) -> Batch:
        """Of wordpiece, which keeps neither space nor case, each token has its share of the whole split's."""
        if self._bytes is None or self._characters is None:
            tokens = len(self.ids[split]) - 1
            return {name: own.sum(1) * (self.facts[name][split] / tokens) for name in ("bytes", "characters")}
        return {"bytes": (self._bytes[targets] * own).sum(1), "characters": (self._characters[targets] * own).sum(1)}

    def samples(self, split: str, count: int) -> list[tuple[str, str]]:
        """Pieces of a split, as prompts."""
        ids, size = self.ids[split][1:], max(1, min(SAMPLE, self.length // 2))  # which leaves room to go on
        count = min(count, max(1, len(ids) // size))
        starts = [i * len(ids) // count for i in range(count)]
        return [(f"{split}, token {at:,}", self.vocabulary.decode(ids[at : at + size])) for at in starts]


def _receipt(folder: Path) -> dict[str, Any]:
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        kinds = [np.dtype(receipt["dtype"]).str, receipt["tokens"], receipt["tokenizer"], receipt["content"]]
        counts = [row[name] for row in receipt["parts"].values() for name in ("tokens", "bytes", "characters")]
        right = all(isinstance(kind, str) for kind in kinds) and all(isinstance(count, int) for count in counts)
        if receipt["format"] != FORMAT or kinds[0] not in ("<u2", "<u4") or not right:
            raise ValueError(f"its format is not {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{RECEIPT} cannot be read ({error})") from None
    return receipt


def _damaged(folder: Path, what: str) -> RefusedError:
    return RefusedError(f"the tokens in {folder} are damaged: {what}", hint=f"rm -r {folder}: they are made again")
