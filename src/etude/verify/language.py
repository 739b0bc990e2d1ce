"""Language models on their golden files' weights: logits, and what is written."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from etude import catalog
from etude.verify import golden
from etude.weights import load_weights

GOLDEN = dict.fromkeys(("transformer-big", "gpt2", "bert-base", "bert-base-classifier"), "transformers 5.18.0")
"""size: reference."""
FILES = ("marian_big", "gpt2", "bert_base")


def errors(size: str) -> Iterator[tuple[str, float, float]]:
    """(quantity, error, bound) of each comparison."""
    with torch.no_grad():
        yield from {
            "transformer-big": _marian,
            "gpt2": _gpt2,
            "bert-base": _bert_pooled,
            "bert-base-classifier": _bert_classifier,
        }[size]()


def tokens(seed: int, shape: tuple[int, ...], vocabulary: int) -> Tensor:
    """The golden files' ids."""
    return torch.from_numpy(golden.generator(seed, "tokens").integers(0, vocabulary, shape))


def _marian() -> Iterator[tuple[str, float, float]]:
    expected = golden.load("marian_big")
    model = catalog.model("transformer-big", vocab_size=4000, positions="marian", output_bias=True)
    load_weights(model, expected.weights, source="transformers").eval()
    seed = expected.meta["seed"]
    source, target = tokens(seed, (2, 14), 3990) + 5, tokens(seed + 1, (2, 11), 3990) + 5
    mask = torch.arange(14) < torch.tensor([[14], [9]])
    for quantity, error in expected.errors("logits", model(source, target, mask)).items():
        yield quantity, error, golden.BOUND


def _gpt2() -> Iterator[tuple[str, float, float]]:
    expected = golden.load("gpt2")
    model: Any = load_weights(catalog.model("gpt2"), expected.weights, source="transformers").eval()
    ids = tokens(expected.meta["seed"], (2, 33), 50_257)
    for quantity, error in expected.errors("logits", model(ids)).items():
        yield quantity, error, golden.BOUND
    written = torch.cat([ids[:1, :8], model.generate(ids[:1, :8], 24)], 1)
    differing = int((written[0].numpy() != expected.digests["greedy"]).sum())
    yield "greedy tokens that differ", float(differing), 0.0


def _bert_classifier() -> Iterator[tuple[str, float, float]]:
    expected = golden.load("bert_base")
    model = load_weights(catalog.model("bert-base-classifier"), expected.weights, source="transformers").eval()
    for quantity, error in expected.errors("logits", model(*_bert_inputs(expected))).items():
        yield quantity, error, golden.BOUND


def _bert_pooled() -> Iterator[tuple[str, float, float]]:
    """The published model has no last layer; the file's is put on here."""
    expected = golden.load("bert_base")
    model: Any = load_weights(catalog.model("bert-base"), expected.weights, source="transformers").eval()
    weight, bias = (expected.weights[f"classifier.{name}"] for name in ("weight", "bias"))
    logits = model.pooled(*_bert_inputs(expected)) @ weight.T + bias
    for quantity, error in expected.errors("logits", logits).items():
        yield quantity, error, golden.BOUND


def _bert_inputs(expected: golden.Golden) -> tuple[Tensor, Tensor]:
    """Three sentences, of 17, 12 and 5 tokens."""
    mask = torch.arange(17) < torch.tensor([[17], [12], [5]])
    return tokens(expected.meta["seed"], (3, 17), 28_996), mask
