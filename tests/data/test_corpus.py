"""Corpora: pieces whose tokens are the text's, parts without leak, bytes counted exactly, files that survive a kill."""

import json
import math
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import corpus, documents, fetch, tokenizers
from etude.data.corpus import Corpus, CorpusDataset, Tokens
from etude.data.documents import decoded, pieces
from etude.data.text import incremental
from etude.errors import MissingError, RefusedError, UsageError

TEXT = "Der Käfer läuft über die Straße — naïve 東京 🎉.\n  Two  spaces\there, <|endoftext|> is text.\n" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def written(path: Path, content: str | bytes = TEXT) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def small(path: str, **changes: Any) -> Corpus:
    given = {"tokens": "bpe", "vocab_size": 300, "length": 16, "context": 8, "validation": 0.1, "test": 0.1}
    return Corpus(path=path, **(given | changes))


@pytest.fixture
def vocabularies(tmp_path: Path) -> dict[str, str]:
    """Small vocabularies in their published formats."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", *map(chr, range(97, 123))]
    tokenizer = json.loads(tokenizers.to_json(tokenizers.train_bpe([TEXT], 300, special=())))["model"]
    folder = tmp_path / "gpt2"
    written(folder / "vocab.json", json.dumps(tokenizer["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["merges"]]
    written(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    return {"wordpiece": written(tmp_path / "vocab.txt", "\n".join(words)), "gpt2": str(folder)}


# --- documents


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("file", ["a\nb\n\n \n\nc d\n"]),
        ("blank", ["a\nb", "c d"]),
        ("line", ["a", "b", "c d"]),
    ],
)
def test_documents(tmp_path: Path, kind: Any, expected: list[str]):
    path = Path(written(tmp_path / "a.txt", "\ufeffa\nb\n\n \n\nc d\n"))
    assert list(pieces([path], kind)) == [(document, True) for document in expected]


WORDS = st.text(alphabet="abé🎉", min_size=1, max_size=3)
BREAKS = st.sampled_from([" ", "\n", "\n\n", "\n \n", "\r\n", "\t"])


@given(st.lists(st.tuples(WORDS, BREAKS), max_size=30), st.integers(1, 9), st.integers(16, 40))
@settings(max_examples=150, deadline=None)
def test_pieces_make_up_the_documents(words: list[tuple[str, str]], chunk: int, piece: int):
    """Whatever the chunks and pieces are, the documents are those of the text."""
    text = "".join(word + after for word, after in words)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(written(Path(folder) / "a.txt", text))
        whole = {kind: _joined(path, kind) for kind in ("file", "blank", "line")}
        patch.setattr(documents, "CHUNK", chunk)
        patch.setattr(documents, "PIECE", piece)
        assert "".join(decoded(path)) == text
        found = {kind: _joined(path, kind) for kind in whole}
    assert found == whole
    assert whole["file"] == ([text] if text else [])
    assert whole["line"] == [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _joined(path: Path, kind: Any) -> list[str]:
    found, held = [], ""
    for text, last in pieces([path], kind):
        held += text
        if last:
            found.append(held)
            held = ""
    assert not held
    return found


def test_the_tokens_of_pieces_are_those_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabularies):
    monkeypatch.setattr(documents, "PIECE", 50)
    path = written(tmp_path / "a.txt")
    for data in (small(path), small(path, tokens="wordpiece", vocabulary=vocabularies["wordpiece"])):
        dataset = data.open()
        vocabulary = dataset.vocabulary
        text = TEXT[: round(0.8 * len(TEXT))]
        expected = [vocabulary.end, *vocabulary.encode(text), vocabulary.end]
        assert dataset.ids["train"].tolist() == expected


# --- tokens


@pytest.mark.parametrize("tokens", ["bytes", "bpe", "gpt2"])
def test_windows_count_every_byte_once(tmp_path: Path, tokens: Any, vocabularies):
    data = small(written(tmp_path / "a.txt"), tokens=tokens, vocabulary=vocabularies.get(tokens, ""))
    dataset = data.open()
    assert dataset.facts["vocab_size"] == len(dataset.vocabulary) == {"bytes": 257, "bpe": 300, "gpt2": 301}[tokens]
    counted = {"bytes": 0, "characters": 0}
    for split in dataset.sizes:
        sums = dict.fromkeys(counted, 0)
        targets = 0
        for span in dataset.spans(split, batch_size=3):
            batch = dataset.fetch(split, span)
            assert batch["tokens"].shape[1] - 1 == 16
            targets += int(batch["counted"].sum())
            for name in sums:
                sums[name] += int(batch[name].sum())
        assert targets == len(dataset.ids[split]) - 1
        assert all(sums[name] == dataset.facts[name][split] for name in sums)
        counted = {name: counted[name] + sums[name] for name in counted}
    assert counted == {"bytes": len(TEXT.encode()), "characters": len(TEXT)}
    assert dataset.vocabulary.decode(dataset.ids["train"]) == TEXT[: round(0.8 * len(TEXT))]


def test_every_counted_token_has_context(tmp_path: Path):
    dataset = small(written(tmp_path / "a.txt"), tokens="bytes").open()
    batches = [dataset.fetch("test", span) for span in dataset.spans("test", batch_size=5)]
    counts = [n for batch in batches for n in batch["counted"].tolist()]
    assert counts[0] == 16 and set(counts[1:-1]) == {8} and 0 < counts[-1] <= 8
    rows = [row[1:][-n:].tolist() for batch in batches for row, n in zip(batch["tokens"], batch["counted"])]
    assert [i for row in rows for i in row] == dataset.ids["test"][1:].tolist()


def test_training_windows_follow_from_seed_epoch_and_index(tmp_path: Path):
    dataset = small(written(tmp_path / "a.txt"), tokens="bytes").open()
    again = dataset.batch(seed=3, step=7, batch_size=4)["tokens"]
    assert torch.equal(again, dataset.batch(seed=3, step=7, batch_size=4)["tokens"])
    assert not torch.equal(again, dataset.batch(seed=4, step=7, batch_size=4)["tokens"])
    parts = [dataset.batch(seed=3, step=7, batch_size=4, rank=rank, world=2)["tokens"] for rank in range(2)]
    assert torch.equal(torch.cat(parts), again)
    row = dataset.ids["train"].tolist()
    assert all(window in [row[i : i + 17] for i in range(len(row))] for window in again.tolist())


def test_a_token_that_ends_documents_is_not_written_in_them(tmp_path: Path, vocabularies):
    dataset = small(written(tmp_path / "a.txt"), tokens="gpt2", vocabulary=vocabularies["gpt2"]).open()
    assert (dataset.ids["train"] == 300).sum() == 2 and "<|endoftext|>" in dataset.vocabulary.decode(
        dataset.ids["train"]
    )


def test_texts_of_tokens(tmp_path: Path):
    vocabulary = small(written(tmp_path / "a.txt"), tokens="bytes").open().vocabulary
    assert list(vocabulary.texts(vocabulary.encode("aé🎉"))) == ["a", "", "é", "", "", "", "🎉"]
    assert list(incremental([b"\xc3", b"", b"\xa9b"])) == ["", "", "éb"]
    with pytest.raises(RefusedError, match="no token between documents"):
        Tokens(tokenizers.train_bpe([TEXT], 300, special=()))


# --- parts


def test_few_documents_are_cut_into_contiguous_parts(tmp_path: Path):
    for i, size in enumerate((500, 300, 200)):
        written(tmp_path / "d" / f"{i}.txt", "".join(chr(97 + i) for _ in range(size)))
    dataset = small(str(tmp_path / "d"), tokens="bytes", validation=0.25, test=0.1).open()
    shown = {split: "".join("|" if i == 256 else chr(i) for i in ids) for split, ids in dataset.ids.items()}
    a, b, c = ("a" * 500, "b" * 300, "c" * 200)
    assert shown == {"train": f"|{a}|{b[:150]}|", "validation": f"|{b[150:]}|{c[:100]}|", "test": f"|{c[100:]}|"}
    assert dataset.facts["documents"] == {"train": 2, "validation": 2, "test": 1}


def test_equal_documents_stay_together(tmp_path: Path):
    lines = [f"line {i % 400} of the text" for i in range(1200)]
    data = small(written(tmp_path / "a.txt", "\n".join(lines)), documents="line", tokens="bytes")
    dataset = data.open()
    found = {split: dataset.vocabulary.decode(ids) for split, ids in dataset.ids.items()}
    rows = {split: _split(ids) for split, ids in dataset.ids.items()}
    assert sum(map(len, rows.values())) == 1200 and found
    kinds = {split: set(map(tuple, documents)) for split, documents in rows.items()}
    assert not kinds["train"] & kinds["test"] and not kinds["train"] & kinds["validation"]
    assert 0.05 < len(kinds["test"]) / 400 < 0.16
    # that there are more documents moves none from part to part
    more = small(written(tmp_path / "b.txt", "\n".join([*reversed(lines), "new"])), documents="line", tokens="bytes")
    moved = {split: set(map(tuple, _split(ids))) for split, ids in more.open().ids.items()}
    assert all(kinds[split] <= moved[split] for split in kinds)


def _split(ids: Any) -> list[list[int]]:
    ends = np.flatnonzero(np.asarray(ids) == 256)
    return [ids[a + 1 : b].tolist() for a, b in pairwise(ends)]


def test_tokens_are_learned_from_the_training_part_alone(tmp_path: Path):
    head = "the cat sat on the mat " * 200
    a = small(written(tmp_path / "a.txt", head + "x" * 600), parts="contiguous").open()
    b = small(written(tmp_path / "b.txt", head + "y" * 600), parts="contiguous").open()
    assert a.facts["tokenizer"] == b.facts["tokenizer"]


# --- files


def test_tokens_are_made_once(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    data = small(written(tmp_path / "a.txt"))
    first = data.open()
    assert first.ids["train"].dtype == np.uint16
    made = sorted(path.name for path in (home / "tokens").iterdir() if not path.name.startswith("."))
    assert made == [first.folder.name]
    monkeypatch.setattr(corpus, "make", None)
    assert data.open().facts == first.facts
    elsewhere = small(written(tmp_path / "b" / "c.txt"))
    assert elsewhere.open().folder == first.folder
    with pytest.raises(TypeError):
        small(data.path, vocab_size=301).open()


def test_a_kill_leaves_nothing_half_made(tmp_path: Path, home: Path):
    path = written(tmp_path / "a.txt", TEXT * 20)
    program = (
        "import os, signal, sys\nfrom etude.data import corpus, documents\nfrom etude.data.corpus import Corpus\n"
        "documents.PIECE, corpus.AT_ONCE = 1000, 4000\nadd, count = corpus._Row.add, [0]\n"
        "def dying(*a):\n    count[0] += 1\n    os.kill(os.getpid(), signal.SIGKILL) if count[0] == 30 else add(*a)\n"
        "corpus._Row.add = dying\nCorpus(path=sys.argv[1], vocab_size=300, length=16, context=8).open()\n"
    )
    died = subprocess.run([sys.executable, "-c", program, path], env=dict(os.environ), capture_output=True)
    assert died.returncode == -9, died.stderr.decode()
    left = [entry.name for entry in (home / "tokens").iterdir() if entry.is_dir()]
    assert len(left) == 1 and left[0].endswith(".making")
    dataset = Corpus(path=path, vocab_size=300, length=16, context=8).open()
    assert sum(dataset.facts["bytes"].values()) == len(TEXT.encode()) * 20
    assert [entry.name for entry in (home / "tokens").iterdir() if entry.is_dir()] == [dataset.folder.name]


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(70_000))]
    vocabulary = written(tmp_path / "vocab.txt", "\n".join(words))
    text = " ".join(f"w{i}" for i in (0, 69_999, 5)) + " w1" * 400
    data = small(written(tmp_path / "a.txt", text), tokens="wordpiece", vocabulary=vocabulary)
    dataset = data.open()
    assert dataset.ids["train"].dtype == np.uint32 and dataset.ids["train"][:4].tolist() == [3, 5, 70_004, 10]
    every = dataset.fetch("test", range(dataset.sizes["test"]))  # each token counts as a mean one, all as the split
    assert every["bytes"].sum().item() == pytest.approx(dataset.facts["bytes"]["test"], rel=1e-6)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "train.bin").write_bytes(b"ab"), "train.bin has 2 bytes of"),
        (lambda f: _flip(f / "test.bin"), "test.bin is not as its sha256 says"),
        (lambda f: (f / "test.bin").unlink(), "test.bin has 0 bytes of"),
        (lambda f: (f / "corpus.json").write_text("{"), "corpus.json cannot be read"),
        (lambda f: (f / "corpus.json").write_text("[]"), "corpus.json cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
        (
            lambda f: (f / "tokenizer.json").write_text(tokenizers.to_json(tokenizers.train_bpe(["ab"], 258))),
            "is not the tokenizer that its tokens were made with",
        ),
    ],
)
def test_damaged_tokens_are_told(tmp_path: Path, harm: Any, said: str):
    data = small(written(tmp_path / "a.txt"))
    folder = data.open().folder
    harm(folder)
    with pytest.raises(RefusedError, match=said) as caught:
        data.open()
    assert caught.value.hint.startswith(f"rm -r {folder}")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_folder_of_tokens_is_data_too(tmp_path: Path):
    dataset = small(written(tmp_path / "a.txt"), tokens="bytes").open()
    moved = dataset.folder.rename(tmp_path / "moved")
    assert small(str(moved), tokens="bytes").open().ids["test"].tolist() == dataset.ids["test"].tolist()
    with pytest.raises(UsageError, match="holds tokens of bytes, and gpt2 are wanted") as caught:
        small(str(moved), tokens="gpt2").open()
    assert caught.value.hint == "--data.tokens bytes"
    receipt = json.loads((moved / "corpus.json").read_text())
    row = np.array([256, 300, 256] * 20, "<u2")
    row.tofile(moved / "train.bin")
    digest = __import__("hashlib").sha256(row.tobytes()).hexdigest()
    receipt["parts"]["train"] |= {"tokens": len(row), "sha256": digest}
    (moved / "corpus.json").write_text(json.dumps(receipt))
    with pytest.raises(RefusedError, match=r"train.bin holds token 300 of 257"):
        small(str(moved), tokens="bytes").open()


def test_another_text_is_read_in_the_run_s_tokens(tmp_path: Path):
    mine = small(written(tmp_path / "a.txt"))
    facts = mine.open().facts | {"files": mine.open().files}
    assert mine.reopen(facts).folder == mine.open().folder  # the same documents: the same parts
    other = small(written(tmp_path / "b.txt", "Another text, 東京. " * 30)).reopen(facts)
    assert list(other.sizes) == ["test"] and other.facts["tokenizer"] == facts["tokenizer"]
    assert other.vocabulary.decode(other.ids["test"]) == "Another text, 東京. " * 30
    theirs = small(written(tmp_path / "c.txt", "yet another one " * 90)).open()
    with pytest.raises(UsageError, match="tokens of another tokenizer"):
        small(str(theirs.folder)).reopen(facts)


# --- what is refused


def test_bad_texts(tmp_path: Path):
    with pytest.raises(MissingError, match="no such file or folder"):
        small(str(tmp_path / "none")).open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no .txt file"):
        small(str(tmp_path / "empty")).open()
    with pytest.raises(UsageError, match=r"a.txt holds no text"):
        small(written(tmp_path / "a.txt", "")).open()
    content = b"x" * (documents.CHUNK - 1) + "é".encode() + b"ok \xff"
    with pytest.raises(UsageError, match=r"b.txt is not UTF-8 text: byte 1,048,580 is 0xff"):
        small(written(tmp_path / "b.txt", content)).open()
    with pytest.raises(UsageError, match=r"c.txt is not UTF-8 text: byte 3 is 0xe2"):
        small(written(tmp_path / "c.txt", b"abc\xe2\x82")).open()
    with pytest.raises(UsageError, match="shorter than a sequence: its training part has 18 tokens") as caught:
        small(written(tmp_path / "d.txt", "x" * 20), tokens="bytes", length=32).open()
    assert caught.value.hint.startswith("--data.length")
    with pytest.raises(UsageError, match="there is no text 'none'"):
        small("", source="none").open()
    with pytest.raises(MissingError) as missing:
        small("", source="bible").open()
    assert missing.value.hint == "etude data get bible"


@pytest.mark.parametrize(
    "changes",
    [{"length": 0}, {"context": 16}, {"context": -1}, {"test": 0.0}, {"validation": 0.9}, {"test": math.nan}],
)
def test_wrong_settings(changes: dict[str, Any]):
    with pytest.raises(UsageError):
        small("x", **changes)


def test_a_line_of_megabytes(tmp_path: Path):
    """In pieces, with words in it or without; no byte is lost."""
    for tokens, line in (("bpe", "word and word " * 150_000), ("bytes", "x" * 10_500_000)):
        data = small(written(tmp_path / tokens, line), tokens=tokens, documents="line", parts="contiguous")
        dataset = data.open()
        assert sum(dataset.facts["bytes"].values()) == len(line)
        assert max(len(text) for text, _ in pieces([Path(data.path)], "line")) <= documents.PIECE


def test_the_bible_is_the_source_of_old(home: Path, monkeypatch: pytest.MonkeyPatch):
    """Its parts are the characters that `Text` holds out."""
    from etude.data.text import Text

    monkeypatch.delenv("ETUDE_HOME")
    try:
        path = fetch.path("bible")
    except MissingError:
        pytest.skip("the bible is not here")
    monkeypatch.setenv("ETUDE_HOME", str(home))
    if not (path / "bible.txt").is_file():
        pytest.skip("the bible is installed, not got")
    text = Text(path=str(path)).open()
    dataset = Corpus(path=str(path), tokens="bytes").open()
    assert isinstance(dataset, CorpusDataset)
    assert dataset.facts["characters"] == text.facts["characters"]
