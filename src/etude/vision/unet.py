"""U-Net: a contracting path, an expanding path, and the maps of one handed to the other (Ronneberger et al., 2015,
arXiv 1505.04597).

Equals milesial's Pytorch-UNet (three channels, two classes, transposed convolutions) to 1e-5 relative in fp32
(`etude verify unet`). That variant, which practice uses, pads its 3x3 convolutions and normalises after each; the paper
does neither, so that 572 pixels become 388 (`valid_size`), and reads larger pictures tile by tile with the lost border
as overlap. Here the answer is as large as the picture, whatever its size: where a level's side was odd, the map from
below is padded by the missing row or column; a picture smaller than one unit of the lowest level is padded up to it.

Shapes: B batch, C channels, H W height and width, K classes, D channels of a map.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Config:
    in_channels: int = 3
    num_classes: int = 2
    """K. 0: as many as the data has; a recipe's task fills it in."""
    depth: int = 4
    """Times that the resolution is halved and the width doubled."""
    width: int = 64
    """Channels of the first level."""
    dropout: float = 0.0
    """At the end of the contracting path (section 3.1)."""

    def __post_init__(self):
        if self.in_channels < 1 or self.num_classes < 0 or self.width < 1:
            raise ValueError(
                f"in_channels {self.in_channels} and width {self.width} must be at least 1, num_classes "
                f"{self.num_classes} not negative"
            )
        if not 1 <= self.depth <= 8:
            raise ValueError(f"depth is {self.depth}; the resolution can be halved 1 to 8 times")

    def build(self) -> "UNet":
        return UNet(self)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm and ReLU. (B, D, H, W) -> (B, D', H, W)"""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


def enlarged(x: Tensor, least: int) -> Tensor:
    """(B, C, H, W) -> (B, C, max(H, least), max(W, least)), zeros below and to the right."""
    down, right = max(0, least - x.shape[2]), max(0, least - x.shape[3])
    return F.pad(x, (0, right, 0, down)) if down or right else x


def joined(skip: Tensor, x: Tensor) -> Tensor:
    """The contracting path's map and the one from below, which zeros make as large. -> (B, D + D', H, W)"""
    down, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
    if down or right:
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    return torch.cat([skip, x], 1)


fx.wrap("enlarged")  # what depends on sizes is one step to whoever traces the model
fx.wrap("joined")


class UNet(nn.Module):
    """(B, C, H, W) -> (B, K, H, W) logits"""

    def __init__(self, config: Config):
        super().__init__()
        if config.num_classes < 1:
            raise ValueError("num_classes is 0: a network needs to know how many classes there are")
        self.config = config
        widths = [config.width << level for level in range(config.depth + 1)]
        inputs = [config.in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(DoubleConv(before, width) for before, width in zip(inputs, widths))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(config.dropout)
        levels = range(config.depth, 0, -1)
        self.up = nn.ModuleList(nn.ConvTranspose2d(widths[i], widths[i - 1], 2, stride=2) for i in levels)
        self.decoder = nn.ModuleList(DoubleConv(widths[i], widths[i - 1]) for i in levels)
        self.head = nn.Conv2d(config.width, config.num_classes, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Section 3: Gaussian weights of variance 2 / N, N the incoming nodes of a neuron; biases at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.ConvTranspose2d):  # each output pixel sees one tap of every input channel
                nn.init.normal_(module.weight, std=(2 / module.in_channels) ** 0.5)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        height, width = x.shape[2], x.shape[3]
        x = enlarged(x, 1 << self.config.depth)
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        x = self.dropout(skips.pop())
        for up, block in zip(self.up, self.decoder):
            x = block(joined(skips.pop(), up(x)))
        return self.head(x)[:, :, :height, :width]


def valid_size(size: int, depth: int = 4) -> int:
    """The side of the answer to a tile of this side, were no convolution padded, as in the paper: 572 -> 388.

    ValueError where a level's side would be odd or vanish.
    """
    sizes = []
    for _ in range(depth):
        size -= 4
        sizes.append(size)
        if size < 2 or size % 2:
            raise ValueError(f"a level would have {size} pixels a side, which 2x2 pooling does not halve")
        size //= 2
    size -= 4
    for _ in sizes:
        size = 2 * size - 4
    if size < 1:
        raise ValueError("nothing is left of the tile")
    return size


sizes = {"unet": Config()}


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes, for drawing and counting."""
    return (torch.randn(1, config.in_channels, 256, 256),)


_LEVELS = range(1, 5)
RENAME: dict[str, tuple[tuple[str, str], ...]] = {
    "milesial": (
        (r"^inc\.", "encoder.0."),
        *((rf"^down{i}\.maxpool_conv\.1\.", f"encoder.{i}.") for i in _LEVELS),
        *((rf"^up{i}\.up\.", f"up.{i - 1}.") for i in _LEVELS),
        *((rf"^up{i}\.conv\.", f"decoder.{i - 1}.") for i in _LEVELS),
        (r"\.double_conv\.0\.", ".conv1."),
        (r"\.double_conv\.1\.", ".bn1."),
        (r"\.double_conv\.3\.", ".conv2."),
        (r"\.double_conv\.4\.", ".bn2."),
        (r"^outc\.conv\.", "head."),
    )
}
EXTRA = {"milesial": ("mask_values",)}
"""What its training script saves beside the weights: the masks' value of each class."""
