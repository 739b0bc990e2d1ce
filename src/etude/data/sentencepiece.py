"""SentencePiece models: published .spm files read without their library, as tokenizers that give the same pieces.

A .spm file is one protobuf message (google/sentencepiece, sentencepiece_model.proto): the pieces with their scores,
what kind of model they belong to, and how text is normalised first. Here it is read field by field, which needs forty
lines and runs nothing; `tokenizers` then does the work:
    unigram   Kudo, 2018, arXiv 1804.10959: the segmentation whose pieces' log-probabilities have the largest sum
    bpe       Sennrich et al., 2015, arXiv 1508.07909: of all pairs of neighbours the best-scored piece is joined first
Equal to sentencepiece 0.2 in pieces, ids and decoded text, which the tests check on models trained there. Two things
may differ: which of two segmentations of exactly one sum is taken; and where a unigram model falls back to bytes, a
text that spells out the name of such a byte, `<0x41>`, is read as this byte.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from etude.errors import MissingError, RefusedError

SPACE = "▁"
"""What stands for a space within pieces (U+2581)."""
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_BYTES = 100 << 20

Value = int | bytes


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePiece:
    """What a .spm file says; an id is a piece's place in `pieces`."""

    pieces: tuple[Piece, ...]
    model: int
    """UNIGRAM or BPE."""
    unknown: int
    """The id that stands for what no piece covers."""
    byte_fallback: bool
    """What no piece covers is spelled in bytes instead."""
    unknown_surface: str
    """What the unknown id is decoded to."""
    dummy_prefix: bool
    """Text begins with a space, so that its first word is written as any other."""
    trim: bool
    """Spaces at both ends are dropped, and several in a row become one."""
    charsmap: bytes
    """The compiled table of what is replaced by what; empty for none."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.tokenizer.encode(self.normalise(text), add_special_tokens=False).ids

    def cut(self, text: str) -> list[str]:
        """The pieces of a text; of what is unknown, for unigram models, the characters themselves."""
        made = self.tokenizer.encode(self.normalise(text), add_special_tokens=False)
        return [token if i == self.unknown else self.pieces[i].text for i, token in zip(made.ids, made.tokens)]

    def normalise(self, text: str) -> str:
        """From the left, the longest sequence that the table knows is replaced; other characters stay.

        The normaliser of the same table in `tokenizers` goes by what is seen as one character, and so leaves an accent
        alone where two follow a letter; on text that went through here it changes nothing.
        """
        return self._table.replace(text) if self._table else text

    @cached_property
    def _table(self) -> "Table | None":
        return Table(self.charsmap) if self.charsmap else None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        pieces = [self.pieces[i] for i in ids]
        surfaces = [self.unknown_surface if p.kind == UNKNOWN else p.text for p in pieces if p.kind != CONTROL]
        return join(surfaces, dummy_prefix=self.dummy_prefix, byte_fallback=self.byte_fallback)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Text -> ids. Its vocabulary names pieces that no text can hold with a space in front, so that a text that
        spells them out does not get them: a space never reaches the model."""
        shown = [piece.text if piece.kind in (NORMAL, BYTE) else f" {piece.text}" for piece in self.pieces]
        if self.model == UNIGRAM:
            scores = [piece.score for piece in self.pieces]
            model = models.Unigram(list(zip(shown, scores)), self.unknown, self.byte_fallback)
        else:
            table = {text: i for i, text in enumerate(shown)}
            ranked = sorted((p for p in self.pieces if p.kind == NORMAL), key=lambda p: -p.score)
            merges = [
                (piece.text[:cut], piece.text[cut:])
                for piece in ranked
                for cut in range(1, len(piece.text))
                if piece.text[:cut] in table and piece.text[cut:] in table
            ]
            unknown = shown[self.unknown]
            model = models.BPE(table, merges, unk_token=unknown, fuse_unk=True, byte_fallback=self.byte_fallback)
        tokenizer = Tokenizer(model)
        steps: list[normalizers.Normalizer] = [normalizers.Precompiled(self.charsmap)] if self.charsmap else []
        if self.trim:
            steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        tokenizer.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
        scheme = "always" if self.dummy_prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)  # pyright: ignore
        return tokenizer


def join(surfaces: Iterable[str], *, dummy_prefix: bool = True, byte_fallback: bool = False) -> str:
    """Pieces as text: spaces where they mark them, without the one in front that was added."""
    text = "".join(surfaces)
    if byte_fallback:
        text = re.sub(r"(?:<0x[0-9A-F]{2}>)+", lambda run: _utf8(run.group()), text)
    text = text.replace(SPACE, " ")
    return text.removeprefix(" ") if dummy_prefix else text


def _utf8(run: str) -> str:
    return bytes.fromhex(run.replace("<0x", "").replace(">", "")).decode("utf-8", "replace")


class Table:
    """A compiled table of replacements: the length of a double-array trie in bytes, the trie, and texts that end in a
    zero byte, which the trie's leaves point to.

    In such a trie (Yata et al., 2007) a node's unit holds an offset, its label and whether it ends a key. The child of
    node n by byte c is unit n ^ offset ^ c, if that one's label is c; n ^ offset itself is the leaf of the key that
    ends at n, and holds the place of its text. RefusedError for what is no such table.
    """

    def __init__(self, charsmap: bytes):
        size = int.from_bytes(charsmap[:4], "little")
        if size % 4 or not 4 <= size <= len(charsmap) - 4:
            raise RefusedError("its table of replacements is damaged")
        self.units: tuple[int, ...] = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
        self.texts = charsmap[4 + size :]

    def replace(self, text: str) -> str:
        content = text.encode("utf-8", "replace")
        parts, place = [], 0
        while place < len(content):
            end, part = self.longest(content, place)
            if end == place:
                end = place + 1
                while end < len(content) and content[end] >> 6 == 0b10:  # the rest of a character
                    end += 1
                part = content[place:end]
            parts.append(part)
            place = end
        return b"".join(parts).decode("utf-8", "replace")

    def longest(self, content: bytes, place: int) -> tuple[int, bytes]:
        """Where the longest key that begins at `place` ends, and what replaces it; (place, nothing) if none does."""
        units = self.units
        node = _offset(units[0])
        end, leaf = place, -1
        for at in range(place, len(content)):
            node ^= content[at]
            if node >= len(units) or units[node] & (1 << 31 | 255) != content[at]:
                break
            unit = units[node]
            node ^= _offset(unit)
            if unit >> 8 & 1 and node < len(units):
                end, leaf = at + 1, node
        if leaf < 0:
            return place, b""
        begin = units[leaf] & ~(1 << 31)
        return end, self.texts[begin : self.texts.find(b"\0", begin)]


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 512) >> 6)


def read(path: str | Path) -> SentencePiece:
    """A .spm file. MissingError where there is none; RefusedError, in one line, for a file that is damaged, is none, or
    asks for what is not known here (words or characters as the model, pieces that users defined)."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RefusedError(f"{path} is refused: it has over {MAX_BYTES >> 20} MiB, which no vocabulary needs")
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror}") from None
    try:
        found = parse(content)
        found.encode("a")
    except RefusedError as error:
        raise RefusedError(f"{path} is refused: {error}") from None
    except BaseException as error:  # a table that is no table makes the library panic, which is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise RefusedError(f"{path} is refused: it makes no tokenizer ({error})") from None
    return found


def parse(content: bytes) -> SentencePiece:
    """The bytes of a .spm file. RefusedError says what is wrong with them."""
    pieces: list[Piece] = []
    numbers = set()
    trainer: dict[int, Value] = {}
    normaliser: dict[int, Value] = {}
    for number, value in fields(content):
        numbers.add(number)
        if number == 1:
            pieces.append(_piece(_bytes(value)))
        elif number == 2:
            trainer |= dict(fields(_bytes(value)))
        elif number == 3:
            normaliser |= dict(fields(_bytes(value)))
    if not pieces:
        raise RefusedError("it holds no pieces, so it is no SentencePiece model")
    if not {2, 3} <= numbers:
        raise RefusedError("it ends too early: how it was trained or how text is normalised is not said")
    found = SentencePiece(
        pieces=tuple(pieces),
        model=_int(trainer.get(3, UNIGRAM)),
        unknown=_int(trainer.get(40, 0)),
        byte_fallback=bool(trainer.get(35, 0)),
        unknown_surface=_text(_bytes(trainer.get(44, " \u2047 ".encode()))),
        dummy_prefix=bool(normaliser.get(3, 1)),
        trim=bool(normaliser.get(4, 1)),
        charsmap=_bytes(normaliser.get(2, b"")),
    )
    _check(found, suffixes=bool(trainer.get(24, 0)), escaped=bool(normaliser.get(5, 1)))
    return found


def _check(found: SentencePiece, *, suffixes: bool, escaped: bool) -> None:
    if found.model not in (UNIGRAM, BPE):
        raise RefusedError(f"its model is of type {found.model}, neither unigram (1) nor BPE (2)")
    if not found.unknown < len(found.pieces) or found.pieces[found.unknown].kind != UNKNOWN:
        raise RefusedError(f"its unknown id {found.unknown} names no unknown piece")
    if any(piece.kind == USER_DEFINED for piece in found.pieces):
        raise RefusedError("it has pieces that users defined, which are not read here")
    if suffixes or not escaped:
        raise RefusedError("it writes spaces otherwise than in front of words, which is not read here")
    if len({piece.text for piece in found.pieces}) < len(found.pieces):
        raise RefusedError("it holds a piece twice")


def _piece(message: bytes) -> Piece:
    found = dict(fields(message))
    text = _text(_bytes(found.get(1, b"")))
    kind = _int(found.get(3, NORMAL))
    if not text or kind not in range(NORMAL, BYTE + 1):
        raise RefusedError(f"it has a piece {text[:40]!r} of kind {kind}")
    score = _bytes(found.get(2, bytes(4)))
    if len(score) != 4:
        raise RefusedError(f"the score of its piece {text[:40]!r} is no number of 4 bytes")
    return Piece(text, struct.unpack("<f", score)[0], kind)


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a protobuf message by their numbers: whole numbers as int, all others as their bytes.

    RefusedError where the bytes end too early or are no protobuf.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise RefusedError("it is damaged, or no SentencePiece model")
        if number == 0 or place + length > len(message):
            raise RefusedError("it ends too early, or is no SentencePiece model")
        yield number, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the eighth says whether more follow."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise RefusedError("it ends too early, or is no SentencePiece model")
        value |= (message[place] & 127) << shift
        place += 1
        if message[place - 1] < 128:
            return value, place
    raise RefusedError("it is damaged, or no SentencePiece model")


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise RefusedError("it is damaged, or no SentencePiece model")
    return value


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise RefusedError("it is damaged, or no SentencePiece model")
    return value


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError("it is damaged: a piece is no UTF-8") from None
