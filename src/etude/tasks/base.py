"""`Task`: what is learned, apart from the model that learns it and the engine that trains it."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from etude.data.base import Batch, Data, Dataset
from etude.errors import UsageError
from etude.nn.lowbit import WEIGHTS
from etude.tasks.metrics import Metric

Logs = dict[str, Tensor]
"""Scalars of a step."""
LossLogs = Mapping[str, Tensor | Callable[[], Tensor]]
"""Scalars beside a loss; a function is called only in the steps that are logged, for what costs time to know."""
LossFn = Callable[[nn.Module, Batch], tuple[Tensor, LossLogs]]
Block = dict[str, Any]
"""A figure for the report, JSON-able: {"kind": "matrix" | "images" | "table" | "lines" | "scatter" | "text", ...}. A
"text" or "images" with "history": true keeps those of earlier evaluations beside it; "images" may say a "note". With
"study": true a study's report shows it too, beside those of the other variants (lines always, in one chart)."""


@dataclass(frozen=True)
class Update:
    """What a task's step is given by the engine, which owns precision, accumulation, sharding and the optimisers."""

    descend: Callable[[LossFn, Batch, str], Logs]
    forget: Callable[[str], None] = lambda player: None
    processes: int = 1
    """Processes that take this step together, each on its share of the batch."""

    def __call__(self, loss_fn: LossFn, batch: Batch, player: str = "model") -> Logs:
        """One optimiser step of one player on one batch."""
        return self.descend(loss_fn, batch, player)

    def reset(self, player: str) -> None:
        """Have a player's optimiser begin anew: what it remembers of earlier gradients is dropped."""
        self.forget(player)


def check_channels(model: nn.Module, given: int, *, player: str = "", readable: Container[int | None] = ()) -> None:
    """UsageError where a network's config says other channels than the `given` ones of the data's pictures.

    `player` is the network's name where several are trained; `readable`, what --data.channels may be.
    """
    taken = getattr(getattr(model, "config", None), "in_channels", None)
    if taken not in (None, given):
        raise UsageError(
            f"the {player or 'model'} takes pictures of {taken} channels, and the data's have {given}",
            hint=(f"--data.channels {taken} or " if taken in readable else "")
            + f"--model{player and f'.{player}'}.in-channels {given}",
        )


class Result(Protocol):
    """The answer to one input."""

    def json(self) -> dict[str, Any]:
        """As plain values."""
        ...

    def row(self) -> list[str]:
        """As cells of a table."""
        ...

    def plot(self) -> Any:
        """As a picture (PIL image)."""
        ...

    def save(self, path: Any) -> None:
        """The answer as a file, in a format that suits it."""
        ...

    suffix: ClassVar[str]
    """The ending of such a file, with its dot."""


@dataclass(frozen=True)
class Ask:
    """How an answer is to be made. A task whose answers leave a choice (length, temperature, ...) has a subclass of its
    own, and each field is a flag of `etude predict` and a keyword of `run.predict`. Fields are plain values or tuples
    of a fixed number of them, with defaults."""

    @property
    def made(self) -> str:
        """What to call an answer that is made of nothing but this; "" where `predict` needs inputs."""
        return ""


@dataclass(frozen=True)
class WriteAsk(Ask):
    """Of answers that are written token by token: as fast, on a CPU, as the weights of linear layers are read."""

    weights: str = ""
    """How a CPU keeps the weights of linear layers while writing: fp32, bf16 or int8, the fewer bits the faster; empty:
    in what the run was trained in."""

    def __post_init__(self) -> None:
        if self.weights not in ("", *WEIGHTS):
            raise UsageError(f"weights is {self.weights!r}; it can be {', '.join(WEIGHTS)}", hint="--weights int8")


@dataclass(frozen=True)
class Task:
    """Subclasses are frozen dataclasses of plain values. A system with one player overrides `loss`; one with several
    overrides `step`, which then reads like the paper's algorithm."""

    measure: ClassVar[str] = "loss"
    """The name in `evaluate`'s result by which runs are compared."""
    higher_is_better: ClassVar[bool] = False
    stage: ClassVar[str] = ""
    """The name of a measure that grows in stages: weights of a later stage are kept whatever those before measured."""
    ask: ClassVar[type[Ask]] = Ask
    """What can be asked of `predict` besides its inputs."""
    by_line: ClassVar[bool] = False
    """Whether a file is answered line by line (`Data.lines`), the first cell of each answer's row being its line."""
    one_by_one: ClassVar[bool] = False
    """Whether each input is answered by itself, as large answers are; else all share a pass or a batch."""
    alarmed_after: ClassVar[Mapping[str, int]] = {}
    """In how many logged steps in a row an alarm of a kind must be, where not in the usual three."""
    exported: ClassVar[str] = ""
    """The child module that is of use once training is over, "generator" where a critic taught it; "": all of it."""
    second_order: ClassVar[bool] = False
    """Whether a loss holds derivatives of the model, which no compiled model has."""
    streams: ClassVar[bool] = False
    """Whether answers are texts that can be read while they are made: `stream` is defined."""

    def configure(self, model: Any, dataset: Dataset) -> Any:
        """The model's configuration, with that filled in which it leaves to the data."""
        return model

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Raise UsageError where model and data do not fit each other; called once, before training."""

    def check_batch(self, model: nn.Module, batch: Batch, processes: int, parts: int) -> None:
        """Raise UsageError where a step cannot be taken on this process's share of a batch, each update in so many
        parts; called once, before training."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """The scalar to descend, a mean over the samples of `batch`, and scalars to log."""
        raise TypeError(f"{type(self).__name__} defines neither loss nor step")

    def step(self, model: nn.Module, batch: Batch, update: Update) -> Logs:
        """One step of training. `update(loss_fn, batch, player)` descends `loss_fn(model, batch)` in the weights of the
        child module `player` alone ("model": all weights) and returns what loss_fn logged."""
        return update(self.loss, batch)

    def alarms(self, logs: dict[str, float]) -> dict[str, str]:
        """What is amiss in the logs of a step, by kind, each with what usually helps. The engine says it once a kind,
        when it was so in several logged steps in a row."""
        return {}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Measures over batches that hold every sample once. The engine merges them over processes."""
        raise TypeError(f"{type(self).__name__} does not define evaluate")

    def evaluate_on(self, dataset: Dataset, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """`evaluate` for a task whose measures need more than tensors, such as the data set's tokenizer."""
        return self.evaluate(model, batches)

    def notes(self, measured: dict[str, Metric]) -> dict[str, str]:
        """What must stand beside the measures for these to be compared with others', such as a signature."""
        return {}

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """What the report shows of an evaluation."""
        return []

    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> Sequence[Result]:
        """Answers to raw inputs; without any, one answer where `ask.made` gives that a name. `facts` are the data
        set's, as kept in the run; `ask` is an instance of `self.ask`, or None for its defaults."""
        raise TypeError(f"{type(self).__name__} does not define predict")

    def stream(self, model: nn.Module, raw: Any, data: Data, facts: dict[str, Any], ask: Any = None) -> Iterator[str]:
        """The answer to one raw input as pieces of text, each when it is made: together what `predict` answers."""
        raise TypeError(f"{type(self).__name__} does not define stream")
