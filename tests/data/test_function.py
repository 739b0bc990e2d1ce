"""Functions written as arithmetic: what they mean, and what is not arithmetic."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data.function import CONSTANTS, FUNCTIONS, Function, evaluate
from etude.errors import UsageError

X = np.linspace(0.1, 2, 7)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("x", X),
        ("2", np.full(7, 2.0)),
        ("-x + 3", 3 - X),
        ("2*x**2 - x/4", 2 * X**2 - X / 4),
        ("x^2", X**2),
        ("sin(3*x)+0.3*x", np.sin(3 * X) + 0.3 * X),
        ("exp(-x) * cos(2*pi*x)", np.exp(-X) * np.cos(2 * np.pi * X)),
        ("relu(x - 1)", np.maximum(X - 1, 0)),
        ("e", np.full(7, math.e)),
        ("sigmoid(x)", 1 / (1 + np.exp(-X))),
        (" abs( sign(x) ) ", np.ones(7)),
    ],
)
def test_values(expression, expected):
    np.testing.assert_allclose(evaluate(expression, X), expected, rtol=1e-14)


@pytest.mark.parametrize(
    "expression",
    [
        "", "x +", "(" * 300, "x; x", "import os", "__import__('os').system('ls')", "x.real", "x[0]", "lambda x: x",
        "x if x else 1", "x == 1", "'a'", "True", "1j", "sin", "sin(x, x)", "sin()", "sin(*x)", "sin(x=1)", "sen(x)",
        "y", "open('f')",
        "(x := 3)", "[x]",
        "f'{x}'", "9**9**9**9", "9" * 400, "log(x - 1)", "1/(x-x)", "x" * 501, "(" * 300 + "x" + ")" * 300,
    ],
)  # fmt: skip
def test_what_is_not_arithmetic_is_one_clear_line(expression):
    with pytest.raises(UsageError) as refused:
        evaluate(expression, X)
    assert "\n" not in str(refused.value) and str(refused.value)


@given(st.text(alphabet="x1.+-*/()sincoexplg ^_[]{}'\"=,:", max_size=40))
def test_any_text_is_arithmetic_or_refused(text):
    try:
        values = evaluate(text, X)
    except UsageError:
        return
    assert values.shape == X.shape and np.isfinite(values).all()


def test_every_name_is_tested_against_math():
    for name, function in FUNCTIONS.items():
        reference = getattr(math, name, None)
        if reference is not None:
            np.testing.assert_allclose(function(X), [reference(x) for x in X], rtol=1e-14)
    assert {"pi": math.pi, "e": math.e} == CONSTANTS


def test_the_nearest_name_and_the_point_are_named():
    with pytest.raises(UsageError, match="'sen' is not known") as refused:
        Function(expression="sen(x)")
    assert refused.value.hint == "did you mean sin?"
    with pytest.raises(UsageError, match="no finite value at x = -3"):
        Function(expression="log(x)")
    with pytest.raises(UsageError, match="no finite value"):
        Function(expression="exp(exp(x+3))*1e20", high=1.4)  # finite in float64 alone
    with pytest.raises(UsageError, match="must not be negative"):
        Function(noise=float("nan"))
    with pytest.raises(UsageError, match="must lie below"):
        Function(low=2, high=1)
    for train, test in ((10**6 + 1, 10), (10, 10**12)):
        with pytest.raises(UsageError, match="must not be above 1,000,000"):
            Function(train=train, test=test)
    with pytest.raises(UsageError, match="is not a number"):
        Function().prepare(10**400)


def test_points_are_the_functions():
    dataset = Function(expression="2*x + 1", low=-1, high=3).open()
    train, test = dataset.fetch("train", range(1024)), dataset.fetch("test", range(1000))
    for batch in (train, test):
        torch.testing.assert_close(batch["y"].squeeze(1), 2 * batch["at"] + 1)
        assert batch["at"].min() >= -1 and batch["at"].max() <= 3
    assert train["x"].mean().abs() < 0.1 and train["x"].var() == pytest.approx(1, abs=0.1)
    assert (test["at"].diff() > 0).all()
    again = Function(expression="2*x + 1", low=-1, high=3).open().fetch("train", [5, 3])
    torch.testing.assert_close(again["y"], train["y"][[5, 3]])


def test_noise_has_the_spread_that_was_asked_for():
    data = Function(expression="0*x", noise=0.5, train=20_000)
    y = data.open().fetch("train", range(20_000))["y"]
    assert y.std() == pytest.approx(0.5, rel=0.03) and y.mean().abs() < 0.02
    assert not data.open().fetch("test", range(10))["y"].any()


def test_inputs_are_numbers():
    data = Function()
    assert data.prepare("0.5").item() == 0.5
    for raw in ("half", None, "nan", "inf"):
        with pytest.raises(UsageError, match="number"):
            data.prepare(raw)
