"""What this machine's CPU computes fast: its features, and its products measured in each number format.

A feature flag alone does not say which format is the fastest. bf16 products are emulated where the CPU has none, some
hundred times slower than fp32 on one with AVX2 only; environment variables can hide what a CPU has from the libraries
that compute (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA); and torch may have been built without a fast kernel. So the
formats are timed, in about a tenth of a second, and the answer is kept per machine under ETUDE_HOME.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from etude.home import home

FEATURES: tuple[str, ...] = (
    # x86-64
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    # ARM
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Flags of /proc/cpuinfo that bear on arithmetic."""
X86: tuple[str, ...] = FEATURES[: FEATURES.index("asimd")]
"""In the order in which oneDNN's limits leave them out."""
ONEDNN: dict[str, tuple[str, ...]] = {
    "sse41": X86, "avx": X86, "avx2": X86[3:], "avx2_vnni": X86[4:], "avx2_vnni_2": X86[4:], "avx512_core": X86[5:],
    "avx512_core_vnni": X86[6:], "avx512_core_bf16": X86[7:], "avx512_core_fp16": X86[8:], "avx10_1_512": X86[8:],
    "avx512_core_amx": (), "avx512_core_amx_fp16": (), "all": (), "default": (),
}  # fmt: skip
LIMITS: dict[str, dict[str, tuple[str, ...]]] = {
    "ATEN_CPU_CAPABILITY": {"default": ("avx2", "fma", "avx512f"), "avx2": ("avx512f",), "avx512": ()},
    "ONEDNN_MAX_CPU_ISA": ONEDNN,
    "DNNL_MAX_CPU_ISA": ONEDNN,
    "MKL_ENABLE_INSTRUCTIONS": {
        "sse4_2": ("avx2", "fma", "avx512f"), "avx": ("avx2", "fma", "avx512f"), "avx2": ("avx512f",),
        "avx2_e1": ("avx512f",), "avx512": (),
    },
    "FBGEMM_ENABLE_INSTRUCTIONS": {"avx2": ("avx512f", "avx512_vnni"), "avx512": ("avx512_vnni",), "avx512_e1": ()},
}  # fmt: skip
"""Environment variables that hide features of the CPU from torch and its libraries: of each value, in lower case, the
features that this library would use and then does not."""
CPUINFO = Path("/proc/cpuinfo")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MARGIN = 1.2
"""A format is faster than fp32 if it takes less than 1 / MARGIN of its time; closer ones are a matter of noise."""


def name() -> str:
    """The CPU's model name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def features() -> list[str]:
    """Those of `FEATURES` that the CPU has, whether or not the libraries use them; empty where the system has no
    /proc/cpuinfo."""
    flags = (_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split()
    return [feature for feature in FEATURES if feature in flags]


def limits() -> dict[str, str]:
    """The environment variables set that hide features."""
    return {variable: os.environ[variable] for variable in LIMITS if os.environ.get(variable)}


def hidden() -> dict[str, list[str]]:
    """Of each variable of `limits`, the features of this CPU that it hides."""
    return {
        variable: [feature for feature in features() if feature in LIMITS[variable].get(value.lower(), ())]
        for variable, value in limits().items()
    }


def used() -> list[str]:
    """Those of `features` that no limit hides."""
    gone = {feature for found in hidden().values() for feature in found}
    return [feature for feature in features() if feature not in gone]


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    try:
        first = CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def computes_bf16() -> bool:
    """Whether products in bf16 are faster here than in fp32."""
    return slowdown("bf16") < 1 / MARGIN


def slowdown(precision: str) -> float:
    """How many times as long matrix products and convolutions take in "bf16" as in "fp32": below 1, it is faster."""
    measured = speeds()
    return max(measured[f"{work} fp32"] / measured[f"{work} {precision}"] for work in ("products", "convolutions"))


def speeds() -> dict[str, float]:
    """GFLOP/s: {"products fp32", "products bf16", "convolutions fp32", "convolutions bf16"}. Of small operands, so they
    compare the formats and are below the CPU's peak."""
    names = tuple(f"{work} {precision}" for work in ("products", "convolutions") for precision in PRECISIONS)
    return kept("products", names, _measure_products)


def _measure_products() -> dict[str, float]:
    found: dict[str, float] = {}
    for work, make in (("products", _product), ("convolutions", _convolution)):
        for size in (1, 4):  # the larger only where the smaller does not tell: emulated, it would take a second
            calls = {precision: make(size, dtype) for precision, dtype in PRECISIONS.items()}
            seconds = best_seconds({precision: call for precision, (call, _) in calls.items()})
            for precision, (_, operations) in calls.items():
                found[f"{work} {precision}"] = operations / seconds[precision] / 1e9
            if found[f"{work} bf16"] < found[f"{work} fp32"] / 2:
                break
    return found


def _product(size: int, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    rows, width = 32 * size, 256 * size
    x, w = torch.full((rows, width), 0.5, dtype=dtype), torch.full((width, width), 0.5, dtype=dtype)
    return lambda: F.linear(x, w), 2.0 * rows * width * width


def _convolution(size: int, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    side, maps = 16 * size, 32
    x = torch.full((1, maps, side, side), 0.5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.full((maps, maps, 3, 3), 0.5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, w, padding=1), 2.0 * 9 * maps * maps * side * side


def best_seconds(calls: dict[str, Callable[[], object]], *, budget: float = 0.02) -> dict[str, float]:
    """The least seconds that each call takes, on one thread: the calls in turn, 2 to 20 rounds after one to warm up,
    within about `budget` seconds. One thread, because two that wait for each other on a busy machine tell nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = dict.fromkeys(calls, math.inf)
        begun = time.perf_counter()
        for round in range(21):
            for key, call in calls.items():
                start = time.perf_counter()
                with torch.no_grad():
                    call()
                if round:
                    best[key] = min(best[key], time.perf_counter() - start)
            if round >= 2 and time.perf_counter() - begun > budget:
                break
        return best
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Context manager: operators run on the CPU, without autocast and without gradients."""
    with torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.no_grad():
        yield


def kept(what: str, names: tuple[str, ...], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """`measure()`, made once per machine: its numbers, of these names, are read from ETUDE_HOME where this CPU, with
    this torch and the same limits, was measured before. An invalid file is measured again; where
    nothing can be written, every process measures."""
    with _MEASURING:  # threads that measure at once would disturb each other
        return _kept(what, names, measure)


_MEASURING = threading.RLock()


@functools.cache
def _kept(what: str, names: tuple[str, ...], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    path = home() / "machine" / f"{what}-{_fingerprint()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))["measured"]
        numbers = {key: float(found[key]) for key in names}
        if all(math.isfinite(value) and value > 0 for value in numbers.values()):
            return numbers
    with plainly():
        numbers = measure()
    document = {"cpu": name(), "features": features(), "torch": torch.__version__, **limits(), "measured": numbers}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(document, indent=1), encoding="utf-8")
            os.replace(beside, path)  # at once: processes that start together may measure together
        finally:
            beside.unlink(missing_ok=True)
    return numbers


def _fingerprint() -> str:
    """Of all that the answer depends on."""
    known = features() or [platform.node()]  # elsewhere than on Linux the name alone does not tell CPUs apart
    parts = [name(), *known, torch.__version__, torch.backends.cpu.get_cpu_capability(), *limits().items()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
