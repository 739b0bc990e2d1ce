"""The average of the last checkpoints: by hand, with and without held-out samples, and whatever interrupts it."""

import dataclasses
import signal

import pytest
import torch
from test_trainer import digests, quiet, run_until
from toys import Blobs, everything

from etude.engine import checkpoint
from etude.errors import Interrupted, RefusedError, UsageError


def recipe(**changes):
    held_out = dataclasses.replace(Blobs(), validation=40)
    plain = everything(ema=None, patience=None, save_every=3, keep=3, average=3, eval_every=4, data=held_out)
    return plain.with_(**changes)


@pytest.mark.parametrize("validation", [0, 40])
def test_the_kept_weights_are_the_mean_of_the_last_checkpoints(tmp_path, validation):
    trainer = quiet(recipe(data=Blobs(validation=validation)), tmp_path / "run")
    result = trainer.fit()
    steps = checkpoint.steps(tmp_path / "run" / "checkpoints")
    assert len(steps) == 3 and steps[0] == result["steps"]
    loaded = [checkpoint.load_checkpoint(tmp_path / "run" / "checkpoints", step).groups["model"] for step in steps]
    kept = checkpoint.load_weights_file(tmp_path / "run" / "weights.safetensors")
    for name, value in kept.items():
        if value.is_floating_point():
            mean = torch.stack([weights[name].double() for weights in loaded]).sum(0) / 3
            torch.testing.assert_close(value, mean.float(), rtol=0, atol=0)
        else:
            assert torch.equal(value, loaded[0][name])
    assert not torch.equal(kept["0.weight"], loaded[0]["0.weight"])
    assert result["weights_sha256"] == checkpoint.digest(kept)
    if validation:
        assert result["best"]["averaged"] == 3


def test_a_kill_and_an_interruption_change_nothing(tmp_path):
    whole = quiet(recipe(), tmp_path / "whole")
    expected = whole.fit()
    run_until(quiet(recipe(), tmp_path / "stopped"), whole.recipe.steps - 4)
    again = quiet(recipe(), tmp_path / "stopped")
    again.resume()
    odd, record = again.step + 1, again._record

    def signalled(logs):
        record(logs)
        again._stop = signal.SIGINT  # which saves at a step that no average counts

    again._record = signalled
    with pytest.raises(Interrupted):
        again.fit()
    assert checkpoint.steps(tmp_path / "stopped" / "checkpoints")[0] == odd and odd % 3
    last = quiet(recipe(), tmp_path / "stopped")
    last.resume()
    assert last.step == odd
    result = last.fit()
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert digests(last) == digests(whole)


def test_a_damaged_checkpoint_is_left_out_and_told(tmp_path):
    quiet(recipe(), tmp_path).fit()
    folder = tmp_path / "checkpoints"
    steps = checkpoint.steps(folder)
    (folder / f"step-{steps[1]}" / "model.safetensors").write_bytes(b"damaged")
    said: list[str] = []
    mean = checkpoint.averaged(folder, steps, said.append)
    parts = [checkpoint.load_checkpoint(folder, s).groups["model"]["0.weight"].double() for s in (steps[0], steps[2])]
    torch.testing.assert_close(mean["0.weight"], ((parts[0] + parts[1]) / 2).float(), rtol=0, atol=0)
    assert len(said) == 1 and f"step-{steps[1]}" in said[0]
    with pytest.raises(RefusedError, match="no checkpoint that could be averaged"):
        checkpoint.averaged(folder, [steps[1]], said.append)


def test_what_makes_no_sense_is_refused():
    for changes in ({"average": 4}, {"save_every": None}, {"average": -1}, {"ema": 0.9}):
        with pytest.raises(UsageError, match="average"):
            recipe(**changes)
