"""Tokenizers: trained, read from their published files, kept in a run. The `tokenizers` library does the work.

A tokenizer travels as its JSON document (`to_json`, `from_json`), in which there is no code: a run keeps it as
tokenizer.json, which `transformers` reads too.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # unset, the library warns when a data worker is forked

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from etude.errors import MissingError, RefusedError, UsageError

FILE = "tokenizer.json"
"""What a tokenizer is called in a run."""
END_OF_TEXT = "<|endoftext|>"
"""GPT's only special token, between documents."""
WORDPIECE_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's: padding, a word that has no pieces, before the first sentence, after each, and in place of a hidden word."""


def to_json(tokenizer: Tokenizer) -> str:
    """The tokenizer as a JSON document."""
    return tokenizer.to_str()


def from_json(document: str, *, where: str = "the tokenizer") -> Tokenizer:
    """The inverse of `to_json`; RefusedError for anything else."""
    try:
        return Tokenizer.from_str(document)
    except Exception as error:  # the library raises Exception itself
        raise RefusedError(f"{where} is refused: it is no tokenizer ({error})") from None


def read(path: str | Path) -> Tokenizer:
    """A tokenizer.json."""
    return from_json(_text(Path(path)), where=str(path))


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, special: Sequence[str] = (END_OF_TEXT,), progress: bool = False
) -> Tokenizer:
    """Byte-level byte-pair encoding (Sennrich et al., 2015, arXiv 1508.07909; on bytes: GPT-2) learned from `texts`.

    The special tokens come first, ids 0, 1, ...; then the 256 bytes, so that nothing is unknown; then the merges. The
    same texts in the same order give the same tokenizer. UsageError if `vocab_size` does not hold the first two.
    """
    if vocab_size < (least := 256 + len(special)):
        raise UsageError(f"a vocabulary of {vocab_size} is too small: bytes and special tokens alone are {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_wordpiece(texts: Sequence[str], vocab_size: int, *, lowercase: bool = True) -> Tokenizer:
    """BERT's WordPiece (see `wordpiece`) learned from `texts`. The special tokens come first, [PAD] as 0, then single
    characters; the same texts give the same tokenizer. UsageError if `vocab_size` is too small to hold them."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    characters = sorted({character for text in texts for character in normalizer.normalize_str(text)} - {" "})
    # the library numbers single characters in an order that changes from run to run, unless it finds them numbered
    first = [*WORDPIECE_SPECIAL, *characters, *(f"##{character}" for character in characters)]
    if vocab_size < len(first):
        raise UsageError(f"a vocabulary of {vocab_size} is too small: single characters alone are {len(first)}")
    learner = Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=first, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    return _wordpiece(learner.get_vocab(with_added_tokens=False), lowercase)


def gpt2(folder: str | Path) -> Tokenizer:
    """GPT-2's byte-level BPE from its published encoder.json and vocab.bpe (or vocab.json and merges.txt): 50,257
    tokens, of which <|endoftext|> is the last."""
    folder = Path(folder)
    vocabulary, merges = _either(folder, "encoder.json", "vocab.json"), _either(folder, "vocab.bpe", "merges.txt")
    try:
        table = json.loads(_text(vocabulary))
        pairs = [(a, b) for a, b in (line.split(" ") for line in _text(merges).split("\n")[1:] if line)]
        tokenizer = Tokenizer(models.BPE(table, pairs))
    except Exception as error:
        raise RefusedError(f"{folder} holds no byte-pair encoding: {error}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def wordpiece(vocabulary: str | Path, *, lowercase: bool = True) -> Tokenizer:
    """BERT's WordPiece over a published vocab.txt, one token a line: [CLS] tokens [SEP], or [CLS] a [SEP] b [SEP].

    `lowercase`: as the uncased models were trained, in lower case and without accents.
    """
    path = Path(vocabulary)
    tokens = _text(path).rstrip("\n").split("\n")
    table = {token: i for i, token in enumerate(tokens)}
    if lacking := [token for token in WORDPIECE_SPECIAL if token not in table]:
        raise RefusedError(f"{path} is no WordPiece vocabulary: it lacks {', '.join(lacking)}")
    return _wordpiece(table, lowercase)


def _wordpiece(table: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", table["[SEP]"]), ("[CLS]", table["[CLS]"]))
    tokenizer.add_special_tokens(list(WORDPIECE_SPECIAL))
    return tokenizer


def token_bytes(tokenizer: Tokenizer) -> list[bytes] | None:
    """The bytes that each token of a byte-level vocabulary stands for, of special tokens none; None for others."""
    if not isinstance(tokenizer.decoder, decoders.ByteLevel):
        return None
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2's letters for bytes
    hidden = [byte for byte in range(256) if byte not in visible]
    byte = {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    texts = {i: text for text, i in tokenizer.get_vocab().items()}
    return [b"" if i in special else bytes(byte[letter] for letter in texts[i]) for i in range(len(texts))]


def _either(folder: Path, *names: str) -> Path:
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise MissingError(f"{folder} holds no {' or '.join(names)}")
    return found[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path} cannot be read: {error}") from None
