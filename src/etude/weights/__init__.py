"""Published checkpoints, and the importer that reads them into etude's models."""

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from etude.errors import MissingError, RefusedError, UsageError
from etude.weights import ncnn, torchfile
from etude.weights.pickle_machine import Inert

MAX_MODULES = 100_000
WRAPPERS = ("state_dict", "model", "params_ema", "params")
"""Where training scripts put the state dict among what else they save; averaged weights before the last ones."""


@dataclass(frozen=True)
class Published:
    """A checkpoint that its authors publish. etude downloads none of them: get the file, then `load_weights` it."""

    model: str
    """The size that it fills, as `etude.model` takes it."""
    layout: str
    url: str
    sha256: str
    """The first digits, which the file's name carries."""
    licence: str
    top1: float
    """What its authors measured on ImageNet's validation split, in percent."""


TORCHVISION = (
    # size, first digits of sha256, top-1: the second of a size is from torchvision's longer recipe of 2021
    ("resnet18", "f37072fd", 69.758),
    ("resnet34", "b627a593", 73.314),
    ("resnet50", "0676ba61", 76.130),
    ("resnet50", "11ad3fa6", 80.858),
    ("resnet101", "63fe2227", 77.374),
    ("resnet101", "cd907fc2", 81.886),
    ("resnet152", "394f9c45", 78.312),
    ("resnet152", "f82ba261", 82.284),
    ("mobilenet_v2", "b0353104", 71.878),
    ("mobilenet_v2", "7ebf99e0", 72.154),
)


def published(sizes: Iterable[str]) -> list[Published]:
    """The published checkpoints of these sizes."""
    return [
        Published(
            model=size,
            layout="torchvision",
            url=f"https://download.pytorch.org/models/{size}-{sha256}.pth",
            sha256=sha256,
            licence="BSD-3-Clause; trained on ImageNet, whose terms are for research",
            top1=top1,
        )
        for size, sha256, top1 in TORCHVISION
        if size in sizes
    ]


def load_weights(
    model: nn.Module, path_or_state_dict: str | Path | Mapping[str, Any], source: str = "etude"
) -> nn.Module:
    """Fill `model` with published weights, all of it and with all of them; returns the model.

    `source` names the layout, the naming scheme that the weights come in: "etude" for the model's own names, or a key
    of the `RENAME` table in the model's module, such as "torchvision". Where names are not all that differs, the
    module's `CONVERT` table has a function for the layout, from tensors by their names to tensors by their names, in
    our shapes, which comes first. Where a module has several models, a class's own `RENAME` goes on where the module's
    ends, and its `ASIDE` is a regular expression for the names of other models' parts, which are left aside. The
    module's `EXTRA` names what else than tensors a layout's files hold; files of the layouts in its `PICKLED` may hold
    whole models, of which the tensors are collected and nothing is run; what its `NOTES` say of a layout's files is
    said once on stderr. Values are converted to the model's types.
    RefusedError (a ValueError) lists what differs, in shape or because one side lacks it; the model is then unchanged.
    Only BatchNorm's counters `num_batches_tracked` may be absent, which torch before 0.4.1 did not save.
    """
    module = sys.modules[type(model).__module__]
    layouts = {"etude": ()} | getattr(module, "RENAME", {})
    if source not in layouts:
        raise UsageError(f"{type(model).__name__} has no layout {source!r}", hint=f"one of {', '.join(layouts)}")
    extra = getattr(module, "EXTRA", {}).get(source, ())
    if isinstance(path_or_state_dict, str | Path):
        objects = "inert" if source in getattr(module, "PICKLED", ()) else "refuse"
        where = str(path_or_state_dict)
        theirs = read_tensors(path_or_state_dict, objects=objects, extra=extra)
        if note := getattr(module, "NOTES", {}).get(source):
            say_once(note)
    else:
        where, theirs = "the state dict", state_dict(path_or_state_dict, extra)
    ours = model.state_dict()
    if source in (converters := getattr(module, "CONVERT", {})):
        theirs = converters[source](theirs)
    theirs = rename(theirs, layouts[source])
    theirs = rename(theirs, getattr(type(model), "RENAME", {}).get(source, ()))
    if aside := getattr(type(model), "ASIDE", {}).get(source):
        theirs = {name: tensor for name, tensor in theirs.items() if not re.match(aside, name)}

    problems = {
        "missing": [k for k in ours if k not in theirs and not k.endswith("num_batches_tracked")],
        "unused": [k for k in theirs if k not in ours],
        "of another shape": [
            f"{k} {tuple(theirs[k].shape)} for {tuple(ours[k].shape)}"
            for k in ours
            if k in theirs and theirs[k].shape != ours[k].shape
        ],
        "of another kind": [
            f"{k} {theirs[k].dtype} for {ours[k].dtype}"
            for k in ours
            if k in theirs and theirs[k].is_floating_point() != ours[k].is_floating_point()
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {shortened(names)}" for what, names in problems.items() if names)
        raise RefusedError(
            f"{where} does not fit {type(model).__name__} in layout {source!r}: {listed}",
            hint=f"build the model with the settings of the weights; layouts: {', '.join(layouts)}",
        )
    with torch.no_grad():
        for name, tensor in theirs.items():
            ours[name].copy_(tensor)
    return model


def read_tensors(
    path: str | Path, *, objects: Literal["refuse", "inert"] = "refuse", extra: Collection[str] = ()
) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pt, .pth or .bin file, or in ncnn's .param and .bin together, by name, on the
    CPU. Nothing in the file is run.

    The file's content, not its name, says which format it has. With `objects="inert"` files that hold whole models are
    read too: of the objects in them only the tensors. `extra` may be something else, and are left aside. Errors as in
    `torchfile.read`.
    """
    path = Path(path)
    if is_safetensors(path):
        try:
            return load_file(path)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"{path} is refused: it is damaged ({error})") from error
    if ncnn.is_ncnn(path):
        return ncnn.read(path)
    content = torchfile.read(path, objects=objects)
    try:
        return state_dict(content, extra)
    except RefusedError as error:
        raise RefusedError(f"{path} is refused: {error}", hint=error.hint) from error


@lru_cache
def say_once(note: str) -> None:
    """On stderr, once in a process."""
    print(note, file=sys.stderr)


def is_safetensors(path: Path) -> bool:
    """A safetensors file begins with its header's length, 8 bytes, and the header, a JSON object."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from error


def state_dict(content: Any, extra: Collection[str] = ()) -> dict[str, Tensor]:
    """The tensors by name in what a file holds, `extra` left aside that are none, in these steps:

    1. what stands under one of WRAPPERS, the first that is there, is taken for the whole; before them a pickled module
       under "ema", the average that was evaluated;
    2. of a whole pickled module (read as inert records) its parameters and buffers are taken, as torch names them;
    3. if every name begins with "module.", which DataParallel puts there, that is stripped.
    """
    if isinstance(content, Mapping) and isinstance(content.get("ema"), Inert):
        content = content["ema"]
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping | Inert):
            content = content[wrapper]
            break
    if isinstance(content, Inert):
        content = module_tensors(content)
    if not isinstance(content, Mapping) or not content:
        raise RefusedError("it holds no state dict")
    content = {name: value for name, value in content.items() if name not in extra or isinstance(value, Tensor)}
    for name, value in content.items():
        if not isinstance(name, str):
            raise RefusedError(f"its entry {str(name)[:80]} is named by a {type(name).__name__}")
        if not isinstance(value, Tensor):
            raise RefusedError(f"its entry {name[:80]!r} is not a tensor but a {type(value).__name__}")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): tensor for name, tensor in content.items()}
    return dict(content)


def module_tensors(record: Inert) -> dict[str, Tensor]:
    """Parameters and buffers of a pickled nn.Module, named as its `state_dict()` would; of anything else none."""
    found = {}
    modules: list[tuple[str, Any]] = [("", record)]
    for _ in range(MAX_MODULES):
        if not modules:
            return found
        prefix, module = modules.pop()
        hidden = members(module, "_non_persistent_buffers_set", set)
        for name, tensor in {**members(module, "_parameters", dict), **members(module, "_buffers", dict)}.items():
            if isinstance(tensor, Tensor) and name not in hidden:
                found[f"{prefix}{name}"] = tensor
        modules += [(f"{prefix}{name}.", child) for name, child in members(module, "_modules", dict).items()]
    raise RefusedError(f"it holds a model of more than {MAX_MODULES} modules")


def members(record: Any, attribute: str, kind: type) -> Any:
    """An attribute of a pickled object, or an empty one where it has none of this kind."""
    state = record.state if isinstance(record, Inert) else None
    value = state.get(attribute) if isinstance(state, dict) else None
    return value if isinstance(value, kind) else kind()


def rename(tensors: Mapping[str, Tensor], pattern_replacements: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Apply each (regular expression, replacement) in turn to every name."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in pattern_replacements:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise RefusedError(f"two tensors would both be called {name}")
        renamed[name] = tensor
    return renamed


def shortened(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
