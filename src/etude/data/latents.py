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
FARTHEST = 1000
"""Numbers of a latent that is given lie within -FARTHEST..FARTHEST; of N(0, 1) none ever lies farther than 9."""


def drawn(seed: int, numbers: Sequence[int] | np.ndarray, count: int) -> Tensor:
    """`count` numbers from N(0, 1) for each latent's number of a seed. -> (n, count) float32"""
    return torch.from_numpy(order.normal(seed, 0, np.asarray(numbers), count)).float()


def _array(path: Path) -> np.ndarray:
    """What a .npy file holds. numpy's own words are not passed on: they advise to load what could run code."""
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise UsageError(f"{path}: an .npz archive under the name of a .npy file", hint="numpy.save one array")
            file.seek(0)
            return np.load(file, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or 'it cannot be read').lower()}") from None
    except UsageError:
        raise
    except (ValueError, EOFError, OverflowError, MemoryError):
        raise UsageError(
            f"{path}: not an array of numbers, or not all of it", hint="write it with numpy.save, as float32"
        ) from None


def _checked(raw: np.ndarray, where: str = "") -> Tensor:
    """Latents of any real type and byte order -> (N, Z) float32"""
    if raw.dtype.kind != "f" or not raw.size or raw.ndim not in (1, 2):
        raise UsageError(
            f"{where}latents are finite real numbers of the shape (Z,) or (N, Z), not {raw.shape} {raw.dtype.name}"
        )
    with np.errstate(over="ignore"):  # too large becomes infinite, which is told
        values = raw.astype(np.float32)
    beyond = ~(np.abs(values) <= FARTHEST)  # so that NaN is beyond
    if beyond.any():
        raise UsageError(
            f"{where}latents are finite real numbers, of at most {FARTHEST} either way, not {raw[beyond][0]}"
        )
    return torch.from_numpy(values).reshape(-1, values.shape[-1])


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
            return _checked(_array(Path(raw)), f"{raw}: ")
        if isinstance(raw, Tensor):
            raw = (raw.detach().float() if raw.is_floating_point() else raw).cpu().numpy()
        if isinstance(raw, np.ndarray):
            return _checked(raw)
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
