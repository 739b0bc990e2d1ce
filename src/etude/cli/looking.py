"""etude list, info, graph, gradcheck: what there is, and the mathematics of it, seen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from etude import catalog
from etude.cli.light import light
from etude.cli.parts import parser_of, print_json, print_table
from etude.errors import UsageError


def list_(arguments: list[str]) -> int:
    """The systems, their sizes and recipes."""
    parser = parser_of(list_)
    options = parser.parse_args(arguments)
    if options.json:
        print_json([row.json() for row in catalog.SYSTEMS])
        return 0
    print_table(
        [["SYSTEM", "TITLE", "PAPER", "RECIPES AND STUDIES"]]
        + [[r.name, r.title, r.paper, ", ".join([*r.recipes, *r.studies])] for r in catalog.SYSTEMS]
    )
    print("\netude info SYSTEM tells more; etude train RECIPE or STUDY trains.")
    return 0


def info(arguments: list[str]) -> int:
    """All about a system, a recipe, a study or a run directory."""
    parser = parser_of(info)
    parser.add_argument(
        "what", help="a system (resnet), a recipe (resnet.digits), a study, a size (resnet50) or a run directory"
    )
    options = parser.parse_args(arguments)
    what = options.what
    if what in catalog.recipes():
        print_json(light(_of_recipe, what))
        return 0
    if what in catalog.studies():
        print_json(light(_of_study, what))
        return 0
    if (Path(what) / "study.json").is_file():
        print_json(light(_of_study_run, what))
        return 0
    if Path(what).is_dir():
        print_json(light(_of_run, what))
        return 0
    row = catalog.system(what)
    document = row.json() | {"parameters": row.sizes, "weights": light(_weights, row)}
    if options.json:
        print_json(document)
        return 0
    print_table([[key, _said(value)] for key, value in document.items() if key != "weights"])
    for w in document["weights"]:
        print(f"weights     {w['url']}  ({w['layout']} layout, top-1 {w['top1']} %, {w['licence']})")
    return 0


def _of_recipe(name: str) -> dict[str, Any]:
    from etude.recipes import find_recipe

    return {"recipe": name, "config": find_recipe(name).to_json()}


def _of_study(name: str) -> dict[str, Any]:
    from etude.recipes import find_study

    study = find_study(name)
    changes = {v.label: v.said() for v in study.variants}
    return {"study": name, "question": study.question, "variants": changes, "base": study.base.to_json()}


def _of_study_run(path: str) -> dict[str, Any]:
    import etude

    return {"run": path} | etude.StudyRun(path).result


def _of_run(path: str) -> dict[str, Any]:
    import etude

    run = etude.open(path)
    document = {"run": str(run.path), "recipe": run.recipe.name, "finished": run.finished, "env": run.env}
    return document | ({"result": run.result} if run.finished else {})


def _weights(row: catalog.System) -> list[dict[str, Any]]:
    from etude.weights import published

    return [asdict(checkpoint) for checkpoint in published(row.sizes)]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {number:,}" if isinstance(number, int) else f"{key} {number}" for key, number in value.items()
        )
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def graph(arguments: list[str]) -> int:
    """Draw what a model computes: modules, shapes, FLOPs, and with --backward the gradient on every edge."""
    parser = parser_of(graph)
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
        print_json(drawn.json() | {"out": str(out) if out else None})
    else:
        print_table([*drawn.rows(), ["drawn", str(out)]])
    return 0


def gradcheck(arguments: list[str]) -> int:
    """Check the chain rule: autograd against central finite differences in float64, layer by layer."""
    parser = parser_of(gradcheck)
    parser.add_argument("what", metavar="SYSTEM_OR_RUN", help="a system (resnet), a size (resnet18) or a run directory")
    options = parser.parse_args(arguments)
    import torch

    from etude.graph.gradcheck import gradcheck as check
    from etude.graph.subject import subject

    checked = subject(options.what, dtype=torch.float64, small=True)
    outcome = check(checked)
    if options.json:
        rows, culprits = ([row.json() for row in found] for found in (outcome.rows, outcome.culprits))
        print_json({"what": checked.title, "on": checked.note, "ok": outcome.ok, "layers": rows, "culprits": culprits})
        return 0 if outcome.ok else 1
    head = ["LAYER", "TYPE", "PARAMETERS", "AUTOGRAD", "DIFFERENCE", "ERROR", "STEP", "VERDICT"]
    print_table([head, *(row.cells() for row in outcome.rows)])
    print(f"\n{checked.title} on {checked.note}, float64: {outcome.said()}")
    return 0 if outcome.ok else 1
