"""ESRGAN: residual-in-residual dense blocks that enlarge a picture (Wang et al., 2018, arXiv 1809.00219).

Equals the authors' RRDBNet on the weights that they and Real-ESRGAN publish, to 1e-5 relative in fp32
(`etude verify esrgan`). There is no BatchNorm in the generator: statistics of a training patch do not suit a whole
picture (section 3.1). `x2` is Real-ESRGAN's: every 2x2 pixels become one of four times the channels, and the network
enlarges those by 4. The discriminator is the authors' VGG-style one, whose input has a fixed side.

Shapes: B batch, H W height and width of the low resolution, s the scale, F the width of the trunk, G its growth.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.errors import RefusedError
from etude.nn.exact import ExactConv2d

SLOPE = 0.2
"""Of every LeakyReLU."""
RESIDUAL_SCALE = 0.2
"""What a residual is multiplied by before it is added, within a block and around three of them (section 3.1)."""


@dataclass(frozen=True)
class Config:
    """The generator, RRDBNet."""

    scale: Literal[2, 4] = 4
    in_channels: int = 3
    width: int = 64
    """F, channels of the trunk."""
    depth: int = 23
    """Residual-in-residual blocks, of three dense blocks each."""
    growth: int = 32
    """G, channels that each convolution of a dense block adds."""
    interpolates: bool = False
    """Begin as bilinear interpolation, which the first channels carry through all layers, instead of learning it first:
    for short trainings. Of scale 4 only. Not in the paper."""

    def __post_init__(self):
        if self.scale not in (2, 4):
            raise ValueError(f"scale is {self.scale}; RRDBNet enlarges by 2 or by 4")
        if self.interpolates and self.scale != 4:
            raise ValueError("interpolates begins as bilinear interpolation for scale 4 only")
        if min(self.in_channels, self.width, self.depth, self.growth) < 1 or self.width < self.in_channels:
            raise ValueError(
                f"in_channels, width, depth and growth must be at least 1, width at least in_channels: {self}"
            )

    def build(self) -> "RRDBNet":
        return RRDBNet(self)


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The discriminator, which judges square pictures of one size."""

    side: int = 128
    in_channels: int = 3
    width: int = 64
    """Channels of the first stage; each stage doubles them, up to eight times as many, and halves the resolution."""

    def __post_init__(self):
        if self.side < 8 or self.side & (self.side - 1):
            raise ValueError(f"side is {self.side}; the discriminator halves it down to 4: a power of 2, at least 8")

    def build(self) -> "Discriminator":
        return Discriminator(self)


@dataclass(frozen=True)
class AdversarialConfig:
    """Both players of the second stage of training."""

    generator: Config = field(default_factory=Config)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    @property
    def scale(self) -> int:
        return self.generator.scale

    def build(self) -> "ESRGAN":
        return ESRGAN(self)


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class DenseBlock(nn.Module):
    """Five convolutions, each of all that came before it; no activation after the last. (B, F, H, W) -> (B, F, H, W)"""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.conv1 = conv3x3(width, growth)
        self.conv2 = conv3x3(width + growth, growth)
        self.conv3 = conv3x3(width + 2 * growth, growth)
        self.conv4 = conv3x3(width + 3 * growth, growth)
        self.conv5 = conv3x3(width + 4 * growth, width)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.act(self.conv1(x))
        x2 = self.act(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.act(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.act(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        x5 = self.conv5(torch.cat((x, x1, x2, x3, x4), 1))
        return torch.add(x, x5, alpha=RESIDUAL_SCALE)


class RRDB(nn.Module):
    """Three dense blocks and a residual around them (figure 4). (B, F, H, W) -> (B, F, H, W)"""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.rdb1 = DenseBlock(width, growth)
        self.rdb2 = DenseBlock(width, growth)
        self.rdb3 = DenseBlock(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=RESIDUAL_SCALE)


class RRDBNet(nn.Module):
    """(B, C, H, W) -> (B, C, s H, s W), pictures of 0 to 1"""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.scale = config.scale
        self.unshuffle = 4 // config.scale
        width = config.width
        self.conv_first = ExactConv2d(config.in_channels * self.unshuffle**2, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, config.growth) for _ in range(config.depth)))
        self.conv_body = conv3x3(width, width)
        self.conv_up1 = conv3x3(width, width)
        self.conv_up2 = conv3x3(width, width)
        self.conv_hr = conv3x3(width, width)
        self.conv_last = ExactConv2d(width, config.in_channels, 3, padding=1)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He-normal over the fan-in, times 0.1 within the dense blocks (section 3.1), biases at zero there; torch's own
        default outside. `interpolates` then gives the picture itself the first channels, one a colour."""
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in")
                with torch.no_grad():
                    module.weight.mul_(0.1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if self.config.interpolates:
            self.begin_as_interpolation()

    @torch.no_grad()
    def begin_as_interpolation(self) -> None:
        """A binomial kernel on doubled pixels is bilinear interpolation; LeakyReLU lets what is positive pass."""
        binomial = torch.tensor((1.0, 2.0, 1.0)) / 4
        smooth, alone = torch.outer(binomial, binomial), torch.zeros(3, 3)
        alone[1, 1] = 1
        kernels = {"conv_first": alone / self.unshuffle**2, "conv_up1": smooth, "conv_up2": smooth}
        kernels |= {"conv_hr": alone, "conv_last": alone}
        colours = range(self.config.in_channels)
        self.conv_last.weight.mul_(0.1)
        for name, conv in self.named_children():
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                conv.bias[: len(colours)] = 0
                if conv is not self.conv_last:
                    conv.weight[: len(colours)] = 0
                for colour in colours if name in kernels else ():
                    together = self.unshuffle**2 if conv is self.conv_first else 1
                    conv.weight[colour, colour * together : (colour + 1) * together] = kernels[name]

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C sH sW"]:
        height, width = x.shape[-2:]
        if self.unshuffle > 1:  # an odd side is made even by its last pixels, which are cut off again
            x = F.pad(x, (0, -width % self.unshuffle, 0, -height % self.unshuffle), mode="replicate")
            x = F.pixel_unshuffle(x, self.unshuffle)
        x = self.conv_first(x).to(self.conv_body.weight.dtype)
        x = x + self.conv_body(self.body(x))
        x = self.act(self.conv_up1(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.act(self.conv_up2(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.conv_last(self.act(self.conv_hr(x)))
        return x[..., : height * self.scale, : width * self.scale] if self.unshuffle > 1 else x


class Discriminator(nn.Module):
    """How real a picture looks, as one number without a squashing function. (B, C, side, side) -> (B, 1)

    Stages of a 3x3 convolution and a 4x4 one that halves the resolution, BatchNorm after all but the first, down to
    4x4; then two linear layers.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        self.features = nn.Sequential()
        channels = config.in_channels
        for stage in range(int(math.log2(config.side // 4))):
            width = config.width * min(2**stage, 8)
            self.features.extend(self.layer(channels, width, 3, normalise=stage > 0))
            self.features.extend(self.layer(width, width, 4))
            channels = width
        self.hidden = nn.Linear(channels * 4 * 4, 100)
        self.head = nn.Linear(100, 1)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)

    @staticmethod
    def layer(in_channels: int, out_channels: int, kernel: int, *, normalise: bool = True) -> list[nn.Module]:
        stride = 2 if kernel == 4 else 1
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=1, bias=not normalise)
        norm = [nn.BatchNorm2d(out_channels)] if normalise else []
        return [conv, *norm, nn.LeakyReLU(SLOPE, inplace=True)]

    def forward(self, x: Float[Tensor, "B C S S"]) -> Float[Tensor, "B 1"]:
        side = self.config.side
        if x.shape[-2:] != (side, side):
            raise ValueError(f"the discriminator judges pictures of {side} x {side} pixels, not {tuple(x.shape[-2:])}")
        return self.head(self.act(self.hidden(self.features(x).flatten(1))))


class ESRGAN(nn.Module):
    """Two players: `.generator(low)` enlarges pictures, `.discriminator(high)` judges them."""

    def __init__(self, config: AdversarialConfig):
        super().__init__()
        self.config = config
        self.generator = config.generator.build()
        self.discriminator = config.discriminator.build()


sizes = {"rrdbnet_x4": Config(), "rrdbnet_x2": Config(scale=2)}


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes, for drawing and counting."""
    return (torch.rand(1, config.in_channels, 32, 32),)


RENAME: dict[str, tuple[tuple[str, str], ...]] = {
    "esrgan": (
        # the authors' first files
        (r"^model\.0\.", "conv_first."),
        (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
        (r"^model\.1\.sub\.\d+\.", "conv_body."),
        (r"^model\.3\.", "conv_up1."),
        (r"^model\.6\.", "conv_up2."),
        (r"^model\.8\.", "conv_hr."),
        (r"^model\.10\.", "conv_last."),
        # their later ones; Real-ESRGAN's names are ours
        (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
        (r"^trunk_conv\.", "conv_body."),
        (r"^upconv(\d)\.", r"conv_up\1."),
        (r"^HRconv\.", "conv_hr."),
    ),
    "ncnn": (),
}


def from_ncnn(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ncnn's names are numbers of the graph that it was made from; the convolutions come in the order of their use."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    if dotted := next((layer for layer in layers if "." in layer), None):
        raise RefusedError(f"{dotted!r} is no name of ncnn's", hint="--start.layout esrgan, or etude")
    depth = max(0, len(layers) - 6) // 15
    ours = ["conv_first"]
    ours += [f"body.{i}.rdb{j}.conv{k}" for i in range(depth) for j in (1, 2, 3) for k in (1, 2, 3, 4, 5)]
    ours += ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    if len(ours) != len(layers):
        raise RefusedError(
            f"these weights have {len(layers)} convolutions; an RRDBNet has 15 in each block, and 6 more",
            hint="of Real-ESRGAN's files, x4plus and x4plus-anime hold one",
        )
    names = dict(zip(layers, ours))
    parted = ((name.rpartition("."), tensor) for name, tensor in tensors.items())
    return {f"{names[layer]}.{kind}": tensor for (layer, _, kind), tensor in parted}


CONVERT = {"ncnn": from_ncnn}
