"""Writing token by token: how the next token is chosen, for any model that reads ids and remembers what it read.

Such a model has `read(ids (B, T), state or None) -> (logits, state)`, whose logits end with those of the token after
the last: feeding a text in pieces, each with the state that the one before left, equals feeding it whole.

Shapes: B texts, V tokens in the vocabulary.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Reader(Protocol):
    """What can be written with."""

    def read(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """(B, T) ids after those that `state` stands for -> (B, T or 1, V) logits of the token after each or the last,
        and the state."""
        ...


def probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seen: Tensor | None = None,
) -> Tensor:
    """(B, V) logits -> (B, V) probabilities of drawing each token; ValueError for settings that mean nothing. In order:

    1. logits of tokens that `seen` (B, V) marks are divided by `repetition_penalty` where positive, else multiplied by
       it (Keskar et al., 2019, arXiv 1909.05858, section 4.1);
    2. all are divided by `temperature`; 0 gives all to the likeliest;
    3. all but the `top_k` likeliest are left out; 0 leaves out none (Fan et al., 2018, arXiv 1805.04833);
    4. of these, the fewest likeliest that together reach `top_p` are kept (Holtzman et al., 2019, arXiv 1904.09751).
    """
    check(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
    logits = logits.double()
    if repetition_penalty != 1 and seen is not None:
        penalised = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    logits = (logits - logits.amax(1, keepdim=True)) / temperature  # at most 0, so that no temperature overflows
    if 0 < top_k < logits.shape[1]:
        kept = logits.topk(top_k, dim=1).indices
        logits = torch.full_like(logits, -math.inf).scatter_(1, kept, logits.gather(1, kept))
    p = logits.softmax(1)
    if top_p < 1:
        ordered, places = p.sort(dim=1, descending=True, stable=True)
        ordered[ordered.cumsum(1) - ordered >= top_p] = 0  # the likeliest always stays
        p = torch.zeros_like(p).scatter_(1, places, ordered)
        p = p / p.sum(1, keepdim=True)
    return p


def check(*, temperature: float, top_k: int, top_p: float, repetition_penalty: float) -> None:
    """ValueError for settings by which no token can be chosen."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0 or positive")
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be positive, or 0 for all tokens")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must lie above 0 and be 1 at most")
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty is {repetition_penalty}; it must be positive, 1 for none")


def draw(p: Tensor, numbers: Tensor) -> Tensor:
    """(B, V) probabilities and (B,) numbers in [0, 1) -> (B,) tokens: where the number falls in the running sum."""
    running = p.cumsum(1)
    places = torch.searchsorted(running, (numbers * running[:, -1])[:, None], right=True)[:, 0]
    return places.clamp(max=p.shape[1] - 1)


@torch.no_grad()
def write(
    model: Reader,
    prompt: Tensor,
    numbers: Tensor,
    *,
    state: Any = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seen: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, T) prompt -> after each step the (B,) tokens chosen and the (B,) probabilities they had.

    Row n of `numbers` (steps, B), each in [0, 1), draws the n-th token; their count is the number of steps. `seen`
    (B, V) marks the tokens that the repetition penalty knows at first; by default those of the prompt.
    """
    check(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
    read = prompt
    for row in numbers:
        logits, state = model.read(read, state)
        last = logits[:, -1]
        if repetition_penalty != 1:
            if seen is None:
                seen = torch.zeros(last.shape, dtype=torch.bool, device=last.device)
                seen.scatter_(1, prompt, True)
            p = probabilities(
                last,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                seen=seen,
            )
        elif temperature == 0:
            chosen = last.argmax(1)
            yield chosen, torch.ones_like(chosen, dtype=torch.float64)
            read = chosen[:, None]
            continue
        else:
            p = probabilities(last, temperature=temperature, top_k=top_k, top_p=top_p)
        chosen = draw(p, row.to(p.device))
        yield chosen, p.gather(1, chosen[:, None])[:, 0]
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        read = chosen[:, None]
