"""Regression: measures by hand, and a line that is found."""

import pytest
import torch

from etude.basics import mlp
from etude.data.function import Function
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.engine.trainer import Trainer
from etude.errors import UsageError
from etude.tasks.metrics import Curve, Root
from etude.tasks.regress import Regress


def recipe(**changes) -> Recipe:
    return Recipe(
        name="toy.line",
        model=mlp.Config(in_features=1, hidden=(), num_classes=1),
        data=Function(expression="2*x - 1", low=-1, high=1, train=64, test=11),
        task=Regress(),
        optim=Optim("sgd", lr=0.1),
        schedule=Schedule("constant"),
        steps=400,
        batch_size=64,
        precision="fp32",
    ).with_(**changes)


def test_a_line_is_found():
    """y = 2 x - 1 on [-1, 1]: the input is divided by 1 / sqrt 3, so the slope becomes 2 / sqrt 3."""
    trainer = Trainer(recipe(), None, quiet=True)
    assert trainer.fit()["eval"]["rmse"] < 1e-4
    head = trainer.model.get_submodule("head")
    assert head.get_parameter("weight").item() == pytest.approx(2 / 3**0.5, abs=1e-4)
    assert head.get_parameter("bias").item() == pytest.approx(-1, abs=1e-4)
    answers = Regress().predict(trainer.model, ["0.25", -0.5], recipe().data, {"source": "2*x - 1"})
    assert [answer.y for answer in answers] == pytest.approx([-0.5, -2], abs=1e-3)
    assert answers[0].json()["x"] == 0.25 and answers[0].plot().size[0] > 100


def test_measures_are_exact_over_parts():
    root, other = Root(), Root()
    root.add(torch.tensor([9.0, 16.0]))
    other.add(torch.tensor([0.0]))
    root.merge(other)
    assert root.value() == pytest.approx((25 / 3) ** 0.5)
    curve, rest = Curve(), Curve()
    curve.add(torch.tensor([3.0, 1.0]), torch.tensor([30.0, 10.0]))
    rest.add(torch.tensor([2.0]), torch.tensor([20.0]))
    curve.merge(rest)
    assert curve.value() == [(1, 10), (2, 20), (3, 30)]


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"answers \(1, 3\)"):
        Trainer(recipe(**{"model.num_classes": 3}), None, quiet=True)
    with pytest.raises(UsageError, match="does not take inputs"):
        Trainer(recipe(**{"model.in_features": 4}), None, quiet=True)
