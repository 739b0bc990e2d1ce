import json

import pytest

from etude.data import fetch
from etude.data import tokenizers as toks
from etude.errors import MissingError, RefusedError, UsageError

TEXTS = ["The old man and the sea.", "An old sea, an old man: naïve café, 東京."] * 20


@pytest.fixture
def published(request):
    """The folder of a published vocabulary, where this machine has it."""
    try:
        return fetch.path(request.param)
    except MissingError as error:
        pytest.skip(str(error))


def test_bpe_learns_merges_and_loses_nothing():
    tokenizer = toks.train_bpe(TEXTS, 280)
    assert tokenizer.get_vocab_size() == 280
    assert tokenizer.token_to_id(toks.END_OF_TEXT) == 0
    for text in [*TEXTS, "never seen: Ω\n\n\t🙂  two  spaces"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode(TEXTS[0]).ids) < 0.7 * len(TEXTS[0].encode())
    assert toks.to_json(toks.train_bpe(TEXTS, 280)) == toks.to_json(tokenizer)


def test_a_tokenizer_survives_json(tmp_path):
    tokenizer = toks.train_bpe(TEXTS, 280)
    (tmp_path / toks.FILE).write_text(toks.to_json(tokenizer), encoding="utf-8")
    assert toks.read(tmp_path / toks.FILE).encode(TEXTS[1]).ids == tokenizer.encode(TEXTS[1]).ids


def test_a_vocabulary_smaller_than_bytes_is_refused():
    with pytest.raises(UsageError, match="256 is too small: bytes and special tokens alone are 257"):
        toks.train_bpe(TEXTS, 256)


@pytest.mark.parametrize("published", ["minilm"], indirect=True)
def test_wordpiece_on_the_published_vocabulary(published):
    tokenizer = toks.wordpiece(published / "vocab.txt")
    ids = tokenizer.encode("It's 2.5 hours long!! (and I loved it) — naïve café 東京 tōkyō").ids
    expected = """101 2009 1005 1055 1016 1012 1019 2847 2146 999 999 1006 1998 1045 3866 2009 1007 1517 15743 7668 1879
    1755 5522 102"""
    assert ids == [int(word) for word in expected.split()]
    assert tokenizer.encode("x" * 101).tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokenizer.encode("a\x00b\ufffdc").tokens == tokenizer.encode("abc").tokens
    assert toks.read(published / "tokenizer.json").encode("An old Sea.").ids[:6] == tokenizer.encode("An old Sea.").ids


@pytest.mark.parity
@pytest.mark.parametrize("published", ["gpt2-bpe"], indirect=True)
def test_gpt2_equals_tiktoken(published):
    tiktoken = pytest.importorskip("tiktoken")
    ours = toks.gpt2(published)
    pairs = (line.split() for line in (published / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:] if line)
    assert ours.get_vocab_size() == 50_257
    ranks = _ranks([(a, b) for a, b in pairs])
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    special = {toks.END_OF_TEXT: 50_256}
    theirs = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    for text in [*TEXTS[:2], "They'll say  \n\n 12,345.67 — ok?  ", "def f(x):\n\treturn x**2  # ünï", "🙂" * 3]:
        ids = theirs.encode(text)
        assert ours.encode(text).ids == [_id(ours, theirs, i) for i in ids]
        assert ours.decode(ours.encode(text).ids) == text


def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _ranks(pairs: list[tuple[str, str]]) -> dict[bytes, int]:
    table = _alphabet()
    words = [*table, *(a + b for a, b in pairs)]
    return {bytes(table[c] for c in word): i for i, word in enumerate(words)}


def _id(ours, theirs, i: int) -> int:
    back = {b: c for c, b in _alphabet().items()}
    return ours.token_to_id("".join(back[b] for b in theirs.decode_single_token_bytes(i)))


def test_files_that_are_no_vocabularies(tmp_path):
    with pytest.raises(MissingError, match=r"encoder.json or vocab.json"):
        toks.gpt2(tmp_path)
    (tmp_path / "encoder.json").write_text("{}")
    (tmp_path / "vocab.bpe").write_text("#version\na b c\n")
    with pytest.raises(RefusedError, match="no byte-pair encoding"):
        toks.gpt2(tmp_path)
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(RefusedError, match=r"lacks \[PAD\], \[UNK\]"):
        toks.wordpiece(tmp_path / "vocab.txt")
    with pytest.raises(RefusedError, match="no tokenizer"):
        toks.from_json(json.dumps({"model": {"type": "X"}}))
