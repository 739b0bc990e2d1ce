"""What every model of token ids checks and does."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """ValueError that names an id which is not in the vocabulary. On a GPU nothing is checked, as it would have to be
    waited for."""
    if ids.device.type != "cpu" or not ids.numel() or torch.compiler.is_compiling():
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"there is no token {low if low < 0 else high}: the vocabulary has {vocab_size:,}, from 0 on; the ids were "
            "made with another model's tokenizer"
        )


@contextlib.contextmanager
def asked(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode: what is asked of it is answered without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
