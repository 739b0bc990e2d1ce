"""What is traced or checked: a size of the catalog on example inputs, or a run on a batch of its own training data.

Both become a model, named input tensors and two functions: the forward pass, and the scalar whose gradient is asked
for. Of a run that is its task's loss; of a size, which has no task, its outputs along a fixed random direction.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from etude import catalog
from etude.data.base import Batch
from etude.engine.replay import seed_step
from etude.engine.run import Run
from etude.errors import UsageError
from etude.tasks.base import Logs, LossFn, Update

SAMPLES = 32
"""At most so many samples of a run's batch."""
SIDE, PICTURES = 32, 6
"""Pictures of this side, so many, in place of a larger example where every pass is taken hundreds of times."""


@dataclass
class Subject:
    title: str
    note: str
    """On what it runs."""
    model: nn.Module
    inputs: dict[str, Tensor]
    forward: Callable[[nn.Module, dict[str, Tensor]], Any]
    scalar: Callable[[Any], Tensor]
    """What `forward` returned -> the scalar that is differentiated."""
    result: str
    """What is returned: "output" or "loss"."""
    seed: Callable[[], None]
    """Makes what is drawn at random in a pass the same each time."""

    def __call__(self) -> Any:
        """One forward pass."""
        self.seed()
        try:
            return self.forward(self.model, self.inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"{self.title} does not run on {self.note}: {first}") from error


def subject(what: str, *, dtype: torch.dtype = torch.float32, small: bool = False) -> Subject:
    """A run directory, or the name of a system or size. In training mode, on the CPU.

    A directory that only happens to be named like a system does not stand in its way; `./NAME` is always a path.
    `small` takes fewer and smaller pictures where a size's example is one of pictures alone.
    """
    if "/" in what or any((Path(what) / name).is_file() for name in ("recipe.json", "study.json")):
        return _of_run(Run(what), dtype)
    row = catalog.system(what)
    if not row.sizes:
        raise UsageError(f"{what} is a block, not a model", hint="etude graph resnet18, or a run that uses it")
    return _of_size(what if what in row.sizes else next(iter(row.sizes)), dtype, small)


def project(result: Any) -> Tensor:
    """All floating outputs along one random direction of length 1, the same each time."""
    outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]
    if not outputs:
        raise UsageError("the model returns no floating tensor to differentiate")
    flat = torch.cat([t.flatten() for t in outputs])
    direction = torch.randn(len(flat), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return flat @ (direction / direction.norm()).to(flat.dtype)


def _of_size(size: str, dtype: torch.dtype, small: bool) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = catalog.model(size).to(dtype)
        example = catalog.example(size)
        if small and len(example) == 1 and example[0].ndim == 4:
            _, channels, *sides = example[0].shape
            example = (torch.randn(PICTURES, channels, *(min(side, SIDE) for side in sides)),)
    names = list(inspect.signature(model.forward).parameters)
    inputs = {name: _cast(tensor, dtype) for name, tensor in zip(names, example)}
    note = ", ".join(f"{name} {'×'.join(map(str, t.shape))}" for name, t in inputs.items())
    return Subject(
        size,
        note,
        model.train(),
        inputs,
        lambda model, inputs: through(model, *inputs.values()),
        project,
        "output",
        lambda: _seed(0),
    )


def through(model: nn.Module, *inputs: Tensor) -> Any:
    """The model's answer; of several players without a forward of their own, each player's to the one before."""
    if type(model).forward is not nn.Module.forward:
        return model(*inputs)
    answer: Any = inputs
    for player in model.children():
        answer = (player(*answer),)
    return answer[0]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


class _Reached(Exception):
    """The first update of a step, with what it would descend."""

    def __init__(self, loss_fn: LossFn, batch: Batch) -> None:
        super().__init__()
        self.loss_fn, self.batch = loss_fn, batch


def _of_run(run: Run, dtype: torch.dtype) -> Subject:
    recipe, cpu = run.recipe, torch.device("cpu")
    model = run.model("cpu").to(dtype).train()
    dataset = recipe.data.open()
    batch = dataset.batch(seed=recipe.seed, step=recipe.steps, batch_size=min(recipe.batch_size, SAMPLES))
    batch = {name: _cast(tensor, dtype) for name, tensor in dataset.finish(batch, seed=recipe.seed).items()}

    def update(loss_fn: LossFn, batch: Batch, player: str = "model") -> Logs:
        raise _Reached(loss_fn, batch)

    seed_step(recipe.seed, recipe.steps, 0, 0, cpu)
    try:
        recipe.task.step(model, batch, Update(update))
        raise UsageError(f"a step of {recipe.name} updates nothing")
    except _Reached as reached:
        loss_fn, batch = reached.loss_fn, reached.batch
    return Subject(
        run.recipe.name,
        f"{min(recipe.batch_size, SAMPLES)} training samples, weights of {run.path}",
        model,
        # copies, which a caller may change: data sets keep tensors of theirs from batch to batch
        {name: tensor.detach().clone() for name, tensor in batch.items()},
        lambda model, inputs: loss_fn(model, inputs)[0],
        lambda loss: loss,
        "loss",
        lambda: seed_step(recipe.seed, recipe.steps, 0, 1, cpu),
    )
