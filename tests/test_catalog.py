"""The catalog agrees with the modules that it lists, and answers without torch."""

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch

from etude import catalog
from etude.errors import UsageError


@pytest.mark.parametrize("row", catalog.SYSTEMS, ids=lambda row: row.name)
def test_rows_agree_with_their_modules(row):
    module: Any = importlib.import_module(row.module)
    others = [size for other in catalog.SYSTEMS if other.module == row.module and other != row for size in other.sizes]
    assert set(row.sizes) | set(others) == set(module.sizes) and not set(row.sizes) & set(others)
    assert list(row.sizes) == [size for size in module.sizes if size in row.sizes]
    assert list(row.layouts) == list(module.RENAME)
    assert all(recipe.startswith(f"{row.name}.") for recipe in row.recipes)


def test_names_are_unique():
    names = [name for row in catalog.SYSTEMS for name in {row.name, *row.sizes}]
    assert len(names) == len(set(names))
    assert len(catalog.recipes()) == len(set(catalog.recipes()))


@pytest.mark.parametrize(("size", "parameters"), [item for row in catalog.SYSTEMS for item in row.sizes.items()])
def test_every_size_builds_and_has_as_many_parameters_as_its_row_says(size, parameters):
    assert catalog.count(size) == parameters


def test_overrides():
    model = catalog.model("resnet18", num_classes=10, stem="cifar", in_channels=1, width=8)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert catalog.model("mlp", in_features=12, hidden=(4,), activation="swish")(torch.randn(2, 3, 4)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "overrides", "message", "hint"),
    [
        ("resnet81", {}, "unknown model 'resnet81'", "did you mean resnet18?"),
        ("resnet", {}, "unknown model 'resnet'", "did you mean resnet"),
        ("qqq", {}, "unknown model 'qqq'", "one of mlp, "),
        ("resnet18", {"num_class": 3}, "resnet18 has no setting 'num_class'", "did you mean num_classes?"),
        ("resnet18", {"qqq": 3}, "resnet18 has no setting 'qqq'", "one of depths, bottleneck"),
        ("resnet18", {"stem": "cifra"}, "resnet18 cannot be built with {'stem': 'cifra'}", ""),
        ("mlp", {"dropout": 1.5}, "dropout probability has to be between 0 and 1, but got 1.5", ""),
        ("mlp", {"num_classes": -1}, "cannot be built with {'num_classes': -1}", ""),
        ("mlp", {"num_classes": "ten"}, "cannot be built with {'num_classes': 'ten'}", ""),
    ],
)
def test_mistakes(name, overrides, message, hint):
    with pytest.raises(UsageError) as caught:
        catalog.model(name, **overrides)
    assert message in str(caught.value) and hint in caught.value.hint


def test_systems_are_found_by_their_sizes():
    assert catalog.system("resnet50") is catalog.system("resnet")
    with pytest.raises(UsageError, match="unknown system 'mobilnet'") as caught:
        catalog.system("mobilnet")
    assert caught.value.hint == "did you mean mobilenet?"


def test_no_torch():
    code = "import sys, etude.catalog as c; c.recipes(), c.system('resnet').json(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
