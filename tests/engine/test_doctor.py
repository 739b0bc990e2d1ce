"""`etude doctor`: what it says of a CPU, what it warns of, and that nothing broken stops it."""

import os
import platform
import sys

import pytest
import torch

from etude import cpu
from etude.engine import doctor
from etude.nn import lowbit

FAST = {"products fp32": 100.0, "products bf16": 350.0, "convolutions fp32": 100.0, "convolutions bf16": 210.0}
EMULATED = {"products fp32": 100.0, "products bf16": 1.0, "convolutions fp32": 100.0, "convolutions bf16": 2.0}


@pytest.fixture
def plain(monkeypatch, tmp_path):
    """A machine with a CPU only, on which no variable is set."""
    variables = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for variable in (*variables, *cpu.LIMITS):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def examined() -> dict[str, tuple[bool, str]]:
    return {name: (well, said) for name, well, said in doctor.examine()}


def test_a_cpu_with_fast_bf16(plain):
    plain.setattr(cpu, "name", lambda: "One")
    plain.setattr(cpu, "features", lambda: ["avx2", "avx512_vnni", "avx512_bf16"])
    plain.setattr(cpu, "speeds", lambda: FAST)
    found = examined()
    assert found["processor"] == (True, "One: avx2, avx512_vnni, avx512_bf16")
    assert found["limits"] == (True, "no variable hides features")
    assert found["bf16"] == (True, "products 3.5 times as fast as in fp32, convolutions 2.1 times")
    assert torch.backends.cpu.get_cpu_capability() in found["kernels"][1]
    assert "in bf16" in found["training"][1] and "in bf16" in found["pictures"][1]
    assert {f"text {weights}": (True, said) for weights, said in lowbit.kernels().items()}.items() <= found.items()


def test_a_cpu_without(plain):
    plain.setattr(cpu, "features", lambda: ["avx2"])
    plain.setattr(cpu, "speeds", lambda: EMULATED)
    found = examined()
    assert found["bf16"] == (True, "emulated, 100.0 times slower than fp32")
    assert "in fp32" in found["training"][1] and "in fp32" in found["pictures"][1]
    plain.setattr(cpu, "speeds", lambda: FAST | {"convolutions bf16": 100.0})
    assert examined()["bf16"] == (True, "no faster than fp32")


def test_limits_are_warned_of(plain):
    plain.setattr(cpu, "features", lambda: ["avx2", "avx512f", "avx512_bf16"])
    plain.setattr(cpu, "speeds", lambda: EMULATED)
    plain.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert examined()["limits"] == (
        False,
        "ONEDNN_MAX_CPU_ISA=AVX2 hides avx512f, avx512_bf16: unset ONEDNN_MAX_CPU_ISA",
    )
    plain.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    assert examined()["limits"] == (True, "ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX hides nothing of this CPU")
    plain.setenv("ONEDNN_MAX_CPU_ISA", "AVX1024")
    well, said = examined()["limits"]
    assert not well and "hides what etude does not know" in said


def test_threads_are_counted(plain):
    plain.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    plain.setattr(torch, "get_num_threads", lambda: 2)
    assert examined()["threads"] == (True, "2 on the 2 cores that this process may use")
    plain.setattr(torch, "get_num_threads", lambda: 8)
    well, said = examined()["threads"]
    assert not well and said.startswith("8 on the 2 cores") and said.endswith("OMP_NUM_THREADS=2")
    plain.setattr(torch, "get_num_threads", lambda: 2)
    plain.setenv("OMP_NUM_THREADS", "4,2")
    assert examined()["threads"][0] is False
    plain.delattr(os, "sched_getaffinity")  # as on macOS
    plain.setattr(os, "cpu_count", lambda: 16)
    assert examined()["threads"] == (True, "4 on the 16 cores that this process may use")


@pytest.mark.parametrize(
    ("variable", "value", "well"),
    [
        ("OMP_WAIT_POLICY", "passive", False),
        ("OMP_WAIT_POLICY", "PASSIVE", False),
        ("OMP_WAIT_POLICY", "active", True),
        ("GOMP_SPINCOUNT", "0", False),
        ("GOMP_SPINCOUNT", "30000000000", True),
        ("GOMP_SPINCOUNT", "infinity", True),
    ],
)
def test_threads_that_sleep_are_warned_of(plain, variable, value, well):
    plain.setenv(variable, value)
    found, said = examined()["waiting"]
    assert found == well and (well or said.endswith(f"unset {variable}"))


def test_nothing_known_of_the_cpu(plain):
    """No /proc/cpuinfo, as on macOS: neither name nor features."""
    plain.setattr(cpu, "_cpuinfo", dict)
    plain.setattr(platform, "processor", lambda: "")
    plain.setattr(platform, "machine", lambda: "arm64")
    assert examined()["processor"] == (True, "arm64: features not known")


def test_an_arm_cpu(plain):
    plain.setattr(cpu, "_cpuinfo", lambda: {"Features": "fp asimd asimddp sve i8mm bf16"})
    plain.setattr(platform, "processor", lambda: "aarch64")
    plain.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # of no meaning there
    found = examined()
    assert found["processor"] == (True, "aarch64: asimd, asimddp, i8mm, bf16, sve")
    assert found["limits"][0]


def test_a_home_that_cannot_be_written(plain, tmp_path):
    (tmp_path / "file").write_text("no folder")
    plain.setenv("ETUDE_HOME", str(tmp_path / "file" / "home"))
    cpu._kept.cache_clear()  # measured anew, and not kept
    try:
        well, said = examined()["data home"]
        assert examined()["bf16"][0]
    finally:
        cpu._kept.cache_clear()
    assert not well and said.endswith(f"cannot be written: ETUDE_HOME={sys.prefix}/etude")
    assert (tmp_path / "file").read_text() == "no folder"


def test_what_breaks_is_said_and_the_rest_examined(plain):
    def broken():
        raise RuntimeError("could not create\na primitive")

    plain.setattr(cpu, "speeds", broken)
    found = examined()
    assert found["bf16"] == (False, "RuntimeError: could not create a primitive")
    assert found["torch"][0] and found["data digits"][0]
