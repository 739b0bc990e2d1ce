"""Deformable convolution against a loop over pixels; derivatives, borders, memory. torchvision: tests/verify."""

import subprocess
import sys
from math import floor
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from etude.errors import UsageError
from etude.nn.inference import conv_bn_pairs
from etude.vision import resnet
from etude.vision.deformable import DeformConv2d, deform_conv2d, sampling_positions


def pixel(x: Tensor, y: int, x_: int) -> Tensor:
    """(C,) of the pixel, zero outside."""
    inside = 0 <= y < x.shape[1] and 0 <= x_ < x.shape[2]
    return x[:, y, x_] if inside else torch.zeros_like(x[:, 0, 0])


def bilinear(x: Tensor, y: Tensor, x_: Tensor) -> Tensor:
    """(C, H, W) at one position: the four pixels around it."""
    top, left = floor(y.item()), floor(x_.item())
    v, u = y - top, x_ - left
    upper = (1 - u) * pixel(x, top, left) + u * pixel(x, top, left + 1)
    lower = (1 - u) * pixel(x, top + 1, left) + u * pixel(x, top + 1, left + 1)
    return (1 - v) * upper + v * lower


def naive(x, offset, weight, bias, stride, padding, dilation, mask) -> Tensor:
    """Equation 2 of 1703.06211 and equation 1 of 1811.11168, one output pixel and one tap at a time."""
    (b, c, _, _), (o, per_group, kh, kw) = x.shape, weight.shape
    taps, (p, q) = kh * kw, offset.shape[2:]
    offset_groups, groups = offset.shape[1] // (2 * taps), c // per_group
    share = c // offset_groups
    out = []
    for n in range(b):
        for i in range(p):
            for j in range(q):
                total = torch.zeros(o, dtype=x.dtype) if bias is None else bias
                for k in range(taps):
                    seen = []
                    for g in range(offset_groups):
                        channel = g * taps + k
                        y = i * stride[0] - padding[0] + k // kw * dilation[0] + offset[n, 2 * channel, i, j]
                        x_ = j * stride[1] - padding[1] + k % kw * dilation[1] + offset[n, 2 * channel + 1, i, j]
                        value = bilinear(x[n, g * share : (g + 1) * share], y, x_)
                        seen.append(value if mask is None else value * mask[n, channel, i, j])
                    columns = torch.cat(seen).view(groups, per_group, 1)
                    kernel = weight[:, :, k // kw, k % kw].view(groups, o // groups, per_group)
                    total = total + (kernel @ columns).flatten()
                out.append(total)
    return torch.stack(out).view(b, p, q, o).permute(0, 3, 1, 2)


@st.composite
def cases(draw):
    """Arguments of a small convolution in float64, offsets whole and broken, inside and outside."""
    groups, offset_groups = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 4), (4, 2)]))
    c = max(groups, offset_groups) * draw(st.integers(1, 2))
    pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [n + d * (k - 1) for n, d, k in zip(draw(pairs), dilation, kernel)]
    p, q = ((n + 2 * e - d * (k - 1) - 1) // s + 1 for n, e, d, k, s in zip(size, padding, dilation, kernel, stride))
    b, o, taps = draw(st.integers(1, 2)), groups * draw(st.integers(1, 2)), kernel[0] * kernel[1]
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    offset = 1.5 * normal(b, 2 * offset_groups * taps, p, q)
    if draw(st.booleans()):
        offset = offset.round()  # on pixels, where the derivative has two sides: that of the floor is taken
    mask = normal(b, offset_groups * taps, p, q).sigmoid() if draw(st.booleans()) else None
    bias = normal(o) if draw(st.booleans()) else None
    x, weight = normal(b, c, *size), normal(o, c // groups, *kernel)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    return {"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}, (stride, padding, dilation)


@settings(deadline=None, max_examples=40)
@given(cases())
def test_equals_a_loop_over_pixels(case):
    """Outputs and all gradients, for any shape, groups, stride, padding and dilation, with and without mask."""
    tensors, (stride, padding, dilation) = case
    names = [name for name, tensor in tensors.items() if tensor is not None]
    leaves: dict[str, Any] = {
        name: t if t is None else t.detach().clone().requires_grad_() for name, t in tensors.items()
    }
    settled = {"stride": stride, "padding": padding, "dilation": dilation, "mask": leaves["mask"]}
    y = deform_conv2d(leaves["x"], leaves["offset"], leaves["weight"], leaves["bias"], **settled)
    expected = naive(**leaves, **{key: value for key, value in settled.items() if key != "mask"})
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(expected)
    found = torch.autograd.grad(y, [leaves[name] for name in names], direction)
    inputs = [leaves[name] for name in names]
    wanted = torch.autograd.grad(expected, inputs, direction, materialize_grads=True)  # zero where all lies outside
    for name, mine, theirs in zip(names, found, wanted):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2])
def test_without_offsets_it_is_a_convolution(layout, groups):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 7).contiguous(memory_format=layout)
    weight, bias = torch.randn(6, 4 // groups, 3, 3), torch.randn(6)
    geometry: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    expected = F.conv2d(x, weight, bias, groups=groups, **geometry)
    offset = torch.zeros(2, 2 * 9, *expected.shape[2:])
    y = deform_conv2d(x, offset, weight, bias, **geometry)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=layout)
    half = deform_conv2d(x, offset, weight, mask=torch.full_like(offset[:, :9], 0.5), **geometry)
    torch.testing.assert_close(half, 0.5 * F.conv2d(x, weight, groups=groups, **geometry), rtol=1e-4, atol=1e-5)


def test_whole_offsets_shift_the_picture():
    """Offset channel 2 k moves tap k down, 2 k + 1 to the right."""
    x = torch.arange(20.0).view(1, 1, 4, 5)
    offset = torch.zeros(1, 2, 4, 5)
    offset[:, 0], offset[:, 1] = 1, -2
    y = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1))
    expected = torch.zeros_like(x)
    expected[..., :3, 2:] = x[..., 1:, :3]
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("position", "value", "slope"),
    [
        (-1.5, 0.0, 0.0),
        (-1.0, 0.0, 2.0),  # the derivative to the right: towards the first pixel
        (-0.75, 0.5, 2.0),
        (0.0, 2.0, 1.0),
        (0.5, 2.5, 1.0),
        (2.0, 7.0, -7.0),  # the last pixel: towards the zero after it
        (2.25, 5.25, -7.0),
        (3.0, 0.0, 0.0),
        (1e12, 0.0, 0.0),
        (-1e12, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("vertical", [True, False])
def test_the_border_by_hand(position, value, slope, vertical):
    """Pixels 2, 3, 7 in a row, zero before and after, linear between."""
    x = torch.tensor([2.0, 3.0, 7.0]).view(1, 1, *((3, 1) if vertical else (1, 3)))
    offset = torch.zeros(1, 2, 1, 1)
    offset[0, 0 if vertical else 1] = position
    offset.requires_grad_()
    y = deform_conv2d(x, offset.expand(1, 2, *x.shape[2:]), torch.ones(1, 1, 1, 1))[0, 0, 0, 0]
    assert y.item() == pytest.approx(value)
    (gradient,) = torch.autograd.grad(y, offset)
    assert gradient[0, 0 if vertical else 1].item() == pytest.approx(slope)


@pytest.mark.parametrize("mask", [False, True])
def test_twice_differentiable(mask):
    """First and second derivatives by input, offset, weight, bias and mask against finite differences in float64."""
    torch.manual_seed(1)
    shape = (2, 2 * 2 * 4, 2, 3)
    arguments = [
        torch.randn(2, 4, 3, 4, dtype=torch.float64),
        # away from the pixels, where the value has a kink
        torch.randint(-1, 2, shape) + torch.empty(shape, dtype=torch.float64).uniform_(0.2, 0.8),
        torch.randn(2, 2, 2, 2, dtype=torch.float64),
        torch.randn(2, dtype=torch.float64),
        torch.rand(2, 2 * 4, 2, 3, dtype=torch.float64) if mask else None,
    ]
    leaves: Any = [t if t is None else t.requires_grad_() for t in arguments]

    def call(x, offset, weight, bias, m):
        return deform_conv2d(x, offset, weight, bias, mask=m)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)  # along random directions


def test_only_what_is_asked_for_is_differentiated():
    x, offset, weight = torch.randn(1, 2, 4, 4), torch.randn(1, 8, 3, 3), torch.randn(1, 2, 2, 2)
    for tensor in (x, offset, weight):
        tensor.requires_grad_()
        (gradient,) = torch.autograd.grad(deform_conv2d(x, offset, weight).square().sum(), tensor)
        assert gradient.shape == tensor.shape and gradient.abs().sum() > 0
        tensor.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Positions are float32: at column 300 bfloat16 could not even tell whole pixels apart."""
    torch.manual_seed(0)
    x, offset, weight = torch.randn(1, 4, 3, 300), 0.5 * torch.randn(1, 18, 3, 300), torch.randn(2, 4, 3, 3)
    low = [t.to(dtype).requires_grad_() for t in (x, offset, weight)]
    full = [t.detach().float().requires_grad_() for t in low]
    y, expected = (deform_conv2d(*tensors, padding=1) for tensors in (low, full))
    assert y.dtype == dtype
    assert F.cosine_similarity(y.float().flatten(), expected.flatten(), dim=0) > 0.9999
    for mine, theirs in zip(torch.autograd.grad(y.float().sum(), low), torch.autograd.grad(expected.sum(), full)):
        assert F.cosine_similarity(mine.float().flatten(), theirs.flatten(), dim=0) > 0.999


def test_autocast():
    torch.manual_seed(0)
    layer, x = DeformConv2d(4, 4, 3, padding=1), torch.randn(2, 4, 6, 6)
    torch.nn.init.normal_(layer.offset.weight, std=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


def test_nan_stays_seen():
    """An offset that is NaN reads no memory outside of the picture, and NaN comes out at its place alone."""
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1)
    offset = torch.zeros(1, 2, 4, 4)
    offset[0, 0, 1, 2] = float("nan")
    bad = deform_conv2d(x, offset, weight).isnan()
    assert bad[0, :, 1, 2].all() and bad.sum() == 3


def test_no_pictures():
    y = deform_conv2d(torch.randn(0, 2, 4, 4), torch.zeros(0, 18, 4, 4), torch.randn(3, 2, 3, 3), padding=1)
    assert y.shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": (2, 17, 5, 5)}, r"offset must have 18 G channels .* not 17"),
        ({"offset": (2, 54, 5, 5)}, r"divide the 4 input channels\), not 54"),
        ({"offset": (2, 18, 4, 5)}, r"offset must have the shape \(2, 18 G, 5, 5\), not \(2, 18, 4, 5\)"),
        ({"offset": (1, 18, 5, 5)}, r"offset must have the shape \(2, 18 G, 5, 5\), not \(1, 18, 5, 5\)"),
        ({"mask": (2, 18, 5, 5)}, r"mask must have the shape \(2, 9, 5, 5\), not \(2, 18, 5, 5\)"),
        ({"mask": (2, 9, 5)}, r"mask must have the shape \(2, 9, 5, 5\), not \(2, 9, 5\)"),
        ({"weight": (6, 3, 3, 3)}, r"weight \(6, 3, 3, 3\) does not fit 4 input channels"),
        ({"weight": (5, 2, 3, 3)}, r"weight \(5, 2, 3, 3\) does not fit 4 input channels"),
        ({"weight": (6, 4, 3)}, r"weight must have the shape \(O, C / groups, kh, kw\), not \(6, 4, 3\)"),
        ({"weight": (6, 4, 9, 9)}, "a kernel of 9 x 9 is larger than the padded input of 5 x 5"),
        ({"x": (4, 5, 5)}, r"input must have the shape \(B, C, H, W\), not \(4, 5, 5\)"),
        ({"bias": (5,)}, r"bias must have the shape \(6\), not \(5,\)"),
    ],
)
def test_shapes_that_do_not_fit(change, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, whose shapes nobody else checks
    shapes = {"x": (2, 4, 5, 5), "offset": (2, 18, 5, 5), "weight": (6, 4, 3, 3), "bias": (6,), "mask": (2, 9, 5, 5)}
    tensors = {name: torch.zeros(shape) for name, shape in (shapes | change).items()}
    with pytest.raises(UsageError, match=message):
        deform_conv2d(
            tensors["x"], tensors["offset"], tensors["weight"], tensors["bias"], padding=1, mask=tensors["mask"]
        )


def test_groups_that_do_not_divide():
    with pytest.raises(UsageError, match="offset_groups is 3; it must divide the 4 input channels"):
        DeformConv2d(4, 4, 3, offset_groups=3)
    with pytest.raises(UsageError, match="groups is 0"):
        DeformConv2d(4, 4, 3, groups=0)


# The module


@pytest.mark.parametrize("modulated", [True, False])
def test_it_starts_on_the_grid(modulated):
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, offset_groups=2, modulated=modulated)
    assert layer.offset.weight.shape[0] == 2 * 9 * (3 if modulated else 2)
    x = torch.randn(2, 4, 9, 9)
    plain = F.conv2d(x, layer.weight, None, 2, 2, 2, groups=2)
    expected = (0.5 if modulated else 1.0) * plain + layer.get_parameter("bias").view(-1, 1, 1)
    torch.testing.assert_close(layer(x), expected)
    assert set(layer.state_dict()) == {"weight", "bias", "offset.weight", "offset.bias"}


def test_it_learns_where_to_look():
    """A picture moved by a fixed fraction of a pixel: v1 with a fixed 1x1 kernel finds the motion."""
    torch.manual_seed(0)
    layer = DeformConv2d(1, 1, 1, bias=False, modulated=False)
    torch.nn.init.ones_(layer.weight)
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")

    def picture(dy: float, dx: float) -> Tensor:
        return (torch.sin((y + dy) / 4) + torch.cos((x + dx) / 5))[None, None]

    optimiser = torch.optim.Adam([layer.offset.weight, layer.get_parameter("offset.bias")], lr=0.05)
    losses = []
    for _ in range(150):
        loss = (layer(picture(0, 0)) - picture(0.7, -0.4))[..., 2:-2, 2:-2].square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    offset = layer.offset(picture(0, 0))[0, :, 4:-4, 4:-4].mean((1, 2))
    assert losses[-1] < 1e-3 and offset.tolist() == pytest.approx([0.7, -0.4], abs=0.2)


def test_sampling_positions_by_hand():
    """Two 3x3 layers, the first of stride 2: a unit's 81 positions; then with one tap moved."""
    torch.manual_seed(0)
    first, second = DeformConv2d(1, 2, 3, stride=2, padding=1), DeformConv2d(2, 1, 3, padding=1)
    model = torch.nn.Sequential(first, second)
    x = torch.randn(1, 1, 8, 8)
    found = sampling_positions(model, [first, second], x)
    assert found.shape == (1, 4, 4, 81, 2)
    taps = torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-1.0, 2))
    expected = [2 * (torch.tensor([1.0, 2.0]) + outer) + inner for outer in taps for inner in taps]
    torch.testing.assert_close(found[0, 1, 2], torch.stack(expected))
    with torch.no_grad():
        first.get_parameter("offset.bias")[2 * 4 + 1] = 0.25  # the middle tap, to the right
    moved = sampling_positions(model, [first, second], x)[0, 1, 2].view(9, 9, 2) - found[0, 1, 2].view(9, 9, 2)
    torch.testing.assert_close(moved[:, 4], torch.tensor([0.0, 0.25]).expand(9, 2), rtol=0, atol=1e-6)
    assert moved.abs().sum().item() == pytest.approx(9 * 0.25, abs=1e-4)


def test_networks_with_it_are_traced_and_exported():
    """BatchNorms of the plain convolutions still fold, and torch.export sees no data-dependent shape."""
    model = resnet.Config(depths=(1, 1), width=4, in_channels=1, num_classes=3, deformable_from=2, stem="cifar").build()
    assert len(conv_bn_pairs(model)) == 4  # stem, two in stage 1, the projection of stage 2
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        exported = torch.export.export(model.eval(), (x,))
        torch.testing.assert_close(exported.module()(x), model(x))


MEMORY = """
import re, torch
from etude.vision.deformable import deform_conv2d
torch.set_num_threads(1)

def step(side):
    x, offset, mask = torch.randn(4, 64, side, side), torch.randn(4, 18, side, side), torch.rand(4, 9, side, side)
    weight = torch.randn(64, 64, 3, 3)
    leaves = [t.requires_grad_() for t in (x, offset, mask, weight)]
    deform_conv2d(x, offset, weight, padding=1, mask=mask).backward(torch.ones(4, 64, side, side))

def peak():
    # not getrusage's, which begins at the peak of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

step(8)
before = peak()
step(112)
print((peak() - before) / (4 * 64 * 9 * 112 * 112 * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory():
    """Forward and backward need at most 3 times the columns, inputs and outputs with their gradients included (2.6)."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert 1.0 < float(done.stdout) < 3.0
