"""ProGAN: its mechanisms by hand, and that it grows without a jump."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from etude import catalog
from etude.errors import UsageError
from etude.generative.progan import Config, Conv, Dense, ProGAN, deviation_map, doubled, halved, pixel_norm


def small(**changes) -> Config:
    sizes = {"latent": 8, "channels": 1, "side": 16, "width_base": 64, "width_max": 16}
    return Config(**sizes | {"stable": 100, "fading": 40} | changes)


def grown(shown: int, **changes) -> ProGAN:
    torch.manual_seed(0)
    model = small(**changes).build()
    model.advance(shown)
    return model


def test_resolution_and_alpha_follow_from_the_images_shown():
    config = small()
    expected = {0: (0, 1), 99: (0, 1), 100: (1, 0), 120: (1, 0.5), 139: (1, 39 / 40), 140: (1, 1), 239: (1, 1),
                240: (2, 0), 250: (2, 0.25), 280: (2, 1), 100_000: (2, 1)}  # fmt: skip
    assert {shown: config.progress(shown) for shown in expected} == expected
    assert [config.begins(level) for level in range(3)] == [0, 100, 240]
    for level in range(1, 3):
        assert config.progress(config.begins(level) - 1)[0] == level - 1
        assert config.progress(config.begins(level)) == (level, 0)
    assert small(side=4).progress(10**9) == (0, 1)


def test_published_configuration():
    """Nine resolutions, maps min(8192 / 2^stage, 512), 600k images a stage and fade, 23.1 million weights a player."""
    config = Config()
    assert [config.maps(level) for level in range(config.levels)] == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert config.begins(8) == 600_000 + 7 * 1_200_000 and config.progress(config.begins(8) + 300_000) == (8, 0.5)
    with torch.device("meta"):
        model = config.build()
    counts = [sum(p.numel() for p in player.parameters()) for player in (model.generator, model.critic)]
    assert counts == [23_086_795, 23_087_249]


def test_equalised_learning_rate():
    """Weights are N(0, 1), and He's standard deviation is multiplied in when they are used."""
    torch.manual_seed(0)
    conv, dense = Conv(32, 64, 3), Dense(512, 64, gain=1.0)
    assert conv.weight.std().item() == pytest.approx(1, rel=0.02)
    x = torch.randn(2, 32, 5, 5)
    by_hand = F.conv2d(x, conv.weight * (2 / (32 * 9)) ** 0.5, padding=1)
    torch.testing.assert_close(conv(x), by_hand)
    torch.testing.assert_close(dense(torch.ones(1, 512)), dense.weight.sum(1)[None] / 512**0.5)
    model = small().build()
    assert model.generator.blocks[0].get_submodule("dense").scale == pytest.approx(2**0.5 / 4 / 8**0.5)  # pyright: ignore
    assert model.critic.blocks[0].get_submodule("dense").scale == pytest.approx(1 / 16**0.5)  # pyright: ignore


def test_pixel_norm():
    x = torch.randn(2, 3, 4, 5) * 7
    by_hand = x / (x[:, 0] ** 2 / 3 + x[:, 1] ** 2 / 3 + x[:, 2] ** 2 / 3 + 1e-8).sqrt()[:, None]
    torch.testing.assert_close(pixel_norm(x), by_hand)
    z = torch.randn(3, 8)
    model = small().build()
    torch.testing.assert_close(model.generator(z), model.generator(5 * z), rtol=1e-4, atol=1e-5)


def test_deviation_map():
    """One number a group of four neighbours: the mean over maps and places of the deviation over the group."""
    x = torch.randn(8, 3, 2, 2)
    y = deviation_map(x)
    assert y.shape == (8, 4, 2, 2)
    torch.testing.assert_close(y[:, :3], x)
    for group in (0, 4):
        four = torch.stack([x[group + i] for i in range(4)])
        variance = (four - four.mean(0)).square().mean(0)
        expected = (variance + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[group : group + 4, 3], expected.expand(4, 2, 2))
    assert deviation_map(torch.randn(3, 1, 2, 2))[:, 1].max() <= 1.01e-4  # groups of one: nothing varies
    assert deviation_map(torch.ones(4, 1, 2, 2))[:, 1].max() == pytest.approx(1e-4)


@pytest.mark.parametrize("shown", [0, 120, 239, 260, 999])
def test_groups_stay_apart(shown):
    """A sample's score depends on its own four neighbours alone: two batches in one pass, and processes, rely on it."""
    critic = grown(shown).critic
    side = 4 << critic.progress[0]
    x = torch.randn(8, 1, side, side)
    torch.testing.assert_close(critic(x), torch.cat([critic(x[:4]), critic(x[4:])]), rtol=1e-4, atol=1e-5)
    assert critic.joins(4) and not critic.joins(2)


@pytest.mark.parametrize("level", [1, 2])
def test_nothing_jumps_where_a_fade_begins_and_ends(level):
    z = torch.randn(4, 8)
    begin = small().begins(level)
    before, after = grown(begin - 1), grown(begin)
    made = before.generator(z)
    torch.testing.assert_close(after.generator(z), doubled(made))
    torch.testing.assert_close(after.critic(doubled(made)), before.critic(made), rtol=1e-4, atol=1e-5)
    images = torch.randn(4, 1, 16, 16)
    torch.testing.assert_close(after.as_seen(images), doubled(before.as_seen(images)))
    almost, done = grown(begin + 39), grown(begin + 40)
    assert (almost.generator(z) - done.generator(z)).abs().max() < 0.1 * done.generator(z).abs().max() + 0.1
    torch.testing.assert_close(done.as_seen(images), F.avg_pool2d(images, 16 // (4 << level)))


def test_within_a_fade_both_paths_count():
    model = grown(120)
    z, images = torch.randn(4, 8), torch.randn(4, 1, 16, 16)
    generator: Any = model.generator
    first = generator.blocks[0](pixel_norm(z))
    old, new = doubled(generator.to_colours[0](first)), generator.to_colours[1](generator.blocks[1](first))
    torch.testing.assert_close(model.generator(z), (old + new) / 2)
    seen = F.avg_pool2d(images, 2)
    torch.testing.assert_close(model.as_seen(images), (seen + doubled(halved(seen))) / 2)
    critic: Any = model.critic
    x = model.as_seen(images)
    old = F.leaky_relu(critic.from_colours[0](halved(x)), 0.2)
    new = critic.blocks[1](F.leaky_relu(critic.from_colours[1](x), 0.2))
    torch.testing.assert_close(model.critic(x), critic.blocks[0]((old + new) / 2))


@pytest.mark.parametrize("shown", [0, 120, 999])
def test_only_the_present_layers_learn(shown):
    model = grown(shown)
    model.critic(model.generator(torch.randn(4, 8))).sum().backward()
    level, alpha = model.level, model.alpha
    for name, p in model.named_parameters():
        _, kind, number, *_ = name.split(".")
        lowest = (level - 1 if alpha < 1 else level) if kind in ("to_colours", "from_colours") else 0
        assert (p.grad is not None) == (lowest <= int(number) <= level), name


def test_a_generator_alone_knows_its_resolution():
    """Plain weights, copied to a fresh generator, give the same pictures."""
    model, fresh = grown(120), small().build()
    fresh.generator.load_state_dict(model.generator.state_dict())
    z = torch.randn(2, 8)
    torch.testing.assert_close(fresh.generator(z), model.generator(z))


def test_twice_differentiable():
    critic = grown(120).critic.double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(critic, x, nondet_tol=1e-12)


@pytest.mark.slow
def test_the_generator_at_1024_runs_on_a_cpu():
    model: Any = catalog.model("progan").requires_grad_(False)
    model.advance(100_000_000)
    made = model.generator(torch.randn(1, 512))
    assert made.shape == (1, 3, 1024, 1024) and made.isfinite().all()
    assert model.critic(made).shape == (1,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 48}, "side is 48; ProGAN doubles 4x4: a power of two"),
        ({"stable": 0}, "must be positive numbers of images"),
        ({"width_base": 64}, "leave no maps at 1024 pixels"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UsageError, match=message):
        catalog.model("progan", **settings)


def test_the_critic_names_a_wrong_resolution():
    with pytest.raises(UsageError, match="pictures have 16 pixels a side; the critic judges 4 now"):
        grown(0).critic(torch.randn(2, 1, 16, 16))
