"""DCGAN's players: their layers, their start, and whose score depends on whom."""

from typing import Any

import pytest
import torch
from torch import nn

from etude import catalog
from etude.errors import UsageError
from etude.generative.gan import Config, Points


@pytest.mark.parametrize(("side", "maps"), [(8, [4]), (32, [4, 8, 16]), (64, [4, 8, 16, 32])])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_shapes(side, maps, norm):
    config = Config(latent=6, channels=3, side=side, width=4, critic_norm=norm)
    assert config.maps == maps
    model = config.build()
    made = model.generator(torch.randn(5, 6))
    assert made.shape == (5, *model.shape) == (5, 3, side, side)
    assert made.abs().max() <= 1
    assert model.critic(made).shape == (5,)


def test_points():
    model: Any = Points(latent=3, features=2, width=8, depth=2).build()
    assert model.critic(model.generator(torch.randn(7, 3))).shape == (7,)
    assert [m.out_features for m in model.generator if isinstance(m, nn.Linear)] == [8, 8, 2]


def test_weights_start_as_the_paper_says():
    torch.manual_seed(0)
    model: Any = catalog.model("dcgan")
    for name, weight in model.named_parameters():
        if weight.ndim == 4 and weight.numel() > 10_000:
            assert weight.std().item() == pytest.approx(0.02, rel=0.03) and abs(weight.mean().item()) < 1e-3, name
    assert model.generator[2].weight.mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("norm", "joins"), [("batch", False), ("layer", True), ("none", True)])
def test_a_score_depends_on_its_own_sample_alone_where_it_is_said_so(norm, joins):
    torch.manual_seed(0)
    critic: Any = Config(channels=1, side=16, width=8, critic_norm=norm).build().critic
    x = torch.randn(6, 1, 16, 16)
    alone = torch.cat([critic(x[:3]), critic(x[3:])])
    assert torch.allclose(critic(x), alone, rtol=1e-4, atol=1e-6) == joins
    assert critic.joins(3) == joins


def test_layer_norm_is_that_of_all_maps_of_a_sample():
    critic: Any = Config(channels=1, side=16, width=4, critic_norm="layer").build().critic
    norm = critic[3]
    assert isinstance(norm, nn.GroupNorm)
    x = torch.randn(2, 8, 4, 4) * 3 + 1
    flat = x.flatten(1)
    by_hand = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    by_hand = by_hand.view_as(x) * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(norm(x), by_hand)


def test_generators_learn_and_critics_are_twice_differentiable():
    torch.manual_seed(0)
    model = Config(latent=4, channels=1, side=8, width=3, critic_norm="layer").build().double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(model.critic, x)
    torch.autograd.gradgradcheck(model.critic, x)
    model.critic(model.generator(torch.randn(3, 4, dtype=torch.float64))).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.generator.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 48}, "side is 48; it must be a power of two, 8 or more"),
        ({"side": 4}, "side is 4; it must be a power of two"),
        ({"width": 0}, "width 0 must be positive"),
        ({"critic_norm": "instance"}, "must be batch, layer or none"),
    ],
)
def test_settings_that_do_not_fit(settings, message, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UsageError, match=message):
        catalog.model("dcgan", **settings)
