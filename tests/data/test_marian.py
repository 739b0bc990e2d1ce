"""Against transformers' MarianTokenizer, on a folder made here as Opus-MT's are published."""

import json
import warnings
from pathlib import Path

import pytest
import sentencepiece as library
from transformers import MarianTokenizer

from etude.data import marian
from etude.errors import MissingError, RefusedError, UsageError

PROSE = Path(__file__).with_name("prose.txt").read_text(encoding="utf-8").split("\n")
"""Pages of these docs as they once were: what is learned from them must not change with them."""
TEXTS = ["A text, as it stands.", "", "  spaces  around ", "Größe ﬁ ½ 日本", "a\nb", "x" * 200, "unknown: ☃☃"]


def write_vocabulary(folder: Path, *, languages: tuple[str, ...] = ()) -> None:
    """source.spm and target.spm, trained on different parts of the prose, and vocab.json, numbered otherwise."""
    lines = [line for line in PROSE if line.strip()]
    pieces: list[str] = []
    for side, part in (("source", lines[:300]), ("target", lines[300:600])):
        library.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(part),
            model_prefix=str(folder / side),
            vocab_size=500,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        loaded = library.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))  # pyright: ignore
        pieces += [loaded.id_to_piece(i) for i in range(3, loaded.get_piece_size() - 5)]
    names = ["</s>", "<unk>", *dict.fromkeys(sorted(pieces)), *languages, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("opus")
    write_vocabulary(path, languages=(">>deu<<", ">>fra<<"))
    return path


@pytest.mark.parity
def test_equal_to_marian_tokenizer(folder):
    ours = marian.read(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends a library
        theirs = MarianTokenizer.from_pretrained(str(folder))
    assert ours.languages == [">>deu<<", ">>fra<<"]
    for text in [*TEXTS, *PROSE[-150:], ">>fra<< A text.", ">>deu<<"]:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids, text
        targets = theirs(text_target=text).input_ids
        if not text.startswith(">>"):
            assert ours.encode_target(text) == targets, text
        assert ours.decode(targets) == theirs.decode(targets, skip_special_tokens=True), text
    assert (ours.end, ours.padding) == (theirs.eos_token_id, theirs.pad_token_id)


def test_no_text_ends_a_sentence_within_itself(folder):
    vocabulary = marian.read(folder)
    ids = vocabulary.encode("a </s> b <pad> c")
    assert ids.count(vocabulary.end) == 1 and vocabulary.padding not in ids


def test_unknown_languages_are_told(folder):
    with pytest.raises(UsageError, match="no target language >>dea<<") as caught:
        marian.read(folder).encode(">>dea<< A text.")
    assert caught.value.hint == "did you mean >>deu<<?"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("vocab.json", "{", "it is no JSON"),
        ("vocab.json", "[]", "it is no JSON object"),
        ("vocab.json", '{"</s>": 0, "<unk>": 1, "<pad>": 1}', "a number of its own"),
        ("vocab.json", '{"</s>": 0, "<unk>": 1}', "it lacks <pad>"),
        ("source.spm", "text", "no SentencePiece model"),
        ("target_vocab.json", "{}", "a vocabulary of its own for the target"),
    ],
)
def test_bad_folders(folder, name, content, why, tmp_path):
    for file in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(RefusedError, match=why):
        marian.read(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingError, match=r"source\.spm: no such file"):
        marian.read(tmp_path)
