"""The multilayer perceptron: layers of neurons z = W x + b, each followed by a non-linearity.

Sources, each a formula that the tests compute by hand:
    back-propagated layers          Rumelhart, Hinton and Williams, 1986
    activations, initialisations    see `etude.nn.activations`
    Dropout                         Srivastava et al., 2014, in its inverted form: kept units are scaled by 1 / (1 - p)
There is no reference implementation to equal; `etude verify mlp` compares with the formulas in float64 numpy.

Shapes: B batch, F input features, K classes.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.activations import ACTIVATIONS, Activation, Init, check_names, initialise


@dataclass(frozen=True)
class Config:
    in_features: int = 784
    hidden: tuple[int, ...] = (256, 256)
    num_classes: int = 10
    activation: Activation = "relu"
    init: Init = "he_normal"
    bias: float = 0.0
    """First biases of the hidden layers are uniform in +-bias. Networks of one input need it: with all biases zero,
    every unit bends at x = 0."""
    dropout: float = 0.0

    def __post_init__(self):
        check_names(self.activation, self.init)

    def build(self) -> "MLP":
        return MLP(self)


class MLP(nn.Module):
    """(B, ...) -> (B, K): the input is flattened to (B, F)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        widths = (config.in_features, *config.hidden)
        self.hidden = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        self.activations = nn.ModuleList(ACTIVATIONS[config.activation]() for _ in config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], config.num_classes)
        initialise(self, config.init)
        if config.bias:
            for layer in self.hidden:
                nn.init.uniform_(layer.get_parameter("bias"), -config.bias, config.bias)

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        x = x.flatten(1)
        for layer, activation in zip(self.hidden, self.activations):
            x = self.dropout(activation(layer(x)))
        return self.head(x)


sizes = {"mlp": Config()}

RENAME: dict[str, tuple[tuple[str, str], ...]] = {}


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes, for drawing and counting."""
    return (torch.randn(2, config.in_features),)
