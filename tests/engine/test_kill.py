"""kill -9 at random moments, a third of them inside a save: what comes out is what would have come out."""

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_worker import RECIPE

from etude.engine import checkpoint

WORKER = Path(__file__).with_name("kill_worker.py")
KILLS = 36
STEPS = RECIPE.steps


def start(directory: Path) -> subprocess.Popen:
    with open(f"{directory}.stderr", "ab") as errors:
        return subprocess.Popen([sys.executable, str(WORKER), str(directory)], stderr=errors)


def errors(directory: Path) -> str:
    """The end of what the worker said."""
    return Path(f"{directory}.stderr").read_text()[-2000:]


def outcome(directory: Path) -> dict[str, str]:
    """Digests of weights, optimiser and averages, and of the files that must not differ."""
    files = {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in ("metrics.jsonl", "weights.safetensors")
    }
    final = checkpoint.load_checkpoint(directory / "checkpoints", STEPS).groups
    return {name: checkpoint.digest(tensors) for name, tensors in final.items()} | files


def kill_in_save(process: subprocess.Popen, checkpoints: Path, moments: random.Random) -> bool:
    """Wait until a checkpoint is being written, then kill. True if it was still being written."""
    skip = moments.randrange(0, 4)
    seen: set[str] = set()
    while process.poll() is None:
        for entry in checkpoints.glob(".tmp-step-*"):
            if entry.name not in seen:
                seen.add(entry.name)
                if len(seen) > skip:
                    time.sleep(moments.uniform(0, 0.01))
                    process.kill()
                    process.wait()
                    return entry.exists()
        time.sleep(0.0005)
    return False


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kills_cost_nothing(tmp_path):
    whole = tmp_path / "whole"
    begun = time.monotonic()
    assert start(whole).wait() == 0
    seconds = time.monotonic() - begun
    expected = outcome(whole)
    moments, kills, inside, rounds, finished = random.Random(7), 0, 0, 0, 0
    while kills < KILLS:
        directory = tmp_path / f"run-{rounds}"
        rounds += 1
        while True:
            process = start(directory)
            if kills >= KILLS:
                assert process.wait() == 0, errors(directory)
            elif inside * 2 <= kills:
                inside += kill_in_save(process, directory / "checkpoints", moments)
            else:
                try:
                    process.wait(moments.uniform(0.3 * seconds, 0.9 * seconds))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.returncode == 0:
                break
            assert process.returncode == -9, errors(directory)
            kills += 1
        finished += 1
        assert outcome(directory) == expected
        assert not list((directory / "checkpoints").glob(".tmp*"))
        assert len(checkpoint.steps(directory / "checkpoints")) == 2
    print(f"\n{kills} kills, {inside} of them inside a save, over {finished} runs: all equal to the uninterrupted run")
    assert inside >= KILLS // 3
