"""What this machine offers and what is amiss: `etude doctor`."""

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import torch

from etude import cpu
from etude.data import fetch
from etude.engine.precision import computes_bf16, pick_device
from etude.engine.run import version

Row = tuple[str, bool, str]
CORE = ("numpy", "safetensors", "tyro", "rich", "pillow", "jaxtyping")


def examine() -> list[Row]:
    """(what, whether it is well, what was found and, where it is not well, the remedy)."""
    device = pick_device()
    rows: list[Row] = [
        ("etude", True, f"{version()} on Python {platform.python_version()}"),
        ("torch", *_torch()),
        ("packages", *_packages()),
        ("processor", True, f"{cpu.name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use"),
        ("device", True, torch.cuda.get_device_name(device) if device.type == "cuda" else device.type),
        (
            "bf16",
            True,
            "in hardware: precision auto takes it"
            if computes_bf16(device)
            else "not in hardware: precision auto takes fp32",
        ),
        ("memory", *_memory()),
        ("disk", *_disk(Path.cwd())),
        ("compiler", True, shutil.which("g++") or shutil.which("clang++") or "none: --compile falls back to eager"),
        ("processes", *_processes()),
        ("data home", *_home()),
    ]
    return rows + [
        ("data " + status.name, True, status.path or f"{status.state}: {status.hint}") for status in fetch.statuses()
    ]


def _torch() -> tuple[bool, str]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    old = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 13)
    return not old, f"{torch.__version__} ({build})" + ("; etude needs 2.13: pip install -U torch" if old else "")


def _packages() -> tuple[bool, str]:
    found = {}
    for name in CORE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return False, f"{name} is missing: pip install {name}"
    return True, ", ".join(f"{name} {number}" for name, number in found.items())


def _memory() -> tuple[bool, str]:
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return True, "not known on this system"
    page = os.sysconf("SC_PAGE_SIZE")
    free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    return free > 2 << 30, f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free" + (
        "" if free > 2 << 30 else "; training may not fit"
    )


def _disk(path: Path) -> tuple[bool, str]:
    free = shutil.disk_usage(path).free
    return free > 1 << 30, f"{free / 1e9:.1f} GB free at {path}" + (
        "" if free > 1 << 30 else "; checkpoints may not fit"
    )


def _processes() -> tuple[bool, str]:
    if not torch.distributed.is_available():
        return False, "this build of torch has no torch.distributed: one process only"
    backends = ["gloo"] * torch.distributed.is_gloo_available() + ["nccl"] * torch.distributed.is_nccl_available()
    return bool(backends), f"torchrun with {', '.join(backends)}"


def _home() -> tuple[bool, str]:
    home = fetch.home()
    parent = next(p for p in (home, *home.parents) if p.exists())
    well = os.access(parent, os.W_OK)
    return well, f"{home}" + ("" if well else f" cannot be written: ETUDE_HOME={sys.prefix}/etude")
