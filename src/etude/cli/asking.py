"""etude eval, predict, export, report, replay: what works on a run after training."""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.cli.flags import ask_flags, flag_names, recipe_words, values_of
from etude.cli.light import light
from etude.cli.parts import complain, parser_of, print_json, print_table
from etude.cli.training import data_path
from etude.errors import UsageError, nearest
from etude.progress import bars

if TYPE_CHECKING:
    from etude.engine.recipe import Recipe
    from etude.engine.run import Run


PRECISION = "fp32, bf16 or auto (default: what the run was trained in, where this machine computes in it)"


def eval_(arguments: list[str]) -> int:
    """Measure a run's weights over a split of its data, or of other data of this kind (--data-path).

    The recipe's other fields may be changed too: --task.beam 8, --data.context 448, --eval-batch-size 8.
    """
    parser = parser_of(eval_)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--split", default="test")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="", help=PRECISION)
    data_path(parser)
    options, others = parser.parse_known_args(arguments)
    import etude
    from etude.engine.evaluate import numbers
    from etude.engine.precision import pick_device

    run = etude.open(options.run)
    changes = _changes(run.recipe, others)
    changes |= {} if options.data_path is None else {"data.path": options.data_path}
    precision = run.precision(pick_device(options.device), options.precision)
    measured = run.measure(options.split, device=options.device, changes=changes, precision=precision)
    values, notes = numbers(measured), run.recipe.with_(**changes).task.notes(measured)
    if options.json:
        document = {"run": str(run.path), "recipe": run.recipe.name, "split": options.split, "precision": precision}
        print_json(document | {"eval": values} | ({"notes": notes} if notes else {}))
    else:
        rows = [[name, f"{value:.6g}", notes.get(name, "")] for name, value in values.items()]
        rows += [[name, note, ""] for name, note in notes.items() if name not in values]
        print_table([*rows, ["computed in", precision, ""]])
    return 0


def _changes(recipe: Recipe, words: list[str]) -> dict[str, Any]:
    """Flags that name fields of how a run is measured -> {"data.context": 448}."""
    known = ["--eval-batch-size", *flag_names(recipe.data, "--data."), *flag_names(recipe.task, "--task.")]
    for word in words:
        flag = word.split("=", 1)[0]
        if flag.startswith("--") and flag not in known:
            raise UsageError(
                f"etude eval: unknown flag {flag}",
                hint=nearest(flag, [*known, "--split", "--device", "--precision", "--data-path"]),
            )
    return values_of(words, known)


def predict(arguments: list[str]) -> int:
    """What a run makes of its inputs (pictures, texts, ...), of samples of its own test split, or of latents alone.

    The flags that a run's task adds: etude predict RUN --help.
    """
    parser = parser_of(predict)
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
    parser.add_argument("--precision", default="", help=PRECISION)
    choices = ask_flags(parser, arguments)
    arguments, started = recipe_words(arguments)
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
        print_json({"run": str(run.path), "results": [document for document, _ in answered], "errors": said})
    else:
        print_table([row for _, row in answered])
    if len(inputs) > 1 and errors:
        print(f"{len(errors)} of {len(inputs)} inputs were skipped:", file=sys.stderr)
    for _, error in errors:
        complain(error)
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
    print_json(document) if options.json else print_table([["lines", f"{count:,}"], ["saved", options.save]])
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
            complain(error)
            code = error.code
    return code


def export(arguments: list[str]) -> int:
    """Write a run's weights as a plain safetensors file, of a GAN the generator's alone."""
    parser = parser_of(export)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--part", default=None, help='a child module alone (generator), or "" for the whole model')
    parser.add_argument("--out", metavar="FILE", default=None, help="default: RUN/PART.safetensors")
    options = parser.parse_args(arguments)
    import etude

    path = etude.open(options.run).export(options.out, part=options.part)
    print_json({"run": options.run, "weights": str(path)}) if options.json else print(path)
    return 0


def report(arguments: list[str]) -> int:
    """Write the report.html of a run or a study anew."""
    parser = parser_of(report)
    parser.add_argument("run", help="the directory of the run or the study")
    options = parser.parse_args(arguments)
    import etude

    there = (Path(options.run) / "study.json").is_file()
    checked = light(lambda: (etude.StudyRun(options.run) if there else etude.open(options.run)).path)
    from etude.report import write

    path = write(checked)
    print_json({"report": str(path)}) if options.json else print(path)
    return 0


def replay(arguments: list[str]) -> int:
    """Take the step again at which a run met NaN or Inf, and name where it came from."""
    parser = parser_of(replay)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    import etude
    from etude.engine.replay import replay as take_again

    step, finding = take_again(etude.open(options.run), device=options.device)
    print_json({"step": step, **finding.json()}) if options.json else print(f"step {step}: {finding.what}")
    return 5
