"""The convolutional network: convolution, activation and pooling in turn, then fully connected layers.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE,
1998 (LeNet-5), with what came into use since: ReLU, largest values instead of averages in pooling, padding that keeps
the resolution, every map connected to every other.
There is no reference implementation to equal; the tests compute convolution and pooling by hand, sum by sum.

    convolution  y[d, i, j] = b[d] + sum over c, u, v of w[d, c, u, v] x[c, i + u - k // 2, j + v - k // 2], 0 outside
    pooling      y[d, i, j] = the largest of x[d, 2 i + (0 or 1), 2 j + (0 or 1)]

Shapes: B batch, C channels of the pictures, D maps of a block, S side of the pictures, H W height and width, K classes.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.activations import ACTIVATIONS, Activation, Init, check_names, initialise


@dataclass(frozen=True)
class Config:
    in_channels: int = 1
    side: int = 28
    """Height and width of the pictures: the first fully connected layer has a weight for each place."""
    channels: tuple[int, ...] = (32, 64)
    """Maps of each block. A block halves the resolution, rounded down."""
    kernel: int = 5
    """Side of the kernels; odd, so that they have a middle."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the fully connected layers before the last."""
    num_classes: int = 10
    activation: Activation = "relu"
    init: Init = "he_normal"
    dropout: float = 0.0
    """Of what goes into the fully connected layers."""

    def __post_init__(self):
        check_names(self.activation, self.init)
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; it must be odd and positive")
        if self.places < 1:
            raise ValueError(f"side is {self.side}; {len(self.channels)} blocks halve it to nothing")

    @property
    def places(self) -> int:
        """Side of the last block's maps."""
        return self.side >> len(self.channels)

    def build(self) -> "CNN":
        return CNN(self)


class Block(nn.Sequential):
    """(B, C, H, W) -> (B, D, H // 2, W // 2)"""

    def __init__(self, in_channels: int, out_channels: int, config: Config):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, config.kernel, padding=config.kernel // 2)
        self.activation = ACTIVATIONS[config.activation]()
        self.pool = nn.MaxPool2d(2)


class CNN(nn.Module):
    """(B, C, S, S) -> (B, K)"""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        maps = (config.in_channels, *config.channels)
        self.blocks = nn.Sequential(*(Block(d_in, d_out, config) for d_in, d_out in pairwise(maps)))
        widths = (maps[-1] * config.places**2, *config.hidden)
        self.hidden = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        self.activations = nn.ModuleList(ACTIVATIONS[config.activation]() for _ in config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], config.num_classes)
        initialise(self, config.init)

    def features(self, x: Float[Tensor, "B C S S"]) -> Float[Tensor, "B D h w"]:
        """The last block's maps."""
        return self.blocks(x)

    def forward(self, x: Float[Tensor, "B C S S"]) -> Float[Tensor, "B K"]:
        x = self.dropout(self.features(x).flatten(1))
        for layer, activation in zip(self.hidden, self.activations):
            x = self.dropout(activation(layer(x)))
        return self.head(x)


sizes = {"cnn": Config()}

RENAME: dict[str, tuple[tuple[str, str], ...]] = {}


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes, for drawing and counting."""
    return (torch.randn(2, config.in_channels, config.side, config.side),)
