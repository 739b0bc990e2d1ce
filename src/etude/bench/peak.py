"""What a machine's matrix product reaches at best, and how many operations a training step needs."""

import time

import torch

SIZES = (512, 1024, 2048, 4096, 8192)
BUDGET = 0.25
"""Seconds that a product may be expected to take; larger ones are left out, as on a slow CPU they take half a minute
and are no faster."""


def gemm_peak(dtype: torch.dtype = torch.bfloat16, *, device: torch.device | str = "cpu") -> float:
    """Operations a second of the best of several square products in `dtype`, a multiplication and an addition each
    counted. With the threads that torch is set to; about a second on a CPU."""
    on = torch.device(device)
    peak = 0.0
    for size in SIZES:
        a, b = (torch.randn(size, size, device=on, dtype=dtype) for _ in range(2))
        out = torch.empty(size, size, device=on, dtype=dtype)
        for _ in range(6):
            begun = time.perf_counter()
            torch.mm(a, b, out=out)
            if on.type == "cuda":
                torch.cuda.synchronize(on)
            peak = max(peak, 2.0 * size**3 / (time.perf_counter() - begun))
        if 2.0 * (2 * size) ** 3 / peak > BUDGET:
            break
    return peak


def training_operations(parameters: int, *, depth: int, width: int, length: int) -> float:
    """Operations of a training step for each token: 6 a parameter that multiplies, and 12 L T D for attention's
    products over T places (Chowdhery et al., 2022, arXiv 2204.02311, appendix B; causal masks are not deducted)."""
    return 6.0 * parameters + 12.0 * depth * width * length
