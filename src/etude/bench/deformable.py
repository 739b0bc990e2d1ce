"""Deformable convolution v2 against torchvision's, and against the usual way to write it without an extension.

The usual way samples all taps with one `grid_sample` and multiplies; it stands here as people write it. Four pictures
of 64 channels and 56x56 pixels, 3x3, 64 output channels, offsets of about a pixel: one forward and backward pass, with
gradients by all five tensors.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.bench import Contest, clock
from etude.bench.step import operations_of
from etude.vision.deformable import deform_conv2d

BATCH, CHANNELS, SIDE = 4, 64, 56
TARGETS = {"torchvision.ops": 7.4, "grid_sample": 1.1}
"""What 125 ms would be, beside the peers' 920 and 135 ms on 2 cores of an AMD EPYC."""
Convolution = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(input, offset, weight, bias, mask) -> output, padding 1."""


def contests(*, compiled: bool = False) -> list[Contest]:
    """Images/s, forward and backward. `compiled` changes nothing here. A peer that is not installed has a row with the
    reason."""
    g = torch.Generator().manual_seed(0)
    shapes = {
        "input": (BATCH, CHANNELS, SIDE, SIDE),
        "offset": (BATCH, 18, SIDE, SIDE),
        "weight": (CHANNELS, CHANNELS, 3, 3),
        "bias": (CHANNELS,),
        "mask": (BATCH, 9, SIDE, SIDE),
    }
    tensors = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    tensors["weight"] /= (9 * CHANNELS) ** 0.5
    tensors["mask"] = tensors["mask"].sigmoid()
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]
    return [_contest(name, peer, leaves) for name, peer in (("torchvision.ops", _torchvision), ("grid_sample", _plain))]


def _contest(name: str, peer: Callable[[], tuple[Convolution, str]], leaves: list[Tensor]) -> Contest:
    theirs = version = None
    note = ""
    try:
        theirs, version = peer()
    except Exception as error:  # torchvision beside a torch of another release fails with errors of many kinds
        install = "pip install torchvision, the release that belongs to this torch"
        note = f"peer not importable here ({type(error).__name__}: {error}); {install}"
    if theirs:
        torch.testing.assert_close(ours(*leaves), theirs(*leaves), rtol=1e-3, atol=1e-4)
    return Contest(
        name=f"deformable.{name}",
        what=f"deformable convolution v2, {BATCH}x{CHANNELS}x{SIDE}x{SIDE}, 3x3, forward and backward",
        amount=BATCH,
        unit="images/s",
        ours=clock(lambda: _both(ours, leaves)),
        peer=clock(lambda theirs=theirs: _both(theirs, leaves)) if theirs else None,
        peer_name=name,
        peer_version=version,
        target=TARGETS[name],
        note=note,
        operations=operations_of(lambda: _both(grid_sample, leaves)),
        precision="fp32",
        rounds=15,
    )


def _both(convolution: Convolution, leaves: list[Tensor]) -> None:
    y = convolution(*leaves)
    torch.autograd.grad(y, leaves, torch.ones_like(y))


def ours(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return deform_conv2d(input, offset, weight, bias, padding=1, mask=mask)


def _torchvision() -> tuple[Convolution, str]:
    import torchvision  # pyright: ignore[reportMissingImports]
    from torchvision.ops import deform_conv2d as theirs  # pyright: ignore[reportMissingImports]

    return lambda x, offset, weight, bias, mask: theirs(x, offset, weight, bias, padding=1, mask=mask), (
        torchvision.__version__
    )


def grid_sample(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """Stride 1, padding 1, 3x3: all taps' positions as one grid of 9 H rows, and one matrix product."""
    b, c, h, w = input.shape
    y, x = offset.view(b, 9, 2, h, w).unbind(2)
    taps = torch.arange(9)
    y = y + (torch.arange(h)[:, None] - 1) + (taps // 3).view(9, 1, 1)
    x = x + (torch.arange(w) - 1) + (taps % 3).view(9, 1, 1)
    grid = torch.stack([2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1], -1).view(b, 9 * h, w, 2)
    columns = F.grid_sample(input, grid, "bilinear", "zeros", align_corners=True).view(b, c, 9, h, w) * mask[:, None]
    return (weight.view(-1, c * 9) @ columns.view(b, c * 9, h * w)).view(b, -1, h, w) + bias.view(-1, 1, 1)


def _plain() -> tuple[Convolution, str]:
    return grid_sample, torch.__version__
