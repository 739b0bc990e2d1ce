"""BLEU and chrF, as counts that can be added: over sentences, batches and processes, in any order.

BLEU     Papineni et al., 2002; one reference, cased, 13a or Chinese tokens, smoothed as mteval-v13a does, as Post
         (2018, arXiv 1804.08771) asks for it to be reported.
chrF     Popovic, 2015: character n-grams up to 6 without spaces, recall counting twice (chrF2).
Both equal sacrebleu 2.6 to the last digit, and carry its signature, which belongs beside every figure.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from etude.tasks.metrics import Metric

Tokens = Literal["13a", "zh"]
VERSION = "2.6.0"
"""The version of sacrebleu whose numbers these are."""

# ---------------------------------------------------------------- tokens

SYMBOLS = re.compile(r"([!-&(-+:-@/\[-`{-~ ])")
"""ASCII's punctuation but the apostrophe, comma, full stop and dash, which depend on what is beside them."""
AFTER_OTHERS, BEFORE_OTHERS = re.compile(r"([^0-9])([.,])"), re.compile(r"([.,])([^0-9])")
DASH = re.compile(r"([0-9])(-)")
CHINESE = (
    (0x3400, 0x4DB5), (0x4E00, 0x9FBB), (0xF900, 0xFA2D), (0xFA30, 0xFA6A), (0xFA70, 0xFAD9), (0xFF00, 0xFFEF),
    (0x2E80, 0x2FDF), (0x2FF0, 0x303F), (0x3100, 0x312F), (0x31A0, 0x31BF), (0x31C0, 0x31EF), (0xFE10, 0xFE1F),
    (0xFE30, 0xFE4F), (0x2600, 0x27BF), (0x3200, 0x33FF),
    (0x2001, 0x2A6D),
)  # fmt: skip
"""First and last code points of what sacrebleu takes for Chinese. The last range is what its comparison of strings
makes of the supplementary planes: it holds typographic quotes and dashes, and none of the ideographs meant."""


def words_13a(text: str) -> list[str]:
    """The tokens of mteval-v13a for text in a Western language."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    return _apart(f" {text} ")


def words_zh(text: str) -> list[str]:
    """Each Chinese character a token, the rest as 13a's rules have it."""
    characters = (f" {c} " if any(a <= ord(c) <= b for a, b in CHINESE) else c for c in text.strip())
    return _apart("".join(characters))


def _apart(text: str) -> list[str]:
    text = SYMBOLS.sub(r" \1 ", text)
    text = AFTER_OTHERS.sub(r"\1 \2 ", text)
    text = BEFORE_OTHERS.sub(r" \1 \2", text)
    return DASH.sub(r"\1 \2 ", text).split()


WORDS = {"13a": words_13a, "zh": words_zh}


def compounds_apart(text: str) -> str:
    """A hyphen between two characters that are no spaces becomes a token of its own, ##AT##-##AT##, so that each part
    of a compound counts, as in the figures of the Transformer's paper (tensor2tensor's get_ende_bleu.sh). It raises
    BLEU by about half a point: compare it with figures of its kind only."""
    return re.sub(r"(\S)-(?=\S)", r"\1 ##AT##-##AT## ", text)


# ---------------------------------------------------------------- measures


@dataclass
class BLEU(Metric):
    """BLEU of texts against one reference each, 0 to 100."""

    tokens: Tokens = "13a"
    compounds: bool = False
    """Whether compounds are taken apart at their hyphens, on tokens. The signature says so."""
    matches: list[int] = field(default_factory=lambda: [0] * 4)
    counts: list[int] = field(default_factory=lambda: [0] * 4)
    """N-grams of the reference that were found, and all of the translations', for n = 1 ... 4."""
    translated: int = 0
    referred: int = 0
    """Tokens of the translations and of their references."""
    sentences: int = 0

    def words(self, text: str) -> list[str]:
        """A text's tokens."""
        words = WORDS[self.tokens](text)
        return compounds_apart(" ".join(words)).split() if self.compounds else words

    def add(self, translation: str, reference: str) -> None:
        """One sentence."""
        ours, theirs = self.words(translation), self.words(reference)
        self.sentences += 1
        self.translated += len(ours)
        self.referred += len(theirs)
        for n in range(1, 5):
            found, wanted = _ngrams(ours, n), _ngrams(theirs, n)
            self.matches[n - 1] += (found & wanted).total()
            self.counts[n - 1] += found.total()

    def merge(self, other: "BLEU") -> None:
        self.matches = [a + b for a, b in zip(self.matches, other.matches)]
        self.counts = [a + b for a, b in zip(self.counts, other.counts)]
        self.translated += other.translated
        self.referred += other.referred
        self.sentences += other.sentences

    def value(self) -> float | None:
        """100 times the geometric mean of the four precisions, times exp(1 - r / c) where the translations are shorter.
        A precision of none in N is 1 / (2 N), the next such one 1 / (4 N), and so on. None where there was nothing to
        translate."""
        if not self.sentences:
            return None
        if not any(self.matches):
            return 0.0
        logs, halves = 0.0, 1
        for match, count in zip(self.matches, self.counts):
            if count == 0:
                return 0.0
            if match == 0:
                halves *= 2
            logs += math.log(100 * match / count if match else 100 / (halves * count))
        brevity = min(0.0, 1 - self.referred / self.translated)
        return math.exp(brevity) * math.exp(logs / 4)

    @property
    def signature(self) -> str:
        """What this figure is, in sacrebleu's words."""
        kind = f"{self.tokens}+compound-split" if self.compounds else self.tokens
        return f"nrefs:1|case:mixed|eff:no|tok:{kind}|smooth:exp|version:{VERSION}"


@dataclass
class ChrF(Metric):
    """chrF2 of texts against one reference each, 0 to 100."""

    counts: list[list[int]] = field(default_factory=lambda: [[0, 0, 0] for _ in range(6)])
    """For n = 1 ... 6: n-grams of the translations, of the references, and in both."""
    sentences: int = 0

    def add(self, translation: str, reference: str) -> None:
        """One sentence."""
        ours, theirs = ("".join(text.split()) for text in (translation, reference))
        self.sentences += 1
        for n, counts in enumerate(self.counts, 1):
            found, wanted = _ngrams(ours, n), _ngrams(theirs, n)
            counts[0] += found.total() if wanted else 0
            counts[1] += wanted.total()
            counts[2] += (found & wanted).total()

    def merge(self, other: "ChrF") -> None:
        self.counts = [[a + b for a, b in zip(mine, theirs)] for mine, theirs in zip(self.counts, other.counts)]
        self.sentences += other.sentences

    def value(self) -> float | None:
        """100 times 5 P R / (4 P + R) of mean precision and recall over those n that both sides have; None where there
        was nothing to translate."""
        if not self.sentences:
            return None
        used = [(both / ours, both / theirs) for ours, theirs, both in self.counts if ours and theirs]
        precision = sum(p for p, _ in used) / max(1, len(used))
        recall = sum(r for _, r in used) / max(1, len(used))
        return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0

    signature = f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{VERSION}"


def _ngrams(units: Any, n: int) -> Counter[Any]:
    return Counter(tuple(units[i : i + n]) for i in range(len(units) - n + 1))
