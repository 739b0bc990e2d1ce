"""Recurrent language models: each token is read into a state, and the state says which token comes next.

Sources, each a formula that the tests write out by hand and compare with, outputs and gradients:
    simple recurrent network   Elman, 1990: h_t = tanh(W_x x_t + b_x + W_h h_(t-1) + b_h)
    long short-term memory     Hochreiter and Schmidhuber, 1997, with the forget gate of Gers, Schmidhuber and Cummins,
                               2000: i, f, o = sigmoid(...), g = tanh(...), each of W_x x_t + b_x + W_h h_(t-1) + b_h;
                               c_t = f c_(t-1) + i g; h_t = o tanh(c_t). No peepholes.
    dropout                    Zaremba et al., 2014, arXiv 1409.2329: between layers and around them, never over time
    tied head                  Press and Wolf, 2016, arXiv 1608.05859: the head's weights are the embedding's
The layers are torch's `nn.RNN` and `nn.LSTM` with their fused kernels; their names and order of gates (i, f, g, o) are
kept, so that (untied) weights of PyTorch's word-language example load as layout "torch".

Shapes: B batch, T time steps, V tokens in the vocabulary, L layers, H width of a layer's state.
"""

import contextlib
import functools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

State = Tensor | tuple[Tensor, Tensor]
"""What a layer remembers: h (L, B, H), and for the LSTM (h, c), both of that shape."""


@dataclass(frozen=True)
class Config:
    cell: Literal["rnn", "lstm"] = "lstm"
    """Elman's simple recurrent network, or long short-term memory."""
    vocab_size: int = 256
    """Tokens; 0 where it is still to be told, by the data that a recipe names."""
    embedding: int = 128
    """Width of the vector that stands for a token."""
    width: int = 512
    """Units of each layer's state."""
    depth: int = 1
    """Layers, each reading the states of the one below."""
    dropout: float = 0.0
    """On the embeddings, between layers and before the head."""
    tied: bool = False
    """The head uses the embedding's weights; `embedding` must equal `width`."""

    def __post_init__(self):
        if self.cell not in GATES:
            raise ValueError(f"cell {self.cell!r} is neither 'rnn' nor 'lstm'")
        for name, least in (("vocab_size", 0), ("embedding", 1), ("width", 1), ("depth", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.tied and self.embedding != self.width:
            raise ValueError(f"a tied head needs embedding {self.embedding} to equal width {self.width}")

    def build(self) -> "RecurrentLM":
        if not self.vocab_size:
            raise ValueError("vocab_size is 0; it must be set before a model is built")
        return RecurrentLM(self)


GATES = {"rnn": 1, "lstm": 4}
"""Blocks of H rows in a layer's weights; of the LSTM's: input, forget, cell, output."""
FORGET = 1


@functools.cache
def has_lstm(dtype: torch.dtype) -> bool:
    """Whether this CPU has the LSTM's fused kernel in this format: oneDNN refuses it in bf16 below AVX-512."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.autocast("cpu", dtype):
            nn.LSTM(8, 8, device="cpu")(torch.zeros(1, 1, 8, device="cpu"))
    except RuntimeError:
        return False
    return True


class TiedHead(nn.Module):
    """Scores against the embedding's own rows, which it does not hold. (B, T, H), (V, H) -> (B, T, V)"""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(h, embedding, self.bias)


class RecurrentLM(nn.Module):
    """(B, T) ids and the state before them -> (B, T, V) logits of the token after each, and the state after them.

    Feeding a text in pieces, each with the state that the one before returned, equals feeding it whole.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.embedding)
        layers = nn.LSTM if config.cell == "lstm" else nn.RNN
        between = config.dropout if config.depth > 1 else 0.0  # torch warns where there is nothing between
        self.recurrent = layers(config.embedding, config.width, config.depth, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.head = TiedHead(config.vocab_size) if config.tied else nn.Linear(config.width, config.vocab_size)
        self.reset_parameters(config)

    def reset_parameters(self, config: Config) -> None:
        """Embeddings of unit length on average; W_x Xavier-uniform and W_h orthogonal, gate by gate, so that a state
        neither grows nor fades at first; biases zero, but the forget gate's 1: it begins by remembering
        (Jozefowicz et al., 2015)."""
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)
        for name, parameter in self.recurrent.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                continue
            for gate in parameter.chunk(GATES[config.cell]):
                nn.init.orthogonal_(gate) if "_hh_" in name else nn.init.xavier_uniform_(gate)
        if config.cell == "lstm":
            for layer in range(config.depth):
                bias = getattr(self.recurrent, f"bias_ih_l{layer}")  # torch adds a second one, b_h, which stays zero
                nn.init.ones_(bias.chunk(GATES["lstm"])[FORGET])
        if isinstance(self.head, nn.Linear):
            nn.init.xavier_uniform_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, ids: Int[Tensor, "B T"], state: State | None = None) -> tuple[Float[Tensor, "B T V"], State]:
        x = self.dropout(self.embedding(ids))
        with self._format(x):
            h, after = self.recurrent(x, state)
        h = self.dropout(h)
        logits = self.head(h, self.embedding.weight) if isinstance(self.head, TiedHead) else self.head(h)
        return logits, after

    def _format(self, x: Tensor) -> contextlib.AbstractContextManager:
        """The layers' number format: autocast's, or fp32 where the CPU has no kernel in that."""
        casting = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and isinstance(self.recurrent, nn.LSTM)
        if not casting or has_lstm(torch.get_autocast_dtype("cpu")):
            return contextlib.nullcontext()
        return torch.autocast("cpu", enabled=False)

    read = forward
    """As a text is written (nn/generation.py)."""


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes: (2, 12) ids."""
    return (torch.arange(24).view(2, 12) % config.vocab_size,)


sizes = {"rnn": Config(cell="rnn"), "lstm": Config(cell="lstm")}

RENAME: dict[str, tuple[tuple[str, str], ...]] = {
    "torch": ((r"^encoder\.", "embedding."), (r"^(rnn|lstm)\.", "recurrent."), (r"^decoder\.", "head."))
}
