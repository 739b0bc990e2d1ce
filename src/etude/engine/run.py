"""`Run`: a directory, and the verbs that work on it after training, wherever it has been moved."""

import dataclasses
import datetime
import json
import platform
import shlex
import sys
import typing
from collections.abc import Iterator
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from etude import cpu, report
from etude.data.base import Dataset
from etude.engine import checkpoint
from etude.engine.evaluate import answering, measure, numbers
from etude.engine.parallel import World
from etude.engine.precision import Resolved, autocast, computes_bf16, pick_device, resolve, warn_slow
from etude.engine.recipe import Recipe, check
from etude.errors import MissingError, RefusedError, UsageError, nearest
from etude.nn.lowbit import WEIGHTS, fast_linears
from etude.tasks.base import Ask, WriteAsk
from etude.tasks.metrics import Metric


def version() -> str:
    """The installed version of etude."""
    return metadata.version("etude")


def new_directory(name: str, root: Path = Path("runs")) -> Path:
    """Make runs/<name>/<n> with the first free n; nothing that exists is ever taken."""
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(entry.name) for entry in parent.iterdir() if entry.name.isdigit()]
    number = max(taken, default=0) + 1
    while True:
        try:
            (parent / str(number)).mkdir()
            return parent / str(number)
        except FileExistsError:
            number += 1


def begin(directory: Path, recipe: Recipe, *, device: torch.device, precision: Resolved, dataset: Dataset, params: int):
    """Write recipe.json and env.json: what is trained, on what, and how it was asked for."""
    document = {"recipe": recipe.name, "etude": version(), "config": recipe.to_json()}
    environment = {
        "etude": version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": cpu.name(),
        "cpu_features": cpu.features(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "command": command(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "params": params,
        "data": dataset.facts,
        "files": {name: sha256(content.encode()).hexdigest() for name, content in sorted(dataset.files.items())},
    }
    for name, content in dataset.files.items():
        checkpoint.write_atomic(directory / name, content.encode())
    checkpoint.write_atomic(directory / "env.json", json.dumps(environment, indent=1).encode())
    checkpoint.write_atomic(directory / "recipe.json", json.dumps(document, indent=1).encode())


def command() -> str:
    """The shell command that this process was started with; "Python" where it was none of etude's."""
    return shlex.join(["etude", *sys.argv[1:]]) if Path(sys.argv[0]).name in ("etude", "__main__.py") else "Python"


class Run:
    """A run directory's accessors. Nothing in it is executed: JSON and safetensors are all that is read."""

    def __init__(self, path: str | Path, *, types: tuple[type, ...] = ()):
        """`types`: dataclasses of your own that the recipe is made of, if it was not one of etude's."""
        self.path = Path(path)
        if not self.path.is_dir():
            raise MissingError(f"there is no run directory {self.path}", hint="ls runs")
        if (self.path / "study.json").is_file():
            variants = sorted(entry.parent.name for entry in self.path.glob("*/recipe.json"))
            where = f"{self.path}/{variants[0]}" if variants else f"etude resume {self.path}"
            raise UsageError(f"{self.path} is a study; ask one of its runs: {', '.join(variants)}", hint=where)
        if not (self.path / "recipe.json").is_file():
            raise MissingError(f"{self.path} is not a run directory: it has no recipe.json", hint="ls runs")
        document = self._json("recipe.json")
        try:
            self.recipe = Recipe.from_json(document["config"], types=types)
        except (KeyError, TypeError, AttributeError) as error:
            raise RefusedError(f"{self.path / 'recipe.json'} is damaged: {error}") from None
        except UsageError as error:
            raise RefusedError(f"{self.path / 'recipe.json'} does not hold a recipe: {error}") from None
        self._model: nn.Module | None = None
        self._answering: tuple[tuple[torch.device, Resolved, str], nn.Module] | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.recipe.name})"

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MissingError(f"{path} is missing", hint=f"etude resume {self.path}") from None
        except (OSError, ValueError) as error:
            raise RefusedError(f"{path} is damaged: {error}", hint="restore the file from a copy") from None
        if not isinstance(document, dict):
            raise RefusedError(f"{path} is damaged: it holds no JSON object")
        return document

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return (self.path / "result.json").is_file()

    @property
    def result(self) -> dict[str, Any]:
        """result.json: {"recipe", "seed", "steps", "train", "eval", "precision", "best", "seconds", "params",
        "weights_sha256"}; "precision" is what the evaluation computed in."""
        return self._json("result.json")

    @property
    def env(self) -> dict[str, Any]:
        """env.json: versions, machine, precision, the data set's facts."""
        return self._json("env.json")

    @property
    def facts(self) -> dict[str, Any]:
        """What a result needs to be read: the data set's classes and sizes, and under "files" its longer texts."""
        facts, known = self.env.get("data"), self.env.get("files", {})
        if not isinstance(facts, dict) or not isinstance(known, dict) or any(Path(name).name != name for name in known):
            raise RefusedError(f"{self.path / 'env.json'} is damaged: it does not say what the data was")
        try:
            files = {name: (self.path / name).read_text(encoding="utf-8") for name in known}
        except FileNotFoundError as error:
            raise MissingError(f"{error.filename} is missing", hint="restore the file from a copy") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"{self.path}: {error}", hint="restore the file from a copy") from None
        for name, content in files.items():
            if sha256(content.encode()).hexdigest() != known[name]:
                raise RefusedError(
                    f"{self.path / name} is not the one that the run was trained with", hint="restore it from a copy"
                )
        return facts | {"files": files}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl, line by line; a line cut off by a kill is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        documents = []
        for line in lines:
            try:
                documents.append(json.loads(line))
            except ValueError:
                break
        return documents

    def model(self, device: str = "auto") -> nn.Module:
        """The trained network in eval mode: the kept weights, or an unfinished run's newest checkpoint."""
        place = pick_device(device)
        if self._model is None:
            model: nn.Module = self.recipe.model.build()
            weights = self._weights()
            try:
                model.load_state_dict(weights)
            except RuntimeError as error:
                first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
                first = first if len(first) <= 200 else f"{first[:200]}..."
                raise RefusedError(f"the weights in {self.path} do not fit its recipe: {first}") from None
            self._model = model.eval()
        return self._model.to(place, memory_format=self.recipe.memory_format)  # pyright: ignore[reportCallIssue]

    def _weights(self) -> dict[str, torch.Tensor]:
        path = self.path / "weights.safetensors"
        if path.is_file():
            try:
                return checkpoint.load_weights_file(path)
            except RefusedError as error:
                raise RefusedError(str(error), hint=f"rm {path}: the newest checkpoint is used then") from None
        loaded = checkpoint.load_newest(self.path / "checkpoints", lambda said: print(said, file=sys.stderr))
        if loaded is None:
            raise MissingError(f"{self.path} holds no weights yet", hint=f"etude resume {self.path}")
        return loaded.groups.get("ema", loaded.groups["model"])

    def precision(self, device: torch.device, wanted: str = "") -> Resolved:
        """What this run computes in on this device: `wanted` (auto, fp32, bf16, fp16), or by default what it was
        trained in, where that is the faster format here too; else fp32."""
        if wanted:
            return resolve(wanted, device)
        trained: Resolved = self.env.get("precision", "fp32")
        usable = trained == "fp32" or (trained == "bf16" and computes_bf16(device)) or device.type == "cuda"
        return trained if usable else "fp32"

    def _prepared(self, device: str, precision: str, ask: Ask) -> tuple[nn.Module, torch.device, Resolved]:
        """The model as it answers, made once, where it is, and in what it computes. Where answers are written on a CPU,
        its linear layers keep their weights as `ask` says, or in that precision."""
        place = pick_device(device)
        number = self.precision(place, precision)
        weights = (ask.weights or number) if isinstance(ask, WriteAsk) and place.type == "cpu" else ""
        how = (place, number, weights)
        if self._answering is None or self._answering[0] != how:
            self._answering = None  # two copies at once may not fit
            model = self.model(device)
            if weights:
                model = fast_linears(model, dtype=WEIGHTS[weights])
            warn_slow(number, place)
            self._answering = how, answering(model, self.recipe, number)
        return self._answering[1], place, number

    def predict(self, *inputs: Any, device: str = "auto", precision: str = "", **ask: Any) -> Any:
        """Answers to raw inputs, as the run's data takes them (pictures: paths, bytes, PIL images, arrays, tensors): a
        Result, or a list of them; without inputs, what the task makes of `ask` alone. `precision`: fp32, bf16 or auto;
        by default the run's own. `ask`: what the task lets one choose, e.g. `length=200` of a language model."""
        asked = self.asked(ask)
        if not inputs and not asked.made:
            raise UsageError(
                f"predict of {self.recipe.name} takes inputs", hint=f"etude predict {self.path} --samples 8"
            )
        model, place, number = self._prepared(device, precision, asked)
        with torch.no_grad(), autocast(number, place):
            results = self.recipe.task.predict(model, list(inputs), self.recipe.data, self.facts, asked)
        return results[0] if len(inputs) <= 1 else results

    def stream(self, raw: Any, *, device: str = "auto", **ask: Any) -> Iterator[str]:
        """The answer to one raw input piece by piece, of tasks whose answers are texts; `ask` as of `predict`."""
        if not self.recipe.task.streams:
            raise UsageError(f"answers of {self.recipe.name} come whole, not piece by piece", hint="etude predict")
        asked = self.asked(ask)
        model, place, number = self._prepared(device, "", asked)
        pieces = self.recipe.task.stream(model, raw, self.recipe.data, self.facts, asked)
        while True:  # what stands around the making of a piece does not stay while it is read
            with torch.no_grad(), autocast(number, place):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def answers(self, lines: list[str], *, device: str = "auto", **ask: Any) -> list[str]:
        """A line's answer each, as one line, of a task that answers lines (`Task.by_line`); an empty one's is empty."""
        given = [line for line in lines if line.strip()]
        found: Any = self.predict(*given, device=device, **ask) if given else []
        results: Iterator[Any] = iter([found] if len(given) == 1 else found)
        return [" ".join(next(results).row()[0].split()) if line.strip() else "" for line in lines]

    def asked(self, ask: dict[str, Any]) -> Ask:
        """Keywords of `predict`, checked, as the task's own type."""
        task = self.recipe.task
        kinds = typing.get_type_hints(task.ask)
        names = [field.name for field in dataclasses.fields(task.ask)]
        for name in ask:
            if name not in names:
                known = nearest(name, names) or (f"one of {', '.join(names)}" if names else "it leaves no choice")
                raise UsageError(f"predict of {self.recipe.name} has no {name!r}", hint=known)
        return task.ask(**{name: check(value, kinds[name], name) for name, value in ask.items()})

    def evaluate(
        self,
        split: str = "test",
        *,
        device: str = "auto",
        data_path: str | None = None,
        changes: dict[str, Any] | None = None,
        precision: str = "",
    ) -> dict[str, float]:
        """The task's measures of the kept weights over a split: what result.json says, measured again. Of other data,
        where `data_path` says so; `changes` are those of the recipe's other fields that bear on measuring, by name:
        {"data.context": 448}. `precision`: fp32, bf16 or auto; by default the run's own, or fp32 where this device
        does not compute in it."""
        return numbers(self.measure(split, device=device, data_path=data_path, changes=changes, precision=precision))

    def measure(
        self,
        split: str = "test",
        *,
        device: str = "auto",
        data_path: str | None = None,
        changes: dict[str, Any] | None = None,
        precision: str = "",
    ) -> dict[str, Metric]:
        """`evaluate`, with what it counted."""
        recipe = self.recipe.with_(**{} if data_path is None else {"data.path": data_path}, **(changes or {}))
        dataset = recipe.data.reopen(self.facts)
        if split not in dataset.sizes:
            raise UsageError(f"there is no split {split!r}; there are {', '.join(dataset.sizes)}")
        model = self.model(device)
        try:
            recipe.task.check(model, dataset)
        except UsageError as error:  # whose remedy may be another model, for training
            raise UsageError(str(error), hint="" if "--model" in error.hint else error.hint) from error
        model.eval()
        place = next(model.parameters()).device
        number = self.precision(place, precision)
        warn_slow(number, place)
        return measure(model, recipe, dataset, split, world=World(place), precision=number)

    def export(self, path: str | Path | None = None, *, part: str | None = None) -> Path:
        """Plain weights by the model's own names, for `etude.load_weights` or any reader of safetensors; returns the
        file (default: PART.safetensors, or model.safetensors, in the run directory). `part`: a child module alone, by
        default the one that is of use after training (`Task.exported`: of a GAN the generator); "": the whole model."""
        part = self.recipe.task.exported if part is None else part
        path = Path(path) if path is not None else self.path / f"{part or 'model'}.safetensors"
        if path.suffix != ".safetensors":
            raise UsageError(f"{path} does not end in .safetensors, which weights are written as", hint="--out FILE")
        if path.exists() or (path.name == "weights.safetensors" and (path.parent / "recipe.json").exists()):
            raise UsageError(
                f"{path} is there already or a run's own; nothing is overwritten", hint="--out another FILE"
            )
        model = self.model("cpu")
        try:
            module = model.get_submodule(part)
        except AttributeError:
            names = [name for name, _ in model.named_children()]
            hint = nearest(part, names) or f"one of {', '.join(names)}"
            raise UsageError(f"the model of {self.recipe.name} has no part {part!r}", hint=hint) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save_weights(path, module.state_dict())
        return path

    def report(self) -> Path:
        """Write report.html anew from the run's files."""
        return report.write(self.path)


class Published(Run):
    """A recipe's own weights to begin with, asked without training: the verbs of a run on what others trained."""

    def __init__(self, recipe: Recipe):
        """UsageError where the recipe names no weights for the whole model."""
        if not recipe.start.weights or recipe.start.part:
            raise UsageError(
                f"{recipe.name} is a recipe that begins without weights for the whole model: there is nothing to ask "
                "before it is trained",
                hint=f"etude train {recipe.name}, or --start.weights FILE --start.layout NAME",
            )
        try:
            with torch.device("meta"):
                recipe.model.build()
        except (ValueError, TypeError, RuntimeError) as error:
            raise UsageError(
                f"the model of {recipe.name} cannot be built: {error}",
                hint="--model.FIELD VALUE, as the weights need it",
            ) from None
        self.path, self.recipe = Path(recipe.name), recipe
        self._model, self._answering = None, None

    @property
    def env(self) -> dict[str, Any]:
        """Only what is known without a run: the precision."""
        return {"precision": resolve(self.recipe.precision, pick_device())}

    @property
    def finished(self) -> bool:
        """There was no training to end."""
        return True

    @property
    def facts(self) -> dict[str, Any]:
        """Classes by number: the data that was learned from is not here."""
        return {"classes": [str(number) for number in range(getattr(self.recipe.model, "num_classes", 0))]}

    def _weights(self) -> dict[str, torch.Tensor]:
        model: nn.Module = self.recipe.model.build()
        self.recipe.start.fill(model)
        return model.state_dict()
