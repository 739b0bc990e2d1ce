"""The vocabulary of an Opus-MT model as it is published: source.spm, target.spm and vocab.json.

Two SentencePiece models cut source and target into pieces; vocab.json, which is shared, numbers the pieces. Equal to
transformers 5.23 `MarianTokenizer` in ids and decoded text, but for one thing: a text that spells out `</s>`, `<pad>`
or `<unk>` gets ordinary pieces here, not these tokens, so that no input can end a sentence within itself.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.data import sentencepiece
from etude.data.sentencepiece import SentencePiece
from etude.errors import MissingError, RefusedError, UsageError, nearest

LANGUAGE = re.compile(r">>[^<>\s]+<<")
"""What stands in front of a source text of a model that translates to several languages, such as >>deu<<."""
END, PADDING, UNKNOWN = "</s>", "<pad>", "<unk>"


@dataclass(frozen=True)
class MarianVocabulary:
    source: SentencePiece
    target: SentencePiece
    ids: dict[str, int]
    """The id of each piece, of source and target alike."""
    pieces: dict[int, str]

    @property
    def end(self) -> int:
        return self.ids[END]

    @property
    def padding(self) -> int:
        return self.ids[PADDING]

    @property
    def languages(self) -> list[str]:
        """What a text can begin with to say the target language; empty for a model of one."""
        return [piece for piece in self.ids if LANGUAGE.fullmatch(piece)]

    def encode(self, text: str) -> list[int]:
        """The ids of a source text, and the end. UsageError where it asks for a language that the model has not."""
        return self._encode(text, self.source)

    def encode_target(self, text: str) -> list[int]:
        """The ids of a target text, and the end."""
        return self._encode(text, self.target)

    def _encode(self, text: str, model: SentencePiece) -> list[int]:
        unknown = self.ids[UNKNOWN]
        ids = []
        if (code := LANGUAGE.match(text)) and self.languages:
            if code.group() not in self.ids:
                raise UsageError(
                    f"the model has no target language {code.group()}",
                    hint=nearest(code.group(), self.languages) or f"one of {' '.join(self.languages[:20])}",
                )
            ids, text = [self.ids[code.group()]], text[code.end() :]
        # what one side's model does not know may have a number from the other's
        pieces = (UNKNOWN if piece in (END, PADDING) else piece for piece in model.cut(text))
        ids += [self.ids.get(piece, unknown) for piece in pieces]
        return [*ids, self.end]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of target ids, without the end, padding and what is unknown."""
        shown = [self.pieces[i] for i in ids if self.pieces[i] not in (END, PADDING, UNKNOWN)]
        return sentencepiece.join(shown, byte_fallback=self.target.byte_fallback).strip()


def read(folder: str | Path) -> MarianVocabulary:
    """The vocabulary in an Opus-MT folder. MissingError where a file lacks, RefusedError for a damaged one."""
    folder = Path(folder)
    if (folder / "target_vocab.json").exists():
        raise RefusedError(f"{folder} has a vocabulary of its own for the target; models that share one are read here")
    source, target = (sentencepiece.read(folder / name) for name in ("source.spm", "target.spm"))
    ids = read_json(folder / "vocab.json")
    if not all(isinstance(i, int) for i in ids.values()) or len(set(ids.values())) < len(ids):
        raise RefusedError(f"{folder / 'vocab.json'} is refused: it must give each piece a number of its own")
    if lacking := [token for token in (END, PADDING, UNKNOWN) if token not in ids]:
        raise RefusedError(f"{folder / 'vocab.json'} is refused: it lacks {' '.join(lacking)}")
    return MarianVocabulary(source, target, ids, {i: piece for piece, i in ids.items()})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. MissingError or RefusedError, each in one line."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{path} is refused: it is no JSON ({error})") from None
    if not isinstance(document, dict):
        raise RefusedError(f"{path} is refused: it is no JSON object")
    return document
