"""Hidden words: how many, which, by what they are replaced; that it is a pure function; what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import tokenizers
from etude.data.masked import UNASKED, Masked, choose
from etude.errors import UsageError

WORDS = "beginning created heavens earth unformed darkness surface waters hovering goodness gathering".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("masked") / "text.txt"
    file.write_text("\n".join(" ".join(rng.choice(WORDS, 12)) for _ in range(900)))
    return str(file)


def masked(path: str, **changes) -> Masked:
    return Masked(**{"source": "words", "path": path, "vocab_size": 60, "length": 42} | changes)


def test_eight_of_ten_are_hidden(path):
    """15 % of the tokens are asked for; of these 80 % are [MASK], 10 % another token, 10 % themselves."""
    dataset = masked(path).open()
    mask = dataset.tokenizer.token_to_id("[MASK]")
    batch = dataset.fetch("train", range(dataset.sizes["train"]), epochs=0, seed=1)
    asked = batch["target"] != UNASKED
    assert (asked.sum(1) == round(0.15 * 40)).all()
    assert not asked[:, 0].any() and not asked[:, -1].any()
    seen, true = batch["ids"][asked], batch["target"][asked]
    assert (seen == mask).float().mean() == pytest.approx(0.8, abs=0.02)
    assert ((seen != mask) & (seen != true)).float().mean() == pytest.approx(0.1, abs=0.02)
    assert (seen == true).float().mean() == pytest.approx(0.1, abs=0.02)
    assert not torch.isin(seen[seen != mask], torch.arange(5)).any()
    begin, end = (dataset.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    assert (batch["ids"][:, 0] == begin).all() and (batch["ids"][:, -1] == end).all()


def test_what_is_not_asked_for_is_seen(path):
    """Windows lie side by side in the text, and what was hidden is what stood there."""
    dataset = masked(path).open()
    batch = dataset.fetch("test", range(dataset.sizes["test"]))
    text = torch.where(batch["target"] == UNASKED, batch["ids"], batch["target"])[:, 1:-1].flatten()
    said = dataset.tokenizer.decode(text.tolist())
    whole = " ".join(masked(path).open().tokenizer.decode(dataset._ids["test"].tolist()).split())
    assert whole.startswith(said[: len(said) - 20]) and set(said.split()[1:-1]) <= set(WORDS)


def test_pure(path):
    one, other = masked(path).open(), masked(path).open()
    for step in (0, 5):
        a, b = (d.batch(seed=3, step=step, batch_size=8) for d in (one, other))
        assert all(torch.equal(a[name], b[name]) for name in a)
        parts = [one.batch(seed=3, step=step, batch_size=8, rank=rank, world=2) for rank in (0, 1)]
        assert torch.equal(torch.cat([part["ids"] for part in parts]), a["ids"])
    same = one.fetch("train", [2, 2], epochs=np.array([0, 1]), seed=3)
    assert not torch.equal(same["target"][0], same["target"][1])
    assert torch.equal(one.fetch("test", [1])["ids"][0], one.fetch("test", [0, 1])["ids"][1])
    assert not torch.equal(
        one.fetch("train", [1], epochs=0, seed=1)["ids"], one.fetch("train", [1], epochs=0, seed=2)["ids"]
    )


def test_whole_words(path):
    """With few pieces, every word has several: all of them are asked for, or none."""
    dataset = masked(path, whole_words=True, vocab_size=60).open()
    batch = dataset.fetch("train", range(100), epochs=0, seed=0)
    true = torch.where(batch["target"] == UNASKED, batch["ids"], batch["target"])
    continues = torch.tensor([str(dataset.tokenizer.id_to_token(i)).startswith("##") for i in range(60)])[true]
    asked = batch["target"] != UNASKED
    inner = slice(2, -1)
    joined = continues[:, inner]
    assert joined.float().mean() > 0.3
    before = asked[:, 1:-2]
    assert torch.equal(asked[:, inner][joined], before[joined])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.floats(0.05, 0.6), st.booleans())
def test_choice(seed, width, share, words):
    """Whole words, no more than the share unless one word alone is more, at least one token."""
    rng = np.random.default_rng(seed)
    continues = (rng.random((5, width)) < 0.4) & words
    chosen = choose(continues, rng.random((5, width)), share)
    most = max(1, round(share * width))
    for row, joined in zip(chosen, continues):
        assert row.any()
        same = [row[i] == row[i - 1] for i in range(1, width) if joined[i]]
        assert all(same)
        taken = [i for i in range(width) if row[i] and (i == 0 or not joined[i])]
        assert row.sum() <= most or len(taken) <= 1
        if not words:
            assert row.sum() == min(most, width)


def test_a_learned_vocabulary_is_always_the_same():
    """The library's own numbering of single characters changes from call to call."""
    texts = [" ".join(np.random.default_rng(1).choice(WORDS, 400))] * 3
    made = {tokenizers.to_json(tokenizers.train_wordpiece(texts, 90)) for _ in range(6)}
    assert len(made) == 1
    tokenizer = tokenizers.from_json(made.pop())
    assert tokenizer.get_vocab_size() == 90
    assert [tokenizer.id_to_token(i) for i in range(5)] == list(tokenizers.WORDPIECE_SPECIAL)
    encoded = tokenizer.encode("Wâters goodness!")
    assert encoded.tokens[0] == "[CLS]" and encoded.tokens[-2:] == ["[UNK]", "[SEP]"]
    assert tokenizer.decode(encoded.ids) == "waters goodness"
    with pytest.raises(UsageError, match="too small"):
        tokenizers.train_wordpiece(texts, 20)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 2}, "at least 3"),
        ({"share": 0.0}, "share is 0.0"),
        ({"test": 0.0}, "shares of the text"),
        ({"validation": 0.6, "test": 0.5}, "shares of the text"),
        ({"limit": -1}, "not negative"),
        ({"length": 5000}, "fewer than one window"),
    ],
)
def test_bad_settings(path, changes, said):
    with pytest.raises(UsageError, match=said):
        masked(path, **changes).open()


def test_samples_have_a_word_to_fill_in(path):
    for _, raw in masked(path).open().samples("test", 9):
        assert raw.count("[MASK]") == 1 and len(raw.split()) > 2


def test_a_line_of_ten_megabytes(tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("goodness gracious " * 560_000)
    dataset = masked(str(file), limit=1_000_000).open()
    assert sum(dataset.facts["tokens"].values()) > 100_000
