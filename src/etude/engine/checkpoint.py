"""Checkpoints that a kill, a full disk or a flipped bit cannot take away.

A checkpoint is a directory `step-N` that appears whole or not at all: its files are written into a temporary
directory and fsynced, the directory is renamed, and the rename is fsynced. `manifest.json` holds every file's
size and sha256; what does not match it is not loaded, and the next older one is.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from etude.errors import EtudeError, RefusedError

Groups = dict[str, dict[str, Tensor]]
"""File name without ending -> named tensors: {"model": {...}, "optim": {...}, "ema": {...}}."""


class SaveError(EtudeError):
    """A checkpoint could not be written; those before it are untouched."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that verified."""

    step: int
    groups: Groups
    state: dict[str, Any]


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file's content: after a crash it holds the old or the new, never a part. Raises SaveError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SaveError(f"{path} could not be written: {_reason(error)}") from error
    _fsync(path.parent)


def _reason(error: OSError) -> str:
    return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))


def pack(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors on any device and in any memory format -> a safetensors file's bytes."""
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata)


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of names: equal digests are equal tensors."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_checkpoint(
    directory: Path, step: int, groups: Groups, state: dict[str, Any], *, keep: int, every: int = 1
) -> Path:
    """Write `directory/step-N`, then delete all but the newest `keep`, and older ones that are no multiple of `every`
    steps, which an interruption left. SaveError leaves the others untouched."""
    target = directory / f"step-{step}"
    if target.exists():  # the same step again: nothing is gained by replacing a good one, and a damaged one goes
        try:
            load_checkpoint(directory, step)
            return target
        except RefusedError:
            shutil.rmtree(target, ignore_errors=True)
    temporary = directory / f".tmp-step-{step}-{uuid.uuid4().hex[:8]}"
    needed = sum(t.numel() * t.element_size() for tensors in groups.values() for t in tensors.values())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
        if free < needed * 1.02 + (1 << 20):
            room = f"it needs {needed / 1e6:.0f} MB and {directory} has {free / 1e6:.0f} MB"
            raise SaveError(f"checkpoint of step {step} not written: {room}")
        temporary.mkdir()
        files = {f"{name}.safetensors": pack(tensors) for name, tensors in groups.items()}
        files["state.json"] = json.dumps(state, indent=1).encode()
        manifest = {}
        for name, content in files.items():
            _write_synced(temporary / name, content)
            manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _write_synced(temporary / "manifest.json", json.dumps({"step": step, "files": manifest}, indent=1).encode())
        _fsync(temporary)
        os.rename(temporary, target)
        _fsync(directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SaveError(f"checkpoint of step {step} not written to {directory}: {_reason(error)}") from error
    older = [other for other in steps(directory) if other < step]  # newer ones were refused: they are no reserve
    regular = [other for other in older if other % every == 0]
    for old in {*older} - {*regular[: keep - 1]}:
        shutil.rmtree(directory / f"step-{old}", ignore_errors=True)
    return target


def averaged(directory: Path, chosen: list[int], say: Callable[[str], None]) -> dict[str, Tensor]:
    """The mean of the weights of these steps' checkpoints, of the newest where they are no floating-point numbers.
    `say` is told of those that are refused; RefusedError where all are."""
    total: dict[str, Tensor] = {}
    newest: dict[str, Tensor] = {}
    count = 0
    for step in sorted(chosen, reverse=True):
        try:
            weights = load_checkpoint(directory, step).groups["model"]
        except RefusedError as error:
            say(f"checkpoint step-{step} is left out of the average: {error}")
            continue
        newest = newest or weights
        count += 1
        for name, value in weights.items():
            if value.is_floating_point():
                total[name] = total[name] + value.double() if name in total else value.double()
    if not count:
        raise RefusedError(f"{directory} holds no checkpoint that could be averaged")
    return {name: (total[name] / count).to(v.dtype) if name in total else v for name, v in newest.items()}


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, newest first, verified or not."""
    if not directory.is_dir():
        return []
    found = [re.fullmatch(r"step-(\d+)", entry.name) for entry in directory.iterdir()]
    return sorted((int(match[1]) for match in found if match), reverse=True)


def sweep(directory: Path) -> None:
    """Delete what a kill inside a save left behind."""
    for entry in directory.glob(".tmp-step-*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(entry)


def load_checkpoint(directory: Path, step: int) -> Loaded:
    """Read `step-N`, checked against its manifest. RefusedError says which file differs, and how."""
    folder = directory / f"step-{step}"
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())["files"]
        contents = {}
        for name, said in manifest.items():
            path = folder / name
            if path.parent != folder:
                raise RefusedError(f"{folder} names a file outside of it: {name}")
            content = path.read_bytes()
            if len(content) != said["bytes"]:
                raise RefusedError(f"{path} has {len(content):,} bytes where the manifest says {said['bytes']:,}")
            if hashlib.sha256(content).hexdigest() != said["sha256"]:
                raise RefusedError(f"{path} does not match its sha256 in the manifest")
            contents[name] = content
        groups = {
            name.removesuffix(".safetensors"): load_file(folder / name)
            for name in contents
            if name.endswith(".safetensors")
        }
        return Loaded(step, groups, json.loads(contents["state.json"]))
    except OSError as error:
        raise RefusedError(f"{error.filename or folder}: {_reason(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"{folder} is damaged: {error}") from error


def load_newest(directory: Path, say: Callable[[str], None]) -> Loaded | None:
    """The newest checkpoint that verifies, or None; `say` is told of each that was passed over, and why."""
    for step in steps(directory):
        try:
            return load_checkpoint(directory, step)
        except RefusedError as error:
            say(f"checkpoint step-{step} refused: {error}; taking an older one")
    return None


def save_weights(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a weight file that carries the digest of its own tensors; returns that digest."""
    sha = digest(tensors)
    write_atomic(path, pack(tensors, {"sha256": sha}))  # one entry: safetensors writes several in a random order
    return sha


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """Read what `save_weights` wrote, verified. RefusedError where it is damaged."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise RefusedError(f"{path} cannot be read: {error}") from error
    if said != digest(tensors):
        raise RefusedError(f"{path} does not match the sha256 it was written with: it was damaged after writing")
    return tensors
