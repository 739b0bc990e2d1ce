"""Generators and critics against their formulas, in float64 numpy, on deterministic weights."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from etude.generative import gan, progan
from etude.nn.inference import prepare_for_inference
from etude.verify import golden

Array = np.ndarray
Found = tuple[str, str, float, float]
"""Reference, quantity, error, bound."""


def errors(size: str) -> Iterator[Found]:
    """What a size is compared with."""
    if size == "progan":
        yield from _progan()
    elif size in gan.sizes:
        yield from _dcgan(size)


def _filled(model: nn.Module) -> dict[str, Array]:
    """Deterministic weights, in the model too; counters are left alone."""
    state = model.state_dict()
    weights = {n: golden.weight(0, n, tuple(t.shape)) for n, t in state.items() if t.is_floating_point()}
    model.load_state_dict(state | {name: torch.from_numpy(array) for name, array in weights.items()})
    return {name: array.astype(np.float64) for name, array in weights.items()}


def _error(found: torch.Tensor, expected: Array) -> float:
    return float(np.linalg.norm(found.numpy() - expected) / np.linalg.norm(expected))


def _windows(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """(B, C, H, W) -> (B, C, H', W', k, k)"""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    return np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]


def _conv(x: Array, w: Array, stride: int = 1, padding: int = 0) -> Array:
    return np.einsum("bcijuv,dcuv->bdij", _windows(x, w.shape[2], stride, padding), w)


def _transposed(x: Array, w: Array, stride: int, padding: int) -> Array:
    """Each input places its kernel, and what overlaps is added."""
    b, _, h, width = x.shape
    d, k = w.shape[1], w.shape[2]
    y = np.zeros((b, d, (h - 1) * stride + k, (width - 1) * stride + k))
    for i in range(h):
        for j in range(width):
            at = slice(i * stride, i * stride + k), slice(j * stride, j * stride + k)
            y[:, :, *at] += np.einsum("bc,cduv->bduv", x[:, :, i, j], w)
    return y[:, :, padding : y.shape[2] - padding, padding : y.shape[3] - padding]


def _leaky(x: Array) -> Array:
    return np.where(x > 0, x, 0.2 * x)


def _dcgan(size: str) -> Iterator[Found]:
    """Both players as they are after training; the critic's slope where a penalty is taken of it; and what inference
    changes."""
    config = replace(gan.sizes[size], latent=6, side=16, width=8)
    model: Any = config.build().eval()
    w = _filled(model)
    z = golden.generator(0, "input").standard_normal((4, 6))
    x, layer = z[:, :, None, None], 1
    for stride, padding in ((1, 0), (2, 1), (2, 1)):
        x = _transposed(x, w[f"generator.{layer}.weight"], stride, padding)
        if layer < 7:
            mean, variance, scale, shift = (
                w[f"generator.{layer + 1}.{name}"].reshape(1, -1, 1, 1)
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            x = np.maximum((x - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)
        layer += 3
    expected = np.tanh(x)
    with torch.no_grad():
        made = model.generator(torch.from_numpy(z).float())
    yield "transposed convolution, BatchNorm, ReLU, tanh", "pictures", _error(made, expected), 1e-5
    pictures = torch.from_numpy(expected).float().requires_grad_()
    judged = model.critic(pictures)
    (slope,) = torch.autograd.grad(judged.sum(), pictures)
    scores, slopes = _criticised(w, expected, layers=len(config.maps), norm=config.critic_norm)
    named = {"batch": "BatchNorm", "layer": "layer normalisation"}[config.critic_norm]
    yield f"convolution, {named}, LeakyReLU", "scores", _error(judged.detach(), scores), 1e-5
    yield f"convolution, {named}, LeakyReLU, backwards", "the critic's slope", _error(slope, slopes), 1e-5
    if config.critic_norm == "layer":
        length, expected = (np.sqrt((array**2).sum((1, 2, 3))) for array in (slope.double().numpy(), slopes))
        error = abs(((length - 1) ** 2).mean() / ((expected - 1) ** 2).mean() - 1)
        yield "the mean of (|slope| - 1)^2", "gradient penalty", float(error), 1e-5
    yield from _prepared(model.generator, torch.from_numpy(z).float(), made)


def _criticised(w: dict[str, Array], x: Array, *, layers: int, norm: str) -> tuple[Array, Array]:
    """DCGAN's critic: scores (B,), and their gradients by the pictures, from the last layer back to the first."""
    back: list[Callable[[Array], Array]] = []

    def conv(x: Array, number: int, stride: int, padding: int) -> Array:
        kernel = w[f"critic.{number}.weight"]
        back.append(lambda g: _transposed(g, kernel, stride, padding))
        return _conv(x, kernel, stride, padding)

    def leaky(x: Array) -> Array:
        back.append(lambda g: np.where(x > 0, g, 0.2 * g))
        return _leaky(x)

    def normal(x: Array, number: int) -> Array:
        scale, shift = (w[f"critic.{number}.{name}"].reshape(1, -1, 1, 1) for name in ("weight", "bias"))
        if norm == "batch":
            mean, variance = (w[f"critic.{number}.running_{name}"].reshape(1, -1, 1, 1) for name in ("mean", "var"))
            deviation = np.sqrt(variance + 1e-5)
            back.append(lambda g: g * scale / deviation)
            return (x - mean) / deviation * scale + shift
        over = (1, 2, 3)  # all of a sample
        deviation = np.sqrt(x.var(over, keepdims=True) + 1e-5)
        n = (x - x.mean(over, keepdims=True)) / deviation

        def backwards(g: Array) -> Array:
            g = g * scale
            return (g - g.mean(over, keepdims=True) - n * (g * n).mean(over, keepdims=True)) / deviation

        back.append(backwards)
        return n * scale + shift

    x = leaky(conv(x, 0, 2, 1))
    for number in range(2, 3 * layers - 1, 3):
        x = leaky(normal(conv(x, number, 2, 1), number + 1))
    scores = conv(x, 3 * layers - 1, 1, 0)
    slope = np.ones_like(scores)
    for step in reversed(back):
        slope = step(slope)
    return scores.reshape(-1), slope


def _progan() -> Iterator[Found]:
    """Both players in the middle of a fade."""
    config = progan.Config(latent=6, channels=3, side=8, width_base=32, width_max=8, stable=10, fading=10)
    model: Any = config.build().eval()
    w = _filled(model)
    model.advance(14)  # alpha 0.4

    def layer(name: str, x: Array, gain: float = 2**0.5, padding: int | None = None) -> Array:
        kernel = w[f"{name}.weight"]
        kernel = kernel * gain / np.sqrt(np.prod(kernel.shape[1:]))
        if kernel.ndim == 2:
            return x @ kernel.T + w[f"{name}.bias"]
        pad = kernel.shape[2] // 2 if padding is None else padding
        return _conv(x, kernel, padding=pad) + w[f"{name}.bias"].reshape(1, -1, 1, 1)

    def normal(x: Array) -> Array:
        return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-8)

    def up(x: Array) -> Array:
        return x.repeat(2, 2).repeat(2, 3)

    def down(x: Array) -> Array:
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))

    z = golden.generator(0, "input").standard_normal((4, 6))
    x = layer("generator.blocks.0.dense", normal(z), 2**0.5 / 4).reshape(4, -1, 4, 4)
    x = normal(_leaky(layer("generator.blocks.0.conv", normal(_leaky(x)))))
    y = normal(_leaky(layer("generator.blocks.1.conv1", up(x))))
    y = normal(_leaky(layer("generator.blocks.1.conv2", y)))
    old, new = layer("generator.to_colours.0", x, 1.0), layer("generator.to_colours.1", y, 1.0)
    expected = 0.6 * up(old) + 0.4 * new

    y = _leaky(layer("critic.from_colours.1", expected))
    y = down(_leaky(layer("critic.blocks.1.conv2", _leaky(layer("critic.blocks.1.conv1", y)))))
    y = 0.6 * _leaky(layer("critic.from_colours.0", down(expected))) + 0.4 * y
    deviation = np.sqrt(y.var(0) + 1e-8).mean()
    y = np.concatenate([y, np.full((4, 1, 4, 4), deviation)], 1)
    y = _leaky(layer("critic.blocks.0.conv2", _leaky(layer("critic.blocks.0.conv1", y)), padding=0))
    scores = layer("critic.blocks.0.dense", y.reshape(4, -1), 1.0)[:, 0]

    with torch.no_grad():
        made = model.generator(torch.from_numpy(z).float())
        judged = model.critic(torch.from_numpy(expected).float())
    yield "the paper's layers at alpha 0.4", "pictures", _error(made, expected), 1e-5
    yield "the paper's layers at alpha 0.4", "scores", _error(judged, scores), 1e-5
    yield from _prepared(model.generator, torch.from_numpy(z).float(), made)


def _prepared(generator: nn.Module, z: torch.Tensor, made: torch.Tensor) -> Iterator[Found]:
    """What `prepare_for_inference`, in which predict and eval run, changes of its pictures."""
    for name, dtype, bound in (("fp32", None, 1e-4), ("bf16", torch.bfloat16, 0.05)):
        with torch.no_grad():
            found = prepare_for_inference(generator, dtype=dtype, channels_last=True)(z)
        yield "itself, as it was trained", f"prepared for inference, {name}", _error(found, made.numpy()), bound
