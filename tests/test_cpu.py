"""What is measured of a CPU and kept, what /proc/cpuinfo says of it, and what environment variables hide."""

import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from etude import cpu

NAMES = ("here", "there")
NUMBERS = {"here": 1.5, "there": 2.5}

EPYC = ["avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16"]
WIDE = ["avx512f", "avx512_vnni", "avx512_bf16"]


@pytest.mark.parametrize(
    ("variable", "value", "hidden"),
    [
        ("ATEN_CPU_CAPABILITY", "avx2", ["avx512f"]),
        ("ATEN_CPU_CAPABILITY", "default", ["avx2", "fma", "avx512f"]),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", WIDE),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE", ["avx512_vnni", "avx512_bf16"]),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", []),
        ("ONEDNN_MAX_CPU_ISA", "DEFAULT", []),
        ("DNNL_MAX_CPU_ISA", "SSE41", EPYC),
        ("MKL_ENABLE_INSTRUCTIONS", "AVX2", ["avx512f"]),
        ("FBGEMM_ENABLE_INSTRUCTIONS", "AVX2", ["avx512f", "avx512_vnni"]),
        ("ATEN_CPU_CAPABILITY", "avx1024", []),
    ],
)
def test_hidden_features(monkeypatch, variable, value, hidden):
    for other in cpu.LIMITS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(cpu, "features", lambda: EPYC)
    assert cpu.hidden() == {} and cpu.used() == EPYC
    monkeypatch.setenv(variable, value)
    assert cpu.hidden() == {variable: hidden}
    assert cpu.used() == [feature for feature in EPYC if feature not in hidden]


def test_features_are_in_the_order_in_which_onednn_gains_them():
    assert [cpu.ONEDNN[value][0] for value in ("avx", "avx2", "avx2_vnni", "avx512_core", "avx512_core_vnni")] == [
        "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"
    ]  # fmt: skip
    assert cpu.ONEDNN["avx512_core_bf16"][0] == "avx512_fp16" and cpu.ONEDNN["avx512_core_fp16"][0] == "amx_bf16"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and nothing remembered in this process."""
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cpu, "_kept", cpu._kept.__wrapped__)
    return tmp_path / "home"


def measured() -> tuple[dict[str, float], int]:
    """What is found, and how often it had to be measured."""
    calls = []

    def measure() -> dict[str, float]:
        calls.append(1)
        return NUMBERS

    return cpu.kept("things", NAMES, measure), len(calls)


def test_what_was_measured_is_kept(home):
    assert measured() == (NUMBERS, 1) and measured() == (NUMBERS, 0)
    (path,) = (home / "machine").iterdir()
    document = json.loads(path.read_text())
    assert document["measured"] == NUMBERS and document["cpu"] == cpu.name() and document["torch"] == torch.__version__


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"measured": 3}',
        b'{"measured": [1, 2]}',
        b'{"measured": {}}',
        b'{"measured": {"here": 1.0}}',
        b'{"measured": {"here": 1.0, "elsewhere": 2.0}}',
        b'{"measured": {"here": 1.0, "there": null}}',
        b'{"measured": {"here": 1.0, "there": "much"}}',
        b'{"measured": {"here": 1.0, "there": {"x": 1}}}',
        b'{"measured": {"here": 1.0, "there": 0}}',
        b'{"measured": {"here": 1.0, "there": -2.0}}',
        b'{"measured": {"here": 1.0, "there": NaN}}',
        b'{"measured": {"here": 1.0, "there": 1e999}}',
        b'{"measured": {"here": 1.0, "there": 1' + b"0" * 400 + b"}}",
        b'{"measured": {"here": 1.0, "there": 1' + b"0" * 9000 + b"}}",
    ],
    ids=lambda content: content[:48].decode("latin-1"),
)
def test_a_damaged_file_is_measured_anew_and_mended(home, content):
    measured()
    (path,) = (home / "machine").iterdir()
    path.write_bytes(content)
    assert measured() == (NUMBERS, 1) and measured() == (NUMBERS, 0)


def test_where_nothing_can_be_kept_every_process_measures(home):
    """The home is a file; or what should be the file is a folder."""
    home.write_text("a file")
    assert measured() == (NUMBERS, 1) and measured() == (NUMBERS, 1) and home.read_text() == "a file"
    home.unlink()
    measured()
    (path,) = (home / "machine").iterdir()
    path.unlink()
    path.mkdir()
    assert measured() == (NUMBERS, 1) and measured() == (NUMBERS, 1)


@pytest.mark.parametrize("variable", cpu.LIMITS)
def test_a_cpu_with_less_to_use_is_another(home, monkeypatch, variable):
    monkeypatch.delenv(variable, raising=False)
    measured()
    for value in ("AVX2", "AVX"):
        monkeypatch.setenv(variable, value)
        assert measured() == (NUMBERS, 1) and measured() == (NUMBERS, 0)
    monkeypatch.delenv(variable)
    assert measured() == (NUMBERS, 0) and len(list((home / "machine").iterdir())) == 3


def test_speeds_are_measured(home):
    speeds = cpu.speeds()
    assert list(speeds) == ["products fp32", "products bf16", "convolutions fp32", "convolutions bf16"]
    assert all(math.isfinite(speed) and speed > 0 for speed in speeds.values())
    assert cpu.speeds() == speeds, "from the file"


def test_the_faster_format_is_faster_in_both_kinds_of_work(monkeypatch):
    speeds = {"products fp32": 100.0, "products bf16": 300.0, "convolutions fp32": 80.0, "convolutions bf16": 160.0}
    monkeypatch.setattr(cpu, "speeds", lambda: speeds)
    assert cpu.slowdown("bf16") == pytest.approx(1 / 2) and cpu.computes_bf16()
    speeds["convolutions bf16"] = 90.0
    assert cpu.slowdown("bf16") == pytest.approx(8 / 9) and not cpu.computes_bf16()


def test_the_least_time_of_each_on_one_thread():
    threads, seen = torch.get_num_threads(), []
    rests = iter([0.02, 0.03, 0.001] + [0.005] * 30)  # the first round only warms up

    def call() -> None:
        seen.append(torch.get_num_threads())
        assert not torch.is_grad_enabled()
        time.sleep(next(rests))

    found = cpu.best_seconds({"sleep": call, "nothing": lambda: None})
    assert 0.001 <= found["sleep"] < 0.03 and found["nothing"] < found["sleep"]
    assert set(seen) == {1} and len(seen) >= 3 and torch.get_num_threads() == threads
    with pytest.raises(ZeroDivisionError):
        cpu.best_seconds({"fails": lambda: 1 / 0})
    assert torch.get_num_threads() == threads


X86 = """processor\t: 0
model name\t: AMD EPYC 9354: a server
flags\t\t: fpu sse sse2 avx avx2 fma avx512f avx512_bf16 rdseed

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes asimddp sve i8mm bf16

processor\t: 1
"""


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that stands for /proc/cpuinfo; there is none at first."""
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    cpu._cpuinfo.cache_clear()
    yield tmp_path / "cpuinfo"
    cpu._cpuinfo.cache_clear()


@pytest.mark.parametrize(
    ("content", "name", "features"),
    [
        (X86, "AMD EPYC 9354: a server", ["avx2", "fma", "avx512f", "avx512_bf16"]),
        (ARM, "", ["asimd", "asimddp", "i8mm", "bf16", "sve"]),
        ("", "", []),
        ("no colon\n\x00\udcff: \n", "", []),
    ],
    ids=["x86", "arm", "empty", "strange"],
)
def test_what_proc_cpuinfo_says(cpuinfo, content, name, features):
    cpuinfo.write_text(content, encoding="utf-8", errors="surrogateescape")
    assert cpu.features() == features
    assert cpu.name() == (name or platform.processor() or platform.machine())


def test_a_system_without_proc_cpuinfo(cpuinfo, home):
    assert cpu.features() == [] and cpu.name()
    assert measured() == (NUMBERS, 1) and measured() == (NUMBERS, 0)
