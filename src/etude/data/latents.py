"""What generative models are asked with, latents, and the random numbers that their training takes.

All are functions of (seed, epoch, index), so that two processes draw what one would, and a resumed run goes on with the
same: of each sample "noise", numbers drawn from N(0, 1) of which latents are cut, and "mix", one drawn evenly from 0 to
1, for a place on the line between a real and a made sample.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data import order
from etude.data.base import Batch, Data, Dataset
from etude.errors import UsageError

LATENTS = 1 << 32
"""Latents of a seed, numbered from 0 on."""
FIXED = 0x5EED
"""The seed of what is the same for all runs: the latents and patches of an evaluation."""


def drawn(seed: int, numbers: Sequence[int] | np.ndarray, count: int) -> Tensor:
    """`count` numbers from N(0, 1) for each latent's number of a seed. -> (n, count) float32"""
    return torch.from_numpy(order.normal(seed, 0, np.asarray(numbers), count)).float()


@dataclass(frozen=True)
class Latents(Data):
    """Data whose samples a model learns to make; what it is asked with are latents."""

    noise: int = 256
    """Numbers from N(0, 1) with each training sample: enough for a latent in each player's turn."""

    @abstractmethod
    def open(self) -> "LatentSet": ...

    def prepare(self, raw: Any) -> Tensor:
        """A latent's number (the same always gives the same of a seed) -> (1,) int64; a tensor, an array or a .npy file
        of latents, one or several -> (N, Z) float32."""
        if isinstance(raw, str | Path) and str(raw).endswith(".npy"):
            try:
                raw = np.load(raw, allow_pickle=False)
            except OSError as error:
                raise UsageError(f"{raw}: {(error.strerror or 'it cannot be read').lower()}") from None
            except (ValueError, EOFError) as error:
                raise UsageError(f"{raw}: not an array of numbers ({error})") from None
        if isinstance(raw, np.ndarray | Tensor):
            values = torch.as_tensor(raw)
            if values.ndim not in (1, 2) or not values.is_floating_point() or not values.isfinite().all():
                raise UsageError(
                    f"latents are finite real numbers of the shape (Z,) or (N, Z), not {tuple(values.shape)} "
                    f"{str(values.dtype).removeprefix('torch.')}"
                )
            return values.float().reshape(-1, values.shape[-1])
        try:
            number = int(str(raw))
        except ValueError:
            number = -1
        if not 0 <= number < LATENTS:
            raise UsageError(
                f"{raw!r} is neither a latent's number nor a file of latents", hint="etude predict RUN 7 latents.npy"
            )
        return torch.tensor([number])

    def collate(self, samples: list[Tensor]) -> Batch:
        """{"noise": (B, Z)} of prepared latents."""
        return {"noise": torch.cat(samples)}


class LatentSet(Dataset):
    """Opened `Latents`."""

    noise: int
    """As `Latents` says."""
    shape: tuple[int, ...]
    """Of a sample, as a model makes it."""

    def chance(self, split: str, places: np.ndarray, epochs, seed: int) -> Batch:
        """{"noise": (B, N), "mix": (B,)} of these samples. In evaluation, where there is one turn, half of the noise,
        the same for every run."""
        if epochs is None:
            seed, epochs, count = FIXED, 0 if split == "test" else 1, self.noise // 2
        else:
            count = self.noise
        noise = order.normal(seed, epochs, places, count)
        mix = order.uniform(seed, epochs, places, 1, order.LINE)[:, 0]
        return {"noise": torch.from_numpy(noise).float(), "mix": torch.from_numpy(mix).float()}

    def samples(self, split: str, count: int) -> list[tuple[str, int]]:
        """Latents by their number: what is to be made, not what is there."""
        return [(f"latent {i}", i) for i in range(count)]
