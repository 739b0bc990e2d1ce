"""What this machine offers and what is amiss: `etude doctor`."""

import os
import platform
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from etude import cpu
from etude.data import fetch
from etude.engine.precision import computes_bf16, pick_device, resolve
from etude.engine.run import version
from etude.nn import lowbit

Found = tuple[bool, str]
"""Whether it is well; what was found and, where it is not well, the remedy."""
CORE = ("numpy", "safetensors", "tyro", "rich", "pillow", "jaxtyping")
SPINS = 1000
"""GOMP_SPINCOUNT up to which libgomp's threads sleep so soon that small models slow down as with a passive wait."""


def examine() -> list[tuple[str, bool, str]]:
    """(what, whether it is well, what was found and, where it is not well, the remedy)."""
    looks: dict[str, Callable[[], Found]] = {
        "etude": lambda: (True, f"{version()} on Python {platform.python_version()}"),
        "torch": _torch,
        "packages": _packages,
        "processor": lambda: (True, f"{cpu.name()}: {', '.join(cpu.features()) or 'features not known'}"),
        "limits": _limits,
        "threads": _threads,
        "waiting": _waiting,
        "device": _device,
        "bf16": _bf16,
        "kernels": _kernels,
        "training": lambda: (True, f"{_engine()}, weights kept in fp32"),
        "pictures": lambda: (True, f"{_engine()}, BatchNorm folded, channels last"),
        **{f"text {weights}": partial(_text, weights) for weights in lowbit.WEIGHTS},
        "memory": _memory,
        "disk": lambda: _disk(Path.cwd()),
        "compiler": lambda: (True, shutil.which("g++") or shutil.which("clang++") or "none: --compile runs eager"),
        "processes": _processes,
        "data home": _home,
        **{f"data {name}": partial(_data, name) for name in (*fetch.SHIPPED, *fetch.REMOTES)},
    }
    return [(name, *_found(look)) for name, look in looks.items()]


def _found(look: Callable[[], Found]) -> Found:
    try:
        return look()
    except Exception as error:  # of whatever is broken here: the rest is examined all the same
        return False, " ".join(f"{type(error).__name__}: {error}".split())


def _torch() -> Found:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    old = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 13)
    return not old, f"{torch.__version__} ({build})" + ("; etude needs 2.13: pip install -U torch" if old else "")


def _packages() -> Found:
    found = {}
    for name in CORE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return False, f"{name} is missing: pip install {name}"
    return True, ", ".join(f"{name} {number}" for name, number in found.items())


def _limits() -> Found:
    said, well = [], True
    for variable, hidden in cpu.hidden().items():
        value = os.environ[variable]
        known = value.lower() in cpu.LIMITS[variable]
        what = ", ".join(hidden) or ("nothing of this CPU" if known else "what etude does not know")
        said.append(f"{variable}={value} hides {what}")
        well = well and known and not hidden
    remedy = "" if well else f": unset {' '.join(cpu.limits())}"
    return well, ("; ".join(said) or "no variable hides features") + remedy


def _threads() -> Found:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = max(torch.get_num_threads(), int(wanted) if wanted.isdecimal() else 0)
    said = f"{threads} on the {cores} cores that this process may use"
    return threads <= cores, said + ("" if threads <= cores else f": they wait for each other; OMP_NUM_THREADS={cores}")


def _waiting() -> Found:
    """Threads that sleep between two operators have to be woken for each."""
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return False, "OMP_WAIT_POLICY=passive makes small models up to 2.5 times slower: unset OMP_WAIT_POLICY"
    spins = os.environ.get("GOMP_SPINCOUNT", "")
    if spins.isdecimal() and int(spins) <= SPINS:
        return False, f"GOMP_SPINCOUNT={spins} makes small models slower, as a passive wait does: unset GOMP_SPINCOUNT"
    return True, "threads stay awake between operators"


def _device() -> Found:
    device = pick_device()
    return True, torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _bf16() -> Found:
    device = pick_device()
    if device.type != "cpu":
        return True, f"{'in hardware' if computes_bf16(device) else 'not in hardware'} of the device"
    speeds, slowdown = cpu.speeds(), cpu.slowdown("bf16")
    if computes_bf16(device):
        products, convolutions = (
            speeds[f"{work} bf16"] / speeds[f"{work} fp32"] for work in ("products", "convolutions")
        )
        return True, f"products {products:.1f} times as fast as in fp32, convolutions {convolutions:.1f} times"
    return True, f"emulated, {slowdown:.1f} times slower than fp32" if slowdown > 2 else "no faster than fp32"


def _kernels() -> Found:
    packed = [name for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)) if lowbit.has_onednn(dtype)]
    said = f"torch's for {torch.backends.cpu.get_cpu_capability()}; "
    return True, said + (f"oneDNN packs weights in {' and '.join(packed)}" if packed else "oneDNN packs no weights")


def _engine() -> str:
    """What computes products and convolutions, and in what."""
    device = pick_device()
    onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return f"torch{' with oneDNN' if onednn else ''} in {resolve('auto', device)}"


def _text(weights: str) -> Found:
    device = pick_device()
    return True, lowbit.kernels()[weights] if device.type == "cpu" else f"torch's own layers on {device.type}"


def _memory() -> Found:
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return True, "not known on this system"
    page = os.sysconf("SC_PAGE_SIZE")
    free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    return free > 2 << 30, f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free" + (
        "" if free > 2 << 30 else "; training may not fit"
    )


def _disk(path: Path) -> Found:
    free = shutil.disk_usage(path).free
    return free > 1 << 30, f"{free / 1e9:.1f} GB free at {path}" + (
        "" if free > 1 << 30 else "; checkpoints may not fit"
    )


def _processes() -> Found:
    if not torch.distributed.is_available():
        return False, "this build of torch has no torch.distributed: one process only"
    backends = ["gloo"] * torch.distributed.is_gloo_available() + ["nccl"] * torch.distributed.is_nccl_available()
    return bool(backends), f"torchrun with {', '.join(backends)}"


def _home() -> Found:
    home = fetch.home()
    nearest = next(path for path in (home, *home.parents) if os.path.exists(path))
    well = nearest.is_dir() and os.access(nearest, os.W_OK)
    return well, f"{home}" + ("" if well else f" cannot be written: ETUDE_HOME={sys.prefix}/etude")


def _data(name: str) -> Found:
    status = fetch.status(name)
    return True, status.path or f"{status.state}: {status.hint}"
