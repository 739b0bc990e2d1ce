"""BLEU and chrF equal sacrebleu 2.6, tokenisers and signatures included, and add up over parts in any order."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.tasks.bleu import BLEU, WORDS, ChrF, compounds_apart

sacrebleu = pytest.importorskip("sacrebleu", minversion="2.6")

PIECES = (  # noqa: SIM905
    "Katze sitzt auf 3.5 1,000 e-mail – “Haus” &amp; &quot;x don't 中文字 ， 。 a/b (x) 10-12 - "
    "\u3000 \U00020001 ü. A. zu $5 <skipped> „ x&lt;y &amp;quot; -7 .5 5. ¿qué? \u2019s ⺀ ａ ☃"
).split(" ")
TEXT = st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join) | st.text(max_size=30)


def tokenizers():
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    return {"13a": Tokenizer13a(), "zh": TokenizerZh()}


@pytest.mark.parametrize("name", ["13a", "zh"])
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_tokens(name, text):
    assert WORDS[name](text) == tokenizers()[name](text.rstrip()).split()


@pytest.mark.parametrize("name", ["13a", "zh"])
def test_every_character_of_the_basic_plane(name):
    theirs = tokenizers()[name]
    for first in range(0, 0x10000, 64):
        text = "".join(f"a{chr(c)}b " for c in range(first, first + 64) if not 0xD800 <= c < 0xE000)
        assert WORDS[name](text) == theirs(text.rstrip()).split()


@pytest.mark.parametrize("name", ["13a", "zh"])
@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), same=st.booleans())
def test_scores_and_signatures(name, pairs, same):
    pairs = [(a, f"{a} {b}" if same else b) for a, b in pairs]
    bleu, chrf = BLEU(name), ChrF()
    for translation, reference in pairs:
        bleu.add(translation, reference)
        chrf.add(translation, reference)
    theirs = (sacrebleu.BLEU(tokenize=name), sacrebleu.CHRF())
    ours, references = [a for a, _ in pairs], [[b for _, b in pairs]]
    for mine, other in zip((bleu, chrf), theirs):
        assert mine.value() == pytest.approx(other.corpus_score(ours, references).score, rel=1e-12, abs=1e-12)
        assert mine.signature == str(other.get_signature())


def test_parts_add_up_in_any_order():
    generator = random.Random(0)
    pairs = [(" ".join(generator.choices(PIECES, k=9)), " ".join(generator.choices(PIECES, k=9))) for _ in range(40)]
    for kind in (BLEU, ChrF):
        whole, parts = kind(), [kind() for _ in range(4)]
        for i, pair in enumerate(pairs):
            whole.add(*pair)
            parts[i % 4].add(*pair)
        for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
            merged = kind()
            for i in order:
                merged.merge(parts[i])  # pyright: ignore[reportArgumentType] - both of one kind
            assert merged == whole and 0 < (merged.value() or 0) < 100


def test_by_hand():
    """5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; one word too few."""
    bleu = BLEU()
    bleu.add("the cat sat on the mat", "the black cat sat on the rug")
    assert (bleu.matches, bleu.counts) == ([5, 3, 2, 1], [6, 5, 4, 3])
    mean = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu.value() == pytest.approx(100 * math.exp(1 - 7 / 6) * mean, rel=1e-12)
    assert BLEU().value() is None and ChrF().value() is None  # nothing was translated


def test_compounds_are_taken_apart_at_their_hyphens():
    assert compounds_apart("a state-of-the-art e-mail - x -y z-") == (
        "a state ##AT##-##AT## of ##AT##-##AT## the ##AT##-##AT## art e ##AT##-##AT## mail - x -y z-"
    )
    split, whole = BLEU(compounds=True), BLEU()
    for bleu in (split, whole):
        bleu.add("ein XML-Dokument wird hier geöffnet", "ein XML-Format wird hier geöffnet")
    assert split.words("XML-Datei") == ["XML", "##AT##-##AT##", "Datei"]
    assert (split.matches[0], whole.matches[0]) == (6, 4) and "compound-split" in split.signature
