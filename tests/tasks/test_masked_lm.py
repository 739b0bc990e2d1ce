"""Filling in hidden words: measures by hand, a run that learns a language of one rule, answers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import etude
from etude.data.masked import UNASKED, Masked
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.errors import UsageError
from etude.language import bert
from etude.tasks.masked_lm import MaskedLM

SMALL = {"width": 48, "depth": 2, "num_heads": 2, "ffn": 96, "positions": 24, "dropout": 0.0, "attention_dropout": 0.0}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Ten words, each said many times over: what was hidden follows from what is around it."""
    path = tmp_path_factory.mktemp("masked") / "text.txt"
    words = "one two three four five six seven eight nine ten".split()  # noqa: SIM905
    path.write_text("\n".join(" ".join([words[7 * i % 10]] * 34) for i in range(100)))
    data = Masked(source="numbers", path=str(path), vocab_size=70, length=18)
    size = data.open().facts["vocabulary"]
    return Recipe(
        name="bert.numbers",
        model=bert.MaskedLMConfig(vocab_size=size, **SMALL),
        data=data,
        task=MaskedLM(),
        optim=Optim("adamw", lr=4e-3),
        schedule=Schedule("linear", warmup=20),
        steps=150,
        batch_size=32,
        eval_every=75,
        precision="fp32",
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    return etude.train(recipe, run=tmp_path_factory.mktemp("run") / "run", quiet=True)


def test_measures_by_hand(recipe):
    torch.manual_seed(0)
    dataset, model, task = recipe.data.open(), recipe.model.build().eval(), recipe.task
    with torch.no_grad():
        measured = task.evaluate(model, [dataset.fetch("test", range(4)), dataset.fetch("test", range(4, 7))])
        batch = dataset.fetch("test", range(7))
        logits = model(batch["ids"])
    loss = F.cross_entropy(logits.transpose(1, 2), batch["target"], ignore_index=UNASKED).item()
    assert measured["loss"].value() == pytest.approx(loss, rel=1e-5)
    assert measured["perplexity"].value() == pytest.approx(math.exp(loss), rel=1e-5)
    asked = batch["target"] != UNASKED
    right = (logits.argmax(2) == batch["target"])[asked].float().mean().item()
    assert measured["accuracy"].value() == pytest.approx(right)
    (table,) = task.figures(measured, dataset, "test")
    assert all("___" in row[0] and len(row) == 4 for row in table["rows"]) and 0 < len(table["rows"]) <= 7
    taken, _ = task.loss(model, batch)
    assert taken.item() == pytest.approx(loss, rel=1e-5)


def test_it_learns(run):
    assert run.result["eval"]["accuracy"] > 0.9 and run.result["eval"]["perplexity"] < 2


def test_answers(run, tmp_path):
    answer = run.predict("six six [MASK] six six six")
    assert answer.text == "six six six six six six" and answer.guesses[0][0][0] == "six"
    assert len(answer.guesses[0]) == 5 and np.isclose(
        answer.json()["guesses"][0][0]["probability"], answer.guesses[0][0][1]
    )
    both = run.predict("two two [MASK] two two [MASK] two")
    assert len(both.row()) == 2 and both.text == "two two two two two two two"
    both.save(tmp_path / "both.png")
    assert both.plot().size[1] > answer.plot().size[1]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("one two three", "no .MASK. to fill in 'one two"),
        ("", "empty"),
        ("one " * 40 + "[MASK]", "in the first 18 tokens of"),
    ],
)
def test_bad_sentences(run, raw, said):
    with pytest.raises(UsageError, match=said):
        run.predict(raw)


def test_what_does_not_fit(recipe, tmp_path):
    with pytest.raises(UsageError, match="the model 9"):
        etude.train(recipe.with_(**{"model.vocab_size": 9}), run=tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match="has 9 positions"):
        etude.train(recipe.with_(**{"model.positions": 9}), run=tmp_path / "run", quiet=True)


def test_another_text_is_measured_in_the_runs_own_tokens(run, tmp_path):
    """All of it; and the run's own text as it was."""
    other = tmp_path / "other.txt"
    other.write_text("ten nine eight seven\n" * 200)
    dataset = run.recipe.data.__class__(**{**vars(run.recipe.data), "path": str(other)}).reopen(run.facts)
    assert dataset.files == run.facts["files"] and list(dataset.sizes) == ["test"]
    assert len(dataset._ids["test"]) == 800
    assert run.evaluate()["loss"] == pytest.approx(run.result["eval"]["loss"], rel=1e-5)


def test_files_and_standard_input(run, tmp_path, monkeypatch):
    (tmp_path / "two.txt").write_text("one one [MASK]\n\ntwo [MASK] two\n")
    named = run.recipe.data.read([str(tmp_path / "two.txt"), "three [MASK]"])
    assert [text for _, text in named] == ["one one [MASK]", "two [MASK] two", "three [MASK]"]
