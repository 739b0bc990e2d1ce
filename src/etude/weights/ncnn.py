"""ncnn's models: NAME.param, a graph as text, and NAME.bin, the weights of its layers one after the other.

Read are the weights of convolutions, fp16 or fp32, of which Real-ESRGAN's RRDBNets consist. The graph is not run: it
says only how large the weights are.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from etude.errors import MissingError, RefusedError

MAGIC = b"7767517"
FP32, FP16 = 0, 0x01306B47
"""What stands before the weights of a layer: how they are stored."""
MAX_TEXT = 16 << 20
WITHOUT_WEIGHTS = (
    "Input",
    "Split",
    "Concat",
    "Eltwise",
    "BinaryOp",
    "Interp",
    "ReLU",
    "Sigmoid",
    "PixelShuffle",
    "Crop",
)
"""Layers that take no room in NAME.bin."""


@dataclass(frozen=True)
class Convolution:
    """What a line of NAME.param says of a convolution."""

    name: str
    shape: tuple[int, int, int, int]
    """(out, in, kernel height, kernel width)"""
    bias: bool


def is_ncnn(path: Path) -> bool:
    """Whether a file begins as NAME.param or NAME.bin do."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 1)
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from error
    return start.rstrip() == MAGIC or (start[:4] == FP16.to_bytes(4, "little"))


def read(path: Path) -> dict[str, Tensor]:
    """{"LAYER.weight": (out, in, h, w), "LAYER.bias": (out,)} float32, in the file's order. `path` is NAME.param or
    NAME.bin. RefusedError says what is wrong with either, MissingError which is not there."""
    text, weights = path.with_suffix(".param"), path.with_suffix(".bin")
    for file in (text, weights):
        if not file.is_file():
            raise MissingError(
                f"{file} is missing: a model of ncnn is two files", hint=f"put it beside {path.name}, under this name"
            )
    if text.stat().st_size > MAX_TEXT:
        raise RefusedError(f"{text} is refused: it is too long for a graph")
    try:
        convolutions = parse(text.read_text(encoding="utf-8"))
    except (RefusedError, ValueError) as error:
        raise RefusedError(f"{text} is refused: {error}") from None
    except KeyError as error:
        raise RefusedError(f"{text} is refused: a convolution lacks its setting {error}") from None
    wanted = sum(math.prod(c.shape) for c in convolutions)
    if wanted * 2 > weights.stat().st_size:
        size = weights.stat().st_size
        raise RefusedError(f"{weights} is refused: it has {size:,} bytes, and {text.name} tells of {wanted:,} weights")
    try:
        return take(weights.read_bytes(), convolutions)
    except RefusedError as error:
        raise RefusedError(f"{weights} is refused: {error}") from None


def parse(text: str) -> list[Convolution]:
    """The convolutions of a graph. ValueError or RefusedError where it is not one of ncnn's, or holds other weights."""
    magic, counts, *lines = text.splitlines() or ["", ""]
    if magic.strip() != MAGIC.decode() or len(counts.split()) != 2:
        raise RefusedError("it is no graph of ncnn")
    lines = [line.split() for line in lines if line.strip()]
    if len(lines) != int(counts.split()[0]):
        raise RefusedError(f"it has {len(lines)} layers, and says {counts.split()[0]}")
    found = []
    for kind, name, inputs, outputs, *words in lines:
        if kind in WITHOUT_WEIGHTS:
            continue
        if kind != "Convolution":
            raise RefusedError(f"its layer {name[:40]} is a {kind[:40]}; only convolutions are read")
        settings = dict(word.split("=", 1) for word in words[int(inputs) + int(outputs) :])
        out, width, total = int(settings["0"]), int(settings["1"]), int(settings["6"])
        height = int(settings.get("11", width))
        if min(out, width, height, total) < 1 or total % (out * width * height):
            raise RefusedError(f"its layer {name[:40]} has {total} weights, which are not {out} times {height}x{width}")
        shape = (out, total // (out * width * height), height, width)
        found.append(Convolution(name, shape, bias=settings.get("5", "0") == "1"))
    if len({c.name for c in found}) < len(found) or not found:
        raise RefusedError("two of its layers have one name" if found else "it has no convolutions")
    return found


def take(raw: bytes, convolutions: list[Convolution]) -> dict[str, Tensor]:
    """Cut the weights of each layer from a file's bytes. RefusedError where these are too few or too many."""
    tensors: dict[str, Tensor] = {}
    place = 0

    def cut(count: int, kind: type[np.floating]) -> Tensor:
        nonlocal place
        size = count * np.dtype(kind).itemsize
        if place + size > len(raw):
            raise RefusedError(f"it ends within the weights of {c.name}")
        values = np.frombuffer(raw, kind, count, place).astype(np.float32)
        place += -(-size // 4) * 4  # to the next multiple of 4
        return torch.from_numpy(values)

    for c in convolutions:
        stored = int.from_bytes(raw[place : place + 4], "little")
        if stored not in (FP32, FP16):
            raise RefusedError(f"the weights of {c.name} are stored as {stored:#x}; only fp32 and fp16 are read")
        place += 4
        tensors[f"{c.name}.weight"] = cut(math.prod(c.shape), np.float16 if stored == FP16 else np.float32).view(
            c.shape
        )
        if c.bias:
            tensors[f"{c.name}.bias"] = cut(c.shape[0], np.float32)
    if place != len(raw):
        raise RefusedError(f"it has {len(raw) - place:,} bytes more than the layers take: it belongs to another graph")
    return tensors
