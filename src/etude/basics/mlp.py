"""The multilayer perceptron: layers of neurons z = W x + b, each followed by a non-linearity.

Sources, each a formula that the tests compute by hand:
    back-propagated layers   Rumelhart, Hinton and Williams, 1986
    Xavier initialisation    Glorot and Bengio, 2010, equation 16: uniform in +-sqrt(6 / (n_in + n_out))
    He initialisation        He et al., 2015, arXiv 1502.01852, equation 10: variance 2 / n_in
    Swish                    Ramachandran et al., 2017, arXiv 1710.05941: x sigmoid(beta x), beta learnable
    Dropout                  Srivastava et al., 2014, in its inverted form: kept units are scaled by 1 / (1 - p)
There is no reference implementation to equal; `etude verify mlp` compares with the formulas in float64 numpy.

Shapes: B batch, F input features, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["sigmoid", "relu", "swish", "silu", "gelu", "tanh"]
Init = Literal["xavier_uniform", "xavier_normal", "he_uniform", "he_normal"]


@dataclass(frozen=True)
class Config:
    in_features: int = 784
    hidden: tuple[int, ...] = (256, 256)
    num_classes: int = 10
    activation: Activation = "relu"
    init: Init = "he_normal"
    dropout: float = 0.0

    def __post_init__(self):
        for value, table in ((self.activation, ACTIVATIONS), (self.init, INITS)):
            if value not in table:
                raise ValueError(f"{value!r} is not one of {', '.join(table)}")

    def build(self) -> "MLP":
        return MLP(self)


class Swish(nn.Module):
    """x sigmoid(beta x), beta learnable and 1 at first (then it equals SiLU). (...) -> (...)"""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "swish": Swish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}

INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "he_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "he_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
}


class MLP(nn.Module):
    """(B, ...) -> (B, K): the input is flattened to (B, F)."""

    def __init__(self, config: Config):
        super().__init__()
        widths = (config.in_features, *config.hidden)
        self.hidden = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        self.activations = nn.ModuleList(ACTIVATIONS[config.activation]() for _ in config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(widths[-1], config.num_classes)
        self.reset_parameters(INITS[config.init])

    def reset_parameters(self, init: Callable[[Tensor], Tensor]) -> None:
        """Weights by `init`, which reads fan-in and fan-out from their shape; biases zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        x = x.flatten(1)
        for layer, activation in zip(self.hidden, self.activations):
            x = self.dropout(activation(layer(x)))
        return self.head(x)


sizes = {"mlp": Config()}


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes, for drawing and counting."""
    return (torch.randn(1, config.in_features),)


RENAME: dict[str, tuple[tuple[str, str], ...]] = {}
