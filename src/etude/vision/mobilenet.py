"""MobileNet: convolutions split into a depthwise one, k x k within each channel, and a pointwise one, 1x1 across them.

V1: Howard et al., 2017, arXiv 1704.04861. Against a full convolution the cost ratio is 1/C_out + 1/k^2 (section 3.1).
    4,231,976 parameters, as Keras' MobileNet.
V2: Sandler et al., 2018, arXiv 1801.04381. Inverted residuals: expand by 6, filter depthwise, project without a
    non-linearity. Equals torchvision 0.29.1's `mobilenet_v2`, with the same parameter names, to 1e-5 relative in fp32
    (`etude verify mobilenet`).

Shapes: B batch, C channels, H W height and width, D channels of the last layer, K classes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ConfigV1:
    in_channels: int = 3
    num_classes: int = 1000
    width_multiplier: float = 1.0
    stem_stride: int = 2
    """1 keeps the resolution of pictures of 28 to 64 pixels."""
    dropout: float = 0.0
    """Before the head."""

    def build(self) -> "MobileNetV1":
        return MobileNetV1(self)


@dataclass(frozen=True)
class ConfigV2:
    in_channels: int = 3
    num_classes: int = 1000
    width_multiplier: float = 1.0
    stem_stride: int = 2
    """1 keeps the resolution of pictures of 28 to 64 pixels."""
    dropout: float = 0.2
    """Before the head."""

    def build(self) -> "MobileNetV2":
        return MobileNetV2(self)


BODY_V1 = (
    # channels, stride: table 1, whose last stride is a misprint (the picture stays 7x7)
    ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)) + ((512, 1),) * 5 + ((1024, 2), (1024, 1))
)

BODY_V2 = (
    # expansion t, channels c, repeats n, stride s of the first: table 2
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def scaled(channels: int, multiplier: float) -> int:
    """The multiple of 8 nearest to channels * multiplier, at least 8 and never more than 10 % below it."""
    exact = channels * multiplier
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution that keeps the size but for its stride, and BatchNorm. (B, C, H, W) -> (B, C', H/s, W/s)"""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels)]


def depthwise_separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """V1's block (figure 3, right). (B, C, H, W) -> (B, C', H/s, W/s)"""
    return nn.Sequential(
        nn.Sequential(*conv_bn(in_channels, in_channels, 3, stride, groups=in_channels), nn.ReLU(inplace=True)),
        nn.Sequential(*conv_bn(in_channels, out_channels, 1), nn.ReLU(inplace=True)),
    )


class InvertedResidual(nn.Module):
    """V2's block (table 1, figure 4d): 1x1 to t C, 3x3 depthwise, linear 1x1. (B, C, H, W) -> (B, C', H/s, W/s)"""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int):
        super().__init__()
        inner = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential()
        if expansion > 1:
            self.conv.append(nn.Sequential(*conv_bn(in_channels, inner, 1), nn.ReLU6(inplace=True)))
        self.conv.append(nn.Sequential(*conv_bn(inner, inner, 3, stride, groups=inner), nn.ReLU6(inplace=True)))
        self.conv.extend(conv_bn(inner, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def reset_parameters(model: nn.Module) -> None:
    """He-normal over the fan-out for convolutions, N(0, 0.01) for the head, as the reference has it."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


class MobileNetV1(nn.Module):
    """(B, C, H, W) -> (B, K)"""

    def __init__(self, config: ConfigV1):
        super().__init__()
        self.config = config
        channels = scaled(32, config.width_multiplier)
        stem = conv_bn(config.in_channels, channels, 3, config.stem_stride)
        self.features = nn.Sequential(nn.Sequential(*stem, nn.ReLU(inplace=True)))
        for width, stride in BODY_V1:
            out_channels = scaled(width, config.width_multiplier)
            self.features.append(depthwise_separable(channels, out_channels, stride))
            channels = out_channels
        self.classifier = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(channels, config.num_classes))
        reset_parameters(self)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.classifier(self.features(x).mean((2, 3)))


class MobileNetV2(nn.Module):
    """(B, C, H, W) -> (B, K)"""

    def __init__(self, config: ConfigV2):
        super().__init__()
        self.config = config
        channels = scaled(32, config.width_multiplier)
        last = scaled(1280, max(1.0, config.width_multiplier))
        stem = conv_bn(config.in_channels, channels, 3, config.stem_stride)
        self.features = nn.Sequential(nn.Sequential(*stem, nn.ReLU6(inplace=True)))
        for expansion, width, repeats, stride in BODY_V2:
            out_channels = scaled(width, config.width_multiplier)
            for i in range(repeats):
                first = stride if i == 0 else 1
                self.features.append(InvertedResidual(channels, out_channels, stride=first, expansion=expansion))
                channels = out_channels
        self.features.append(nn.Sequential(*conv_bn(channels, last, 1), nn.ReLU6(inplace=True)))
        self.classifier = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(last, config.num_classes))
        reset_parameters(self)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.classifier(self.features(x).mean((2, 3)))


sizes = {"mobilenet_v1": ConfigV1(), "mobilenet_v2": ConfigV2()}


def example(config: ConfigV1 | ConfigV2) -> tuple[Tensor, ...]:
    """Inputs that the model takes, for drawing and counting."""
    side = 112 * config.stem_stride
    return (torch.randn(1, config.in_channels, side, side),)


RENAME: dict[str, tuple[tuple[str, str], ...]] = {"torchvision": ()}
