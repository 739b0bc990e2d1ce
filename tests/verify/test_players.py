"""What `etude verify` compares of generators and critics, and that it finds what is wrong with them."""

import pytest
from torch import nn

from etude import catalog
from etude.generative import gan
from etude.verify import checks, generative


@pytest.mark.parametrize("name", ["gan", "wgan", "wgan_gp"])
def test_both_players_are_compared_with_formulas(name):
    found = checks.run([name])
    assert {check.system for check in found} == set(catalog.system(name).sizes)
    assert all(check.ok for check in found), [check for check in found if not check.ok]
    bounds = {check.quantity: check.bound for check in found if "as it was trained" not in check.reference}
    penalised = {"gradient penalty"} if name == "wgan_gp" else set()
    assert bounds.keys() == {"parameters", "pictures", "scores", "the critic's slope"} | penalised
    assert max(bounds.values()) <= 1e-5


@pytest.mark.parametrize(
    ("size", "name", "wrong"),
    [
        ("wgan", "normalisation", lambda norm, maps: nn.BatchNorm2d(maps, eps=1e-3)),
        ("wgan-gp", "normalisation", lambda norm, maps: nn.GroupNorm(2, maps)),
    ],
)
def test_a_critic_that_computes_something_else_is_found(monkeypatch, size, name, wrong):
    monkeypatch.setattr(gan, name, wrong)
    found = {quantity: error <= bound for _, quantity, error, bound in generative.errors(size)}
    assert found["pictures"] and not found["scores"] and not found["the critic's slope"]


def test_a_wrong_gradient_is_found(monkeypatch):
    """Of the convolutions that this library differentiates by its own rule: the scores stay right."""
    rule = gan.twice._backward
    monkeypatch.setattr(gan.twice, "_backward", lambda *given: [g if g is None else 1.001 * g for g in rule(*given)])
    found = {quantity: error <= bound for _, quantity, error, bound in generative.errors("wgan-gp")}
    assert found["scores"] and not found["the critic's slope"] and not found["gradient penalty"]
