"""etude train, resume."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude import catalog
from etude.cli.flags import Options, recipe_flags, word_after
from etude.cli.light import light, wants_help
from etude.cli.parts import parser_of, print_json, print_table
from etude.errors import NumericError, UsageError, nearest

if TYPE_CHECKING:
    from etude.engine.recipe import Recipe
    from etude.engine.run import Run
    from etude.engine.study import Study, StudyRun


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
    if wants_help(arguments):
        light(_chosen, name, arguments[1:])  # prints it and exits
    found, recipe, options = _chosen(name, arguments[1:])
    from etude.engine import fit
    from etude.engine.study import Study

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


def _chosen(name: str, arguments: list[str]) -> tuple[Recipe | Study, Recipe, Options]:
    """The recipe or study of this name, and itself or its base with the flags applied."""
    from etude.engine.study import Study
    from etude.recipes import find

    found = find(name)
    base = found.base if isinstance(found, Study) else found
    if teacher := word_after("--teacher", arguments):
        from etude.compress.distill import distill

        base = distill(base, teacher)
    return found, *recipe_flags(base, name, arguments)


def _find_lr(recipe: Recipe, options: Options) -> int:
    from etude.engine import lr_finder

    found = lr_finder.find_lr(recipe, device=options.device, workers=options.workers, quiet=options.quiet)
    if int(os.environ.get("RANK", "0")):
        return 0
    path = lr_finder.write(found, Path(options.run) if options.run else Path("runs") / recipe.name)
    if options.json:
        print_json(asdict(found) | {"page": str(path)})
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
    print_table(rows)
    return 0


def _train_study(study: Study, options: Options) -> int:
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
            print_json({"study": study.name, "dry_run": True, "variants": results})
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
        print_json(study.result | {"run": str(study.path), "report": str(study.path / "report.html")})
        return code
    names = list(dict.fromkeys(name for o in study.outcomes.values() for name in o.get("test", ())))
    rows = [["VARIANT", *(f"{split.upper()} {name}" for name in names for split in ("train", "test")), ""]]
    for label, outcome in study.outcomes.items():
        figures = [_figure(outcome.get(split, {}).get(name)) for name in names for split in ("train", "test")]
        rows.append([label, *figures, outcome.get("error", "")])
    print_table([*rows, [""] * len(rows[0])])
    print_table([["study", str(study.path)], ["report", str(study.path / "report.html")]])
    return code


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _trained(result: dict[str, Any], run: Run | None, as_json: bool) -> int:
    if int(os.environ.get("RANK", "0")):
        return 0
    if as_json:
        print_json(result | {"run": str(run.path) if run else None})
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
    print_table([*rows, ["next", f"{command} predict {shlex.quote(str(run.path))} {asking}"]])
    return 0


def resume(arguments: list[str]) -> int:
    """Go on with a run or a study that was stopped or killed; it ends as if it had not been."""
    parser = parser_of(resume)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--quiet", action="store_true")
    data_path(parser)
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


def data_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-path", "--data.path", default=None, help="where the data lies now, if it moved")
