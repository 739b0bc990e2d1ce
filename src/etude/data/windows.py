"""Windows of long rows of token ids: what texts of every kind are learned from and measured on.

Training windows lie evenly over a row, all moved by a random part of their distance from epoch to epoch, a pure
function of (seed, epoch, index). Evaluation windows slide: each token is predicted exactly once, with at least
`context` tokens before it wherever there are so many.
"""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.data import order
from etude.data.base import Batch, Dataset


class Windows(Dataset):
    """A row of ids a split, in memory or mapped from a file; its first id is read and never predicted.

    A sample is a window: {"tokens": (B, W + 1), "index": (B,)}, of which the first W are read and the last W predicted.
    In training W is `length`. In evaluation it is context + stride, and with it come "counted": (B,), how many of the
    last predictions are this window's own, and what `amounts` says of these.
    """

    def __init__(self, ids: dict[str, NDArray[Any]], *, length: int, context: int, stride: int):
        self.ids, self.length, self.stride = ids, length, stride
        self.width = context + stride
        self.sizes = {split: len(self._places(split)[0]) for split in ids}

    @abstractmethod
    def amounts(self, split: str, targets: Tensor, own: Tensor) -> Batch:
        """How much text the targets (B, W) of a split are for which `own` (B, W) is true: {"characters": (B,), ...}."""

    def _places(self, split: str) -> tuple[NDArray[np.int64], int]:
        """Where each evaluated window starts, and how many tokens it predicts."""
        targets, stride = len(self.ids[split]) - 1, self.length if split == "train" else self.stride
        width = min(self.width, targets)
        more = -(-(targets - width) // stride)
        return np.minimum(np.arange(1 + more) * stride, targets - width), width

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        """These windows."""
        ids, places = self.ids[split], np.asarray(indices, dtype=np.int64)
        index = torch.from_numpy(places)
        if epochs is not None:
            moved = order.uniform(seed, epochs, np.zeros_like(places), 1, order.CROP)[:, 0]
            room = len(ids) - self.length
            starts = ((places + moved) * (room / self.sizes[split])).astype(np.int64).clip(max=room - 1)
            return {"tokens": _cut(ids, starts, self.length), "index": index}
        starts, width = self._places(split)
        counted = torch.from_numpy(np.diff(starts, prepend=starts[0] - width)[places])
        windows = _cut(ids, starts[places], width)
        own = torch.arange(width) >= width - counted[:, None]
        return {"tokens": windows, "counted": counted, "index": index} | self.amounts(split, windows[:, 1:], own)


def _cut(ids: NDArray[Any], starts: NDArray[np.int64], width: int) -> Tensor:
    return torch.from_numpy(ids[starts[:, None] + np.arange(width + 1)].astype(np.int64))
