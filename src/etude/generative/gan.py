"""The players of adversarial training: a generator that makes pictures from noise, a critic that tells them from real
ones. What they play for (GAN, WGAN, WGAN-GP) is said in `tasks/adversarial.py`.

Goodfellow et al. 2014, arXiv 1406.2661 (GAN); Radford, Metz, Chintala 2015, arXiv 1511.06434 (DCGAN, the networks of
pictures); Arjovsky, Chintala, Bottou 2017, arXiv 1701.07875 (WGAN); Gulrajani et al. 2017, arXiv 1704.00028 (WGAN-GP:
no normalisation over the batch in the critic, as its penalty is one of each sample; layer normalisation in its place).

    generator   z -> 4x4 -> 8x8 -> ... -> side x side: 4x4 transposed convolutions of stride 2, BatchNorm, ReLU; tanh
    critic      side x side -> ... -> 4x4 -> a number: 4x4 convolutions of stride 2, `critic_norm`, LeakyReLU 0.2

The critic's answer is a logit or an unbounded score; no sigmoid is part of it. Layers and their numbers of weights are
those of pytorch/examples' DCGAN; the tests compute losses and penalty by hand.

Shapes: B batch, Z numbers of a latent, C channels, S side of the pictures in -1..1, F numbers of a point.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.errors import UsageError
from etude.nn import twice

Norm = Literal["batch", "layer", "none"]


def stages(side: int, *, least: int = 8) -> int:
    """How often 4x4 is doubled to `side`; UsageError where it is not a power of two, or below `least`."""
    if side < least or side & (side - 1):
        raise UsageError(f"side is {side}; it must be a power of two, {least} or more", hint=f"{max(least, 32)} or 64")
    return side.bit_length() - 3


@dataclass(frozen=True)
class Config:
    """DCGAN's two networks."""

    latent: int = 100
    channels: int = 3
    side: int = 64
    """Height and width of the pictures, a power of two."""
    width: int = 64
    """Maps next to the picture; they double as the resolution halves."""
    critic_norm: Norm = "batch"
    """Between the critic's convolutions. "layer": over all of one sample's maps, with a scale and shift a map."""

    def __post_init__(self) -> None:
        stages(self.side)
        if self.critic_norm not in ("batch", "layer", "none"):
            raise UsageError(f"critic_norm is {self.critic_norm!r}; it must be batch, layer or none")
        if min(self.latent, self.channels, self.width) < 1:
            raise UsageError(
                f"latent {self.latent}, channels {self.channels} and width {self.width} must be positive numbers"
            )

    @property
    def maps(self) -> list[int]:
        """Maps at side / 2, side / 4, ... 4."""
        return [self.width << i for i in range(stages(self.side))]

    def build(self) -> "GAN":
        return GAN(self, Generator(self), Critic(self), (self.channels, self.side, self.side))


@dataclass(frozen=True)
class Points:
    """Two small perceptrons, for points instead of pictures."""

    latent: int = 2
    features: int = 2
    """Numbers of a point."""
    width: int = 128
    depth: int = 3
    """Hidden layers."""

    def build(self) -> "GAN":
        return GAN(self, PointGenerator(self), PointCritic(self), (self.features,))


class Generator(nn.Sequential):
    """(B, Z) -> (B, C, S, S) in -1..1"""

    def __init__(self, config: Config):
        maps = config.maps[::-1]
        layers: list[nn.Module] = [
            nn.Unflatten(1, (config.latent, 1, 1)),
            nn.ConvTranspose2d(config.latent, maps[0], 4, bias=False),
        ]
        for d_in, d_out in pairwise([*maps, config.channels]):
            layers += [
                nn.BatchNorm2d(d_in),
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(d_in, d_out, 4, stride=2, padding=1, bias=False),
            ]
        super().__init__(*layers, nn.Tanh())
        initialise(self)

    def forward(self, input: Float[Tensor, "B Z"]) -> Float[Tensor, "B C S S"]:
        return super().forward(input)


class Critic(nn.Sequential):
    """(B, C, S, S) -> (B,) scores"""

    def __init__(self, config: Config):
        maps, bias = config.maps, config.critic_norm == "none"
        # a critic that mixes samples takes no penalty, whose slope is one sample's
        conv = nn.Conv2d if config.critic_norm == "batch" else twice.Conv2d
        layers: list[nn.Module] = [
            conv(config.channels, maps[0], 4, stride=2, padding=1, bias=bias),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for d_in, d_out in pairwise(maps):
            layers += [
                conv(d_in, d_out, 4, stride=2, padding=1, bias=bias),
                normalisation(config.critic_norm, d_out),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        super().__init__(*layers, conv(maps[-1], 1, 4, bias=False), nn.Flatten(0))
        self.norm = config.critic_norm
        initialise(self)

    def joins(self, count: int) -> bool:
        """Whether two batches of `count` samples may be judged in one pass: no sample's score depends on others."""
        return self.norm != "batch"

    def forward(self, input: Float[Tensor, "B C S S"]) -> Float[Tensor, " B"]:
        return super().forward(input)


def normalisation(norm: Norm, maps: int) -> nn.Module:
    """(B, D, H, W) -> (B, D, H, W)"""
    match norm:
        case "batch":
            return nn.BatchNorm2d(maps)
        case "layer":
            return nn.GroupNorm(1, maps)  # one group is all of a sample
        case "none":
            return nn.Identity()


def initialise(network: nn.Module) -> None:
    """DCGAN's rule: kernels N(0, 0.02), scales of normalisations N(1, 0.02), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.02)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)


def perceptron(d_in: int, d_out: int, config: Points) -> list[nn.Module]:
    """Linear layers with ReLU between them, He-normal."""
    widths = [d_in, *[config.width] * config.depth, d_out]
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layer = nn.Linear(n_in, n_out)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(inplace=True)]
    return layers[:-1]


class PointGenerator(nn.Sequential):
    """(B, Z) -> (B, F)"""

    def __init__(self, config: Points):
        super().__init__(*perceptron(config.latent, config.features, config))


class PointCritic(nn.Sequential):
    """(B, F) -> (B,)"""

    def __init__(self, config: Points):
        super().__init__(*perceptron(config.features, 1, config), nn.Flatten(0))

    def joins(self, count: int) -> bool:
        """Whether two batches may be judged in one pass: always."""
        return True


class GAN(nn.Module):
    """The two players: `.generator(z)`, `.critic(x)`. `shape` is that of a sample."""

    def __init__(self, config: Config | Points, generator: nn.Module, critic: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.config, self.shape, self.latent = config, shape, config.latent
        self.generator, self.critic = generator, critic


sizes = {
    "dcgan": Config(),
    "wgan": Config(),
    "wgan-gp": Config(latent=128, critic_norm="layer"),
}

RENAME: dict[str, tuple[tuple[str, str], ...]] = {}


def example(config: Config) -> tuple[Tensor, ...]:
    """Latents that the generator takes, for drawing and counting."""
    return (torch.randn(2, config.latent),)
