"""Recipes: `recipes/<system>.py` holds functions that return a Recipe; "resnet.digits" is `digits` in `resnet.py`."""

from importlib import import_module

from etude.catalog import recipes as names
from etude.engine.recipe import Recipe
from etude.errors import UsageError, nearest


def find(name: str) -> Recipe:
    """The recipe of that name; an unknown one names the nearest."""
    known = names()
    if name not in known:
        raise UsageError(f"unknown recipe {name!r}", hint=nearest(name, known) or "etude list")
    system, _, variant = name.partition(".")
    return getattr(import_module(f"etude.recipes.{system}"), variant)()
