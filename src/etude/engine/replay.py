"""A step that failed, kept as tensors and taken again."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from etude.data.base import Batch
from etude.engine import checkpoint, monitor
from etude.engine.evaluate import laid_out
from etude.engine.precision import autocast, pick_device
from etude.engine.run import Run
from etude.errors import MissingError, RefusedError
from etude.tasks.base import Logs, LossFn, Update


def seed_step(seed: int, step: int, rank: int, number: int, device: torch.device) -> None:
    """Dropout masks and other draws inside a loss follow from (seed, step, rank, update within the step) alone."""
    mixed = (
        seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + number * 0xD6E8FEB86659FD93
    )
    value = (mixed ^ (mixed >> 29)) & 0x7FFFFFFFFFFFFFFF
    if device.type == "cpu":
        torch.default_generator.manual_seed(value)  # a microsecond, where torch.manual_seed asks every backend
    else:
        torch.manual_seed(value)


def write_replay(directory: Path, weights: dict[str, Tensor], batch: Batch, about: dict[str, Any]) -> None:
    """Keep a failed step: the weights before it, its batch, and where its random numbers stood."""
    folder = directory / "replay"
    folder.mkdir(exist_ok=True)
    checkpoint.write_atomic(folder / "weights.safetensors", checkpoint.pack(weights))
    checkpoint.write_atomic(folder / "batch.safetensors", checkpoint.pack(batch))
    checkpoint.write_atomic(folder / "replay.json", json.dumps(about, indent=1).encode())


def replay(run: Run, *, device: str = "auto") -> tuple[int, monitor.Finding]:
    """Take a run's failed step again: (step, what was found)."""
    folder = run.path / "replay"
    if not folder.is_dir():
        raise MissingError(
            f"{run.path} has no failed step to replay", hint="a run that stops with NaN or Inf leaves one"
        )
    try:
        about = json.loads((folder / "replay.json").read_text())
        weights, batch = load_file(folder / "weights.safetensors"), load_file(folder / "batch.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise RefusedError(f"{folder} is damaged: {error}") from None
    place = pick_device(device)
    model = run.recipe.model.build().to(place, memory_format=run.recipe.memory_format)
    model.load_state_dict(weights)
    stay = ("index", "epoch")
    batch = laid_out({name: value if name in stay else value.to(place) for name, value in batch.items()}, run.recipe)
    step, seed, calls = about["step"], run.recipe.seed, 0

    def update(loss_fn: LossFn, batch: Batch, player: str = "model") -> Logs:
        nonlocal calls
        calls += 1
        seed_step(seed, step, about["rank"], calls, place)
        if calls == about["number"]:
            raise monitor.NonFinite(loss_fn, batch, player, calls)
        with torch.no_grad():  # the updates before it are in the weights already
            said = loss_fn(model, batch)[1]
        return {name: value() if callable(value) else value for name, value in said.items()}

    seed_step(seed, step, about["rank"], 0, place)
    try:
        processes = max(1, run.recipe.samples_at(step) // len(next(iter(batch.values()))))
        run.recipe.task.step(model.train(), batch, Update(update, processes=processes))
    except monitor.NonFinite as failed:
        seed_step(seed, step, about["rank"], failed.number, place)
        context, parts = autocast(about["precision"], place), run.recipe.parts_at(about["step"])
        finding = monitor.explain(model, failed.loss_fn, failed.batch, failed.player, parts, context)
        return step, finding.after(about.get("trend", ""))
    raise RefusedError(f"{folder} does not fit the recipe: its step has fewer updates than the one that failed")
