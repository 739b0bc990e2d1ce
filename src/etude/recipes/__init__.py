"""Recipes: `recipes/<system>.py` holds functions that return a Recipe, or a Study of several; "resnet.digits" is
`digits` in `resnet.py`."""

from importlib import import_module

from etude import catalog
from etude.engine.recipe import Recipe
from etude.engine.study import Study
from etude.errors import UsageError, nearest


def find(name: str) -> Recipe | Study:
    """The recipe or study of that name; an unknown one names the nearest."""
    known = [*catalog.recipes(), *catalog.studies()]
    if name not in known:
        raise UsageError(f"unknown recipe {name!r}", hint=nearest(name, known) or "etude list")
    system, _, variant = name.partition(".")
    return getattr(import_module(f"etude.recipes.{system}"), variant)()


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; UsageError where it is a study."""
    found = find(name)
    if isinstance(found, Study):
        raise UsageError(f"{name} is a study of several recipes", hint=f'etude.study("{name}")')
    return found


def find_study(name: str) -> Study:
    """The study of that name; UsageError where it is a recipe."""
    found = find(name)
    if isinstance(found, Recipe):
        raise UsageError(f"{name} is a recipe, not a study", hint=f'etude.train("{name}")')
    return found
