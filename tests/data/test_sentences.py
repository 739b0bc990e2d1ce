"""Labelled sentences: official files, tables of one's own, what is held out, batches, what is refused."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import fetch, pieces, tokenizers
from etude.data.sentences import Sentences, read_tables
from etude.errors import MissingError, RefusedError, UsageError

WORDS = ("fine", "dull", "film", "the", "a", "is", "was", "##ly", "quite")


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*tokenizers.WORDPIECE_SPECIAL, *WORDS]))
    return str(path)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "films.tsv"
    path.write_text(
        "".join(f"{('bad', 'good')[i % 2]}\tthe film {i} is {('dull', 'fine')[i % 2]}\n" for i in range(40))
    )
    return str(path)


def test_reviews():
    """The real file: 10,072 sentences, of which always the same 1,000 are the test; none of them stands in training."""
    try:
        fetch.path("reviews")
    except MissingError:
        pytest.skip("the reviews are not here: etude data get reviews")
    tables = Sentences().tables()
    assert {split: len(rows) for split, rows in tables.items()} == {"train": 8072, "validation": 1000, "test": 1000}
    said = {split: {sentence for _, sentence in rows} for split, rows in tables.items()}
    assert not (said["test"] & said["train"] or said["validation"] & said["train"] or said["test"] & said["validation"])
    assert sum(label == "positive" for rows in tables.values() for label, _ in rows) == 4996
    assert ("negative", "Effective but too tepid biopic") in [row for rows in tables.values() for row in rows]
    assert Sentences(validation=0).tables()["test"] == tables["test"]


def test_baseline():
    """What the fine-tuned model is measured by: TF-IDF of words and pairs, and logistic regression, whose C was chosen
    on the validation split."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")
    try:
        fetch.path("reviews")
    except MissingError:
        pytest.skip("the reviews are not here: etude data get reviews")
    said, labels = {}, {}
    for split, rows in Sentences().tables().items():
        labels[split], said[split] = zip(*rows)
    read = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = linear.LogisticRegression(C=4, max_iter=1000)
    model.fit(read.fit_transform(said["train"] + said["validation"]), labels["train"] + labels["validation"])
    assert model.score(read.transform(said["test"]), labels["test"]) == pytest.approx(0.796, abs=0.005)


def test_batches(table, vocabulary):
    dataset = Sentences(source="own", path=table, vocabulary=vocabulary, validation=5, test=5, length=16).open()
    assert dataset.sizes == {"train": 30, "validation": 5, "test": 5} and dataset.facts["classes"] == ["bad", "good"]
    tokenizer = tokenizers.from_json(dataset.files[tokenizers.FILE])
    batch = dataset.fetch("train", [3, 0])
    for ids, mask, label, index in zip(batch["ids"], batch["mask"], batch["label"], batch["index"]):
        sentence = dataset.sentences["train"][int(index)]
        expected = tokenizer.encode(sentence).ids
        assert ids[mask].tolist() == expected and not ids[~mask].any()
        assert (" fine" in sentence) == bool(label)
    assert torch.equal(batch["index"], torch.tensor([3, 0]))


def test_a_batch_is_a_function_of_seed_and_step(table, vocabulary):
    data = Sentences(source="own", path=table, vocabulary=vocabulary, validation=5, test=5)
    one, other = data.open(), data.open()
    for step in (0, 7):
        a, b = (d.batch(seed=3, step=step, batch_size=8) for d in (one, other))
        assert all(torch.equal(a[name], b[name]) for name in a)
        halves = [one.batch(seed=3, step=step, batch_size=8, rank=rank, world=2) for rank in (0, 1)]
        assert torch.equal(torch.cat([half["index"] for half in halves]), a["index"])
    assert not torch.equal(
        one.batch(seed=3, step=0, batch_size=8)["index"], one.batch(seed=4, step=0, batch_size=8)["index"]
    )


def test_official_glue_files(tmp_path, vocabulary):
    """Labels 0 and 1; dev is what is measured by, for GLUE's test file has none."""
    (tmp_path / "train.tsv").write_text('sentence\tlabel\nhide "the film \t0\nfine \t1\nquite a film \t1\ndull \t0\n')
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nthe film is fine\t1\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tuneasy mishmash\n")
    data = Sentences(source="sst2", path=str(tmp_path), vocabulary=vocabulary, validation=0)
    tables = data.tables()
    assert tables == {
        "train": [
            ("negative", 'hide "the film'),
            ("positive", "fine"),
            ("positive", "quite a film"),
            ("negative", "dull"),
        ],
        "test": [("positive", "the film is fine")],
    }
    assert data.open().facts["classes"] == ["negative", "positive"]
    with pytest.raises(MissingError, match="SST-2"):
        Sentences(source="sst2").open()


def test_tables_of_ones_own(tmp_path):
    """Columns by name or in order, commas with quotes, three files."""
    (tmp_path / "train.csv").write_text('id,text,class\n1,"fine, quite",good\n2,"a ""dull"" film",bad\n')
    (tmp_path / "validation.csv").write_text("label,text\ngood,fine\n")
    (tmp_path / "test.csv").write_text("label,text\nbad,dull\n")
    assert read_tables(tmp_path) == {
        "train": [("good", "fine, quite"), ("bad", 'a "dull" film')],
        "test": [("bad", "dull")],
        "validation": [("good", "fine")],
    }
    (tmp_path / "plain.tsv").write_text("good\tfine\n\nbad\tdull\tand more\n")
    assert read_tables(tmp_path / "plain.tsv") == {"train": [("good", "fine"), ("bad", "dull")]}


def test_sentences_that_occur_twice_are_not_held_out(tmp_path, vocabulary):
    path = tmp_path / "twice.tsv"
    path.write_text("".join(f"{i % 2}\tfilm {i // 2 if i < 20 else i}\n" for i in range(40)))
    tables = Sentences(source="own", path=str(path), vocabulary=vocabulary, validation=9, test=10).tables()
    assert {sentence for _, sentence in tables["test"]}.isdisjoint(sentence for _, sentence in tables["train"])
    assert len(tables["train"]) == 21


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_padding(lengths):
    ids = [np.arange(1, n + 1) for n in lengths]
    batch = pieces.pad(ids, 0)
    assert batch["ids"].shape == (len(lengths), max(lengths))
    for row, mask, expected in zip(batch["ids"], batch["mask"], ids):
        assert row[mask].tolist() == expected.tolist() and mask[: len(expected)].all()


def test_long_sentences_are_cut(vocabulary):
    """[CLS] and [SEP] stay; what a 10 MB line's end says is not looked at."""
    tokenizer = pieces.find(vocabulary)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    short, long, huge = pieces.encode(tokenizer, ["the film", "the film " * 9, "film " * 2_000_000], 8)
    assert not short.cut and short.ids.tolist() == [cls, 8, 7, sep]
    assert long.cut and long.whole == 20 and long.ids.tolist() == [cls, 8, 7, 8, 7, 8, 7, sep]
    assert huge.cut and len(huge.ids) == 8 and huge.whole > 1_000_000


def test_what_is_read_from_a_command_line(tmp_path, vocabulary, monkeypatch):
    data = Sentences(vocabulary=vocabulary)
    path = tmp_path / "said.txt"
    path.write_text("\ufeffthe film\n\n  is fine \r\n", encoding="utf-8")
    assert data.read(["a film", str(path)]) == [
        ("a film", "a film"),
        ("1: the film", "the film"),
        ("3: is fine", "is fine"),
    ]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"quite\nfine")))
    assert data.read(["-"]) == [("1: quite", "quite"), ("2: fine", "fine")]
    ((name, sentence),) = data.read(["film " * 2_000_000])
    assert len(name) < 70 and len(sentence) == 10_000_000
    for content, said in ((b"fine\xff", "byte 4 is 0xff"), (b" \n\n", "no sentence in standard input")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        with pytest.raises(UsageError, match=said):
            data.read(["-"])
    path.write_bytes(b"fine\nd\xe9j\xe0\n")
    with pytest.raises(UsageError, match="byte 6 is 0xe9"):
        data.read([str(path)])


@pytest.mark.parametrize(
    ("raw", "said"),
    [("", "empty"), (" \n", "empty"), ("f\udce9te", "not UTF-8"), (3, "not int"), (None, "not NoneType")],
)
def test_what_is_no_sentence(vocabulary, raw, said):
    with pytest.raises(UsageError, match=said):
        Sentences(vocabulary=vocabulary).prepare(raw)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"good\tfine\nbad\n", "line 2 has no label and sentence: 'bad'"),
        (b"good\tfine\nbad\t \n", "line 2"),
        (b"good\tfine\ngood\tquite\n", "one class, 'good'"),
        (b"good\tfine\nbad\td\xe9j\xe0\n", "not UTF-8 text: byte 15 is 0xe9"),
        (b"good\tfine\nbad\tdull\n", "too few to hold out"),
        (b"\n\n", "no sentences"),
        (b"", "is empty"),
    ],
)
def test_bad_tables(tmp_path, vocabulary, content, said):
    path = tmp_path / "bad.tsv"
    path.write_bytes(content)
    test = 1 if "class" in said else 1000
    with pytest.raises(UsageError, match=said) as refused:
        Sentences(source="own", path=str(path), vocabulary=vocabulary, validation=0, test=test).open()
    assert "\n" not in str(refused.value)


def test_bad_settings(tmp_path, table, vocabulary):
    with pytest.raises(UsageError, match=r"data\.length is 2"):
        Sentences(length=2)
    with pytest.raises(UsageError, match=r"data\.test 0"):
        Sentences(test=0)
    with pytest.raises(UsageError, match="no sentences 'tweets'"):
        Sentences(source="tweets").open()
    with pytest.raises(MissingError, match="no such file"):
        Sentences(source="own", path=str(tmp_path / "none")).open()
    with pytest.raises(MissingError, match=r"no train\.tsv"):
        Sentences(source="own", path=str(tmp_path)).open()
    with pytest.raises(MissingError, match=r"data\.vocabulary"):
        Sentences(source="own", path=table, vocabulary="words.txt", test=5, validation=5).open()
    (tmp_path / "words.txt").write_text("fine\ndull\n")
    with pytest.raises(RefusedError, match=r"lacks \[PAD\]"):
        Sentences(source="own", path=table, vocabulary=str(tmp_path / "words.txt"), test=5, validation=5).open()
    (tmp_path / "tokenizer.json").write_text(tokenizers.to_json(tokenizers.train_bpe(["fine"], 300)))
    with pytest.raises(RefusedError, match="no tokenizer of BERT"):
        pieces.find(str(tmp_path / "tokenizer.json"))
    (tmp_path / "dev.tsv").write_text("maybe\tdull\n")
    (tmp_path / "train.tsv").write_text("good\tfine\nbad\tdull\n")
    with pytest.raises(UsageError, match="labels that training has not: maybe"):
        Sentences(source="own", path=str(tmp_path), vocabulary=vocabulary, validation=0).open()


def test_a_published_tokenizer_is_read_whole(vocabulary):
    """A tokenizer.json that cuts and pads, as sentence-transformers' does, is made to do neither."""
    tokenizer = pieces.find(vocabulary)
    expected = tokenizer.encode("the film is quite fine").ids
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    again = pieces.whole(tokenizers.from_json(tokenizers.to_json(tokenizer)), "tokenizer.json")
    assert again.encode("the film is quite fine").ids == expected
