"""SentencePiece models (.spm, .model), as Marian's checkpoints carry them, read into tokenizers of this house.

A .spm file is a protocol buffer: pieces with scores, how the text is normalised, and which algorithm cuts it (Kudo and
Richardson, 2018, arXiv 1808.06226): the likeliest sequence of pieces (unigram, Kudo, 2018, arXiv 1804.10959) or merges
in the order of their scores (BPE). The bytes are read here, field by field, and nothing in them is run. The `tokenizers`
library cuts: equal to `sentencepiece` 0.2.3 on models trained by it.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from etude.errors import MissingError, RefusedError

SPACE = "\u2581"
"""What stands for a space within pieces."""
MAX_BYTES = 64 << 20
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class Model:
    """What a .spm file says."""

    pieces: tuple[tuple[str, float, int], ...]
    """(piece, score, type), in the order of their ids."""
    algorithm: int
    charsmap: bytes
    """The compiled normaliser; empty: none."""
    dummy_prefix: bool
    remove_extra_spaces: bool


def parse(content: bytes) -> Model:
    """The bytes of a .spm file -> what they say. ValueError where they are none."""
    pieces: list[tuple[str, float, int]] = []
    algorithm, charsmap, prefix, squeeze = UNIGRAM, b"", True, True
    for number, value in _fields(content):
        if number == 1:
            piece, score, kind = "", 0.0, NORMAL
            for inner, held in _fields(_bytes(value)):
                if inner == 1:
                    piece = _bytes(held).decode("utf-8")
                elif inner == 2:
                    (score,) = struct.unpack("<f", _bytes(held))
                elif inner == 3:
                    kind = _number(held)
            pieces.append((piece, score, kind))
        elif number == 2:
            algorithm = next((_number(held) for inner, held in _fields(_bytes(value)) if inner == 3), UNIGRAM)
        elif number == 3:
            for inner, held in _fields(_bytes(value)):
                if inner == 2:
                    charsmap = _bytes(held)
                elif inner == 3:
                    prefix = bool(_number(held))
                elif inner == 4:
                    squeeze = bool(_number(held))
    if not pieces:
        raise ValueError("it holds no pieces")
    return Model(tuple(pieces), algorithm, charsmap, prefix, squeeze)


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message: whole numbers of varints, bytes of everything else."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if not number:
            raise ValueError(f"byte {at:,} begins no field")
        if wire == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"byte {at:,} begins a field of unknown type {wire}")
        if at + size > len(content):
            raise ValueError(f"it ends within the field at byte {at:,}")
        yield number, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(content):
            raise ValueError("it ends within a number")
        byte = content[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value, at + place + 1
    raise ValueError(f"byte {at:,} begins a number that does not end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where text should")
    return value


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("text stands where a number should")
    return value


def read(path: str | Path) -> Tokenizer:
    """A .spm file as a tokenizer with the file's ids. RefusedError where it is none."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RefusedError(f"{path} is refused: {size:,} bytes are no SentencePiece model")
        return build(parse(path.read_bytes()))
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except (ValueError, struct.error) as error:
        raise RefusedError(f"{path} is refused: it is no SentencePiece model ({error})") from None


def build(model: Model) -> Tokenizer:
    """The tokenizer that cuts as the model says. ValueError where it uses what is not known here."""
    unknown = next((i for i, (_, _, kind) in enumerate(model.pieces) if kind == UNKNOWN), None)
    if unknown is None:
        raise ValueError("it has no piece for the unknown")
    by_bytes = any(kind == BYTE for _, _, kind in model.pieces)
    if model.algorithm == UNIGRAM:
        # control symbols never stand for text
        scores = [(piece, -1e9 if kind in (CONTROL, UNUSED) else score) for piece, score, kind in model.pieces]
        tokenizer = Tokenizer(models.Unigram(scores, unknown, by_bytes))
    elif model.algorithm == BPE:
        table = {piece: i for i, (piece, _, _) in enumerate(model.pieces)}
        merges = _merges(model)
        name = model.pieces[unknown][0]
        tokenizer = Tokenizer(models.BPE(table, merges, unk_token=name, fuse_unk=True, byte_fallback=by_bytes))
    else:
        raise ValueError(f"its algorithm {model.algorithm} is neither unigram nor BPE")
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme=scheme)
    if special := [piece for piece, _, kind in model.pieces if kind == CONTROL]:
        tokenizer.add_special_tokens(special)
    return tokenizer


def _merges(model: Model) -> list[tuple[str, str]]:
    """Every way to make a piece out of two, the pieces of the highest score first."""
    known = {piece for piece, _, kind in model.pieces if kind in (NORMAL, USER)}
    ordered = sorted((-score, i, piece) for i, (piece, score, kind) in enumerate(model.pieces) if kind == NORMAL)
    found = []
    for _, _, piece in ordered:
        for cut in range(1, len(piece)):
            if piece[:cut] in known and piece[cut:] in known:
                found.append((piece[:cut], piece[cut:]))
    return found


class MarianVocabulary:
    """Marian's two SentencePiece models over one numbering of pieces, vocab.json, as Opus-MT publishes them."""

    def __init__(self, folder: str | Path):
        """`folder` holds source.spm, target.spm and vocab.json."""
        folder = Path(folder)
        self.source, self.target = read(folder / "source.spm"), read(folder / "target.spm")
        try:
            table = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            self.table: dict[str, int] = {str(piece): int(i) for piece, i in table.items()}
        except FileNotFoundError:
            raise MissingError(f"{folder / 'vocab.json'}: no such file") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise RefusedError(f"{folder / 'vocab.json'} is refused: it numbers no pieces ({error})") from None
        for piece in ("</s>", "<unk>", "<pad>"):
            if piece not in self.table:
                raise RefusedError(f"{folder / 'vocab.json'} is of another model: it lacks {piece}")
        self.pieces = {i: piece for piece, i in self.table.items()}

    def __len__(self) -> int:
        return max(self.pieces) + 1

    def encode(self, text: str) -> list[int]:
        """Source ids of a text, the end behind them; a language's sign such as >>deu<< may stand before it."""
        sign, after = "", text
        if text.startswith(">>") and "<<" in text:
            sign, after = text[: text.index("<<") + 2], text[text.index("<<") + 2 :]
        pieces = ([sign] if sign else []) + self.source.encode(after, add_special_tokens=False).tokens
        unknown = self.table["<unk>"]
        return [*(self.table.get(piece, unknown) for piece in pieces), self.table["</s>"]]

    def decode(self, ids: list[int] | tuple[int, ...]) -> str:
        """The text of target ids, without signs for ends, padding and the unknown."""
        left_out = {self.table[sign] for sign in ("</s>", "<pad>", "<unk>")}
        return "".join(self.pieces.get(i, "") for i in ids if i not in left_out).replace(SPACE, " ").strip()
