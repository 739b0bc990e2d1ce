"""The only training loop.

    for each step: batch -> task.step(model, batch, update) -> log, evaluate, save

What makes a kill cost nothing: the batch, its augmentation and the dropout masks of a step follow from (seed, step)
alone, so a checkpoint holds weights, optimiser state, averages and one integer, and the metric log is cut back to
where it stood when the checkpoint was written.
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from etude import report
from etude.data.base import Batch, Dataset
from etude.engine import checkpoint, health, log, monitor
from etude.engine.evaluate import arrive, leave, measure, numbers
from etude.engine.log import duration
from etude.engine.optim import EMA, by_player
from etude.engine.parallel import Player, SyncBatchNorm, World, assemble, distribute, fill, full, join
from etude.engine.precision import Resolved, autocast, keep_large_blocks, resolve, slow
from etude.engine.prefetch import prefetch
from etude.engine.recipe import Recipe
from etude.engine.replay import seed_step, write_replay
from etude.engine.run import version
from etude.errors import EtudeError, Interrupted, NumericError, RefusedError, UsageError
from etude.nn import weight_gradient
from etude.tasks.base import Block, Logs, LossFn, LossLogs, Update
from etude.tasks.metrics import Metric

SAVE_SECONDS = 30.0
"""Time between checkpoints where the recipe gives no number of steps."""
SAVE, STOP = 1, 2


class Trainer:
    """Trains a recipe into a run directory, from the beginning or from its newest good checkpoint.

    `update` owns autocast, accumulation, clipping, sharding and the optimiser; nothing else does. `directory` may be
    set until `fit` or `resume` is called; None keeps nothing (a dry run).
    """

    def __init__(
        self,
        recipe: Recipe,
        directory: Path | None,
        *,
        world: World | None = None,
        device: str = "auto",
        workers: int | None = None,
        quiet: bool = False,
    ):
        self.recipe, self.directory = recipe, directory
        self.world = world or join(device, shard=recipe.shard)
        self.main = self.world.rank == 0
        if recipe.batch_size % (self.world.size * recipe.accumulate):
            raise UsageError(
                f"batch_size {recipe.batch_size} does not divide over {self.world.size} processes "
                f"x {recipe.accumulate} accumulated parts"
            )
        keep_large_blocks()
        self.device = self.world.device
        formats: list[Resolved] = self.world.gather(resolve(recipe.precision, self.device))
        # one format for all processes, whose machines may differ
        self.precision: Resolved = formats[0] if len(set(formats)) == 1 else "fp32"
        self.log = log.Log(quiet=quiet or not self.main)
        self.dataset: Dataset = recipe.data.open()
        self.recipe = recipe = replace(recipe, model=recipe.task.configure(recipe.model, self.dataset))
        if recipe.accumulate > 1 and not self.dataset.divisible:
            raise UsageError(f"a batch of {recipe.name} cannot be computed in parts", hint="--accumulate 1")
        if recipe.ramp.first and type(self.dataset).batch is not Dataset.batch:
            raise UsageError(
                f"batches of {recipe.name} are not made of samples; they cannot grow", hint="--ramp.first 0"
            )
        if recipe.shard > 1 and len(by_player(recipe.optim)) > 1:
            raise UsageError(
                f"{recipe.name} has several players, which cannot be sharded; replicas can", hint="--shard 1"
            )
        if recipe.compile and recipe.task.second_order:
            raise UsageError(
                f"the loss of {recipe.name} has a second derivative, which torch cannot compile", hint="--no-compile"
            )
        if recipe.patience is not None and "validation" not in self.dataset.sizes:
            raise UsageError("patience needs held-out samples to judge by", hint="--data.validation 5000")
        self.workers = self._workers(workers)
        # a run that goes on has its own weights by now, and the file it began with may be gone
        self._fresh = not (directory and checkpoint.steps(directory / "checkpoints"))
        self._build()
        # what is wrong with the batches shows now, not when a run directory exists
        recipe.task.check_batch(self.model, self.make_batch(0), self.world.size, recipe.parts_at(0))
        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.since_best = 0
        self.evaluated = 0
        self.last_train: dict[str, float] = {}
        self.last_eval: dict[str, Any] = {}
        self._number = 0
        self._health: health.Measured = {}
        self._norms: deque[tuple[int, Tensor]] = deque(maxlen=50)
        self._stop: signal.Signals | None = None
        self._finished = False
        self._metrics: log.MetricLog | None = None
        self._board = None

    def _workers(self, asked: int | None) -> int:
        if asked is not None and asked < 0:
            raise UsageError(f"workers is {asked}; it must not be negative", hint="--workers 2")
        if asked is None:
            asked = 0 if self.dataset.in_memory and self.device.type == "cpu" else min(8, os.cpu_count() or 1)
        return asked

    def _build(self) -> None:
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        try:
            model: nn.Module = recipe.model.build()
        except (RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"the model of {recipe.name} cannot be built: {error}") from error
        if recipe.start.weights and self._fresh:
            self._began = recipe.start.fill(model)
        recipe.task.check(model, self.dataset)
        model.to(self.device, memory_format=recipe.memory_format)  # pyright: ignore[reportCallIssue] - not in the stubs
        plain = self.device.type == "cpu" and self.precision == "fp32" and not recipe.compile
        if recipe.channels_last and plain and not recipe.task.second_order and weight_gradient.pays():
            weight_gradient.speed_up(model)
        self.model = distribute(model, self.world)
        if recipe.compile:
            for name in by_player(recipe.optim):
                (self.model if name == "model" else self.model.get_submodule(name)).compile()
        self.compiled = recipe.compile
        optims = by_player(recipe.optim)
        self.parameters = dict(self.model.named_parameters())  # by now, as sharded modules show others during a step
        self._names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        self.players = assemble(self.model, optims, self.world)
        try:
            self.optimizers = {name: optim.build(self.players[name].parameters) for name, optim in optims.items()}
        except ValueError as error:
            raise UsageError(f"the optimiser of {recipe.name} cannot be built: {error}") from error
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.ema = EMA(self.model, recipe.ema) if recipe.ema else None
        self.probe = health.Probe(self.model)
        self.judge = health.Judge.of(self.parameters, list(optims))
        self.alarms = health.Alarms(recipe.task.alarmed_after)

    # ---------------------------------------------------------------- the step

    def update(self, loss_fn: LossFn, batch: Batch, player: str = "model") -> Logs:
        """One optimiser step of `player` down `loss_fn`; raises NonFinite before the weights are touched."""
        mine, optimizer, parts = self.players[player], self.optimizers[player], self.recipe.parts_at(self.step)
        mine.take_turn()
        self._number += 1
        self._seed(self._number)
        logs: Logs = {}
        losses: list[Tensor] = []
        probe = self.probe if self._health_due else None
        # compiled code calls no hooks, and would be compiled anew for them: its outputs are not measured
        with probe.outputs() if probe and not self.compiled else contextlib.nullcontext():
            for part, micro in enumerate(monitor.split_batch(batch, parts)):
                with contextlib.nullcontext() if part == parts - 1 else mine.unsynced():
                    with autocast(self.precision, self.device):
                        loss, said = self._call(mine, loss_fn, micro)
                    self.scaler.scale(loss / parts if parts > 1 else loss).backward()
                losses.append(loss.detach())
                if self._logged or self._showing:
                    for name, value in said.items():
                        value = (value() if callable(value) else value).detach()
                        logs[name] = logs[name] + value / parts if name in logs else value / parts
        self.scaler.unscale_(optimizer)
        moving = [(p, p.grad) for p in mine.parameters if p.grad is not None]
        norms = [full(norm) for norm in torch._foreach_norm([grad for _, grad in moving])]
        norm = torch.stack(norms).norm()
        if not self._finite(losses, norm):
            raise monitor.NonFinite(loss_fn, batch, player, self._number)
        self._norms.append((self.step, norm))
        if probe and self.scaler.is_enabled() and not math.isfinite(norm.item()):
            probe = None  # the scaler skips this step: its gradients tell of the scale, not of the layers
        if probe:
            probe.before([(self._names[p], p) for p, _ in moving], norms)
        if self.recipe.clip is not None:
            nn.utils.clip_grads_with_norm_(mine.parameters, self.recipe.clip, norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        if probe:
            for kind, values in probe.after(self.world).items():
                self._health.setdefault(kind, {}).update(values)
        for p in mine.parameters:
            p.grad = None
        logs["grad_norm"] = norm
        return logs if len(self.players) == 1 else {f"{player}/{name}": value for name, value in logs.items()}

    def forget(self, player: str) -> None:
        """Drop what a player's optimiser remembers of earlier gradients, as if it had just been made."""
        self.optimizers[player].state.clear()

    def _call(self, mine: Player, loss_fn: LossFn, batch: Batch) -> tuple[Tensor, LossLogs]:
        """A player's loss. What an operator refuses, such as a label out of range, is the user's to mend."""
        try:
            return mine.call(loss_fn, batch)
        except (IndexError, ValueError, RuntimeError) as error:
            refused = isinstance(error, IndexError | ValueError) or "out of bounds" in str(error)
            if isinstance(error, EtudeError) or not refused or self.world.shard > 1:
                raise
            self._seed(self._number)
            with self._alone():
                said = monitor.explain_error(self.model, loss_fn, batch, autocast(self.precision, self.device))
            if not said:
                raise
            raise UsageError(f"step {self.step}: {said}") from error

    def _finite(self, losses: list[Tensor], norm: Tensor) -> bool:
        """Whether a step may be taken. The norm is the same on all processes; under fp16 the scaler skips a step whose
        gradients overflowed, and only the losses, each process's own, tell."""
        telling = torch.stack(losses).sum() if self.scaler.is_enabled() else sum(losses, norm)
        return not self.world.largest(int(not math.isfinite(telling.item())))

    def _seed(self, number: int) -> None:
        seed_step(self.recipe.seed, self.step, self.world.rank, number, self.device)

    def take_step(self, batch: Batch) -> Logs:
        """The whole of one step on a batch that has arrived: rates, seeds, the task's updates."""
        self._number, self._health, self._batch = 0, {}, batch
        done, whole = (self.recipe.batches_before(step) for step in (self.step, self.recipe.steps))
        factor = self.recipe.schedule.factor(done, whole)
        for name, optim in by_player(self.recipe.optim).items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = optim.lr * factor
        self._seed(0)
        try:
            return self.recipe.task.step(self.model, batch, Update(self.update, self.forget, self.world.size))
        except monitor.NonFinite:
            raise
        except Exception as error:
            if not (self.compiled and _from_compiler(error)):
                raise
            self.log(f"torch.compile failed, going on without it: {str(error).splitlines()[0]}")
            for player in self.players.values():
                player.module._compiled_call_impl = None
            self.compiled = False
            return self.take_step(batch)

    def make_batch(self, step: int) -> Batch:
        """This process's share of the batch of a step, as it leaves the data's workers."""
        recipe = self.recipe
        share: dict[str, int] = {"seed": recipe.seed, "rank": self.world.rank, "world": self.world.size}
        if recipe.ramp.first:
            start, size = recipe.samples_before(step), recipe.samples_at(step)
            batch = self.dataset.stretch(start=start, batch_size=size, **share)
        else:
            batch = self.dataset.batch(step=step, batch_size=recipe.batch_size, **share)
        return leave(batch, self.dataset, recipe, self.device)

    # ---------------------------------------------------------------- the loop

    def fit(self) -> dict[str, Any]:
        """Train to the end and return what is in result.json. Interrupted, NumericError and SaveError say why not."""
        try:
            with self._signals():
                self._open_files()
                self._introduce()
                self._loop()
                return self._finish()
        except Exception as error:
            if self.directory and self.main and not isinstance(error, Interrupted):
                with contextlib.suppress(OSError):
                    (self.directory / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
                self._status("failed")
            raise
        finally:
            if self._metrics:
                self._metrics.close()
            if self._board:
                self._board.close()
            self.log.close()

    def _loop(self) -> None:
        recipe, steps = self.recipe, self.recipe.steps
        self.model.train()
        self.log.begin(self.step, steps)
        self._clock = self._shown = self._saved = time.monotonic()
        self._shown_step = self.step
        health_every = health.every(recipe.log_every, steps)
        last = self.step if self._out_of_patience() else steps
        batches = prefetch(self.make_batch, self.step, last, workers=self.workers)
        for batch in batches:
            self._health_due = self.step % health_every == 0
            self._logged = (self.step + 1) % recipe.log_every == 0 or self.step + 1 in (1, steps)
            self._showing = time.monotonic() - self._shown >= 0.25 or self.step + 1 == steps
            batch = arrive(batch, self.dataset, self.recipe, self.device)
            try:
                logs = self.take_step(batch)
            except monitor.NonFinite as error:
                self._explain(error)
            if self.ema:
                self.ema.update()
            self.step += 1
            self._record(logs)
            if self.step % recipe.evaluate_every == 0 and self.step < steps:
                self._evaluate_and_keep()
            wish = STOP if self._stop else SAVE if self._save_due() else 0
            wish = self.world.largest(wish)
            if wish == STOP:
                batches.close()
                self._interrupt()
            if wish == SAVE and self.step < steps:
                self._save()
            if self._out_of_patience():
                self.log(f"stopped early: no better {self.recipe.task.measure} in {recipe.patience} evaluations")
                batches.close()
                break
        self.log.end()

    def _save_due(self) -> bool:
        if self.recipe.save_every:
            return self.step % self.recipe.save_every == 0
        return time.monotonic() - self._saved > SAVE_SECONDS

    def _record(self, logs: Logs) -> None:
        """Write the metric log where it is due, and keep the live line and the dashboard moving."""
        recipe = self.recipe
        values = {name: value.item() for name, value in logs.items()} if self._logged or self._showing else {}
        if self._logged:
            shares = self.world.gather(values)
            values = {name: sum(share[name] for share in shares) / len(shares) for name in values}
            # the norm of a step that the scaler skipped is infinite, which JSON does not know
            values = {name: value for name, value in values.items() if math.isfinite(value)}
            self.last_train = values
            epoch = self.dataset.epochs(recipe.batches_before(self.step), recipe.batch_size)
            rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
            lr = {"lr": rates["model"]} if len(rates) == 1 else {f"{name}/lr": rate for name, rate in rates.items()}
            self._write({"step": self.step, "epoch": round(epoch, 4), **values, **lr})
            for message in self.alarms(recipe.task.alarms(values)):
                self.log(f"step {self.step}  {message}")
        if self._health:
            measured = health.line(self._health)
            self._write({"step": self.step, **measured})
            for message in self.judge(measured):
                self.log(f"step {self.step}  {message}")
        if self._showing:
            self._progress(values, time.monotonic())

    def _progress(self, values: dict[str, float], now: float) -> None:
        span = max(now - self._shown, 1e-9)
        shown, seen, whole = (self.recipe.samples_before(s) for s in (self._shown_step, self.step, self.recipe.steps))
        self._speed = (seen - shown) / span
        self._shown, self._shown_step = now, self.step
        left = (whole - seen) / max(self._speed, 1e-9)
        said = {name: value for name, value in values.items() if not name.endswith("grad_norm")}
        self.log.progress(self.step, self.recipe.steps, said, self._speed, left)
        if self.directory and self.main and now - self._reported > self._report_every:
            self._status("training", eta=left)

    def _write(self, line: dict[str, Any]) -> None:
        if self._metrics:
            self._metrics.write(line)
        if self._board and "step" in line:
            values = line.get("eval", line)
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"eval/{name}" if "eval" in line else name, value, line["step"])

    # ---------------------------------------------------------------- evaluation

    def measure(self, split: str) -> dict[str, Metric]:
        """The task's measures over a split, exact over all processes, with the averaged weights where there are any."""
        averaged = self.ema.applied() if self.ema else contextlib.nullcontext()
        with averaged:
            return measure(
                self.model, self.recipe, self.dataset, split,
                world=self.world, precision=self.precision, workers=self.workers,
            )  # fmt: skip

    def _out_of_patience(self) -> bool:
        return self.recipe.patience is not None and self.since_best >= self.recipe.patience

    def _evaluate_and_keep(self, *, final: bool = False) -> None:
        """Evaluate, log, keep the best weights. At the end a failure to write them is raised."""
        task, held_out = self.recipe.task, "validation" in self.dataset.sizes
        split = "validation" if held_out else "test"
        measured = self.measure(split)
        values = numbers(measured)
        score = values[task.measure]
        if amiss := [name for name, value in values.items() if not math.isfinite(value)]:
            found = f"measured after step {self.step}, the {amiss[0]} is {values[amiss[0]]}"
            raise NumericError(found, hint="lower --optim.lr or set --clip 1.0")
        self._write({"step": self.step, "eval": values, "split": split})
        said = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.log(f"step {self.step}  {split}  {said}")
        sign = 1 if task.higher_is_better else -1
        now = {"step": self.step, task.measure: score, "split": split}
        if task.stage:
            now[task.stage] = values[task.stage]

        def rank(kept: dict[str, Any]) -> tuple[float, float]:
            return kept.get(task.stage, 0), sign * kept[task.measure]

        better = self.best is None or rank(now) > rank(self.best)
        # without held-out samples nothing may be chosen by the test split: the last weights are kept
        if better or not held_out:
            if self._keep_weights(final=final):
                self.best = now
            self.since_best = 0
        else:
            self.since_best += 1
        self.last_eval, self.evaluated = values, self.step
        self._figures(measured, split)

    def _keep_weights(self, *, final: bool) -> bool:
        """Write weights.safetensors; False, on every process, where that failed and training goes on."""
        weights, failure = self._weights(), ""
        if self.directory and self.main:
            try:
                checkpoint.save_weights(self.directory / "weights.safetensors", weights)
            except checkpoint.SaveError as error:
                failure = str(error)
        failure = self.world.gather(failure)[0]
        if failure and final:
            raise checkpoint.SaveError(failure, hint=f"free space, then: etude resume {self.directory}")
        if failure:
            self.log(f"{failure}; training goes on")
        return not failure

    def _weights(self) -> dict[str, Tensor]:
        """What is evaluated and kept: the averages where there are any, gathered whole."""
        source = self.ema.average if self.ema else self.model.state_dict()
        return {name: full(value) for name, value in source.items()}

    def _figures(self, measured: dict[str, Metric], split: str) -> None:
        if self.directory and self.main:
            blocks, path = self.recipe.task.figures(measured, self.dataset, split), self.directory / "figures.json"
            self._remember([block for block in blocks if block.get("history")], split, path)
            with contextlib.suppress(checkpoint.SaveError):
                checkpoint.write_atomic(path, json.dumps(blocks).encode())
            self._status("training")

    def _remember(self, texts: list[Block], split: str, path: Path) -> None:
        """Give texts or pictures those of the evaluations before, of which the file of figures tells."""
        label = f"{split}, after {self.step:,} steps"
        for block in texts:
            block |= {"label": label, "step": self.step, "earlier": []}
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
            before = [block for block in json.loads(path.read_text(encoding="utf-8")) if block.get("history")]
            for block, old in zip(texts, before):
                kept = {name: old[name] for name in ("label", "step", "text", "items") if name in old}
                past = [*old["earlier"], kept]
                # a run that went back to a checkpoint comes to later ones again
                block["earlier"] = [one for one in past if one["step"] <= self.step and one["label"] != label]

    def _finish(self) -> dict[str, Any]:
        """The last checkpoint, the final evaluation on the test split with the weights that are kept, result.json."""
        recipe, task = self.recipe, self.recipe.task
        self.seconds += time.monotonic() - self._clock
        self._clock = time.monotonic()
        self._save(final=True)
        if "validation" in self.dataset.sizes:
            if self.evaluated != self.step:
                self._evaluate_and_keep(final=True)
            self._take_average() if self._averages else self._take_best()
            measured = self.measure("test")
            values = numbers(measured)
            self._write({"step": self.step, "eval": values, "split": "test"})
            self._figures(measured, "test")
        else:
            if self._averages:
                self._fill_average()
            self._evaluate_and_keep(final=True)
            values = self.last_eval
        result = {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "steps": self.step,
            "train": self.last_train,
            "eval": values,
            "precision": self.precision,
            "best": self.best,
            "seconds": round(self.seconds, 2),
            "params": self.params,
            "weights_sha256": checkpoint.digest(self._weights()),
        }
        if self.directory and self.main:
            assert self._metrics
            self._metrics.flush(sync=True)
            checkpoint.write_atomic(self.directory / "result.json", json.dumps(result, indent=1).encode())
            self._status("done")
        said = (
            f"{task.measure} {values[task.measure]:.2%}"
            if task.measure == "accuracy"
            else f"{values[task.measure]:.4g}"
        )
        self.log(f"done: test {said} after {self.step} steps in {duration(self.seconds)}")
        self.world.gather(None)  # nobody goes on before everything is written
        self._finished = True
        return result

    @property
    def _averages(self) -> bool:
        return self.recipe.average > 0 and self.directory is not None

    def _fill_average(self) -> int:
        """Put the mean of the last checkpoints' weights into the model; says of how many."""
        assert self.directory and self.recipe.save_every
        folder, average, chosen = self.directory / "checkpoints", None, []
        if self.main:
            regular = [s for s in checkpoint.steps(folder) if s % self.recipe.save_every == 0 or s == self.step]
            chosen = regular[: self.recipe.average]
            average = checkpoint.averaged(folder, chosen, self.log)
        average, chosen = self.world.gather((average, chosen))[0]
        target = self.model.state_dict()
        for name, value in average.items():
            fill(target[name], value)
        self.log(f"the weights are the mean of {len(chosen)} checkpoints, of step {chosen[-1]:,} to {chosen[0]:,}")
        return len(chosen)

    def _take_average(self) -> None:
        """Average, measure, and keep the average in place of the best weights."""
        count = self._fill_average()
        measured = self.measure("validation")
        values = numbers(measured)
        self._write({"step": self.step, "eval": values, "split": "validation", "averaged": count})
        said = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.log(f"averaged  validation  {said}")
        measure = self.recipe.task.measure
        self.best = {"step": self.step, measure: values[measure], "split": "validation", "averaged": count}
        self._keep_weights(final=True)

    def _take_best(self) -> None:
        """Put the best weights, as kept, back into the model (and its averages)."""
        if self.directory is None:
            return
        best = None
        if self.main:
            try:
                best = checkpoint.load_weights_file(self.directory / "weights.safetensors")
            except RefusedError as error:
                self.log(f"the best weights are lost ({error}); the last ones are kept instead")
        best = self.world.gather(best)[0]
        if best is None:
            self.best = {"step": self.step, self.recipe.task.measure: self.last_eval.get(self.recipe.task.measure)}
            self._keep_weights(final=True)
            return
        target = self.ema.average if self.ema else self.model.state_dict()
        for name, value in best.items():
            fill(target[name], value)

    # ---------------------------------------------------------------- saving and resuming

    def _save(self, *, final: bool = False) -> None:
        """Write a checkpoint. If that fails, training says so and goes on; at the end the failure is raised."""
        groups = self.tensors()
        self._saved = time.monotonic()
        if not (self.directory and self.main):
            return
        assert self._metrics
        folder, now = self.directory / "checkpoints", time.monotonic()
        state = {
            "step": self.step,
            "seed": self.recipe.seed,
            "precision": self.precision,
            "processes": self.world.size,
            "best": self.best,
            "since_best": self.since_best,
            "evaluated": self.evaluated,
            "last_train": self.last_train,
            "ema_updates": self.ema.updates if self.ema else 0,
            "scaler": self.scaler.state_dict(),
            "seconds": round(self.seconds + now - self._clock, 3),
        }
        try:
            self._metrics.flush(sync=True)
            state["metrics_bytes"] = self._metrics.bytes
            every = (self.recipe.save_every or 1) if self.recipe.average else 1
            checkpoint.save_checkpoint(folder, self.step, groups, state, keep=self.recipe.keep, every=every)
        except (checkpoint.SaveError, OSError) as error:
            kept = checkpoint.steps(folder)
            last = f"the last good one is step-{kept[0]}" if kept else "there is none yet"
            if final:
                raise checkpoint.SaveError(
                    f"{error}; {last}", hint=f"free space, then: etude resume {self.directory}"
                ) from error
            self.log(f"{error}; {last}; training goes on")
        self._saved = time.monotonic()

    def tensors(self) -> checkpoint.Groups:
        """Everything a checkpoint holds: weights, optimiser state by parameter name, averages; gathered whole."""
        optim = {
            f"{player}/{self._names[p]}/{key}": full(value)
            for player, optimizer in self.optimizers.items()
            for p, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        groups = {"model": {name: full(value) for name, value in self.model.state_dict().items()}, "optim": optim}
        if self.ema:
            groups["ema"] = {name: full(value) for name, value in self.ema.average.items()}
        return groups

    def resume(self) -> None:
        """Go back to the newest checkpoint that verifies; without one, the run starts again from its beginning."""
        assert self.directory
        folder = self.directory / "checkpoints"
        if self.main:
            self.log.keep(self.directory / "log.txt")
            checkpoint.sweep(folder)
        loaded = checkpoint.load_newest(folder, self.log)
        if loaded is None:
            self.log("no checkpoint to resume from: starting from step 0")
            if self.recipe.start.weights and not self._fresh:
                self._fresh = True  # built anew, so that all that is made of the weights begins with those given
                self._build()
            return
        self.restore(loaded)
        for line in log.read(self.directory / "metrics.jsonl", self._metrics_bytes):
            measured = health.parse(line)
            if measured is not None:
                self.judge(measured)  # what was said before is not said again
            elif "epoch" in line:
                self.alarms(self.recipe.task.alarms(line))
        self.log(f"resumed from checkpoint step-{loaded.step}, every file as its sha256 says")

    def restore(self, loaded: checkpoint.Loaded) -> None:
        """Take over a checkpoint's tensors and state."""
        state, model = loaded.state, self.model.state_dict()
        _fill_all(model, loaded.groups["model"], "model")
        for name, value in loaded.groups["optim"].items():
            player, _, rest = name.partition("/")
            parameter_name, _, key = rest.rpartition("/")
            p = self.parameters[parameter_name]
            if value.shape == p.shape:
                held = torch.empty_like(p)  # in the parameter's own memory format, as fused kernels need it
                fill(held, value)
                value = held
            elif self.optimizers[player].defaults.get("fused"):
                value = value.to(p.device)  # its kernels take the step count from where the weights are
            self.optimizers[player].state[p][key] = value
        if self.ema:
            _fill_all(self.ema.average, loaded.groups["ema"], "ema")
            self.ema.updates = state["ema_updates"]
        self.scaler.load_state_dict(state["scaler"])
        if state["precision"] != self.precision:
            change = f"precision was {state['precision']} and is {self.precision} here"
            self.log(f"{change}: results will differ in the last digits")
        self.step, self.seconds = state["step"], state["seconds"]
        self.best, self.since_best, self.evaluated = state["best"], state["since_best"], state["evaluated"]
        self.last_train = state["last_train"]
        self._metrics_bytes = state["metrics_bytes"]

    def _interrupt(self) -> NoReturn:
        self.log.end()
        self._save(final=True)
        self._status("stopped")
        code = 130 if self._stop in (None, signal.SIGINT) else 75
        where = self.directory or ""
        raise Interrupted(f"stopped and saved at step {self.step}", hint=f"etude resume {where}", code=code)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks the loop to finish its step; the second acts as if we were not here."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in wanted}

        def ask(number: int, _frame: Any) -> None:
            self._stop = signal.Signals(number)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.write(2, f"\n{self._stop.name}: finishing the step, then saving (again: stop at once)\n".encode())

        for number in wanted:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            # one that came when the loop had ended already is told to who asked before us, such as a study
            heard = before.get(self._stop) if self._stop else None
            if self._stop and self._finished and callable(heard) and heard is not signal.default_int_handler:
                heard(self._stop, None)

    # ---------------------------------------------------------------- files and words

    _began = ""
    _metrics_bytes = 0
    _speed = 0.0
    _reported = 0.0
    _report_every = 10.0
    _health_due = False
    _logged = _showing = True
    _clock = 0.0

    @property
    def params(self) -> int:
        """Trainable numbers in the model."""
        return sum(p.numel() for p in self.model.parameters())

    def _open_files(self) -> None:
        self._clock = self._shown = self._saved = time.monotonic()
        if not (self.directory and self.main):
            return
        self.log.keep(self.directory / "log.txt")
        self._metrics = log.MetricLog(self.directory / "metrics.jsonl", keep_bytes=self._metrics_bytes)
        (self.directory / "error.txt").unlink(missing_ok=True)
        self._board = _tensorboard(self.directory)
        self._status("training")

    def _introduce(self) -> None:
        recipe, sizes = self.recipe, self.dataset.sizes
        held = ", ".join(f"{count:,} {split}" for split, count in sizes.items())
        epochs = self.dataset.epochs(recipe.batches_before(recipe.steps), recipe.batch_size)
        processes = f" x {self.world.size} processes" if self.world.size > 1 else ""
        self.log(f"etude {version()} · {recipe.name} · {self.params:,} parameters")
        self.log(f"device {self.device}{processes} ({torch.get_num_threads()} threads) · precision {self.precision}")
        if said := slow(self.precision, self.device):
            self.log(said)
        self.log(f"data {self.dataset.facts.get('source', '')}: {held}")
        grown = f"{recipe.ramp.first}, growing to {recipe.batch_size}" if recipe.ramp.first else f"{recipe.batch_size}"
        length = f"{recipe.steps:,} steps of {grown} ({epochs:.1f} epochs)"
        self.log(f"{length} from step {self.step} · seed {recipe.seed}")
        if self._began and self.step == 0:
            self.log(f"begins with {self._began}")
        if self.directory:
            self.log(f"run directory {self.directory}")

    def _status(self, state: str, *, eta: float | None = None) -> None:
        """status.json and report.html as they stand now."""
        if not (self.directory and self.main):
            return
        begun = time.monotonic()
        seconds = self.seconds + (begun - self._clock if state != "done" else 0)
        status = {"state": state, "step": self.step, "steps": self.recipe.steps, "seconds": round(seconds, 1)}
        status |= {"samples_per_second": round(self._speed, 1), "eta": round(eta, 1) if eta is not None else None}
        with contextlib.suppress(Exception):  # the dashboard is not worth ending a training
            if self._metrics:
                self._metrics.flush()
            checkpoint.write_atomic(self.directory / "status.json", json.dumps(status).encode())
            report.write(self.directory)
        self._reported = time.monotonic()
        self._report_every = max(10.0, 50 * (self._reported - begun))

    def _diagnose(self, error: monitor.NonFinite) -> monitor.Finding:
        """What this process finds by itself; nothing is shared meanwhile, as others may find something else earlier."""
        if self.world.shard > 1:  # layers cannot be computed without the others' shards
            untold = "the inputs are finite; which layer is at fault is not told for sharded weights"
            return monitor.explain_inputs(error.batch) or monitor.Finding(untold)
        with self._alone():
            context, parts = autocast(self.precision, self.device), self.recipe.parts_at(self.step)
            return monitor.explain(self.model, error.loss_fn, error.batch, error.player, parts, context)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within, a pass can be watched: no other process takes part, and compiled layers run as they are written."""
        SyncBatchNorm.alone = True
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            SyncBatchNorm.alone = False

    def _trend(self, weights: dict[str, Tensor]) -> str:
        """What the steps before a failure tell: weights or gradients that grew."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            model: nn.Module = self.recipe.model.build()
            if self.recipe.start.weights:
                with contextlib.suppress(EtudeError):  # gone since: growth is judged from fresh weights then
                    self.recipe.start.fill(model)
            start: dict[str, Tensor] = model.state_dict()
        grown = health.growth(weights, {name: start[name] for name in self.parameters})
        norms = [(step, norm.item()) for step, norm in self._norms]
        return health.trend(norms, grown, self.judge.last, clipped=self.recipe.clip is not None)

    def _explain(self, error: monitor.NonFinite) -> NoReturn:
        """Name what went wrong, leave the step as tensors for `etude replay`, and stop with exit 5."""
        weights = {name: full(value).clone() for name, value in self.model.state_dict().items()}
        self._seed(error.number)
        finding = self._diagnose(error)
        # the process that has the samples hands over its batch
        found = self.world.gather((finding, self._batch if finding.samples else None, self.world.rank))
        finding, batch, rank = next((one for one in found if one[0].samples), found[0])
        trend = "" if finding.given else self._trend(weights)
        finding = finding.after(trend)
        if self.directory and self.main:
            about = {"step": self.step, "rank": rank, "number": error.number, "precision": self.precision}
            about |= {"trend": trend}
            with contextlib.suppress(checkpoint.SaveError, OSError):  # a full disk must not hide what was found
                write_replay(self.directory, weights, batch or self._batch, about | {"finding": finding.json()})
        said = f"NaN or Inf at step {self.step}: {finding.what}"
        self.log.end()
        self.log(said)
        hint = f"etude replay {self.directory}" if self.directory else "lower --optim.lr or set --clip 1.0"
        raise NumericError(said, hint=hint)


def _fill_all(target: dict[str, Tensor], source: dict[str, Tensor], what: str) -> None:
    if target.keys() != source.keys():
        differing = ", ".join(sorted(target.keys() ^ source.keys())[:5])
        raise EtudeError(f"the checkpoint's {what} is of another network: {differing}")
    for name, value in source.items():
        fill(target[name], value)


def _from_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _tensorboard(directory: Path):
    """A TensorBoard writer where tensorboard is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory / "tensorboard"))
