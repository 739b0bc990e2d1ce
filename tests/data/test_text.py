"""Texts: zText as the SWORD project writes it, the split, the windows, the vocabulary, and what is refused."""

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import fetch, remotes, sword
from etude.data.remotes import Debian, File, Remote
from etude.data.text import UNKNOWN, Text, TextDataset, Vocabulary
from etude.errors import MissingError, RefusedError, UsageError

GENESIS = (
    '<div canonical="true" osisID="Gen" sID="gen1" type="book"/> <title level="1" type="main">Genesis</title> '
    '<div sID="gen2" type="x-p"/><chapter n="1" osisID="Gen.1" sID="Gen.1"/><w lemma="strong:H0430">In</w> '
    '<w lemma="strong:H0853">the</w> <w>beginning</w>, <w>God</w><note placement="foot"><reference type="annotateRef">'
    "1:1 </reference>The Hebrew word is “אֱלֹהִ֑ים”.</note><w>created</w> <w>heavens</w><note>x</note>, &amp; the "
    'earth.<div eID="gen2" type="x-p"/> <div sID="gen3" type="x-p"/><div type="x-milestone" subType="x-preverse" '
    'sID="pv1"/>The earth\nwas <q marker=""/>formless.<div eID="gen3" type="x-p"/>'
)
PSALM = (
    '<l level="1" sID="l1"/>Blessed is the man<l eID="l1" level="1"/> <l level="2" sID="l2"/>who walks;<l eID="l2"/>'
)
PLAIN = (
    "Genesis\nIn the beginning, God created heavens, & the earth.\nThe earth was formless.\n\n"
    "Blessed is the man\nwho walks;\nand rejoices.\n\nThe book of Matthew.\n"
)


def write_ztext(folder: Path, testaments: dict[str, list[str]]) -> None:
    """The official format: 12-byte records, then the compressed blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, blocks in testaments.items():
        records, packed = b"", b""
        for block in blocks:
            raw = block.encode()
            squeezed = zlib.compress(raw)
            records += struct.pack("<III", len(packed), len(squeezed), len(raw))
            packed += squeezed
        (folder / f"{name}.bzs").write_bytes(records)
        (folder / f"{name}.bzz").write_bytes(packed)


def small_bible(folder: Path) -> Path:
    # a block that repeats the one before it and goes on, and one that holds no text
    ot = ['<milestone type="x-importer"/>', GENESIS, PSALM, PSALM + "and rejoices."]
    write_ztext(folder, {"ot": ot, "nt": ["The book of <w>Matthew</w>."]})
    return folder


def opened(path: Path, text: str, **changes) -> TextDataset:
    path.write_text(text, encoding="utf-8")
    return Text(path=str(path), **changes).open()


# --- zText


def test_ztext_becomes_plain_text(tmp_path: Path):
    assert sword.read(small_bible(tmp_path)) == PLAIN
    assert Text(path=str(tmp_path)).load() == PLAIN


def test_get_makes_the_plain_text_with_a_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetch, "ROOT", tmp_path / "root")
    root = small_bible(tmp_path / "package")
    files = tuple(
        File(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(root.iterdir())
    )
    remote = Remote(debian=Debian("sword-text-web", "usr/share/sword/x", files), convert=sword.write_plain)
    monkeypatch.setitem(remotes.REMOTES, "bible", remote)
    with pytest.raises(MissingError) as caught:
        Text().load()
    assert caught.value.hint == "etude data get bible"

    def taken_apart(name, remote, work, progress):
        return small_bible(work / "ready")

    monkeypatch.setattr(fetch, "_debian", taken_apart)
    folder = fetch.get("bible")
    assert (folder / "bible.txt").read_text() == PLAIN == Text().load()
    receipt = json.loads((folder / "receipt.json").read_text())
    digest = hashlib.sha256(PLAIN.encode()).hexdigest()
    assert {"name": "bible.txt", "bytes": len(PLAIN), "sha256": digest} in receipt["files"]
    fetch.verify("bible")


def test_an_installed_package_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetch, "ROOT", tmp_path)
    root = small_bible(tmp_path / "usr")
    files = tuple(File(path.name, path.stat().st_size, "") for path in root.iterdir())
    monkeypatch.setitem(remotes.REMOTES, "bible", Remote(debian=Debian("sword-text-web", "usr", files)))
    assert Text().load() == PLAIN


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (b"123", "no multiple of 12"),
        (struct.pack("<III", 0, 10**6, 10), "block 0 lies outside"),
        (struct.pack("<III", 0, 20, 2**31), "larger than any book"),
        (struct.pack("<III", 1, 20, 10), "block 0 is damaged"),
        (struct.pack("<III", 0, 109, 299_999), "does not unpack to the 299,999 bytes"),
        (struct.pack("<III", 0, 109, 300_001), "does not unpack to the 300,001 bytes"),
        (struct.pack("<III", 0, 60, 300_000), "does not unpack"),
    ],
)
def test_wrong_blocks_are_refused(tmp_path: Path, records: bytes, said: str):
    packed = zlib.compress(b"word " * 60_000)
    (tmp_path / "ot.bzs").write_bytes(records.replace(struct.pack("<I", 109), struct.pack("<I", len(packed))))
    (tmp_path / "ot.bzz").write_bytes(packed)
    with pytest.raises(RefusedError, match=said):
        sword.read(tmp_path)


def test_a_missing_file_and_a_block_of_other_bytes(tmp_path: Path):
    write_ztext(tmp_path, {"ot": ["x"]})
    squeezed = zlib.compress(b"\xff\xfe")
    (tmp_path / "ot.bzs").write_bytes(struct.pack("<III", 0, len(squeezed), 2))
    (tmp_path / "ot.bzz").write_bytes(squeezed)
    with pytest.raises(RefusedError, match="not UTF-8"):
        sword.read(tmp_path)
    (tmp_path / "ot.bzz").unlink()
    with pytest.raises(MissingError, match=r"ot\.bzz is missing"):
        sword.read(tmp_path)


def test_blocks_without_end_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sword, "TEXT_LIMIT", 1000)
    write_ztext(tmp_path, {"ot": ["word " * 150, "other " * 150]})
    with pytest.raises(RefusedError, match="more than 1,000 bytes"):
        sword.read(tmp_path)


@pytest.mark.slow
def test_the_world_english_bible():
    """Needs a Debian machine with a network."""
    try:
        fetch.get("bible")
    except MissingError as error:
        pytest.skip(str(error))
    text = Text().load()
    assert len(text) == 4_936_506 and len(Text().open().vocabulary) == 82
    assert "In the beginning, God created the heavens and the earth." in text
    assert not re.search(r"<|&\w+;", text)


# --- the split and its windows


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(60, 900),
    length=st.integers(1, 40),
    context=st.integers(0, 60),
    tokens=st.sampled_from(["characters", "bytes"]),
    world=st.integers(1, 3),
)
def test_every_held_out_character_is_predicted_once(tmp_path_factory, count, length, context, tokens, world):
    """Over all batches and ranks the counted targets are the split, in its order, each after as much context as there
    is; and nothing that is learned from is held out."""
    rng = np.random.default_rng(count)
    text = "".join(rng.choice(list("abcé—\n"), count))
    path = tmp_path_factory.mktemp("text") / "x.txt"
    data = opened(path, text, length=min(length, count // 2), context=context, tokens=tokens, validation=0.1, test=0.2)
    first, last = round(0.7 * count), round(0.8 * count)
    parts = {"train": text[:first], "validation": text[first:last], "test": text[last:]}
    assert data.facts["characters"] == {split: len(part) for split, part in parts.items()}
    for split, part in parts.items():
        predicted, characters = [], 0
        for rank in range(world):
            for span in data.spans(split, batch_size=3, rank=rank, world=world):
                batch = data.fetch(split, span)
                characters += int(batch["characters"].sum())
                for window, counted in zip(batch["tokens"], batch["counted"].tolist()):
                    assert len(window) - 1 - counted >= min(context, len(predicted)) or rank
                    predicted += window[len(window) - counted :].tolist()
        whole = data.vocabulary.decode(predicted)
        expected = part if split != "train" else part[1:]  # nothing stands before the first of all
        if tokens == "bytes" and split == "train":
            assert whole.encode("utf-8", "replace")[-len(part[1:].encode()) :] == part[1:].encode()
        else:
            assert whole == expected and characters == len(expected)


def test_training_windows_cover_the_text_anew_each_epoch(tmp_path: Path):
    text = "".join(chr(0x4E00 + i) for i in range(2000))  # each character tells its place
    data = opened(tmp_path / "x.txt", text, length=20, context=20, validation=0.1, test=0.1)
    size = data.sizes["train"]
    train = set(range(1600))
    starts = []
    for epoch in (0, 1):
        batch = data.fetch("train", range(size), epochs=np.full(size, epoch), seed=3)
        places = batch["tokens"].numpy()
        assert places.shape == (size, 21) and np.all(np.diff(places, axis=1) == 1)
        assert set(places.flatten()) <= train
        assert len(set(places[:, 1:].flatten())) > 0.96 * 1600
        starts.append(places[:, 0])
    assert not np.array_equal(*starts) and np.abs(starts[0] - starts[1]).max() < 22
    again = data.fetch("train", [5, 0], epochs=np.array([0, 1]), seed=3)["tokens"][:, 0].tolist()
    assert again == [starts[0][5], starts[1][0]]  # a function of seed, epoch and index alone
    parts = [data.batch(seed=3, step=7, batch_size=8, rank=rank, world=2)["tokens"] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), data.batch(seed=3, step=7, batch_size=8)["tokens"])


def test_the_vocabulary_is_the_training_part_s(tmp_path: Path):
    data = opened(tmp_path / "x.txt", "cab" * 30 + "cžb\ufffdb", length=8, validation=0, test=0.05)
    assert data.vocabulary.characters == "abc" + UNKNOWN and data.facts["unknown"] == 2
    assert list(data.sizes) == ["train", "test"]
    tokens = data.fetch("test", [0])["tokens"][0]
    assert data.vocabulary.decode(tokens.tolist()) == "bc\ufffdb\ufffdb"
    assert Text(path=str(tmp_path / "x.txt"), length=8, validation=0, test=0.05).prepare("abc").tolist() == [0, 1, 2]


@given(st.text(st.sampled_from("abcéλ→𝄞\n"), min_size=1))
def test_vocabularies_read_what_they_wrote(text):
    for vocabulary in (Vocabulary("".join(sorted("abcéλ→𝄞\n"))), Vocabulary("")):
        assert vocabulary.decode(vocabulary.encode(text)) == text
        assert vocabulary.encode(text).max() < len(vocabulary)


def test_a_limit_takes_the_beginning(tmp_path: Path):
    data = opened(tmp_path / "x.txt", "ab" * 100 + "z" * 800, length=8, limit=200, test=0.1)
    assert data.vocabulary.characters == "ab" and sum(data.facts["characters"].values()) == 200


def test_unknown_characters_are_named():
    with pytest.raises(UsageError, match="the text holds 'xž', which the training text does not") as caught:
        Vocabulary("abc").encode("axžxb")
    assert "its 3 characters: 'abc'" in caught.value.hint


# --- inputs, and what is refused


def test_a_folder_of_texts(tmp_path: Path):
    for name, text in (("b.txt", "two"), ("a.txt", "\ufeffone"), ("c.md", "no")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert Text(path=str(tmp_path)).load() == "one\ntwo"


def test_words_and_files(tmp_path: Path):
    path = tmp_path / "prompt.txt"
    path.write_text("from a file", encoding="utf-8")
    data = Text()
    long = "In the beginning " * 100
    found = data.read(["In the beginning", str(path), long])
    assert [data.text(raw) for _, raw in found] == ["In the beginning", "from a file", long]
    with pytest.raises(UsageError, match="not int"):
        data.text(3)


def test_samples_are_pieces_of_the_split(tmp_path: Path):
    text = "".join(chr(0x4E00 + i) for i in range(2000))
    data = opened(tmp_path / "x.txt", text, length=20, test=0.2)
    assert [raw for _, raw in data.samples("test", 2)] == [
        UNKNOWN * 120,
        UNKNOWN * 120,
    ]  # no character of this text comes twice
    train = data.samples("train", 3)
    assert len(train) == 3 and all(raw in text and len(raw) == 120 for _, raw in train)


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        (b"", {}, "is empty"),
        (b"caf\xe9 au lait", {}, "is not UTF-8 text: byte 3 is 0xe9"),
        (b"x" * 100, {"length": 128}, "shorter than a sequence: 90 of its 100 characters .* a sequence takes 129"),
        (b"x" * 5, {"length": 2}, "the test part .* is empty"),
    ],
)
def test_texts_that_cannot_be_learned_from(tmp_path: Path, content: bytes, changes: dict, said: str):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        Text(path=str(path), **changes).open()
    assert "\n" not in str(caught.value)


def test_places_that_hold_no_text(tmp_path: Path):
    with pytest.raises(MissingError, match="no such file or folder"):
        Text(path=str(tmp_path / "nowhere")).load()
    with pytest.raises(UsageError, match=r"holds no \.txt file"):
        Text(path=str(tmp_path)).load()
    with pytest.raises(UsageError, match="there is no text 'shakespeare'"):
        Text(source="shakespeare").load()


@pytest.mark.parametrize(
    "changes", [{"length": 0}, {"context": -1}, {"limit": -5}, {"test": 0.0}, {"validation": 0.6, "test": 0.5}]
)
def test_settings_that_leave_nothing(changes):
    with pytest.raises(UsageError):
        Text(**changes)


def test_another_text_is_read_in_the_run_s_characters(tmp_path: Path):
    run = opened(tmp_path / "a.txt", "abcd " * 60, length=8, context=8, validation=0.1, test=0.1)
    other = Text(path=str(tmp_path / "b.txt"), length=8, context=8, validation=0.1, test=0.1)
    (tmp_path / "b.txt").write_text("cab bad " * 60)
    again = other.reopen(run.facts)
    assert again.vocabulary == run.vocabulary and again.ids["test"].max() < len(run.vocabulary)
    (tmp_path / "b.txt").write_text("cab bad x" * 60)
    with pytest.raises(UsageError, match="holds 'x', which the training text does not"):
        other.reopen(run.facts)
