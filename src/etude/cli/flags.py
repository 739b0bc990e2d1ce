"""Flags made of dataclasses: those of a recipe, and those of what can be asked of a task."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import textwrap
import typing
from dataclasses import dataclass, fields, is_dataclass, make_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any

from etude import catalog
from etude.cli.light import light, wants_help
from etude.cli.parts import Parser
from etude.errors import UsageError, nearest

if TYPE_CHECKING:
    from etude.engine.recipe import Recipe


@dataclass(frozen=True)
class Options:
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


def recipe_flags(recipe: Recipe, name: str, arguments: list[str]) -> tuple[Recipe, Options]:
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
    Flags = make_dataclass("Flags", [("recipe", Annotated[Recipe, plainly]), ("options", Annotated[Options, plainly])])

    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            flags, unknown = tyro.cli(
                Flags,
                default=Flags(recipe, Options()),
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
        known = flag_names(flags.recipe) + flag_names(flags.options)
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


def _unboxed(text: str) -> str:
    """The message in one of tyro's boxes, as one line."""
    lines = [line.strip("│ ").strip() for line in text.splitlines() if line.startswith("│")]
    message = []
    for line in lines:
        if set(line) <= {"─"}:
            break
        message.append(line)
    return " ".join(message) or text.strip()


def flag_names(config: Any, prefix: str = "--") -> list[str]:
    names = []
    for field in fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        names += flag_names(value, name + ".") if is_dataclass(value) else [name]
    return names


def values_of(words: list[str], known: list[str]) -> dict[str, Any]:
    """["--data.context", "448"] -> {"data.context": 448}; a flag without a value is True."""

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


def word_after(flag: str, arguments: list[str]) -> str:
    """The value of a flag that decides which other flags there are; "" where it is not given."""
    for word, following in pairwise([*arguments, ""]):
        if word == flag:
            return following
        if word.startswith((f"{flag}=", f"{flag.lstrip('-')}=")):
            return word.partition("=")[2]
    return ""


def recipe_words(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The words without the flags that change a named recipe's model and starting weights, and these changes."""
    name = next((word for word in arguments if word in catalog.recipes() and not Path(word).exists()), "")
    if not name:
        return arguments, {}

    def flags() -> list[str]:
        import etude

        recipe = etude.recipe(name)
        return [*flag_names(recipe.model, "--model."), *flag_names(recipe.start, "--start.")]

    known = light(flags) if wants_help(arguments) else flags()
    kept, words, rest = [], [], iter(arguments)
    for word in rest:
        if word.split("=", 1)[0] in known:
            words += [word] if "=" in word else [word, next(rest, "")]
        else:
            kept.append(word)
    return kept, values_of(words, known)


def ask_flags(parser: Parser, arguments: list[str]) -> list[str]:
    """Add a flag for each field of what the task of the named run lets one choose (`Task.ask`); returns their names."""
    recipes = catalog.recipes()
    place = next((word for word in arguments if word in recipes or (Path(word) / "recipe.json").is_file()), "")
    if not place and (not arguments or arguments[0].startswith("-")):
        return []

    def about() -> dict[str, dict[str, Any]]:
        """What argparse needs to know of each field."""
        import etude

        if not place:
            etude.open(arguments[0])  # tells that there is no such run, before a flag of its task is called unknown
            return {}
        ask = (etude.open(place).recipe if Path(place).exists() else etude.recipe(place)).task.ask
        kinds, said = typing.get_type_hints(ask), said_of_fields(ask)
        found = {}
        for field in fields(ask):
            words = [said.get(field.name, ""), f"(default {field.default})" if field.default not in (None, "") else ""]
            help_ = " ".join(word for word in words if word).replace("%", "%%")
            found[field.name] = {"help": help_, **flag_type(kinds[field.name])}
        return found

    known = light(about) if wants_help(arguments) else about()
    for name, settings in known.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, **settings)
    return list(known)


def said_of_fields(kind: type) -> dict[str, str]:
    """The docstrings below a dataclass's fields."""

    said: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        for pair in pairwise(getattr(definition, "body", [])):
            match pair:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    said[name] = " ".join(text.split())
    return said


def flag_type(kind: Any) -> dict[str, Any]:
    """What argparse needs to know of a field's type: int, int | None, tuple[int, int] | None, Literal["a", "b"]."""

    if typing.get_origin(kind) in (UnionType, typing.Union):
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return {"type": parts[0], "nargs": len(parts), "metavar": tuple("ABCDEFGH"[: len(parts)])}
    return {"choices": parts} if typing.get_origin(kind) is typing.Literal else {"type": kind}
