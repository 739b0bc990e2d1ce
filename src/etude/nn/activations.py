"""Activations and initialisations by name, for the configurations of plain networks.

Sources, each a formula that the tests compute by hand:
    Swish                    Ramachandran et al., 2017, arXiv 1710.05941: x sigmoid(beta x), beta learnable
    Xavier initialisation    Glorot and Bengio, 2010, equation 16: uniform in +-sqrt(6 / (n_in + n_out))
    He initialisation        He et al., 2015, arXiv 1502.01852, equation 10: variance 2 / n_in
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["sigmoid", "relu", "swish", "silu", "gelu", "tanh"]
Init = Literal["xavier_uniform", "xavier_normal", "he_uniform", "he_normal"]


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


def check_names(activation: str, init: str) -> None:
    """ValueError where one of the two is not in its table."""
    for value, table in ((activation, ACTIVATIONS), (init, INITS)):
        if value not in table:
            raise ValueError(f"{value!r} is not one of {', '.join(table)}")


def initialise(module: nn.Module, init: str) -> None:
    """Weights of all linear layers and convolutions by the rule of that name, which reads fan-in and fan-out from
    their shape; biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            INITS[init](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
