"""What a machine's matrix product reaches at best, and the share of it that a training step uses."""

import time

import torch

SIZE = 4096


def gemm_peak(dtype: torch.dtype = torch.bfloat16, *, device: torch.device | str = "cpu", size: int = SIZE) -> float:
    """Operations a second of the best of several (size, size) products in `dtype`, a multiplication and an addition
    each counted. With the threads that torch is set to; half a minute at most on a small CPU."""
    on = torch.device(device)
    a, b = (torch.randn(size, size, device=on, dtype=dtype) for _ in range(2))
    out = torch.empty(size, size, device=on, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        torch.mm(a, b, out=out)
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        best = min(best, time.perf_counter() - begun)
    return 2.0 * size**3 / best


def training_operations(parameters: int, *, depth: int, width: int, length: int) -> float:
    """Operations of a training step for each token: 6 a parameter that multiplies, and 12 L T D for attention's
    products over T places (Chowdhery et al., 2022, arXiv 2204.02311, appendix B; causal masks are not deducted)."""
    return 6.0 * parameters + 12.0 * depth * width * length
