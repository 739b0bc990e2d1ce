"""`Recipe` says everything about a run, and survives a round trip through JSON.

A recipe's JSON names the dataclasses it is made of ("vision.resnet.ResNet"); reading it back imports modules of
this package only, takes frozen dataclasses only and checks every value against its field's type, so a recipe
file can say what to build but never what to run.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import types
import typing
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from etude.data import fetch, remotes
from etude.data.base import Data
from etude.engine.optim import Optim, Schedule, by_player
from etude.errors import MissingError, RefusedError, UsageError, nearest
from etude.tasks.base import Task
from etude.weights import load_weights

PARTS = ("basics", "vision", "language", "speech", "protein", "generative", "frontier", "data", "tasks", "engine",
         "compress", "trust", "recipes")  # fmt: skip
"""The packages whose dataclasses a recipe may be made of."""
WEIGHT_FILES = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
"""What the weights in a folder are called."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """The weights that training begins with, where these are not fresh ones. They are read when training starts, and
    never again: a run holds all that it needs."""

    weights: str = ""
    """A weight file; a folder that holds one, such as a run's; or the name of a set of weights that `etude data get`
    gets. Empty: fresh weights."""
    layout: str = "etude"
    """The naming scheme that they come in, as `etude.load_weights` takes it."""
    part: str = ""
    """The child module that they fill, all of it; what is beside it stays fresh. Empty: the whole model."""

    def fill(self, model: nn.Module) -> str:
        """Fill the model, and say so in a line. Errors as of `load_weights`, and MissingError."""
        try:
            filled = model.get_submodule(self.part)
        except AttributeError:
            names = [name for name, _ in model.named_children()]
            raise UsageError(
                f"the model has no part {self.part!r} for start.weights", hint=nearest(self.part, names) or str(names)
            ) from None
        path = self.path()
        load_weights(filled, path, source=self.layout)
        return f"{self.part or 'all weights'} from {path}"

    def path(self) -> Path:
        """The weight file."""
        path = Path(self.weights).expanduser()
        if not path.exists():
            if self.weights not in remotes.REMOTES:
                raise MissingError(
                    f"start.weights: there is neither a file {self.weights} nor a set of this name",
                    hint="etude data list",
                )
            path = fetch.path(self.weights)
        if path.is_dir():
            found = [path / name for name in WEIGHT_FILES if (path / name).is_file()] or sorted(path.glob("*.param"))
            if not found:
                raise MissingError(f"start.weights: {path} holds no {' or '.join(WEIGHT_FILES)}")
            path = found[0]
        return path


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """Batches that are small at first and grow linearly, in the samples seen, to the recipe's batch size (GPT-3, arXiv
    2005.14165, appendix B)."""

    first: int = 0
    """Samples of the first batch; 0: all batches are of one size."""
    samples: int = 0
    """Samples over which the batches grow."""


@lru_cache(maxsize=16)
def ramped(ramp: Ramp, full: int, unit: int) -> tuple[int, ...]:
    """How many samples come before each step, up to the first whole batch of `full`; sizes are multiples of `unit`."""
    starts = [0]
    while starts[-1] < ramp.samples:
        size = ramp.first + (full - ramp.first) * starts[-1] // ramp.samples
        starts.append(starts[-1] + max(unit, size // unit * unit))
    return tuple(starts)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run, said completely. Variants by `dataclasses.replace` or `recipe.with_(**{"optim.lr": 0.05})`."""

    name: str
    """system.variant, e.g. "resnet.digits"."""
    model: Any
    """A frozen dataclass with `build() -> nn.Module`; several players are child modules of what it builds."""
    data: Data
    task: Task
    start: Start = field(default_factory=Start)
    optim: Any = field(default_factory=Optim)
    """An Optim, or a frozen dataclass with one Optim a player."""
    schedule: Schedule = field(default_factory=Schedule)
    steps: int = 1000
    """Optimiser steps in all."""
    batch_size: int = 128
    """Samples a step, over all processes and accumulated parts."""
    ramp: Ramp = field(default_factory=Ramp)
    """Smaller batches at first. The schedule then counts samples, a small batch as a part of a step."""
    accumulate: int = 1
    """Parts a batch is computed in, one after the other; of a smaller batch of the ramp so many fewer."""
    clip: float | None = None
    """Largest global gradient norm."""
    ema: float | None = None
    """Decay of the moving average of the weights that is evaluated and kept."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto takes bf16 where the hardware computes in it, else fp32."""
    channels_last: bool = False
    """Pictures as NHWC in memory: faster for convolutional nets."""
    compile: bool = False
    """torch.compile; falls back to eager, and says so, where that fails."""
    shard: int = 1
    """Processes over which weights and optimiser state are sharded; the others hold replicas."""
    eval_every: int | None = None
    """Steps between evaluations (default: ten in a run)."""
    eval_batch_size: int = 500
    patience: int | None = None
    """Stop after this many evaluations without a better measure (needs held-out samples: data.validation)."""
    log_every: int = 10
    save_every: int | None = None
    """Steps between checkpoints (default: one every 30 seconds). One is always written at the end."""
    keep: int = 2
    """Checkpoints kept."""
    average: int = 0
    """The last so many checkpoints, `save_every` steps apart, whose weights are averaged at the end; the average is
    what is evaluated and kept (arXiv 1706.03762, section 6.1)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(getattr(self.model, "build", None)):
            raise UsageError(f"the model of {self.name} is {self.model!r}; it must be a configuration with build()")
        for name in ("steps", "batch_size", "accumulate", "shard", "eval_batch_size", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} is {getattr(self, name)}; it must be at least 1", hint=f"--{name.replace('_', '-')} 1"
                )
        for name in ("eval_every", "save_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1, or None for the default")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip is {self.clip}; the largest gradient norm must be positive", hint="--clip 1.0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"ema is {self.ema}; the decay must lie between 0 and 1", hint="--ema 0.999")
        if self.average < 0 or self.average > self.keep or (self.average and self.save_every is None):
            raise UsageError(
                f"average is {self.average}, with keep {self.keep} and save_every {self.save_every}: so many "
                "checkpoints must be kept, a number of steps apart",
                hint=f"--keep {max(self.average, self.keep)} --save-every {max(1, self.steps // 20)}",
            )
        if self.average and self.ema is not None:
            raise UsageError("checkpoints are averaged, or the weights of all steps, not both", hint="--ema None")
        if self.batch_size % self.accumulate:
            raise UsageError(f"batch_size {self.batch_size} does not divide into accumulate {self.accumulate} parts")
        unit = self.batch_size // self.accumulate
        if self.ramp.first and not (0 < self.ramp.first <= self.batch_size and self.ramp.samples > 0):
            raise UsageError(
                f"ramp.first is {self.ramp.first} and ramp.samples {self.ramp.samples}: batches must grow from 1 "
                f"sample or more to batch_size {self.batch_size}, over one or more",
                hint="--ramp.first 0: no ramp",
            )
        if self.ramp.first % unit:
            raise UsageError(
                f"ramp.first {self.ramp.first} is no multiple of a part of {unit}: batch_size {self.batch_size} in "
                f"accumulate {self.accumulate} parts",
                hint=f"--ramp.first {max(1, self.ramp.first // unit) * unit}",
            )
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed is {self.seed}; it must not be negative, and below 2^63")
        by_player(self.optim)

    def samples_before(self, step: int) -> int:
        """Samples in the batches before that of `step`: where it begins in the endless stream of epochs."""
        if not self.ramp.first:
            return step * self.batch_size
        starts = ramped(self.ramp, self.batch_size, self.batch_size // self.accumulate)
        return starts[step] if step < len(starts) else starts[-1] + (step + 1 - len(starts)) * self.batch_size

    def samples_at(self, step: int) -> int:
        """Samples in the batch of `step`."""
        return self.samples_before(step + 1) - self.samples_before(step)

    def parts_at(self, step: int) -> int:
        """Parts that the batch of `step` is computed in, all of one size."""
        return self.samples_at(step) * self.accumulate // self.batch_size

    def batches_before(self, step: int) -> float:
        """How many whole batches those before that of `step` make up: `step`, where there is no ramp."""
        return self.samples_before(step) / self.batch_size if self.ramp.first else step

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations."""
        return self.eval_every or max(1, self.steps // 10)

    @property
    def memory_format(self) -> torch.memory_format:
        """How the model's kernels lie in memory."""
        return torch.channels_last if self.channels_last else torch.preserve_format

    def with_(self, **changes: Any) -> "Recipe":
        """A variant with fields changed by dotted name: `recipe.with_(**{"optim.lr": 0.05, "steps": 200})`, all at
        once."""
        return _replace(self, changes, "")

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, numbers and strings, each dataclass with its "type"."""
        return _encode(self)

    @staticmethod
    def from_json(document: dict[str, Any], *, types: Iterable[type] = ()) -> "Recipe":
        """The inverse of `to_json`. `types` are dataclasses of the caller's own that the recipe may be made of."""
        allowed = {_tag(kind): kind for kind in types}
        recipe = _decode(document, Recipe, "recipe", allowed)
        if not isinstance(recipe, Recipe):
            raise RefusedError(f"not a recipe but a {_tag(type(recipe))}")
        return recipe


def _tag(kind: type) -> str:
    return f"{kind.__module__.removeprefix('etude.')}.{kind.__qualname__}"


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": _tag(type(value)), **parts}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(
        f"a recipe holds a {type(value).__name__}; only plain values and frozen dataclasses may stand in it"
    )


def _lookup(tag: str, allowed: dict[str, type]) -> type:
    """The frozen dataclass a tag names, imported from this package only."""
    if tag in allowed:
        return allowed[tag]
    module, _, name = tag.rpartition(".")
    part = module.split(".")[0]
    if part not in PARTS or not all(word.isidentifier() for word in module.split(".")):
        raise RefusedError(f"the recipe names the type {tag!r}, which is not one of etude's")
    if importlib.util.find_spec(f"etude.{part}") is None or importlib.util.find_spec(f"etude.{module}") is None:
        raise RefusedError(f"the recipe names the type {tag!r}, which this version of etude does not have")
    kind = getattr(importlib.import_module(f"etude.{module}"), name, None)
    parameters = getattr(kind, "__dataclass_params__", None)
    if (
        not isinstance(kind, type)
        or parameters is None
        or not parameters.frozen
        or kind.__module__ != f"etude.{module}"
    ):
        raise RefusedError(f"the recipe names the type {tag!r}, which is not a configuration")
    return kind


def _decode(value: Any, hint: Any, where: str, allowed: dict[str, type]) -> Any:
    """`value` as JSON gives it -> a value of the type that `hint` describes."""
    if isinstance(value, dict) and "type" in value:
        kind = _lookup(str(value["type"]), allowed)
        hints = typing.get_type_hints(kind)
        names = {f.name for f in dataclasses.fields(kind)}
        unknown = set(value) - names - {"type"}
        if unknown:
            raise RefusedError(f"{where} has fields that {value['type']} does not know: {', '.join(sorted(unknown))}")
        parts = {
            name: _decode(item, hints[name], f"{where}.{name}", allowed)
            for name, item in value.items()
            if name in names
        }
        try:
            return check(kind(**parts), hint, where)
        except TypeError as error:
            raise RefusedError(f"{where}: {error}") from None
    return check(value, hint, where)


def check(value: Any, hint: Any, where: str) -> Any:
    """`value`, with lists made tuples and whole numbers floats as the type says; UsageError if it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            nearest = difflib.get_close_matches(str(value), [str(a) for a in arguments], 1)
            hint_text = f"did you mean {nearest[0]}?" if nearest else ""
            raise UsageError(
                f"{where} is {value!r}; it must be one of {', '.join(map(str, arguments))}", hint=hint_text
            )
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return check(value, option, where)
            except UsageError:
                continue
        raise UsageError(f"{where} is {value!r}; it must be {' or '.join(map(_said, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(check(item, arguments[0], where) for item in value)
        if len(value) == len(arguments):
            return tuple(check(item, kind, where) for item, kind in zip(value, arguments))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (None, type(None)) and value is None:
        return value
    if hint is int and isinstance(value, bool):
        raise UsageError(f"{where} is {value!r}; it must be a whole number")
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise UsageError(f"{where} is {value!r}; it must be {_said(hint)}")


def _said(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "True or False", type(None): "None"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _field_names(config: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()


def _replace(config: Any, changes: dict[str, Any], where: str) -> Any:
    """The configuration, itself the field `where` of the whole, with fields changed by dotted name."""
    fields, values, inner = _field_names(config), {}, defaultdict(dict)
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if first not in fields:
            found = difflib.get_close_matches(first, sorted(fields), 1)
            hint = f"did you mean {where}{found[0]}?" if found else "see --help"
            raise UsageError(f"unknown field {where + name!r}", hint=hint)
        if rest:
            inner[first][rest] = value
        else:
            values[first] = check(value, typing.get_type_hints(type(config))[first], where + first)
    for first, parts in inner.items():
        values[first] = _replace(values.get(first, getattr(config, first)), parts, f"{where}{first}.")
    return dataclasses.replace(config, **values) if values else config
