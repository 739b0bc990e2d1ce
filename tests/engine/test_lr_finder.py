"""The range test: it reads curves whose answer is known, and its suggestion trains."""

import json
import math

import numpy as np
import pytest
from toys import Blobs, everything, game

from etude import cli
from etude.engine import lr_finder
from etude.engine.lr_finder import Sweep, find_lr, suggest
from etude.engine.optim import Optim
from etude.engine.trainer import Trainer
from etude.errors import UsageError


def test_rates_grow_by_one_factor_a_step():
    rates = [Sweep("constant", low=1e-6, high=1.0).factor(step, 7) for step in range(7)]
    np.testing.assert_allclose(rates, [10.0**e for e in range(-6, 1)])


def test_the_steepest_fall_and_the_lowest_loss_are_read_from_the_curve():
    """A fall like a logistic in log rate is steepest at its middle; the loss is lowest where the rise overtakes it."""
    rates = np.logspace(-6, 0, 121)
    curve = 2 / (1 + np.exp(3 * np.log10(rates / 1e-3))) + (rates / 0.5) ** 2
    suggestion, largest = suggest(rates.tolist(), curve.tolist())
    assert suggestion == pytest.approx(1e-3, rel=0.2)
    assert largest == pytest.approx(rates[np.argmin(curve)], rel=0.05)


def test_a_curve_that_does_not_fall_is_refused():
    rates = np.logspace(-6, 0, 50).tolist()
    with pytest.raises(UsageError, match="fell at no rate"):
        suggest(rates, list(range(50)))
    with pytest.raises(UsageError, match="broke at once"):
        suggest(rates[:5], [1.0] * 5)
    with pytest.raises(UsageError, match="sweep needs"):
        find_lr(everything(), low=1.0, high=0.1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_suggestion_trains(name):
    """A short run at the suggested rate ends well below its first loss, and below a rate a thousand times smaller."""
    recipe = everything(optim=Optim(name), **{"schedule.name": "constant", "schedule.warmup": 0})
    found = find_lr(recipe)
    assert 1e-5 < found.suggestion <= found.largest
    ends = {}
    for rate in (found.suggestion, found.suggestion / 1000):
        ends[rate] = Trainer(recipe.with_(**{"optim.lr": rate}), None, quiet=True).fit()["eval"]["loss"]
    assert ends[found.suggestion] < 0.8 * math.log(3) < ends[found.suggestion / 1000]


def test_it_stops_where_the_loss_breaks_and_changes_nothing_elsewhere():
    found = find_lr(everything(optim=Optim("sgd"), clip=None), high=1e6)
    assert found.broke and len(found.losses) < 100
    assert find_lr(everything(optim=Optim("sgd"), clip=None), high=1e6) == found


def test_a_bad_sample_ends_it_too():
    with pytest.raises(UsageError, match="broke at once"):
        find_lr(everything(data=Blobs(poison=int(Blobs().open().batch(seed=3, step=2, batch_size=12)["index"][0]))))


def test_two_players_grow_in_proportion():
    assert find_lr(game(), steps=40).rates[0] == pytest.approx(1e-6)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "mlp.digits", "--find-lr"]) == 0
    said = capsys.readouterr().out
    assert "suggested" in said and "etude train mlp.digits --optim.lr" in said
    assert cli.main(["train", "mlp.digits", "--find-lr", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["page"].endswith("lr-finder-2.html") and 1e-4 < found["suggestion"] < 0.1
    page = (tmp_path / found["page"]).read_text()
    assert "suggested" in page and f"--optim.lr {found['suggestion']:g}" in page
    assert sorted(p.name for p in (tmp_path / "runs/mlp.digits").iterdir()) == ["lr-finder-1.html", "lr-finder-2.html"]
    assert lr_finder.BROKEN > 1
