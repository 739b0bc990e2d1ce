"""A study: one recipe in variants that differ in named fields, trained one after the other into one report.

    study = Study(name="mlp.activations", question="...", base=recipe, variants=vary("model.activation", NAMES))
    etude train mlp.activations  ->  runs/mlp.activations/1/{study.json, report.html, sigmoid/, relu/, ...}

Each variant is a run like any other. A variant that ends in NaN is a result of the study, not the end of it. A killed
study goes on (`etude resume`) where it was: finished variants stay, the one it was in resumes from its checkpoint.
"""

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from etude import report
from etude.engine import checkpoint, fit
from etude.engine import run as runs
from etude.engine.log import Log
from etude.engine.parallel import join
from etude.engine.recipe import Recipe
from etude.engine.run import Run
from etude.engine.trainer import Trainer
from etude.errors import Interrupted, MissingError, NumericError, RefusedError, UsageError

FILE = "study.json"


def names_directory(label: str) -> bool:
    """Whether a label can name a directory in the study's own, and none elsewhere."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,39}", label)) and label not in (FILE, "report.html")


@dataclass(frozen=True)
class Variant:
    """The base recipe with some fields changed."""

    label: str
    """Short; it names the variant's directory and its curve."""
    changes: tuple[tuple[str, Any], ...] = ()
    """(dotted field, value) pairs, as `Recipe.with_` takes them."""

    def __post_init__(self) -> None:
        if not names_directory(self.label):
            raise UsageError(f"the variant's label {self.label!r} cannot name a directory")

    def said(self) -> dict[str, str]:
        """The changes in words; of a configuration what differs from its defaults."""
        return {name: _said(value) for name, value in self.changes}


def _said(value: Any) -> str:
    if not is_dataclass(value):
        return str(value)
    kept = [(f.name, getattr(value, f.name)) for f in fields(value)]
    changed = [f"{name} {v}" for (name, v), f in zip(kept, fields(value)) if v != f.default]
    return ", ".join(changed) or "defaults"


def variant(label: str, **changes: Any) -> Variant:
    """`variant("smoothing", **{"task.label_smoothing": 0.1})`"""
    return Variant(label, tuple(changes.items()))


def vary(field: str, values: Iterable[Any]) -> tuple[Variant, ...]:
    """One variant for each value of a field, labelled by it."""
    return tuple(Variant(_label(value), ((field, value),)) for value in values)


def _label(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, said completely. Variants share everything that they do not change, the seed included."""

    name: str
    """system.variant, as recipes are named."""
    question: str
    """What the study shows, in a sentence or two; the report begins with it."""
    base: Recipe
    variants: tuple[Variant, ...]

    def __post_init__(self) -> None:
        labels = [variant.label for variant in self.variants]
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise UsageError(f"the study {self.name} needs two or more variants with labels of their own: {labels}")
        self.recipes()

    def recipes(self) -> dict[str, Recipe]:
        """The recipe of each variant."""
        return {
            v.label: replace(self.base.with_(**dict(v.changes)), name=f"{self.name}/{v.label}") for v in self.variants
        }

    @property
    def varied(self) -> tuple[str, ...]:
        """The fields in which variants differ."""
        return tuple(dict.fromkeys(name for v in self.variants for name, _ in v.changes))

    def with_base(self, base: Recipe) -> "Study":
        """The same study of another base. UsageError where it sets a field that every variant sets anyway."""
        for name in self.varied:
            always = all(name in dict(v.changes) for v in self.variants)
            if always and _value(base, name) != _value(self.base, name):
                raise UsageError(f"{self.name} varies {name} itself", hint="leave that flag out")
        return replace(self, base=base)


def _value(recipe: Recipe, name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value


class StudyRun:
    """A study's directory: study.json, the variants' run directories, report.html."""

    def __init__(self, path: str | Path, *, types: tuple[type, ...] = ()):
        """`types`: dataclasses of your own that the recipes are made of."""
        self.path, self._types = Path(path), types
        try:
            document = json.loads((self.path / FILE).read_text(encoding="utf-8"))
            self.name: str = document["study"]
            self.outcomes: dict[str, dict[str, Any]] = document["outcomes"]
            """What became of each variant so far: {"state": "done" or "failed", "train": measures, ...}."""
            self.recipes = {
                label: Recipe.from_json(config, types=types) for label, config in document["recipes"].items()
            }
            if not all(map(names_directory, self.recipes)) or not all(map(_is_outcome, self.outcomes.values())):
                raise ValueError("a label or an outcome is not what a study writes")
        except FileNotFoundError:
            raise MissingError(f"{self.path} is not a study: it has no {FILE}", hint="ls runs") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(f"{self.path / FILE} is damaged: {error}") from None
        self._document = document

    def __repr__(self) -> str:
        return f"StudyRun({str(self.path)!r}: {self.name}, {len(self.outcomes)} of {len(self.recipes)} done)"

    @property
    def finished(self) -> bool:
        """Whether every variant has ended."""
        return self.outcomes.keys() >= self.recipes.keys()

    @property
    def runs(self) -> dict[str, Run]:
        """The variants' runs, as far as they were begun."""
        begun = {label: self.path / label for label in self.recipes}
        return {label: Run(path, types=self._types) for label, path in begun.items() if (path / "recipe.json").exists()}

    @property
    def result(self) -> dict[str, Any]:
        """{"study", "variants": {label: {"state", "train", "test", "seconds", "error"}}}, as far as it went."""
        return {"study": self.name, "variants": self.outcomes}

    def report(self) -> Path:
        """Write report.html anew from the study's files."""
        return report.write(self.path)

    def train(
        self, *, device: str = "auto", workers: int | None = None, quiet: bool = False, data_path: str | None = None
    ) -> "StudyRun":
        """Train what has not ended yet, in turn. `data_path`: where the data lies now, if it moved."""
        with _listening() as heard:
            return self._train(heard, device, workers, quiet, data_path)

    def _train(
        self, heard: list[int], device: str, workers: int | None, quiet: bool, data_path: str | None
    ) -> "StudyRun":
        world = join(device)
        log = Log(quiet=quiet or world.rank > 0)
        for number, (label, recipe) in enumerate(self.recipes.items(), 1):
            if label in self.outcomes:
                continue
            if signalled := world.largest(heard[0] if heard else 0):
                code = 130 if signalled == signal.SIGINT else 75
                raise Interrupted("stopped between two variants", hint=f"etude resume {self.path}", code=code)
            log(f"study {self.name}: {label}, {number} of {len(self.recipes)}")
            place = self.path / label
            try:
                if (place / "recipe.json").exists():
                    run = fit.resume(
                        place, device=device, workers=workers, quiet=quiet, data_path=data_path, types=self._types
                    )
                else:
                    recipe = recipe if data_path is None else recipe.with_(**{"data.path": data_path})
                    run = fit.train(recipe, run=place, device=device, workers=workers, quiet=quiet, types=self._types)
            except NumericError as error:
                outcome: dict[str, Any] = {"state": "failed", "error": str(error)}
            except Interrupted as stop:
                raise Interrupted(str(stop), hint=f"etude resume {self.path}", code=stop.code) from None
            else:
                # the split that was learned from, measured as the test split is: the last batch's figures would be of
                # augmented, mixed samples
                measured = run.evaluate("train", device=device, data_path=data_path) if world.rank == 0 else {}
                result = run.result
                outcome = {"state": "done", "train": measured, "test": result["eval"], "steps": result["steps"]}
                outcome |= {"seconds": result["seconds"], "params": result["params"]}
            self.outcomes[label] = world.gather(outcome)[0]
            if world.rank == 0:
                self._write()
            world.gather(None)
        return self

    def _write(self) -> None:
        checkpoint.write_atomic(self.path / FILE, json.dumps(self._document, indent=1).encode())
        with contextlib.suppress(Exception):  # the page is not worth ending a study
            self.report()


@contextlib.contextmanager
def _listening() -> Iterator[list[int]]:
    """Within, the first Ctrl-C or SIGTERM is noted in the list, the second acts as if we were not here; a trainer has
    its own ears."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: Any) -> None:
        heard.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_outcome(value: Any) -> bool:
    return isinstance(value, dict) and value.get("state") in ("done", "failed")


def train(
    study: Study,
    *,
    run: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = False,
    types: tuple[type, ...] = (),
) -> StudyRun:
    """Train all variants into `run` (default runs/<study>/<n>), which must not hold anything yet."""
    fit.check_free(run)
    recipes = study.recipes()
    world = join(device)
    for recipe in recipes.values():  # what does not fit shows before a directory exists
        Trainer(recipe, None, world=world, workers=workers, quiet=True)
    directory = (Path(run) if run is not None else runs.new_directory(study.name)) if world.rank == 0 else None
    directory = world.gather(directory)[0]
    assert directory
    if world.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        document = {
            "study": study.name,
            "etude": runs.version(),
            "question": study.question,
            "varied": study.varied,
            "changes": {v.label: v.said() for v in study.variants},
            "recipes": {label: recipe.to_json() for label, recipe in recipes.items()},
            "command": runs.command(),
            "outcomes": {},
        }
        checkpoint.write_atomic(directory / FILE, json.dumps(document, indent=1).encode())
    world.gather(None)
    return StudyRun(directory, types=types).train(device=device, workers=workers, quiet=quiet)
