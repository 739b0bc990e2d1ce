"""etude: the landmark systems of deep learning, each readable, true to its reference, trained by one command.

    import etude

    run = etude.train("resnet.digits", steps=300)      # a run directory, like the command line's
    run.result["eval"]["accuracy"]
    run.predict("seven.png").label
    run = etude.open("runs/resnet.digits/1")           # any run, wherever it was moved
    model = etude.model("resnet18", num_classes=10)    # a plain nn.Module
    etude.load_weights(model, "resnet18.pth", source="torchvision")

Importing etude does not import torch; using it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from etude.catalog import model as model
    from etude.engine.recipe import Recipe as Recipe
    from etude.engine.run import Run as Run
    from etude.engine.study import Study as Study
    from etude.engine.study import StudyRun as StudyRun
    from etude.tasks.base import Task as Task
    from etude.weights import load_weights as load_weights

__all__ = [
    "Recipe",
    "Run",
    "Study",
    "StudyRun",
    "Task",
    "load_weights",
    "model",
    "open",
    "recipe",
    "resume",
    "study",
    "train",
]

_HOMES = {
    "Recipe": "etude.engine.recipe",
    "Run": "etude.engine.run",
    "Study": "etude.engine.study",
    "StudyRun": "etude.engine.study",
    "Task": "etude.tasks.base",
    "load_weights": "etude.weights",
    "model": "etude.catalog",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'etude' has no attribute {name!r}")


def recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by its name, with fields changed: `etude.recipe("resnet.digits", steps=500, **{"optim.lr": 0.05})`."""
    from etude.recipes import find_recipe

    return find_recipe(name).with_(**changes)


def train(
    what: str | Recipe,
    *,
    run: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
    types: tuple[type, ...] = (),
    **changes: Any,
) -> Run:
    """Train a recipe, or the one of that name, with fields changed; into `run` (default runs/<recipe>/<n>).

    `types` are the dataclasses of your own that the recipe is made of, so that the run's files can be read back.
    """
    from etude.engine import fit

    chosen = recipe(what, **changes) if isinstance(what, str) else what.with_(**changes)
    return fit.train(chosen, run=run, device=device, workers=workers, quiet=quiet, types=types)


def study(
    what: str | Study,
    *,
    run: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
    types: tuple[type, ...] = (),
    **changes: Any,
) -> StudyRun:
    """Train all variants of a study, or of the one of that name, its base recipe with fields changed."""
    from etude.engine import study as studies
    from etude.recipes import find_study

    chosen = find_study(what) if isinstance(what, str) else what
    chosen = chosen.with_base(chosen.base.with_(**changes))
    return studies.train(chosen, run=run, device=device, workers=workers, quiet=quiet, types=types)


def open(path: str | Path, *, types: tuple[type, ...] = (), **changes: Any) -> Run:
    """A run directory, finished or not; or the name of a recipe that begins with published weights, which are asked as
    they are, with fields changed: `etude.open("esrgan.realesrgan").predict("photo.jpg")`."""
    from pathlib import Path

    from etude import catalog
    from etude.engine.run import Published, Run
    from etude.errors import UsageError

    if str(path) in catalog.recipes() and not Path(path).exists():
        return Published(recipe(str(path), **changes))
    if changes:
        raise UsageError(f"{path} is no recipe; fields of a run's recipe cannot be changed: {', '.join(changes)}")
    return Run(path, types=types)


def resume(
    path: str | Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
    data_path: str | None = None,
    types: tuple[type, ...] = (),
) -> Run:
    """Go on with an unfinished run; it ends as if it had never stopped. `data_path`: where the data lies now."""
    from etude.engine import fit

    return fit.resume(path, device=device, workers=workers, quiet=quiet, data_path=data_path, types=types)
