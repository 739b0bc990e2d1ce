"""ResNet: stages of residual blocks, y = F(x) + x (He et al., 2015, arXiv 1512.03385).

Equals torchvision 0.29.1's `resnet18` and `resnet50`, with the same parameter names, to 1e-5 relative in fp32; of 34,
101 and 152 the number of parameters is compared (`etude verify resnet`). That variant puts a bottleneck's stride on its
3x3 convolution; the paper puts it on the first 1x1. The "cifar" stem, a 3x3 convolution without pooling, keeps the
resolution of small pictures (section 4.2).

Shapes: B batch, C channels, H W height and width, D channels of the last stage, K classes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


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

    def __post_init__(self):
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem {self.stem!r} is neither 'imagenet' nor 'cifar'")

    def build(self) -> "ResNet":
        return ResNet(self)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity where the shapes agree, else the projection W_s of equation 2. (B, C, H, W) -> (B, C', H/s, W/s)"""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5, left). (B, C, H, W) -> (B, width, H/stride, W/stride)"""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3 with the stride, 1x1 to 4 width (figure 5, right). (B, C, H, W) -> (B, 4 width, H/s, W/s)"""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))


class ResNet(nn.Module):
    """(B, C, H, W) -> (B, K)"""

    def __init__(self, config: Config):
        super().__init__()
        block = Bottleneck if config.bottleneck else BasicBlock
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(config.in_channels, config.width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = conv3x3(config.in_channels, config.width)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(config.width)
        self.relu = nn.ReLU(inplace=True)

        channels = config.width
        self.stages = [f"layer{i}" for i in range(1, len(config.depths) + 1)]
        for i, (stage, depth) in enumerate(zip(self.stages, config.depths)):
            blocks = nn.Sequential()
            for j in range(depth):
                blocks.append(block(channels, config.width << i, stride=2 if i > 0 and j == 0 else 1))
                channels = (config.width << i) * block.expansion
            self.add_module(stage, blocks)

        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(channels, config.num_classes)
        self.reset_parameters(config)

    def reset_parameters(self, config: Config) -> None:
        """He-normal over the fan-out for convolutions, as the reference has it; torch's own default for the head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif config.zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif config.zero_init_residual and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """The last stage's feature maps, 1/32 of the input's resolution ("cifar" stem: 1/8)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.fc(self.dropout(self.features(x).mean((2, 3))))


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
