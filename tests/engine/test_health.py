"""Gradient health: what is measured is what hand computation gives, nothing changes by it, and the words fit."""

import json
import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
import torch
from test_trainer import CPU, digests, quiet, run_until
from torch import nn
from toys import everything, game

from etude.basics import mlp
from etude.engine import health
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.recipes import find_recipe


def lines(trainer) -> list[dict]:
    held = [json.loads(line) for line in (trainer.directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in held if "grad_norms" in line]


def said(trainer) -> list[str]:
    log = (trainer.directory / "log.txt").read_text().splitlines()
    marks = [mark for begin, end, *_ in health._WORDS.values() for mark in (begin, end)]
    return [line for line in log if any(mark in line for mark in marks)]


@dataclass(frozen=True)
class Bent:
    """linear - activation - linear, or convolution - activation - linear."""

    activation: str = "ReLU"
    convolution: bool = False
    dead: int = 0
    """Units whose bias holds them at 0 (or at their limit) whatever comes in."""

    def build(self) -> nn.Module:
        first = nn.Conv2d(1, 8, 3, padding=1) if self.convolution else nn.Linear(16, 8)
        front = [first] if self.convolution else [nn.Flatten(), first]
        rest = [nn.Flatten(), nn.Linear(8 * 16, 3)] if self.convolution else [nn.Linear(8, 3)]
        with torch.no_grad():
            first.weight.mul_(0.1)
            first.get_parameter("bias").fill_(0.5)[: self.dead] = -100.0
        return nn.Sequential(*front, getattr(nn, self.activation)(), *rest)


PLAIN = everything(
    model=Bent(), precision="fp32", accumulate=1, clip=None, ema=None, channels_last=False, steps=2,
    optim=Optim("sgd", lr=0.5, momentum=0.0), schedule=Schedule("constant"),
)  # fmt: skip


def test_what_is_measured_is_what_the_formulas_say(tmp_path):
    """The first step of SGD: |lr g| / |w|, the gradient's norm and the output's root mean square, by hand."""
    trainer = quiet(PLAIN, tmp_path / "run")
    model = PLAIN.model.build()
    model.load_state_dict(trainer.model.state_dict())
    batch = trainer.dataset.finish(trainer.dataset.batch(seed=3, step=0, batch_size=12))
    loss, _ = PLAIN.task.loss(model, batch)
    loss.backward()
    model.requires_grad_(False)
    flatten, first, bend, last = model
    trainer.fit()
    (line,) = lines(trainer)
    assert line["step"] == 1
    hidden = first(flatten(batch["image"]))
    for name, layer, output in (("1", first, hidden), ("3", last, last(bend(hidden)))):
        grad = math.sqrt(sum(float(p.grad.square().sum()) for p in layer.parameters()))
        weight = math.sqrt(sum(float(p.square().sum()) for p in layer.parameters()))
        assert line["grad_norms"][name] == pytest.approx(grad, rel=1e-5)
        assert line["update_ratios"][name] == pytest.approx(0.5 * grad / weight, rel=1e-3)
        assert line["act_norms"][name] == pytest.approx(float(output.square().mean().sqrt()), rel=1e-3)
    assert list(line["act_norms"]) == ["1", "2", "3"]
    assert list(line["grad_norms"]) == list(line["update_ratios"]) == ["1", "3"]


@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "rmsprop", "lars"])
def test_the_update_is_measured_for_every_optimiser(tmp_path, optim):
    """Under accumulation, clipping, bf16 and averages, too: the weights that a step leaves are those it says."""
    recipe = everything(optim=Optim(optim, lr=0.01, weight_decay=0.1), steps=1)
    trainer = quiet(recipe, tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    (line,) = lines(trainer)
    moved, length = {}, {}
    for name, p in trainer.model.named_parameters():
        layer = name.rpartition(".")[0]
        moved[layer] = moved.get(layer, 0) + float((p.detach() - before[name]).square().sum())
        length[layer] = length.get(layer, 0) + float(before[name].square().sum())
    assert line["update_ratios"] == pytest.approx({n: math.sqrt(moved[n] / length[n]) for n in moved}, rel=1e-3)


def test_parts_of_a_batch_are_measured_as_the_whole(tmp_path):
    whole, parts = (quiet(PLAIN.with_(accumulate=n, steps=1), tmp_path / str(n)) for n in (1, 4))
    whole.fit()
    parts.fit()
    for kind in health.KINDS:
        assert lines(parts)[0][kind] == pytest.approx(lines(whole)[0][kind], rel=2e-3)


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("activation", ["ReLU", "GELU", "Sigmoid", "Tanh"])
def test_dead_units_are_counted(tmp_path, activation, convolution):
    """A unit is dead that every sample leaves at 0, or a sigmoid's or tanh's at its limit; a channel, everywhere."""
    recipe = PLAIN.with_(model=Bent(activation, convolution, dead=3), steps=1)
    trainer = quiet(recipe, tmp_path / "run")
    trainer.fit()
    (share,) = lines(trainer)[0]["dead_units"].values()
    assert share == pytest.approx(3 / 8, abs=1e-4)


def test_each_player_is_measured(tmp_path):
    trainer = quiet(game(steps=1), tmp_path / "run")
    trainer.fit()
    (line,) = lines(trainer)
    assert set(line["grad_norms"]) == set(line["update_ratios"]) == {"maker", "critic.0", "critic.2"}
    assert set(line["act_norms"]) == {"maker", "critic.0", "critic.1", "critic.2"}
    assert set(line["dead_units"]) == {"critic.1"}


@pytest.mark.parametrize("recipe", [everything(), game()], ids=["everything", "game"])
def test_measuring_changes_no_bit(recipe, monkeypatch):
    with_it = quiet(recipe)
    with_it.fit()
    monkeypatch.setattr(health, "every", lambda log_every, steps: 10**9)
    without = quiet(recipe)
    without._health_due = False
    without.fit()
    assert digests(with_it) == digests(without)


def test_hooks_stand_in_due_steps_only(monkeypatch):
    """Of 60 steps four are due, and no hook stays behind."""
    trainer, due, hooked = quiet(everything()), [], []
    step = trainer.take_step

    def watch(batch):
        assert not any(module._forward_hooks for module in trainer.model.modules())
        due.append(trainer._health_due)
        return step(batch)

    forward = nn.Linear.forward

    def look(self, x):
        if self.training:
            hooked.append(bool(self._forward_hooks))
        return forward(self, x)

    trainer.take_step = watch
    monkeypatch.setattr(nn.Linear, "forward", look)
    trainer.fit()
    assert [at for at, is_due in enumerate(due) if is_due] == [0, 15, 30, 45]
    assert sum(hooked) == 4 * 2 and len(hooked) == 60 * 2, "two accumulated parts a step"
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_compiled_layers_are_not_hooked(monkeypatch, tmp_path):
    trainer = quiet(everything(steps=3), tmp_path / "run")
    trainer.compiled = True
    monkeypatch.setattr(health.Probe, "outputs", lambda self: pytest.fail("a compiled layer was hooked"))
    trainer.fit()
    (line,) = lines(trainer)
    assert line["grad_norms"] and line["update_ratios"] and not line["act_norms"] and not line["dead_units"]


def test_a_measured_step_costs_little():
    """A generous bound for a busy machine; docs/health.md has the figures: about a third on a network this small."""
    trainer = quiet(find_recipe("mlp.digits"))
    trainer.model.train()
    trainer._logged = trainer._showing = False
    batch = trainer.dataset.finish(trainer.make_batch(0))
    took: dict[bool, list[float]] = {True: [], False: []}
    for step in range(400):
        trainer._health_due = step % 2 == 0
        begun = time.perf_counter()
        trainer.take_step(batch)
        took[trainer._health_due].append(time.perf_counter() - begun)
    assert median(took[True]) < 3 * median(took[False])


# --- the words


def test_a_deep_sigmoid_network_vanishes(tmp_path):
    """Twenty layers: each sigmoid passes on less than a quarter of the gradient. The first layers are named, once."""
    recipe = deep("sigmoid", "xavier_uniform")
    trainer = quiet(recipe, tmp_path / "run")
    trainer.fit()
    first = said(trainer)[0]
    assert "step 31 " in first and "gradients vanish in hidden.0, hidden.1, hidden.2 and " in first
    assert "he_normal with relu, BatchNorm or residuals" in first
    assert sum("hidden.0" in line for line in said(trainer)) == 1


def deep(activation: Any, init: Any) -> Recipe:
    return find_recipe("mlp.digits").with_(
        model=mlp.Config(in_features=64, hidden=(64,) * 19, activation=activation, init=init),
        optim=Optim("sgd", lr=0.01), steps=120, name="mlp.deep",
    )  # fmt: skip


@pytest.mark.parametrize(
    "recipe",
    [
        find_recipe("mlp.digits").with_(steps=400),
        deep("relu", "he_normal"),
        find_recipe("resnet.digits").with_(steps=60, log_every=2, batch_size=32, eval_every=60, **{"model.width": 16}),
        everything(log_every=1),
        game(log_every=1),
    ],
    ids=["mlp.digits", "he_normal", "resnet.digits", "everything", "game"],
)
def test_no_false_alarm(recipe, tmp_path):
    trainer = quiet(recipe, tmp_path / "run")
    trainer.fit()
    assert not said(trainer)
    assert len(lines(trainer)) > 3


def test_dead_layers_are_named(tmp_path):
    trainer = quiet(PLAIN.with_(model=Bent(dead=6), steps=60, **{"optim.lr": 0.01}), tmp_path / "run")
    trainer.fit()
    (line,) = said(trainer)
    assert "step 16 " in line and "units are dead in 2: 75%" in line


def test_a_rate_that_is_too_high_is_named(tmp_path):
    recipe = everything(optim=Optim("sgd", lr=300.0), schedule=Schedule("constant"), clip=None, ema=None, log_every=1)
    trainer = quiet(recipe.with_(steps=30), tmp_path / "run")
    trainer.fit()
    assert any("updates are too large in" in line and "--optim.lr" in line for line in said(trainer))


def measured(**grads: float) -> health.Measured:
    return {"grad_norms": grads}


def judge(players=("model",), **sizes: int) -> health.Judge:
    return health.Judge(sizes, players)


def test_messages_come_once_and_go_once():
    """Two measurements in a row must agree, either way."""
    speak = judge(a=1, b=1, c=1)
    well, ill = measured(a=1.0, b=1.0, c=1.0), measured(a=1e-9, b=1.0, c=1.0)
    heard = [speak(m) for m in (well, ill, well, ill, ill, ill, ill, well, ill, well, well, well)]
    assert [bool(h) for h in heard] == [False] * 4 + [True] + [False] * 5 + [True] + [False]
    assert heard[4] == [
        "gradients vanish in a: 1e-09 of the largest layer's per weight; what usually helps: he_normal with relu, "
        "BatchNorm or residuals"
    ]
    assert heard[10] == ["gradients no longer vanish in a"]


def test_vanishing_is_by_weight_not_by_layer():
    """A layer of a million weights may have the gradient norm of a layer of one, spread thin."""
    speak = judge(large=10**6, small=1)
    for _ in range(4):
        assert not speak(measured(large=1e-3, small=1.0))
    assert not speak(measured(large=1e-5, small=1.0)) and speak(measured(large=1e-5, small=1.0))


def test_exploding_layers_stand_out_and_grow():
    speak = judge(a=1, b=1, c=1)
    steady = measured(a=1.0, b=1.0, c=5e3)
    assert not any(speak(steady) for _ in range(10)), "large, but always so"
    (line,) = [said for k in range(3) for said in speak(measured(a=1.0, b=1.0, c=5e4 * 10**k))]
    assert line.startswith("gradients explode in c: ") and "--clip 1.0" in line


def test_a_network_that_explodes_as_a_whole_is_named():
    speak = judge(a=1, b=1)
    heard = [speak(measured(a=norm, b=norm)) for norm in (1.0, 2.0, 0.5, 0.1, 0.01, 1.0, 5e4, 9e6)]
    assert not any(heard[:7]) and heard[7][0].startswith("gradients explode in all layers of model: ")


def test_players_are_judged_apart():
    """A critic's gradients are no measure for the maker's."""
    speak = judge(("maker", "critic"), **{"maker.a": 1, "maker.b": 1, "critic.a": 1})
    for _ in range(4):
        assert not speak(measured(**{"maker.a": 1e-9, "maker.b": 2e-9, "critic.a": 1.0}))


def test_nothing_is_said_again_after_a_resume(tmp_path):
    """What the judge knows follows from metrics.jsonl."""
    recipe = deep("sigmoid", "xavier_uniform").with_(save_every=30)
    stopped = quiet(recipe, tmp_path / "run")
    run_until(stopped, 70)
    assert len(said(stopped)) >= 1
    resumed = quiet(recipe, tmp_path / "run")
    resumed.resume()
    resumed.fit()
    whole = quiet(recipe, tmp_path / "whole")
    whole.fit()
    words = [line.split(" ", 1)[1] for line in said(resumed)]
    assert len(words) == len(set(words))
    assert set(words) == {line.split(" ", 1)[1] for line in said(whole)}


def test_a_judge_remembers_measurements_only(tmp_path):
    """After a resume it stands where it stood, though lines of other things follow; a damaged log does not stop it."""
    whole = quiet(PLAIN.with_(steps=20), tmp_path / "run")
    whole.fit()
    path = tmp_path / "run" / "metrics.jsonl"
    kept = path.read_bytes()
    assert "grad_norms" not in json.loads(kept.splitlines()[-1])

    def resumed() -> health.Judge:
        trainer = quiet(PLAIN.with_(steps=20), tmp_path / "run")
        trainer.resume()
        trainer.log.close()
        return trainer.judge

    assert resumed().last == whole.judge.last and set(whole.judge.last) == set(health.KINDS)
    begun = [line for line in kept.splitlines() if b"grad_norms" in line]
    path.write_bytes(kept.replace(begun[0], b"3".ljust(len(begun[0]))))
    assert resumed().last == whole.judge.last
    norm = str(whole.judge.last["grad_norms"]["3"])
    assert kept.count(norm.encode()) == 1
    path.write_bytes(kept.replace(norm.encode(), f'"{"x" * (len(norm) - 2)}"'.encode()))
    assert list(resumed().last["grad_norms"]) == ["1"]


def test_a_step_that_the_scaler_skips_is_not_measured(tmp_path):
    """Where gradients overflow, they tell nothing of the layers; nor may infinity come into a JSON file."""
    trainer = quiet(PLAIN.with_(steps=8, log_every=1), tmp_path / "run")
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)
    skipped = (0, 4)
    first = next(p for p in trainer.model.parameters())
    first.register_hook(lambda grad: grad * math.inf if trainer.step in skipped else grad)
    trainer.fit()
    assert health.every(1, 8) == 3
    assert [line["step"] - 1 for line in lines(trainer)] == [3, 6]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in metrics.jsonl")

    held = [json.loads(x, parse_constant=refuse) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in held if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, 9))
    assert [line["step"] - 1 for line in logged if "grad_norm" not in line] == [*skipped]


def test_what_overflows_is_left_out():
    seen = {"grad_norms": {"a": math.inf, "b": 1.0}, "act_norms": {"a": math.nan}, "update_ratios": {"a": 0.12346}}
    assert health.line(seen) == {"grad_norms": {"b": 1.0}, "act_norms": {}, "update_ratios": {"a": 0.1235}}


def test_every_is_at_most_fifty_times_a_run():
    assert [health.every(10, steps) for steps in (60, 1000, 5000)] == [30, 30, 100]
    assert health.every(1, 40) == 3


def test_the_trend_before_a_failure():
    norms = [(step, 0.5 * 10.0**step) for step in range(6)]
    words = health.trend(norms, {"a": 1.0}, {}, clipped=False)
    assert words == "the gradient norm grew from 0.5 at step 0 to 5e+04 at step 5: set --clip 1.0"
    assert "clip" not in health.trend(norms, {"a": 1.0}, {}, clipped=True)
    assert "the weights of a have grown 1e+03 times" in health.trend([], {"a": 1e3, "b": 1.0}, {}, clipped=False)
    assert health.trend([(1, 1.0), (2, 2.0)], {"a": 1.5}, {"update_ratios": {"a": 0.01}}, clipped=False) == ""
    start = {"a.weight": torch.ones(4), "a.bias": torch.zeros(1)}
    assert health.growth({"a.weight": torch.full((4,), 3.0), "a.bias": torch.zeros(1)}, start) == {"a": 3.0}


def test_outputs_that_are_not_tensors_are_passed_over():
    """A recurrent layer's first output counts; whole numbers and nothing do not."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return None

    model = nn.ModuleDict({"rnn": nn.LSTM(3, 4), "odd": Odd(), "root": nn.Embedding(3, 2)})
    probe = health.Probe(model)
    with probe.outputs():
        out, _ = model["rnn"](torch.randn(5, 2, 3))
        model["odd"](out)
        model["root"](torch.tensor([0, 1]))
    names = list(model.named_parameters())
    probe.before(names, [torch.ones(()) for _ in names])
    seen = probe.after(CPU)
    assert seen["act_norms"]["rnn"] == pytest.approx(float(out.detach().square().mean().sqrt()), rel=1e-5)
    assert set(seen["act_norms"]) == {"rnn", "root"}
