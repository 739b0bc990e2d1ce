"""ResNet: stages of residual blocks, y = F(x) + x (He et al., 2015, arXiv 1512.03385).

Equals torchvision 0.29.1's `resnet18` and `resnet50`, with the same parameter names, to 1e-5 relative in fp32; of 34,
101 and 152 the number of parameters is compared (`etude verify resnet`). That variant puts a bottleneck's stride on its
3x3 convolution; the paper puts it on the first 1x1. The "cifar" stem, a 3x3 convolution without pooling, keeps the
resolution of small pictures (section 4.2).

Stages can trade their stride for dilation (Yu et al., 2017, arXiv 1705.09914; torchvision's
`replace_stride_with_dilation`), or move the taps of their 3x3 convolutions (`deformable`). Shortcuts and normalisation
can be left out, to see what they do.

Shapes: B batch, C channels, H W height and width, D channels of the last stage, K classes.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.vision.deformable import DeformConv2d, sampling_positions


@dataclass(frozen=True)
class Config:
    depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks a stage. Each stage after the first halves the resolution and doubles the width."""
    bottleneck: bool = False
    """Blocks of 1x1, 3x3, 1x1 convolutions, four times as wide outside as inside, instead of two 3x3."""
    in_channels: int = 3
    num_classes: int = 1000
    stem: Literal["imagenet", "cifar"] = "imagenet"
    width: int = 64
    dropout: float = 0.0
    """Before the head."""
    zero_init_residual: bool = False
    """Start every block as the identity: its last BatchNorm's scale is zero (Goyal et al., 2017, arXiv 1706.02677)."""
    dilated_from: int | None = None
    """Stages from this one on, counted from 1, keep the resolution and dilate their 3x3 convolutions instead: where the
    first block would halve it, the taps of what follows move twice as far apart. Stage 1 has no stride to trade."""
    deformable_from: int | None = None
    """The 3x3 convolutions of stages from this one on, counted from 1, are deformable (v2)."""
    residual: bool = True
    """y = F(x) + x; without, y = F(x), the paper's "plain" network (section 3.3)."""
    normalise: bool = True
    """BatchNorm after each convolution; without, nothing, and the convolutions have biases."""

    def __post_init__(self):
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem {self.stem!r} is neither 'imagenet' nor 'cifar'")
        for name, stage in (("dilated_from", self.dilated_from), ("deformable_from", self.deformable_from)):
            if stage is not None and not 1 <= stage <= len(self.depths):
                raise ValueError(f"{name} is {stage}; the stages are 1 to {len(self.depths)}")
        if self.zero_init_residual and not (self.residual and self.normalise):
            raise ValueError("zero_init_residual needs residual and normalise: it zeroes a shortcut's BatchNorm")

    def build(self) -> "ResNet":
        return ResNet(self)


def conv3x3(
    in_channels: int,
    out_channels: int,
    stride: int = 1,
    *,
    dilation: int = 1,
    deformable: bool = False,
    bias: bool = False,
) -> nn.Module:
    layer = DeformConv2d if deformable else nn.Conv2d
    return layer(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=bias)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)


def norm(channels: int, normalise: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if normalise else nn.Identity()


def shortcut(in_channels: int, out_channels: int, stride: int, normalise: bool) -> nn.Module:
    """The identity where the shapes agree, else the projection W_s of equation 2. (B, C, H, W) -> (B, C', H/s, W/s)"""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride, bias=not normalise), norm(out_channels, normalise))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5, left). (B, C, H, W) -> (B, width, H/stride, W/stride)

    `dilation`: of the convolution that carries the stride, and of the one after it.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        *,
        dilation: tuple[int, int] = (1, 1),
        deformable: bool = False,
        residual: bool = True,
        normalise: bool = True,
    ):
        super().__init__()
        first, after = dilation
        bias = not normalise
        self.conv1 = conv3x3(in_channels, width, stride, dilation=first, deformable=deformable, bias=bias)
        self.bn1 = norm(width, normalise)
        self.conv2 = conv3x3(width, width, dilation=after, deformable=deformable, bias=bias)
        self.bn2 = norm(width, normalise)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, width, stride, normalise) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y if self.downsample is None else y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3 with the stride, 1x1 to 4 width (figure 5, right). (B, C, H, W) -> (B, 4 width, H/s, W/s)"""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        *,
        dilation: tuple[int, int] = (1, 1),
        deformable: bool = False,
        residual: bool = True,
        normalise: bool = True,
    ):
        super().__init__()
        out_channels, bias = width * self.expansion, not normalise
        self.conv1 = conv1x1(in_channels, width, bias=bias)
        self.bn1 = norm(width, normalise)
        self.conv2 = conv3x3(width, width, stride, dilation=dilation[0], deformable=deformable, bias=bias)
        self.bn2 = norm(width, normalise)
        self.conv3 = conv1x1(width, out_channels, bias=bias)
        self.bn3 = norm(out_channels, normalise)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride, normalise) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y if self.downsample is None else y + self.downsample(x))


class ResNet(nn.Module):
    """(B, C, H, W) -> (B, K)"""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        block = Bottleneck if config.bottleneck else BasicBlock
        bias = not config.normalise
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(config.in_channels, config.width, 7, stride=2, padding=3, bias=bias)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = conv3x3(config.in_channels, config.width, bias=bias)
            self.maxpool = nn.Identity()
        self.bn1 = norm(config.width, config.normalise)
        self.relu = nn.ReLU(inplace=True)

        channels, dilation = config.width, 1
        self.stages = [f"layer{i}" for i in range(1, len(config.depths) + 1)]
        for i, (stage, depth) in enumerate(zip(self.stages, config.depths), start=1):
            width, stride, before = config.width << (i - 1), 2 if i > 1 else 1, dilation
            if config.dilated_from is not None and i >= config.dilated_from:
                stride, dilation = 1, dilation * stride
            blocks = nn.Sequential()
            for j in range(depth):
                blocks.append(
                    block(
                        channels,
                        width,
                        stride if j == 0 else 1,
                        dilation=(before if j == 0 else dilation, dilation),
                        deformable=config.deformable_from is not None and i >= config.deformable_from,
                        residual=config.residual,
                        normalise=config.normalise,
                    )
                )
                channels = width * block.expansion
            self.add_module(stage, blocks)

        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(channels, config.num_classes)
        self.reset_parameters(config)

    def reset_parameters(self, config: Config) -> None:
        """He-normal over the fan-out for convolutions, as the reference has it, biases and offsets at zero; torch's own
        default for the head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | DeformConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if isinstance(module.bias, nn.Parameter):
                    nn.init.zeros_(module.bias)
            elif config.zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.get_parameter("bn2.weight"))
            elif config.zero_init_residual and isinstance(module, Bottleneck):
                nn.init.zeros_(module.get_parameter("bn3.weight"))
        for module in self.modules():
            if isinstance(module, DeformConv2d):  # after its own plain convolution's turn
                module.reset_offset()

    def features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The last stage's feature maps, 1/32 of the input's resolution ("cifar" stem: 1/8; dilated: higher)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.fc(self.dropout(self.features(x).mean((2, 3))))

    def sampling_positions(self, x: Float[Tensor, "B C H W"], *, layers: int = 1) -> Float[Tensor, "B h w S 2"] | None:
        """The pixels (y, x) of the picture at which the last maps' units look through the last of the 3x3 convolutions,
        or through several; None for a network whose convolutions are neither deformable nor dilated."""
        if self.config.deformable_from is None and self.config.dilated_from is None:
            return None
        predictors = {m.offset for m in self.modules() if isinstance(m, DeformConv2d)}
        wide = [m for m in self.modules() if isinstance(m, nn.Conv2d | DeformConv2d) and m.weight.shape[2] > 1]
        path = [m for m in wide if m not in predictors]
        before, traced = path[:-layers], path[-layers:]
        step = math.prod(m.stride[0] for m in before) * (1 if isinstance(self.maxpool, nn.Identity) else 2)
        return step * sampling_positions(self, traced, x)


sizes = {
    "resnet18": Config(depths=(2, 2, 2, 2)),
    "resnet34": Config(depths=(3, 4, 6, 3)),
    "resnet50": Config(depths=(3, 4, 6, 3), bottleneck=True),
    "resnet101": Config(depths=(3, 4, 23, 3), bottleneck=True),
    "resnet152": Config(depths=(3, 8, 36, 3), bottleneck=True),
}


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes, for drawing and counting."""
    side = 224 if config.stem == "imagenet" else 32
    return (torch.randn(1, config.in_channels, side, side),)


RENAME: dict[str, tuple[tuple[str, str], ...]] = {"torchvision": ()}
