"""Against the sentencepiece library, on models that it trains here."""

import contextlib
import struct
from pathlib import Path

import pytest
import sentencepiece as library
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import sentencepiece
from etude.errors import MissingError, RefusedError

DOCS = Path(__file__).parents[2] / "docs"
EXTRA = "Ein schöner Tag für große Straßen, naïve cafés und 2½ Wälder."
HARD = ["", " ", "  two   spaces  ", "日本 語 hello", "ﬁne ２０ Ⅷ ½ é e\u0301", "</s> <s> <unk>", "tab\tnbsp\u00a0x",
        "▁x", "\u3000wide", "🙂🙃 ok", "a\u200bb", "x" * 300, " ⁇ ", "\x00\x01z", "line\nbreak"]  # fmt: skip


def corpus() -> list[str]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    return [line for line in text.split("\n") if line.strip()][:600] + 5 * [EXTRA]


@pytest.fixture(scope="module", params=["unigram", "bpe", "unigram, bytes", "bpe, bytes", "unigram, as is"])
def trained(request, tmp_path_factory) -> tuple[library.SentencePieceProcessor, sentencepiece.SentencePiece]:
    folder = tmp_path_factory.mktemp("spm")
    kind, _, manner = request.param.partition(", ")
    options = {"bytes": {"byte_fallback": True}, "as is": {"normalization_rule_name": "identity",
               "remove_extra_whitespaces": False, "add_dummy_prefix": False}}.get(manner, {})  # fmt: skip
    library.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(corpus()),
        model_prefix=str(folder / "m"),
        model_type=kind,
        vocab_size=900,
        minloglevel=2,
        **options,
    )
    theirs = library.SentencePieceProcessor(model_file=str(folder / "m.model"))  # pyright: ignore[reportCallIssue]
    return theirs, sentencepiece.read(folder / "m.model")


@pytest.mark.parity
def test_ids_and_texts_equal_the_library(trained):
    theirs, ours = trained
    assert [piece.text for piece in ours.pieces] == [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    for text in [*corpus(), *HARD]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


@pytest.mark.parity
@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.text("aeioénszt \u0301\u0300\u0308\u0327\u0303\u0323\u0302ำก", max_size=20))
def test_any_text_equals_the_library(trained, text):
    theirs, ours = trained
    assert ours.encode(text) == theirs.encode(text)


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**20), st.binary(max_size=300))
def test_protobuf_fields(number, field, content):
    def varint(value: int) -> bytes:
        low = value & 127
        return bytes([low]) if value < 128 else bytes([low | 128]) + varint(value >> 7)

    message = varint(field << 3) + varint(number)
    message += varint(field << 3 | 2) + varint(len(content)) + content
    message += varint(field << 3 | 5) + struct.pack("<f", 1.5)
    found = list(sentencepiece.fields(message))
    assert found == [(field, number), (field, content), (field, struct.pack("<f", 1.5))]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(RefusedError) as caught:
        sentencepiece.parse(content)
    assert "\n" not in str(caught.value)


def message(*pieces: tuple[str, int], trainer: bytes = b"", normaliser: bytes = b"") -> bytes:
    content = b""
    for text, kind in pieces:
        body = (
            b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", -1) + bytes([24, kind])
        )
        content += b"\x0a" + bytes([len(body)]) + body
    content += b"\x12" + bytes([len(trainer)]) + trainer
    return content + b"\x1a" + bytes([len(normaliser)]) + normaliser


def test_a_model_by_hand(tmp_path):
    (tmp_path / "m.spm").write_bytes(message(("<unk>", 2), ("</s>", 3), ("▁ab", 1), ("c", 1), ("▁", 1)))
    model = sentencepiece.read(tmp_path / "m.spm")
    assert model.encode("abc  ab x") == [2, 3, 2, 4, 0]
    assert model.decode([2, 3, 2, 1, 4, 0]) == "abc ab  \u2047 "
    assert model.encode("</s>") == [4, 0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (message(("<unk>", 2), ("a", 1))[:-9], "ends too early"),
        (b"hello, world", "no SentencePiece model"),
        (b"", "no pieces"),
        (message(("a", 1)), "unknown id 0 names no unknown piece"),
        (message(("<unk>", 2), ("a", 1), trainer=b"\x18\x03"), "type 3"),
        (message(("<unk>", 2), ("a", 1), trainer=b"\xc0\x02\x07"), "unknown id 7"),
        (message(("<unk>", 2), ("a", 4)), "users defined"),
        (message(("<unk>", 2), ("a", 1), ("a", 1)), "a piece twice"),
        (message(("<unk>", 2), ("a", 9)), "kind 9"),
        (message(("<unk>", 2)) + b"\x0a\x07\x0a\x01a\x12\x02\x00\x00", "piece 'a' is no number of 4 bytes"),
        (message(("<unk>", 2), ("a", 1), normaliser=b"\x28\x00"), "spaces otherwise"),
        (message(("<unk>", 2), ("a", 1), normaliser=b"\x12\x05\xff\xff\xff\xff\xff"), "makes no tokenizer"),
    ],
)
def test_bad_files_are_refused_in_one_line(content, why, tmp_path):
    path = tmp_path / "bad.spm"
    path.write_bytes(content)
    with pytest.raises(RefusedError) as caught:
        sentencepiece.read(path)
    assert str(caught.value).startswith(f"{path} is refused: ") and why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cut_files_are_refused(trained, tmp_path):
    theirs, _ = trained
    whole = theirs.serialized_model_proto()
    for cut in (1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.spm").write_bytes(whole[:cut])
        with pytest.raises(RefusedError):
            sentencepiece.read(tmp_path / "cut.spm")


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_changed_bytes_do_no_worse_than_being_refused(trained, changes, late):
    """Within the pieces, and within the table of replacements."""
    theirs, _ = trained
    content = bytearray(theirs.serialized_model_proto())
    for place, byte in changes:
        content[place - 2500 if late else place] = byte
    with contextlib.suppress(RefusedError):
        sentencepiece.parse(bytes(content)).normalise("naïve e\u0301 ﬁne")


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingError, match="no such file"):
        sentencepiece.read(tmp_path / "none.spm")
