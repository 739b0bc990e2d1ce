"""Batches that grow: their sizes, the samples they hold, the schedule that counts samples, and resuming within."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import TYPES, everything

from etude.data.base import Dataset
from etude.engine import fit
from etude.engine.checkpoint import digest
from etude.engine.optim import Schedule
from etude.engine.parallel import World
from etude.engine.recipe import Ramp, Recipe
from etude.engine.trainer import Trainer
from etude.errors import UsageError


def ramped(ramp: Ramp = Ramp(first=4, samples=60), **changes) -> Recipe:  # noqa: B008 - frozen
    given = {"batch_size": 24, "accumulate": 12, "steps": 20, "save_every": 4, "ramp": ramp}
    return dataclasses.replace(everything(), **(given | changes))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 8), st.integers(1, 2000))
def test_sizes(unit: int, first: int, more: int, samples: int):
    """Multiples of a part, never falling, as large as the line from first to full says, exactly full after it."""
    full = unit * (first + more)
    recipe = ramped(Ramp(first=unit * first, samples=samples), batch_size=full, accumulate=first + more)
    seen = 0
    before = 0
    for step in range(200):
        assert recipe.samples_before(step) == seen
        size = recipe.samples_at(step)
        wanted = unit * first + (full - unit * first) * min(seen, samples) / samples
        assert size == int(wanted) // unit * unit and before <= size <= full
        assert recipe.parts_at(step) * unit == size
        before, seen = size, seen + size
        if seen >= samples:
            assert recipe.samples_at(step + 1) == full
    assert ramped(Ramp(), batch_size=full, accumulate=1).samples_before(7) == 7 * full


def test_a_small_batch_is_a_part_of_a_step_of_the_schedule():
    recipe = ramped()
    assert recipe.batches_before(0) == 0 and recipe.batches_before(1) == 4 / 24
    assert everything().batches_before(7) == 7 and isinstance(everything().batches_before(7), int)
    schedule = Schedule("cosine", warmup=2)
    done, whole = recipe.batches_before(10), recipe.batches_before(20)
    assert schedule.factor(done, whole) < 1 and whole < 20


def test_batches_are_stretches_of_one_stream(tmp_path):
    recipe = ramped()
    trainer = Trainer(recipe, None, world=World(torch.device("cpu")), quiet=True)
    found = [trainer.make_batch(step)["index"] for step in range(9)]
    assert [len(one) for one in found] == [recipe.samples_at(step) for step in range(9)]
    stream = trainer.dataset.batch(seed=recipe.seed, step=0, batch_size=sum(map(len, found)))["index"]
    assert torch.equal(torch.cat(found), stream)
    whole = trainer.dataset.stretch(seed=3, start=30, batch_size=12)["index"]
    shares = [trainer.dataset.stretch(seed=3, start=30, batch_size=12, rank=r, world=3)["index"] for r in range(3)]
    assert torch.equal(torch.cat(shares), whole)


def test_resuming_within_the_ramp_is_exact(tmp_path):
    whole = fit.train(ramped(), run=tmp_path / "whole", device="cpu", quiet=True, types=TYPES)
    epochs = [line["epoch"] for line in whole.metrics if "epoch" in line]
    assert epochs[-1] == pytest.approx(ramped().samples_before(20) / 211, abs=1e-4)
    trainer = Trainer(ramped(), tmp_path / "stopped", world=World(torch.device("cpu")), quiet=True)
    (tmp_path / "stopped").mkdir()
    record, sizes = trainer._record, []

    class Died(Exception):
        pass

    def die(logs):
        sizes.append(len(trainer._batch["index"]))
        if trainer.step == 7:
            raise Died
        record(logs)

    trainer._record = die
    with pytest.raises(Died):
        trainer.fit()
    assert sizes == [ramped().samples_at(step) for step in range(7)] and len(set(sizes)) > 2
    resumed = Trainer(ramped(), tmp_path / "stopped", world=World(torch.device("cpu")), quiet=True)
    resumed.resume()
    assert resumed.step == 4
    resumed.fit()
    result = json.loads((tmp_path / "stopped" / "result.json").read_text())
    assert result["weights_sha256"] == whole.result["weights_sha256"]
    assert digest(resumed.tensors()["optim"])


@pytest.mark.parametrize(
    ("ramp", "said"),
    [
        (Ramp(first=48, samples=9), "batches must grow from 1 sample or more to batch_size 24"),
        (Ramp(first=6), "ramp.samples 0"),
        (Ramp(first=7, samples=9), "ramp.first 7 is no multiple of a part of 2"),
    ],
)
def test_what_cannot_grow_is_told(ramp, said):
    with pytest.raises(UsageError, match=said):
        ramped(ramp)


def test_data_with_batches_of_its_own_cannot_grow(monkeypatch):
    trainer = Trainer(ramped(), None, world=World(torch.device("cpu")), quiet=True)
    monkeypatch.setattr(type(trainer.dataset), "batch", lambda self, **_: {}, raising=False)
    with pytest.raises(UsageError, match="they cannot grow"):
        Trainer(ramped(), None, world=World(torch.device("cpu")), quiet=True)
    assert type(trainer.dataset).stretch is Dataset.stretch


def test_a_ramp_survives_json():
    recipe = ramped()
    assert Recipe.from_json(recipe.to_json(), types=TYPES) == recipe and recipe.ramp == Ramp(first=4, samples=60)
