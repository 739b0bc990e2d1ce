"""Train a recipe into a run, go on with one, or only try."""

import dataclasses
from pathlib import Path
from typing import Any

from etude.engine import run as runs
from etude.engine.parallel import join
from etude.engine.recipe import Recipe
from etude.engine.run import Run
from etude.engine.trainer import Trainer
from etude.errors import UsageError


def train(
    recipe: Recipe,
    *,
    run: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
    types: tuple[type, ...] = (),
) -> Run:
    """Train into `run` (default runs/<recipe>/<n>), which must not hold a run yet. `types`: see `Run`."""
    check_free(run)
    world = join(device, shard=recipe.shard)
    # without a directory yet: what does not fit shows before one is made
    trainer = Trainer(recipe, None, world=world, workers=workers, quiet=quiet)
    directory = (Path(run) if run is not None else runs.new_directory(recipe.name)) if world.rank == 0 else None
    directory = trainer.directory = world.gather(directory)[0]
    assert directory
    directory.mkdir(parents=True, exist_ok=True)
    if world.rank == 0:
        dataset, params = trainer.dataset, trainer.params
        runs.begin(
            directory, trainer.recipe, device=world.device, precision=trainer.precision, dataset=dataset, params=params
        )
    trainer.fit()
    return Run(directory, types=types)


def check_free(run: str | Path | None) -> None:
    """UsageError where something stands in the directory already."""
    if run is None or not Path(run).exists():
        return
    if any((Path(run) / name).exists() for name in ("recipe.json", "study.json")):
        raise UsageError(f"{run} holds a run already; nothing is overwritten", hint=f"etude resume {run}")
    if not Path(run).is_dir() or any(Path(run).iterdir()):
        raise UsageError(f"{run} is not an empty directory; nothing is overwritten", hint="--run NEW_DIRECTORY")


def resume(
    path: str | Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
    data_path: str | None = None,
    types: tuple[type, ...] = (),
) -> Run:
    """Go on with a run from its newest checkpoint that verifies; a finished run is returned as it is.

    `data_path` is where the data lies now, if it moved.
    """
    run = Run(path, types=types)
    if run.finished:
        return run
    recipe = run.recipe if data_path is None else run.recipe.with_(**{"data.path": data_path})
    world = join(device, shard=recipe.shard)
    trainer = Trainer(recipe, run.path, world=world, workers=workers, quiet=quiet)
    found = {"files": trainer.dataset.files, "classes": trainer.dataset.facts.get("classes")}
    if data_path is not None and found != {name: run.facts.get(name) for name in found}:
        raise UsageError(
            f"the data at {data_path} is not what {path} began with", hint="--data-path, where it moved to"
        )
    trainer.resume()
    trainer.fit()
    return run


def dry_run(recipe: Recipe, *, device: str = "auto", workers: int | None = None) -> dict[str, Any]:
    """Build everything, take two steps, evaluate once, and write nothing."""
    short = dataclasses.replace(recipe, steps=min(2, recipe.steps), log_every=1)
    return Trainer(short, None, device=device, workers=workers).fit()
