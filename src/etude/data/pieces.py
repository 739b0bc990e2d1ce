"""Sentences as BERT reads them: WordPiece ids between [CLS] and [SEP], cut at a length, padded on the right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from etude.data import fetch, remotes, tokenizers
from etude.data.base import Batch
from etude.data.text import checked
from etude.errors import MissingError, RefusedError, UsageError

READ = 100_000
"""Characters of a sentence that are looked at: no model reads so many tokens, and a longer line costs minutes."""


@dataclass(frozen=True)
class Pieces:
    """A sentence's ids, and how many there were before it was cut."""

    ids: NDArray[np.int64]
    whole: int

    @property
    def cut(self) -> bool:
        return self.whole > len(self.ids)


def find(vocabulary: str, *, lowercase: bool = True) -> Tokenizer:
    """The WordPiece tokenizer of a vocab.txt or a tokenizer.json, of a folder that holds one, or of a set that
    `etude data get` gets."""
    path = Path(vocabulary).expanduser()
    if not path.exists():
        if vocabulary not in remotes.REMOTES:
            raise MissingError(
                f"data.vocabulary: there is neither a file {vocabulary} nor a set of this name",
                hint="--data.vocabulary vocab.txt, as published beside the model's weights",
            )
        path = fetch.path(vocabulary)
    if path.is_dir():
        found = [path / name for name in ("vocab.txt", "tokenizer.json") if (path / name).is_file()]
        if not found:
            raise MissingError(f"data.vocabulary: {path} holds no vocab.txt or tokenizer.json")
        path = found[0]
    return (
        whole(tokenizers.read(path), path)
        if path.suffix == ".json"
        else tokenizers.wordpiece(path, lowercase=lowercase)
    )


def kept(facts: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a run keeps."""
    try:
        return whole(tokenizers.from_json(facts["files"][tokenizers.FILE]), tokenizers.FILE)
    except KeyError:
        raise RefusedError(f"the run does not say what its tokens are: it keeps no {tokenizers.FILE}") from None


def whole(tokenizer: Tokenizer, where: Any) -> Tokenizer:
    """The tokenizer, without the cutting and padding that a published file may ask for; RefusedError where it is not
    BERT's."""
    if lacking := [token for token in tokenizers.WORDPIECE_SPECIAL if tokenizer.token_to_id(token) is None]:
        raise RefusedError(f"{where} is no tokenizer of BERT: it lacks {', '.join(lacking)}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def number(tokenizer: Tokenizer, token: str) -> int:
    """The id of one of the special tokens."""
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found


def encode(tokenizer: Tokenizer, sentences: Sequence[str], length: int) -> list[Pieces]:
    """Each sentence as [CLS] tokens [SEP], at most `length` ids: of a longer one the beginning."""
    encoded = tokenizer.encode_batch_fast([sentence[:READ] for sentence in sentences])
    pieces = []
    for sentence, encoding in zip(sentences, encoded):
        ids = np.array(encoding.ids, dtype=np.int64)
        count = len(ids) + max(0, len(sentence) - READ)  # a character that was not looked at counts as a token
        pieces.append(Pieces(ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1]), count))
    return pieces


def pad(ids: Sequence[NDArray[np.int64] | Tensor], padding: int) -> Batch:
    """{"ids": (B, T), "mask": (B, T), true at tokens}, T being the longest's."""
    lengths = torch.tensor([len(one) for one in ids])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.full(mask.shape, padding, dtype=torch.int64)
    padded[mask] = torch.cat([torch.as_tensor(one) for one in ids])
    return {"ids": padded, "mask": mask}


def text(raw: Any) -> str:
    """A raw input as a sentence; UsageError where it is none."""
    if not isinstance(raw, str):
        raise UsageError(f"a sentence is wanted, not {type(raw).__name__}")
    if not raw.strip():
        raise UsageError("the sentence is empty")
    return checked(raw)
