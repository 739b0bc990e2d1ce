"""The loop: exact resume, players, accumulation, early stopping, signals, NaN."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from toys import TYPES, Blobs, LogOfLogits, Net, RootAtZero, everything, game

from etude.engine import checkpoint, fit
from etude.engine.optim import Optim, Schedule
from etude.engine.parallel import World
from etude.engine.replay import replay
from etude.engine.run import Run
from etude.engine.trainer import Trainer
from etude.errors import Interrupted, NumericError, UsageError
from etude.tasks.classify import Classify

CPU = World(torch.device("cpu"))


def quiet(recipe, directory=None, **options) -> Trainer:
    if directory:
        directory.mkdir(parents=True, exist_ok=True)
    return Trainer(recipe, directory, world=CPU, quiet=True, **options)


def digests(trainer: Trainer) -> dict[str, str]:
    return {name: checkpoint.digest(tensors) for name, tensors in trainer.tensors().items()}


class Killed(Exception):
    pass


def run_until(trainer: Trainer, step: int) -> None:
    """Train, and stop dead before `step` is recorded: no save, no goodbye."""
    record = trainer._record

    def stop(logs):
        if trainer.step > step:
            raise Killed
        record(logs)

    trainer._record = stop
    with pytest.raises(Killed):
        trainer.fit()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    trainer = quiet(everything(save_every=1, keep=100), directory)
    result = trainer.fit()
    return directory, digests(trainer), result


@pytest.mark.parametrize("step", range(1, 61))
def test_resume_from_every_step_is_exact(uninterrupted, tmp_path, step):
    """Weights, optimiser, averages and the metric log are those of the run that was never stopped, bit for bit."""
    whole, expected, result = uninterrupted
    directory = tmp_path / "resumed"
    (directory / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / f"step-{step}", directory / "checkpoints" / f"step-{step}")
    log = (whole / "metrics.jsonl").read_bytes()
    (directory / "metrics.jsonl").write_bytes(log[: len(log) // 2 + 400])  # what was logged after the checkpoint is cut
    if step == 60:
        (directory / "metrics.jsonl").write_bytes(log)
    state = json.loads((whole / "checkpoints" / f"step-{step}" / "state.json").read_text())
    if len((directory / "metrics.jsonl").read_bytes()) < state["metrics_bytes"]:
        (directory / "metrics.jsonl").write_bytes(log[: state["metrics_bytes"]] + b'{"step": 99')
    trainer = quiet(everything(save_every=1000), directory, workers=2 if step % 2 else 0)
    trainer.resume()
    assert trainer.step == step
    again = trainer.fit()
    assert digests(trainer) == expected
    assert (directory / "metrics.jsonl").read_bytes() == log
    assert again | {"seconds": 0} == result | {"seconds": 0}


OTHERS = {
    "two players": game(save_every=7, keep=9),
    "sgd": everything(optim=Optim("sgd", lr=0.1, nesterov=True), save_every=7),
    "lars": everything(optim=Optim("lars", lr=1.0), save_every=7),
    "rmsprop": everything(optim=Optim("rmsprop", lr=0.001), save_every=7),
    "patience": everything(save_every=7, patience=2, eval_every=5, **{"data.validation": 53}),
}


@pytest.mark.parametrize("recipe", OTHERS.values(), ids=list(OTHERS))
def test_death_and_resume_for_other_recipes(recipe, tmp_path):
    whole = quiet(recipe, tmp_path / "whole")
    result = whole.fit()
    stopped = quiet(recipe, tmp_path / "stopped")
    run_until(stopped, min(23, result["steps"] - 1))
    resumed = quiet(recipe, tmp_path / "stopped", workers=2)
    resumed.resume()
    assert 0 < resumed.step < recipe.steps
    again = resumed.fit()
    assert digests(resumed) == digests(whole)
    assert again | {"seconds": 0} == result | {"seconds": 0}
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_workers_do_not_change_results():
    results = [digests_after(everything(steps=12), workers=workers) for workers in (0, 1, 2, 4)]
    assert all(result == results[0] for result in results)


def digests_after(recipe, **options) -> dict[str, str]:
    trainer = quiet(recipe, **options)
    trainer.fit()
    return digests(trainer)


def test_seed_decides():
    assert digests_after(everything(steps=5)) == digests_after(everything(steps=5))
    assert digests_after(everything(steps=5)) != digests_after(everything(steps=5, seed=4))


def test_no_sample_is_skipped_or_repeated_in_an_epoch():
    dataset = Blobs(train=53).open()
    seen = torch.cat([dataset.batch(seed=1, step=step, batch_size=7)["index"] for step in range(53)])
    for epoch in range(7):
        assert sorted(seen[epoch * 53 : (epoch + 1) * 53].tolist()) == list(range(53))


def test_accumulated_parts_are_the_whole_batch():
    """Without BatchNorm and dropout, four parts give the gradient of the whole batch."""
    plain = everything(
        model=Net(dropout=0, batchnorm=False), precision="fp32", steps=4, accumulate=1, optim=Optim("sgd", lr=0.1)
    )
    whole, parts = quiet(plain), quiet(plain.with_(accumulate=4))
    whole.fit()
    parts.fit()
    for a, b in zip(whole.model.parameters(), parts.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_clip_bounds_the_step():
    """With plain SGD at rate 1 the first step's length is the gradient's norm, cut to `clip`."""
    recipe = everything(
        optim=Optim("sgd", lr=1.0, momentum=0.0), schedule=Schedule("constant"), clip=0.01, steps=1, ema=None
    )
    trainer = quiet(recipe)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.fit()
    moved = torch.stack([(p - b).norm() for p, b in zip(trainer.model.parameters(), before)]).norm()
    assert trainer.last_train["grad_norm"] > 0.01
    torch.testing.assert_close(moved.item(), 0.01, rtol=1e-3, atol=0)


def test_players_move_only_their_own_weights(tmp_path):
    trainer = quiet(game(steps=1, optim=dataclasses.replace(game().optim, maker=Optim("sgd", lr=1e-30))))
    maker = [p.detach().clone() for p in trainer.model.get_submodule("maker").parameters()]
    critic = [p.detach().clone() for p in trainer.model.get_submodule("critic").parameters()]
    trainer.fit()
    assert all(torch.equal(a, b) for a, b in zip(maker, trainer.model.get_submodule("maker").parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(critic, trainer.model.get_submodule("critic").parameters()))


def test_the_game_is_won(tmp_path):
    """The maker's numbers come to lie where the data's do."""
    run = fit.train(game(steps=400, log_every=50), run=tmp_path / "game", quiet=True, types=TYPES)
    evals = [line["eval"]["distance"] for line in run.metrics if "eval" in line]
    assert evals[-1] < 0.4 * max(evals[0], 1.0)
    assert {"maker/loss", "critic/loss", "maker/lr", "critic/lr", "maker/grad_norm"} <= run.metrics[0].keys()


def test_early_stopping_restores_the_best(tmp_path):
    """The learning rate grows until training falls apart; what is kept is the best evaluation's weights."""
    recipe = everything(
        optim=Optim("sgd", lr=0.02), schedule=Schedule("constant"), steps=400, eval_every=10, patience=3, ema=None,
        **{"data.validation": 53},
    )  # fmt: skip
    run = fit.train(recipe, run=tmp_path / "run", quiet=True, types=TYPES)
    result, scores = run.result, {}
    for line in run.metrics:
        if line.get("split") == "validation":
            scores[line["step"]] = line["eval"]["accuracy"]
    best = max(scores.values())
    first_best = min(step for step, score in scores.items() if score == best)
    assert result["best"] == {"step": first_best, "accuracy": best, "split": "validation"}
    assert result["steps"] == min(first_best + 30, 400)
    assert run.evaluate("validation", precision=result["precision"])["accuracy"] == best
    assert run.evaluate("test", precision=result["precision"]) == result["eval"]


def test_patience_needs_validation():
    with pytest.raises(UsageError, match="held-out"):
        quiet(everything(patience=2))


def test_loss_falls_and_eval_agrees_with_the_result(tmp_path):
    run = fit.train(everything(steps=120), run=tmp_path / "run", quiet=True, types=TYPES)
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert sum(losses[-4:]) / 4 < 0.85 * losses[0]
    assert run.result["precision"] == "bf16" and run.evaluate(precision="bf16") == run.result["eval"]
    moved = Run((tmp_path / "run").rename(tmp_path / "elsewhere"), types=TYPES)
    assert moved.evaluate(precision="bf16") == moved.result["eval"]


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_run_in_bf16_answers_in_the_faster_format(tmp_path, monkeypatch, fast, precision):
    """Measures in another format than the result's agree with it to that format's rounding, not to the last digit."""
    run = fit.train(everything(steps=20), run=tmp_path / "run", device="cpu", quiet=True, types=TYPES)
    monkeypatch.setattr("etude.cpu.computes_bf16", lambda: fast)
    assert run.precision(CPU.device) == precision
    assert run.evaluate(device="cpu") == run.evaluate(device="cpu", precision=precision)
    assert run.evaluate(device="cpu")["loss"] == pytest.approx(run.result["eval"]["loss"], rel=5e-3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number, code):
    before = signal.getsignal(number)
    recipe = everything()
    trainer = quiet(recipe, tmp_path / "run")
    record = trainer._record

    def interrupt(logs):
        record(logs)
        if trainer.step == 17:
            signal.raise_signal(number)

    trainer._record = interrupt
    with pytest.raises(Interrupted, match="step 17") as stopped:
        trainer.fit()
    assert stopped.value.code == code
    assert signal.getsignal(number) == before
    resumed = quiet(recipe, tmp_path / "run")
    resumed.resume()
    assert resumed.step == 17
    resumed.fit()
    whole = quiet(recipe, tmp_path / "whole")
    whole.fit()
    assert digests(resumed) == digests(whole)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.poison": 77, "accumulate": 1}, "sample 77"),
        ({"data.poison": 78}, "sample 78"),
        ({"optim": Optim("sgd", lr=1e30), "clip": None, "ema": None}, "step [1-9]"),
        ({"task": LogOfLogits(), "accumulate": 1}, r"log in the loss \(toys.py:\d+\) got -"),
        ({"task": RootAtZero(), "accumulate": 1}, r"the backward pass of sqrt in the loss \(toys.py:\d+\)"),
    ],
)
def test_nan_is_explained_and_replayed(tmp_path, change, words):
    recipe = everything(**change)
    with pytest.raises(NumericError, match=words) as failure:
        fit.train(recipe, run=tmp_path / "run", quiet=True, types=TYPES)
    run = Run(tmp_path / "run", types=TYPES)
    assert failure.value.code == 5
    assert "NaN or Inf at step" in (run.path / "error.txt").read_text()
    step, finding = replay(run)
    assert f"at step {step}: {finding.what}" in str(failure.value)
    weights = checkpoint.load_file(run.path / "replay" / "weights.safetensors")
    if "optim" not in change:  # with a rate of 1e30 the weights are what went wrong
        assert all(
            torch.isfinite(value).all() for value in weights.values() if value.is_floating_point() and value.ndim > 1
        )


def test_weights_that_cannot_be_written_at_the_end_are_no_result(tmp_path, monkeypatch):
    trainer = quiet(everything(steps=8), tmp_path / "run")

    def fail(path, tensors):
        raise checkpoint.SaveError(f"{path} could not be written: the disk is full")

    monkeypatch.setattr(checkpoint, "save_weights", fail)
    with pytest.raises(checkpoint.SaveError, match="disk is full"):
        trainer.fit()
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    again = quiet(everything(steps=8), tmp_path / "run")
    again.resume()
    result = again.fit()
    assert result["weights_sha256"] == checkpoint.digest(
        checkpoint.load_weights_file(tmp_path / "run" / "weights.safetensors")
    )


def test_lost_best_weights_do_not_lose_the_run(tmp_path):
    trainer = quiet(everything(**{"data.validation": 53}), tmp_path / "run")
    run_until(trainer, 57)
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"damaged")
    again = quiet(everything(**{"data.validation": 53}), tmp_path / "run")
    again.resume()
    again.best = {"step": 20, "accuracy": 1.0, "split": "validation"}  # the last evaluation is not better
    result = again.fit()
    assert result["best"]["step"] == 60
    assert "the last ones are kept instead" in (tmp_path / "run" / "log.txt").read_text()


def test_dry_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fit.dry_run(everything())
    assert result["steps"] == 2
    assert not list(tmp_path.iterdir())


def test_a_run_directory_is_never_overwritten(tmp_path):
    fit.train(everything(steps=1), run=tmp_path / "run", quiet=True, types=TYPES)
    with pytest.raises(UsageError, match="holds a run already"):
        fit.train(everything(steps=1), run=tmp_path / "run", quiet=True, types=TYPES)


def test_batches_must_divide():
    with pytest.raises(UsageError, match="does not divide"):
        everything(batch_size=13)


def test_compile_falls_back_to_eager(monkeypatch, tmp_path):
    """Where the compiler fails, training goes on without it and says so."""
    import torch._dynamo.exc as exc

    trainer = quiet(everything(steps=3), tmp_path / "run")
    trainer.compiled = True
    step, calls = Classify.step, []

    def fail_once(self, model, batch, update):
        calls.append(1)
        if len(calls) == 1:
            raise exc.InternalTorchDynamoError("no compiler here", None)
        return step(self, model, batch, update)

    monkeypatch.setattr(Classify, "step", fail_once)
    trainer.fit()
    assert "torch.compile failed" in (tmp_path / "run" / "log.txt").read_text()
    monkeypatch.undo()
    assert digests(trainer) == digests_after(everything(steps=3))


def test_facts_of_the_run(tmp_path):
    run = fit.train(everything(steps=3), run=tmp_path / "run", quiet=True, types=TYPES)
    data = {"recipe.json", "env.json", "metrics.jsonl", "result.json", "checkpoints", "weights.safetensors"}
    assert {entry.name for entry in Path(run.path).iterdir()} >= data | {"report.html", "log.txt"}
    assert run.recipe == everything(steps=3)
    assert run.result["weights_sha256"] == checkpoint.digest(
        checkpoint.load_weights_file(run.path / "weights.safetensors")
    )
