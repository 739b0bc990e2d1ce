"""Dropout whose random numbers cost little on a CPU, where torch draws them one by one: inverted, as torch's is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16
"""Numbers of 16 bits are drawn, four at a time."""


class Dropout(nn.Module):
    """In training each value is zero with probability `p`, else divided by 1 - p. (...) -> (...)"""

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}; it must lie in [0, 1)")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(x: Tensor, p: float) -> Tensor:
    """Each value zero with probability p, rounded to 1 / 65,536, else divided by one minus that: (...) -> (...)"""
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    below = max(1, round(p * LEVELS))
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = drawn >= below - LEVELS // 2
    return x * (kept * (LEVELS / (LEVELS - below))).to(x.dtype)
