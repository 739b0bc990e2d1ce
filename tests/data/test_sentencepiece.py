"""Against the sentencepiece library, on models that it trains here."""

import argparse
import contextlib
import inspect
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import sentencepiece as spm
from etude.errors import MissingError, RefusedError

library = pytest.importorskip("sentencepiece")
WORDS = "the old man and sea was an Fisherman who fished alone in a skiff of Gulf Stream naïve café ﬁne Straße 12 345"
TEXTS = [" ".join(WORDS.split()[i % 7 :: 1 + i % 4]) + "." for i in range(400)]
PROSE = [line.strip() for line in inspect.getsource(argparse).splitlines() if line.strip()]
HARD = [
    *TEXTS[:8], *PROSE[::60], "", " ", "  two  spaces ", "unseen: Ω 東京 🙂!", "ﬁne ①②", "a\tb\nc", "naïve cafe\u0301", "▁odd▁", "The-sea's",
    "x" * 50,
]  # fmt: skip


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def trained(request):
    """(bytes of a model, the library's reader of them)"""
    out = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS + PROSE), model_writer=out, vocab_size=400, model_type=request.param, minloglevel=2
    )
    return out.getvalue(), library.SentencePieceProcessor(model_proto=out.getvalue())


@pytest.mark.parity
def test_pieces_and_ids_equal_the_library(trained):
    content, theirs = trained
    ours = spm.build(spm.parse(content))
    assert ours.get_vocab_size() == theirs.get_piece_size()
    for text in HARD:
        # an unknown character's piece is its text there, and the sign for the unknown here
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


@pytest.mark.parity
@settings(deadline=None, max_examples=60)
@given(text=st.text(alphabet="theoldmansa .,é12 Ω", max_size=40))
def test_any_text_is_cut_as_the_library_cuts_it(trained, text):
    content, theirs = trained
    assert spm.build(spm.parse(content)).encode(text, add_special_tokens=False).ids == theirs.encode(text)


def test_other_settings(tmp_path):
    for options in ({"add_dummy_prefix": False}, {"remove_extra_whitespaces": False}, {"byte_fallback": True}):
        out = io.BytesIO()
        size = 700 if "byte_fallback" in options else 400
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS + PROSE), model_writer=out, vocab_size=size, minloglevel=2,
            **options,
        )  # fmt: skip
        (tmp_path / "m.spm").write_bytes(out.getvalue())
        ours, theirs = spm.read(tmp_path / "m.spm"), library.SentencePieceProcessor(model_proto=out.getvalue())
        for text in TEXTS[:5]:
            assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), options


def test_files_that_are_no_models(trained, tmp_path):
    content, _ = trained
    path = tmp_path / "x.spm"
    with pytest.raises(MissingError, match="no such file"):
        spm.read(path)
    for damaged, words in (
        (content[:1000], "ends within"),
        (b"", "no pieces"),
        (b"PK\x03\x04" + bytes(200), "no SentencePiece model"),
        (b"\xff" * 50, "does not end"),
        (b"\x0a\x04\x0a\x02\xff\xfe", "utf-8"),
        (b"\x08\x01", "no pieces|number stands"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(RefusedError, match=words):
            spm.read(path)


@settings(deadline=None, max_examples=150)
@given(changes=st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255)), min_size=1, max_size=8))
def test_no_bytes_do_worse_than_being_refused(trained, changes):
    content = bytearray(trained[0][:2000])
    for place, byte in changes:
        content[place] = byte
    with contextlib.suppress(ValueError):
        spm.parse(bytes(content))


@pytest.fixture
def opus(trained, tmp_path):
    """A folder as Opus-MT publishes them, but for its weights."""
    content, theirs = trained
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes(content)
    pieces = [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    kept = [piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")][::-1][:-3]
    table = {piece: i for i, piece in enumerate(["</s>", "<unk>", ">>deu<<", *kept, "<pad>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(table))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    return tmp_path


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_a_published_vocabulary_equals_transformers(opus):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.MarianTokenizer(
        vocab=str(opus / "vocab.json"), source_spm=str(opus / "source.spm"), target_spm=str(opus / "target.spm"),
        source_lang="en", target_lang="de",
    )  # fmt: skip
    ours = spm.MarianVocabulary(opus)
    assert len(ours) == len(theirs)
    for text in [*TEXTS[:6], ">>deu<< the old man", "unseen Ω"]:
        ids = ours.encode(text)
        assert ids == theirs(text).input_ids, text
    ids = ours.encode(TEXTS[0])
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_vocabulary_of_another_model_is_refused(opus):
    (opus / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(RefusedError, match=r"of another model: it lacks </s>"):
        spm.MarianVocabulary(opus)
    (opus / "vocab.json").write_text("[1]")
    with pytest.raises(RefusedError, match="numbers no pieces"):
        spm.MarianVocabulary(opus)
