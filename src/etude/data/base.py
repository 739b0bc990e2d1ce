"""`Data` says what is learned from; `Dataset` is the same, opened, and turns (seed, step, rank, world) into a batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from etude.data import order
from etude.errors import UsageError

Batch = dict[str, Tensor]
"""Named tensors whose first dimension is the sample, where the data set is `divisible`. "index" names the samples, for
reports of what went wrong."""


@dataclass(frozen=True)
class Data(ABC):
    """A frozen description of a data set. Subclasses are dataclasses of plain values, so that a recipe is JSON-able."""

    @abstractmethod
    def open(self) -> "Dataset":
        """Read it. Raises MissingError with the command that gets it where it is not on this machine."""

    def reopen(self, facts: dict[str, Any]) -> "Dataset":
        """Read it to measure a run on, whose data's facts these are: what the run learned to read, it must be read
        with. Raises UsageError where it does not fit."""
        return self.open()

    @abstractmethod
    def prepare(self, raw: Any) -> Tensor:
        """One raw input (a path, a picture, a text) -> a sample, as it would stand in the test split."""

    def read(self, words: Sequence[str]) -> list[tuple[str, Any]]:
        """What is named on a command line -> (name, raw input) each: files, texts, numbers, as suits the data."""
        return [(word, word) for word in words]

    def lines(self, path: Path) -> list[str]:
        """The lines of a file of inputs, for tasks that answer them one by one."""
        raise UsageError(f"{path}: this data is not read line by line")

    @abstractmethod
    def collate(self, samples: list[Tensor]) -> Batch:
        """Prepared samples -> a batch as the model takes it, without labels."""


def same_source(facts: dict[str, Any], data: Any) -> bool:
    """Whether a data set with a `source` and a `path` is the one that a run's facts are of: by name, or one place."""
    known = str(facts.get("source"))
    return known == data.source if not data.path else Path(known).resolve() == Path(data.path).expanduser().resolve()


class Dataset(ABC):
    """An opened data set. Pure: the same arguments give the same batch, in any process and order."""

    sizes: dict[str, int]
    """Samples a split: "train", "test" and, where some are held out for choosing, "validation"."""
    facts: dict[str, Any]
    """What a result needs to be read, JSON-able: {"classes": [...], ...}. Kept in the run directory."""
    files: dict[str, str] = {}
    """Longer texts that a result needs, by file name, such as a tokenizer's: kept beside the facts, and given with them
    as facts["files"]."""
    in_memory: bool = True
    """False where a batch means reading and decoding files, so that workers pay."""
    divisible: bool = True
    """False where a batch is no list of samples that could be computed part by part (`accumulate`)."""

    @abstractmethod
    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        """These samples on the CPU, before augmentation on the device. `epochs` is None in evaluation."""

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        """What is left to do where the model runs: augmentation of training batches (those with an "epoch"),
        normalisation."""
        return batch

    def samples(self, split: str, count: int) -> list[tuple[str, Any]]:
        """(name, raw input) of at most `count` samples, evenly spread over a split, as `predict` takes them."""
        raise UsageError("this data has no samples to ask about", hint="etude predict RUN INPUT...")

    def batch(self, *, seed: int, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """The training batch of `step`: this rank's share of the next `batch_size` samples of the shuffled epochs."""
        return self.stretch(seed=seed, start=step * batch_size, batch_size=batch_size, rank=rank, world=world)

    def stretch(self, *, seed: int, start: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """This rank's share of the `batch_size` samples from `start` on in the endless stream of shuffled epochs."""
        first, count = order.rank_slice(0, batch_size, rank, world)
        epochs, indices = order.take(seed, self.sizes["train"], start + first, count)
        return self.fetch("train", indices, epochs=epochs, seed=seed)

    def epochs(self, step: float, batch_size: int) -> float:
        """How many epochs the batches before `step` make up; half a step is half a batch."""
        return step * batch_size / self.sizes["train"]

    def spans(self, split: str, *, batch_size: int, rank: int = 0, world: int = 1) -> list[Sequence[int]]:
        """Which samples each evaluation batch holds: every sample of the split once, shared over ranks, no padding."""
        size = self.sizes[split]
        first, last = size * rank // world, size * (rank + 1) // world
        return [range(start, min(start + batch_size, last)) for start in range(first, last, batch_size)]
