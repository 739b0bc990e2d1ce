"""Recipes: JSON and back, variants, and what a recipe file cannot do."""

import dataclasses
import json

import pytest
from toys import TYPES, Net, everything, game

from etude.catalog import recipes
from etude.engine.optim import Optim
from etude.engine.recipe import Recipe
from etude.errors import EtudeError, RefusedError, UsageError
from etude.recipes import find_recipe


@pytest.mark.parametrize("recipe", [everything(), game(), everything(clip=None, patience=3, **{"data.validation": 5})])
def test_json_round_trip(recipe):
    document = json.loads(json.dumps(recipe.to_json()))
    assert Recipe.from_json(document, types=TYPES) == recipe


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_round_trips(name):
    recipe = find_recipe(name)
    assert recipe.name == name
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert recipe == find_recipe(name)


def test_variants():
    recipe = everything()
    other = recipe.with_(**{"optim.lr": 1, "model.width": 4, "steps": 9})
    assert (other.optim.lr, other.model.width, other.steps) == (1.0, 4, 9)
    assert isinstance(other.optim.lr, float)
    assert recipe == everything()
    assert other.with_(**{"optim.lr": recipe.optim.lr, "model.width": 8, "steps": 60}) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": 5}, "did you mean steps"),
        ({"optim.learning_rate": 5}, "optim"),
        ({"steps": "many"}, "whole number"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": True}, "whole number"),
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": -4}, "at least 1"),
        ({"optim.lr": 0}, "positive"),
        ({"optim.lr": float("nan")}, "positive"),
        ({"optim.name": "sdg"}, "did you mean sgd"),
        ({"precision": "fp8"}, "one of"),
        ({"ema": 1.5}, "between 0 and 1"),
        ({"clip": -1.0}, "positive"),
        ({"task.label_smoothing": 1.0}, r"\[0, 1\)"),
        ({"seed": -1}, "negative"),
        ({"patience": 0}, "at least 1"),
    ],
)
def test_bad_values_are_named(change, words):
    with pytest.raises(UsageError) as error:
        everything(**change)
    assert __import__("re").search(words, f"{error.value} {error.value.hint}")
    assert next(iter(change)).split(".")[-1].replace("_", " ") in str(error.value).replace("_", " ")


@pytest.mark.parametrize(
    "tag", ["os.system", "subprocess.Popen", "builtins.eval", "cli.main", "engine.run.Run", "engine.optim.torch",
            "data.fetch.get", "..os.system", "engine.optim.EMA", "vision", "nowhere.Thing", "engine.missing.Thing", ""],
)  # fmt: skip
def test_a_recipe_file_names_nothing_but_configurations(tag):
    document = everything().to_json()
    document["model"] = {"type": tag, "args": ["touch /tmp/owned"]}
    with pytest.raises(EtudeError):
        Recipe.from_json(document, types=TYPES)


def test_a_class_of_your_own_must_be_given():
    with pytest.raises(RefusedError, match="not one of etude's"):
        Recipe.from_json(everything().to_json())


def test_unknown_and_misfitting_fields_are_refused():
    document = everything().to_json()
    with pytest.raises(RefusedError, match="extra"):
        Recipe.from_json(document | {"extra": 1}, types=TYPES)
    with pytest.raises(UsageError, match=r"recipe\.steps"):
        Recipe.from_json(document | {"steps": "60"}, types=TYPES)


def test_only_plain_values_stand_in_a_recipe():
    with pytest.raises(UsageError, match="function"):
        dataclasses.replace(everything(), model=lambda: None).to_json()
    assert everything(model=Net(width=2)).to_json()["model"]["width"] == 2
    assert everything(optim=Optim("adam")).to_json()["optim"]["betas"] == [0.9, 0.999]
