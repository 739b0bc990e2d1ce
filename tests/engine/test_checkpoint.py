"""Checkpoints under fire: damage is detected, the last good one is used, nothing is lost."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from etude.engine import checkpoint
from etude.engine.checkpoint import SaveError, load_checkpoint, load_newest, save_checkpoint, steps, sweep
from etude.errors import RefusedError


def groups(step: int) -> checkpoint.Groups:
    torch.manual_seed(step)
    kernel = torch.randn(8, 3, 3, 3).to(memory_format=torch.channels_last)
    return {
        "model": {
            "w": torch.randn(64, 33),
            "kernel": kernel,
            "count": torch.tensor(step),
            "half": torch.randn(5).bfloat16(),
        },
        "optim": {"model/w/exp_avg": torch.randn(64, 33)},
    }


def save(directory: Path, step: int, keep: int = 3) -> None:
    save_checkpoint(directory, step, groups(step), {"step": step}, keep=keep)


def assert_loads(directory: Path, step: int, said: list[str] | None = None) -> None:
    said = [] if said is None else said
    loaded = load_newest(directory, said.append)
    assert loaded is not None and loaded.step == step and loaded.state == {"step": step}
    for name, tensors in groups(step).items():
        assert tensors.keys() == loaded.groups[name].keys()
        assert all(torch.equal(value, loaded.groups[name][key]) for key, value in tensors.items())


def test_round_trip_and_keep(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    assert steps(tmp_path) == [5, 4, 3]
    assert_loads(tmp_path, 5)
    assert not list(tmp_path.glob(".tmp*"))


FILES = ("model.safetensors", "optim.safetensors", "state.json", "manifest.json")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, zero, empty, lose])
@pytest.mark.parametrize("file", FILES)
def test_damage_is_detected_and_the_older_one_used(tmp_path, damage, file):
    save(tmp_path, 1)
    save(tmp_path, 2)
    damage(tmp_path / "step-2" / file)
    said: list[str] = []
    if (damage, file) == (
        flip,
        "manifest.json",
    ):  # a flip in white space or a name may leave the manifest's meaning alone
        try:
            load_checkpoint(tmp_path, 2)
            return
        except RefusedError:
            pass
    assert_loads(tmp_path, 1, said)
    assert len(said) == 1 and "step-2 refused" in said[0] and "older" in said[0]


def test_every_single_flipped_bit_is_detected(tmp_path):
    """1,000 bit flips spread over the weight file: each refused."""
    save(tmp_path, 1)
    path = tmp_path / "step-1" / "model.safetensors"
    good = path.read_bytes()
    bits = len(good) * 8
    for i in range(1000):
        bit = (i * 7919 * 31) % bits
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(RefusedError):
            load_checkpoint(tmp_path, 1)
    path.write_bytes(good)
    assert_loads(tmp_path, 1)


def test_a_damaged_newer_one_does_not_push_out_good_ones(tmp_path):
    save(tmp_path, 45)
    flip(tmp_path / "step-45" / "model.safetensors")
    for step in (31, 32):
        save(tmp_path, step, keep=1)
        assert_loads(tmp_path, step)
    save(tmp_path, 45, keep=1)
    assert steps(tmp_path) == [45]
    assert_loads(tmp_path, 45)


def test_none_good_is_none(tmp_path):
    assert load_newest(tmp_path / "nowhere", print) is None
    save(tmp_path, 1)
    empty(tmp_path / "step-1" / "manifest.json")
    said: list[str] = []
    assert load_newest(tmp_path, said.append) is None and len(said) == 1


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "secret").write_bytes(b"x")
    manifest = json.loads((tmp_path / "step-1" / "manifest.json").read_text())
    manifest["files"]["../secret"] = {
        "bytes": 1,
        "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    }
    (tmp_path / "step-1" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RefusedError, match="outside"):
        load_checkpoint(tmp_path, 1)


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failing_system_call_keeps_the_last_good_one(tmp_path, monkeypatch, call, number):
    save(tmp_path, 1)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    if call == "write":
        monkeypatch.setattr(checkpoint, "_write_synced", fail)
    elif call == "mkdir":
        monkeypatch.setattr(Path, "mkdir", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(SaveError, match="disk is full" if number == errno.ENOSPC else "not written"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert steps(tmp_path) == [1]
    assert not list(tmp_path.glob(".tmp*"))
    assert_loads(tmp_path, 1)


def test_too_little_space_is_seen_before_writing(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(SaveError, match="it needs"):
        save(tmp_path, 2)
    assert_loads(tmp_path, 1)


def test_a_really_full_disk(tmp_path):
    """A 2 MB file system: the second checkpoint does not fit, the first stays good."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        save(disk, 1)
        (disk / "filler").write_bytes(bytes((2 << 20) - (100 << 10)))
        with pytest.raises(SaveError, match=r"has 0 MB|disk is full"):
            save(disk, 2)
        assert_loads(disk, 1)
        (disk / "filler").unlink()
        save(disk, 2)
        assert_loads(disk, 2)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_left_overs_of_a_kill_are_swept(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-1", tmp_path / ".tmp-step-2-abcdef01")
    assert_loads(tmp_path, 1)
    sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-1"]


def test_saving_a_step_again_replaces_only_a_damaged_one(tmp_path):
    save(tmp_path, 1)
    before = (tmp_path / "step-1").stat().st_ino
    save(tmp_path, 1)
    assert (tmp_path / "step-1").stat().st_ino == before
    flip(tmp_path / "step-1" / "optim.safetensors")
    save(tmp_path, 1)
    assert_loads(tmp_path, 1)


def test_weight_files_carry_their_digest(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = groups(1)["model"]
    sha = checkpoint.save_weights(path, tensors)
    assert sha == checkpoint.digest(tensors)
    loaded = checkpoint.load_weights_file(path)
    assert all(torch.equal(value, loaded[name]) for name, value in tensors.items())
    good = path.read_bytes()
    for damage in (truncate, flip, zero, empty):
        path.write_bytes(good)
        damage(path)
        with pytest.raises(RefusedError):
            checkpoint.load_weights_file(path)


def test_atomic_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    checkpoint.write_atomic(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SaveError, match="disk is full"):
        checkpoint.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]
