"""ProGAN: a generator and a critic that grow together from 4x4 to 1024x1024 pixels.

Karras, Aila, Laine, Lehtinen 2017, arXiv 1710.10196, written from the paper: table 2 (the networks), section 2 and
figure 2 (growing), section 3 (minibatch standard deviation), section 4.1 (equalised learning rate), section 4.2 (pixel
normalisation), appendix A (training, in `tasks/progressive.py`). At 1024x1024 the generator has 23,086,795
parameters and the critic 23,087,249, those of the 1x1 convolutions to and from colours at every resolution included.

What is computed follows from one integer, the images shown so far, which each player carries with its weights: first
4x4 for `stable` images, then for each doubling `fading` images while the new layers are blended in by alpha, from 0 to
1, and `stable` images at alpha 1. There is no other state, so a run resumed within a fade goes on as if never stopped.

    generator at 16x16   z -> block 4 -> block 8 -> block 16 -> to colours            y
                                              \\-> to colours -> twice as large     o     lerp(o, y, alpha)
    critic at 16x16      x -> from colours -> block 16 ->           y
                         x -> half as large -> from colours ->      o     lerp(o, y, alpha) -> block 8, 4 -> score

Shapes: B batch, Z numbers of a latent, C channels, D maps, S side of the pictures now.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.errors import UsageError
from etude.nn import twice

GROUP = 4
"""Samples over which the minibatch standard deviation is taken."""
SLOPE = 0.2


@dataclass(frozen=True)
class Config:
    latent: int = 512
    channels: int = 3
    side: int = 1024
    """Height and width of the pictures at the end, a power of two."""
    width_base: int = 8192
    """Maps of a block of 2^k pixels a side are width_base / 2^(k - 1), at most `width_max`."""
    width_max: int = 512
    stable: int = 600_000
    """Images shown at a resolution with alpha 1, before the next."""
    fading: int = 600_000
    """Images shown while alpha goes from 0 to 1."""

    def __post_init__(self) -> None:
        if self.side < 4 or self.side & (self.side - 1):
            raise UsageError(f"side is {self.side}; ProGAN doubles 4x4: a power of two, 4 or more", hint="64 or 128")
        if self.stable < 1 or self.fading < 1:
            raise UsageError(f"stable {self.stable} and fading {self.fading} must be positive numbers of images")
        if min(self.latent, self.channels, self.width_max) < 1 or self.width_base < self.side // 2:
            raise UsageError(
                f"latent {self.latent}, channels {self.channels}, width_base {self.width_base} and width_max "
                f"{self.width_max} leave no maps at {self.side} pixels"
            )

    @property
    def levels(self) -> int:
        """Resolutions, from 4x4 on."""
        return self.side.bit_length() - 2

    def maps(self, level: int) -> int:
        """Maps at 4 x 2^level pixels a side."""
        return min(self.width_base >> (level + 1), self.width_max)

    def progress(self, shown: int) -> tuple[int, float]:
        """(level, alpha) after `shown` images."""
        if shown < self.stable or self.levels == 1:
            return 0, 1.0
        level, within = divmod(shown - self.stable, self.fading + self.stable)
        if level + 1 >= self.levels:
            return self.levels - 1, 1.0
        return level + 1, min(1.0, within / self.fading)

    def begins(self, level: int) -> int:
        """Images shown before this level is first used."""
        return 0 if level == 0 else self.stable + (level - 1) * (self.fading + self.stable)

    def build(self) -> "ProGAN":
        return ProGAN(self)


def pixel_norm(x: Tensor) -> Tensor:
    """Each position's maps divided by their root mean square (section 4.2). (B, D, ...) -> (B, D, ...)"""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-8)).to(x.dtype)


def deviation_map(x: Tensor) -> Tensor:
    """One more map: the standard deviation over groups of samples, averaged over maps and places (section 3).
    (B, D, H, W) -> (B, D + 1, H, W)

    Groups are GROUP neighbours in the batch, fewer where that does not divide it; so where a process's share is a
    multiple of GROUP, no group depends on how the batch is spread.
    """
    count, _, height, width = x.shape
    group = math.gcd(GROUP, count)
    wide = x if x.dtype == torch.float64 else x.float()
    deviation = torch.sqrt(wide.view(count // group, group, *x.shape[1:]).var(1, correction=0) + 1e-8)
    each = deviation.mean((1, 2, 3)).repeat_interleave(group)
    return torch.cat([x, each.to(x.dtype).view(-1, 1, 1, 1).expand(-1, 1, height, width)], 1)


def halved(x: Tensor) -> Tensor:
    """(B, C, 2S, 2S) -> (B, C, S, S), averages of 2x2"""
    return F.avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    """(B, C, S, S) -> (B, C, 2S, 2S), each pixel four times"""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Equalised(nn.Module):
    """Weights kept as N(0, 1) and multiplied by gain / sqrt(fan_in) whenever they are used: He's initialisation, at run
    time, so that Adam's steps are alike for all layers (section 4.1)."""

    def __init__(self, shape: tuple[int, ...], gain: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.scale = gain / math.sqrt(math.prod(shape[1:]))


class Conv(Equalised):
    """(B, D, H, W) -> (B, E, H, W); a kernel that is not padded loses its side less 1."""

    def __init__(self, d_in: int, d_out: int, kernel: int, *, gain: float = 2**0.5, padding: int | None = None):
        super().__init__((d_out, d_in, kernel, kernel), gain)
        self.padding = kernel // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight * self.scale
        if torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):  # in a penalty
            return twice.conv2d(x, w, self.bias, 1, self.padding)
        return F.conv2d(x, w, self.bias, padding=self.padding)


class Dense(Equalised):
    """(B, n) -> (B, m)"""

    def __init__(self, n_in: int, n_out: int, *, gain: float = 2**0.5):
        super().__init__((n_out, n_in), gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class FirstBlock(nn.Module):
    """The generator's 4x4: (B, Z) -> (B, D, 4, 4). The dense layer's gain is a fourth of the others', as in the paper's
    own runs."""

    def __init__(self, latent: int, maps: int):
        super().__init__()
        self.dense = Dense(latent, maps * 16, gain=2**0.5 / 4)
        self.conv = Conv(maps, maps, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.dense(z).view(len(z), -1, 4, 4)
        return pixel_norm(activate(self.conv(pixel_norm(activate(x)))))


class UpBlock(nn.Module):
    """(B, D, S, S) -> (B, E, 2S, 2S)"""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.conv1 = Conv(d_in, d_out, 3)
        self.conv2 = Conv(d_out, d_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_norm(activate(self.conv1(doubled(x))))
        return pixel_norm(activate(self.conv2(x)))


class DownBlock(nn.Module):
    """(B, D, 2S, 2S) -> (B, E, S, S)"""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.conv1 = Conv(d_in, d_in, 3)
        self.conv2 = Conv(d_in, d_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return halved(activate(self.conv2(activate(self.conv1(x)))))


class LastBlock(nn.Module):
    """The critic's 4x4: (B, D, 4, 4) -> (B,)"""

    def __init__(self, maps: int):
        super().__init__()
        self.conv1 = Conv(maps + 1, maps, 3)
        self.conv2 = Conv(maps, maps, 4, padding=0)
        self.dense = Dense(maps, 1, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.conv1(deviation_map(x)))
        return self.dense(activate(self.conv2(x)).flatten(1)).flatten()


class Growing(nn.Module):
    """A player that knows how many images were shown."""

    shown: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.register_buffer("shown", torch.zeros((), dtype=torch.int64))

    @property
    def progress(self) -> tuple[int, float]:
        """(level, alpha) now."""
        return self.config.progress(int(self.shown))


class Generator(Growing):
    """(B, Z) -> (B, C, S, S), about -1..1. A latent's length does not count, only its direction."""

    def __init__(self, config: Config):
        super().__init__(config)
        maps = [config.maps(level) for level in range(config.levels)]
        self.blocks = nn.ModuleList([FirstBlock(config.latent, maps[0])])
        self.blocks.extend(UpBlock(maps[i - 1], maps[i]) for i in range(1, config.levels))
        self.to_colours = nn.ModuleList(Conv(d, config.channels, 1, gain=1.0) for d in maps)

    def forward(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B C S S"]:
        level, alpha = self.progress
        x, before = pixel_norm(z), z
        for block in self.blocks[: level + 1]:
            x, before = block(x), x
        y = self.to_colours[level](x)
        if alpha < 1:
            y = torch.lerp(doubled(self.to_colours[level - 1](before)), y, alpha)
        return y


class Critic(Growing):
    """(B, C, S, S) -> (B,) scores. S must be the side of the present level."""

    def __init__(self, config: Config):
        super().__init__(config)
        maps = [config.maps(level) for level in range(config.levels)]
        self.from_colours = nn.ModuleList(Conv(config.channels, d, 1) for d in maps)
        self.blocks = nn.ModuleList([LastBlock(maps[0])])
        self.blocks.extend(DownBlock(maps[i], maps[i - 1]) for i in range(1, config.levels))

    def joins(self, count: int) -> bool:
        """Whether two batches of `count` samples may be judged in one pass: their groups stay apart."""
        return count % GROUP == 0

    def forward(self, x: Float[Tensor, "B C S S"]) -> Float[Tensor, " B"]:
        level, alpha = self.progress
        if x.shape[-1] != 4 << level:
            raise UsageError(f"pictures have {x.shape[-1]} pixels a side; the critic judges {4 << level} now")
        y = activate(self.from_colours[level](x))
        for i in range(level, 0, -1):
            y = self.blocks[i](y)
            if i == level and alpha < 1:
                y = torch.lerp(activate(self.from_colours[i - 1](halved(x))), y, alpha)
        return self.blocks[0](y)


class ProGAN(nn.Module):
    """The two players: `.generator(z)`, `.critic(x)`."""

    grows = True
    """Not all weights take part in a pass: those of resolutions to come."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, self.latent = config, config.latent
        self.shape = (config.channels, config.side, config.side)
        self.generator, self.critic = Generator(config), Critic(config)

    @property
    def level(self) -> int:
        """Doublings of 4x4 so far."""
        return self.generator.progress[0]

    @property
    def alpha(self) -> float:
        """The share of the newest layers."""
        return self.generator.progress[1]

    @torch.no_grad()
    def advance(self, images: int) -> None:
        """Count images as shown."""
        for player in (self.generator, self.critic):
            player.shown += images

    def as_seen(self, images: Float[Tensor, "B C T T"]) -> Float[Tensor, "B C S S"]:
        """Real pictures of the full side as they are shown now: averaged to the present resolution and, within a fade,
        blended with the one before."""
        level, alpha = self.level, self.alpha
        side = 4 << level
        x = F.avg_pool2d(images, images.shape[-1] // side) if images.shape[-1] > side else images
        return torch.lerp(doubled(halved(x)), x, alpha) if alpha < 1 else x

    def full(self, images: Float[Tensor, "B C S S"]) -> Float[Tensor, "B C T T"]:
        """Pictures of the present resolution at the full side, each pixel repeated."""
        factor = self.config.side // images.shape[-1]
        return F.interpolate(images, scale_factor=float(factor), mode="nearest") if factor > 1 else images


sizes = {"progan": Config()}

RENAME: dict[str, tuple[tuple[str, str], ...]] = {}


def example(config: Config) -> tuple[Tensor, ...]:
    """Latents that the generator takes, for drawing and counting."""
    return (torch.randn(2, config.latent),)
