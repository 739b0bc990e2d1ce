"""Devices, number formats and memory: what the hardware offers, and how a step is computed in it."""

import contextlib
import ctypes
import platform
import sys
from contextlib import AbstractContextManager
from typing import Literal

import torch

from etude import cpu
from etude.errors import UsageError

Resolved = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """auto takes cuda, then mps, then cpu. A device asked for and absent is an error, never a silent fallback."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}", hint="--device auto, cpu, cuda, cuda:0 or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {name!r} is not one that etude trains on", hint="--device auto, cpu, cuda or mps")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device.type]:
        raise UsageError(f"device {name!r} is not available to this build of torch", hint="--device auto")
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UsageError(f"there is no {device}; this machine has {torch.cuda.device_count()} CUDA devices")
        torch.cuda.set_device(device)
    return device


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is the faster format here: of a GPU by its hardware, of a CPU as measured."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu.computes_bf16()


def resolve(precision: str, device: torch.device) -> Resolved:
    """auto -> bf16 where it is the faster format, else fp32. fp16 needs a GPU: a CPU is ten times slower in it."""
    if precision == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    if precision == "fp16" and device.type == "cpu":
        fastest = resolve("auto", device)
        raise UsageError(
            f"precision fp16 needs a GPU: a CPU emulates it; the fastest here is {fastest}",
            hint=f"--precision {fastest}",
        )
    if precision not in DTYPES:
        raise UsageError(f"unknown precision {precision!r}", hint="--precision auto, fp32, bf16 or fp16")
    return precision  # pyright: ignore[reportReturnType]


def slow(precision: Resolved, device: torch.device) -> str:
    """One line that warns of a format that this CPU emulates, and names the fastest; "" for the others."""
    if device.type != "cpu" or precision != "bf16" or cpu.slowdown("bf16") < cpu.MARGIN:
        return ""
    return (
        f"bf16 products are emulated on this CPU: they take {cpu.slowdown('bf16'):.1f} times as long as in fp32, the "
        "fastest here (--precision fp32, or auto)"
    )


def warn_slow(precision: Resolved, device: torch.device) -> None:
    """Write what `slow` says on stderr."""
    if said := slow(precision, device):
        print(f"etude: {said}", file=sys.stderr)


def autocast(precision: Resolved, device: torch.device) -> AbstractContextManager:
    """The context a forward pass runs in; weights stay fp32 and matrix products are computed in `precision`."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def keep_large_blocks() -> bool:
    """Have glibc keep freed blocks of up to 1 GiB instead of returning them to the kernel.

    By default every tensor above 32 MiB is mapped anew and its pages faulted in at each allocation, which can cost
    more than the arithmetic. False where the allocator is not glibc's.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(mmap_threshold, 1 << 30) and libc.mallopt(trim_threshold, (1 << 31) - 1))
