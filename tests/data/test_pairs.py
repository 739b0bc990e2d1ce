"""Pairs: documents keep to one split, batches follow from (seed, step) and share out, bad files are told in a line."""

import collections
import dataclasses

import numpy as np
import pytest
import torch

from etude.data import fetch, pairs, tokenizers
from etude.data.pairs import Pairs, share
from etude.errors import EtudeError, MissingError, UsageError

WORDS = "file window open close menu click print table cell row value number".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))


def write_tsv(path, count=400, documents=60, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = rng.choice(WORDS, rng.integers(1, 12)).tolist()
        rows.append(f"doc{i % documents}\t{' '.join(words)} {i}\t{' '.join(w[::-1] for w in words)} {i}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return rows


@pytest.fixture
def opened(tmp_path):
    write_tsv(tmp_path / "own.tsv")
    return Pairs(path=str(tmp_path / "own.tsv"), vocab_size=320, validation=0.15, test=0.15, translated=7).open()


def test_no_document_is_in_two_splits(tmp_path, opened):
    rows = [line.split("\t") for line in (tmp_path / "own.tsv").read_text().splitlines()]
    document = {source: name for name, source, _ in rows}
    names = {split: {document[text] for text in texts[0]} for split, texts in opened.texts.items()}
    assert sum(map(len, names.values())) == len(set.union(*names.values())) == 60
    assert all(len(found) >= 3 for found in names.values())
    assert sum(len(a) for a, _ in opened.texts.values()) == 400


def test_a_growing_set_keeps_its_splits():
    shares = np.array([share(f"package {i}") for i in range(4000)])
    assert 0.45 < shares.mean() < 0.55 and 60 < (shares < 0.02).sum() < 100
    assert share("a.html") == share("a.html") != share("b.html")


def test_the_real_pairs_leak_nothing(monkeypatch):
    monkeypatch.delenv("ETUDE_HOME")
    if fetch.status("en-de").state == "missing":
        pytest.skip("etude data get en-de")
    data = Pairs(source="en-de")
    rows = pairs._tsv(fetch.path("en-de") / "pairs.tsv")
    parts = pairs._split(rows, data, "en-de")
    assert len(parts["train"][0]) > 60_000 and all(len(parts[s][0]) > 500 for s in ("validation", "test"))
    sources = {split: {text.casefold() for text in texts[0]} for split, texts in parts.items()}
    assert not sources["train"] & sources["test"] and not sources["train"] & sources["validation"]
    where = collections.defaultdict(set)
    splits = {text: split for split, texts in parts.items() for text in texts[0]}
    for document, text, _ in rows:
        where[document].add(splits[text])
    assert all(len(found) == 1 for found in where.values())


def test_batches_are_a_function_of_seed_and_step(tmp_path, opened):
    again = opened.data.open()
    for step in (0, 3, 57):
        a, b = (d.batch(seed=5, step=step, batch_size=200) for d in (opened, again))
        assert all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()
    other = opened.batch(seed=6, step=0, batch_size=200)
    assert not torch.equal(other["index"], opened.batch(seed=5, step=0, batch_size=200)["index"])


def test_an_epoch_holds_every_pair_once_but_a_few_twice(opened):
    begins = opened._begins.setdefault((1, 200), [0])
    opened._epoch(1, 100, 200)
    for epoch in range(2):
        steps = range(begins[epoch], begins[epoch + 1])
        seen = np.concatenate([opened.batch(seed=1, step=s, batch_size=200)["index"].numpy() for s in steps])
        counts = np.bincount(seen, minlength=opened.sizes["train"])
        assert counts.min() == 1 and (counts - 1).sum() == -opened.sizes["train"] % 8


def test_batches_hold_as_many_tokens_as_asked_for(opened):
    for step in range(12):
        batch = opened.batch(seed=0, step=step, batch_size=250)
        longer = torch.maximum(batch["source_length"], batch["target_length"])
        assert len(longer) % 8 == 0
        assert longer.sum() <= 250 or len(longer) == 8
        assert longer.max() - longer.min() < 12
        rows = torch.arange(batch["target"].shape[1]) < batch["target_length"][:, None]
        assert (batch["target"][~rows] == 0).all() and (batch["target"][rows] != 0).all()
        last = batch["target"].gather(1, batch["target_length"][:, None] - 1)
        assert (last == opened.facts["end"]).all()


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_a_batch_and_weights_make_its_mean_that_of_tokens(opened, world):
    whole = opened.batch(seed=0, step=4, batch_size=250)
    parts = [opened.batch(seed=0, step=4, batch_size=250, rank=r, world=world) for r in range(world)]
    assert sorted(i for part in parts for i in part["index"].tolist()) == sorted(whole["index"].tolist())
    per_pair = lambda batch: batch["index"].double() * batch["target_length"]  # noqa: E731 (a loss of i each token)
    expected = per_pair(whole).sum() / whole["target_length"].sum()
    one = (per_pair(whole) * whole["weight"]).mean()
    many = torch.stack([(per_pair(part) * part["weight"]).mean() for part in parts]).mean()
    torch.testing.assert_close(torch.stack([one, many]), expected.expand(2), rtol=1e-6, atol=0)
    with pytest.raises(UsageError, match="3 processes"):
        opened.batch(seed=0, step=0, batch_size=250, world=3)


@pytest.mark.parametrize("world", [1, 3])
def test_an_evaluation_holds_every_pair_once(opened, world):
    for split in ("train", "validation", "test"):
        spans = [opened.spans(split, batch_size=150, rank=r, world=world) for r in range(world)]
        assert sorted(i for part in spans for span in part for i in span) == list(range(opened.sizes[split]))
    marked = opened.fetch("validation", range(opened.sizes["validation"]))["translated"]
    assert marked.sum() == 7 and opened.fetch("test", range(5))["translated"].all()


def test_the_vocabulary_is_joint_kept_and_reversible(tmp_path, opened):
    kept = list((tmp_path / "home" / "tokenizers").iterdir())
    assert len(kept) == 1 and kept[0].read_text(encoding="utf-8") == opened.files["tokenizer.json"]
    tokenizer = tokenizers.from_json(opened.files["tokenizer.json"])
    for text in (*opened.texts["test"][0][:5], "Ünïcode 中文 🙂 <b>"):
        ids = pairs.encode(tokenizer, [text])[0][0]
        assert ids[-1] == 2 and tokenizer.decode(ids.tolist()) == text
    given = dataclasses.replace(opened.data, vocabulary=str(kept[0]), vocab_size=999).open()
    assert given.facts["vocab_size"] == 320
    bert = tmp_path / "other.json"
    bert.write_text(tokenizers.to_json(tokenizers.train_bpe(["a b"], 300)), encoding="utf-8")
    with pytest.raises(UsageError, match="of another kind: it has no <pad>"):
        dataclasses.replace(opened.data, vocabulary=str(bert)).open()


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def test_two_files_of_your_own(tmp_path):
    lines = [f"{a} {b}" for a in WORDS for b in WORDS]
    text, reverse = "\n".join(lines), "\n".join(line[::-1] for line in lines)
    folder = write(tmp_path / "own", train_en=text, train_xx=reverse, test_en="a\nb\n", test_xx="c\nd\n")
    data = Pairs(source="en-xx", path=str(folder), vocab_size=300, validation=0.1)
    parts = data.open().texts
    assert parts["test"] == (["a", "b"], ["c", "d"])
    assert len(parts["train"][0]) + len(parts["validation"][0]) == len(lines)
    (tmp_path / "own" / "train.en").rename(tmp_path / "wmt.train.en")
    (tmp_path / "own" / "train.xx").rename(tmp_path / "wmt.train.xx")
    prefixed = Pairs(source="en-xx", path=str(tmp_path / "wmt"), vocab_size=300, test=0.1).open()
    assert set(prefixed.sizes) == {"train", "validation", "test"}
    repeated = Pairs(source="en-xx", path=str(tmp_path / "wmt"), vocab_size=300, limit=40, test=0.2, validation=0.2)
    assert sum(len(a) for a, _ in repeated.open().texts.values()) == 40


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train_en": "a\nb\n", "train_de": "a\n"}, "train.en has 2 lines and train.de 1"),
        ({"train_en": "a\n"}, "train.de: no such file"),
        ({"train_en": "", "train_de": "a\n"}, "train.en is empty"),
        ({"train_en": "\n\n", "train_de": "a\nb\n"}, "hold no pair"),
        ({"train_en": b"a\xff\n", "train_de": "a\n"}, "not UTF-8 text: byte 1"),
        ({"train_en": "x" * 10_000_000, "train_de": "a\n"}, "line 1: 10,000,000 characters"),
        ({}, "train.en"),
    ],
)
def test_bad_files_are_told_in_a_line(tmp_path, files, said):
    folder = write(tmp_path / "bad", **files)
    with pytest.raises(EtudeError, match=said) as caught:
        Pairs(source="en-de", path=str(folder)).open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [("only one column\n", "1 column;"), ("a\tb\tc\td\n", "4 columns;"), ("\ta\n", "no pair"), ("a\tb\n", "is empty")],
)
def test_bad_tables(tmp_path, content, said):
    (tmp_path / "bad.tsv").write_text(content)
    with pytest.raises(UsageError, match=said):
        Pairs(path=str(tmp_path / "bad.tsv")).open()


def test_other_misuse(tmp_path):
    write_tsv(tmp_path / "own.tsv")
    with pytest.raises(MissingError, match="en-de is not on this machine"):
        Pairs().open()
    with pytest.raises(UsageError, match="no pairs 'en-xx'"):
        Pairs(source="en-xx").open()
    with pytest.raises(MissingError, match="neither such a file"):
        Pairs(path=str(tmp_path / "nowhere")).open()
    with pytest.raises(UsageError, match="at most 2 tokens"):
        Pairs(path=str(tmp_path / "own.tsv"), vocab_size=300, longest=2, test=0.1, validation=0.1).open()
    for wrong in (
        lambda: Pairs(source="en"),
        lambda: Pairs(test=0.0),
        lambda: Pairs(longest=1),
        lambda: Pairs(validation=0.99),
    ):
        with pytest.raises(UsageError):
            wrong()


@pytest.mark.parametrize("lacking", ["test.en", "test.de", "train.de"])
def test_a_side_that_lacks_is_told(tmp_path, lacking):
    files = {f"{split}.{language}": "\n".join(f"{split} {language} {i}" for i in range(30))
             for split in ("train", "test") for language in ("en", "de")}  # fmt: skip
    write(tmp_path, **files)
    (tmp_path / lacking).unlink()
    with pytest.raises(MissingError, match=lacking):
        Pairs(path=str(tmp_path), vocab_size=300).open()
