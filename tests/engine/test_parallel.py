"""Two processes over gloo equal one: weights, optimiser, averages, and measures of a data set of prime size."""

import json
from pathlib import Path

import parallel_worker
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from etude.engine.parallel import SyncBatchNorm
from processes import launch

NAMES = ["batchnorm", "accumulated", "sgd", "held-out", "sharded"]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    parallel_worker.main(one)
    launch(Path(parallel_worker.__file__), two)
    return one, two


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(both, name):
    one, two = (load_file(directory / name / "all.safetensors") for directory in both)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=2e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", NAMES)
def test_measures_are_exact_for_any_number_of_processes(both, name):
    """101 test samples are counted once each, though 2 does not divide 101."""
    one, two = (json.loads((directory / name / "result.json").read_text()) for directory in both)
    assert one["eval"]["accuracy"] == two["eval"]["accuracy"]
    assert (one["eval"]["accuracy"] * 101) == pytest.approx(round(one["eval"]["accuracy"] * 101), abs=1e-9)
    assert one["eval"]["loss"] == pytest.approx(two["eval"]["loss"], rel=1e-3)
    assert one["steps"] == two["steps"] and one["best"]["step"] == two["best"]["step"]


@pytest.mark.parametrize("name", NAMES)
def test_health_is_measured_over_all_processes(both, name):
    """Norms, ratios and dead units of shards and shares are those of the whole."""
    one, two = ([json.loads(line) for line in (d / name / "metrics.jsonl").read_text().splitlines()] for d in both)
    pairs = [(a, b) for a, b in zip(one, two) if "grad_norms" in a]
    assert len(pairs) >= 2
    for a, b in pairs[:2]:
        for kind in ("grad_norms", "act_norms", "update_ratios", "dead_units"):
            assert a[kind] and b[kind] == pytest.approx(a[kind], rel=5e-3, abs=1e-6)


def test_shared_batchnorm_in_one_process_is_batchnorm(monkeypatch):
    """Its formulas, with the sum over processes being the identity."""
    import torch.distributed as dist

    monkeypatch.setattr(dist, "all_reduce", lambda value, *_: None)
    torch.manual_seed(0)
    plain, shared = nn.BatchNorm2d(5), SyncBatchNorm(5)
    x = torch.randn(7, 5, 3, 3) * 3 + 2
    y = x.clone().requires_grad_()
    x.requires_grad_()
    weight = torch.randn(7, 5, 3, 3)
    (plain(x) * weight).sum().backward()
    (shared(y) * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.weight.grad, shared.weight.grad, rtol=1e-4, atol=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value, rtol=1e-5, atol=1e-6)
