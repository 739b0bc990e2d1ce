"""The checks that `etude verify` prints and the tests repeat: each model against what it claims to equal."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude import catalog
from etude.data import fetch
from etude.nn.inference import prepare_for_inference
from etude.verify import detection, generative, golden, graph, language
from etude.vision.deformable import deform_conv2d
from etude.weights import load_weights

GOLDEN = {
    # size: reference, layout of its weights
    "resnet18": ("torchvision 0.29.1", "torchvision"),
    "resnet50": ("torchvision 0.29.1", "torchvision"),
    "mobilenet_v2": ("torchvision 0.29.1", "torchvision"),
    "unet": ("milesial Pytorch-UNet", "milesial"),
    "rrdbnet_x4": ("ESRGAN's RRDBNet", "esrgan"),
}
BF16_BOUND = 0.05
"""On the relative error of a network in bf16, whose numbers have 8 bits: on weights that are rougher than trained."""
GPT3_FORMULA = "L (12 h^2 + 13 h) + V h + T h + 2 h"
PARAMETERS = {
    # size: reference, its number of parameters
    "resnet18": ("torchvision 0.29.1", 11_689_512),
    "resnet34": ("torchvision 0.29.1", 21_797_672),
    "resnet50": ("torchvision 0.29.1", 25_557_032),
    "resnet101": ("torchvision 0.29.1", 44_549_160),
    "resnet152": ("torchvision 0.29.1", 60_192_808),
    "mobilenet_v1": ("Keras", 4_231_976),
    "mobilenet_v2": ("torchvision 0.29.1", 3_504_872),
    "unet": ("milesial Pytorch-UNet", 31_037_698),
    "rrdbnet_x4": ("ESRGAN's RRDBNet", 16_697_987),
    "rrdbnet_x2": ("the same with 12 channels in, by hand", 16_703_171),
    "yolov5n": ("YOLOv5 7.0", 1_872_157),
    "yolov5s": ("YOLOv5 7.0", 7_235_389),
    "yolov5m": ("YOLOv5 7.0", 21_190_557),
    "yolov5l": ("YOLOv5 7.0", 46_563_709),
    "yolov5x": ("YOLOv5 7.0", 86_749_405),
    "bert-base": ("transformers 5.23.0", 108_310_272),
    "bert-base-uncased": ("transformers 5.23.0", 109_482_240),
    "bert-large": ("transformers 5.23.0", 333_579_264),
    "bert-large-uncased": ("transformers 5.23.0", 335_141_888),
    "bert-minilm": ("transformers 5.23.0", 22_713_216),
    "bert-base-classifier": ("transformers 5.18.0", 108_311_810),
    "bert-large-classifier": ("transformers 5.23.0", 333_581_314),
    "bert-minilm-classifier": ("transformers 5.23.0", 22_713_986),
    "bert-base-masked-lm": ("transformers 5.23.0", 108_340_804),
    "bert-large-masked-lm": ("transformers 5.23.0", 333_610_308),
    "bert-minilm-embedder": ("transformers 5.23.0", 22_565_376),
    "transformer-base": ("the paper's layers, by hand", 63_082_496),
    "transformer-big": ("the paper's layers, by hand", 214_245_376),
    "gpt2": ("transformers 5.23.0", 124_439_808),
    "gpt2-medium": ("transformers 5.23.0", 354_823_168),
    "gpt2-large": ("transformers 5.23.0", 774_030_080),
    "gpt2-xl": ("transformers 5.23.0", 1_557_611_200),
    "gpt3-125m": (GPT3_FORMULA, 125_226_240),
    "gpt3-350m": (GPT3_FORMULA, 355_871_744),
    "gpt3-760m": (GPT3_FORMULA, 760_300_032),
    "gpt3-1.3b": (GPT3_FORMULA, 1_315_723_264),
    "gpt3-2.7b": (GPT3_FORMULA, 2_651_553_280),
    "gpt3-6.7b": (GPT3_FORMULA, 6_658_404_352),
    "gpt3-13b": (GPT3_FORMULA, 12_853_386_240),
    "gpt3-175b": (GPT3_FORMULA, 174_604_259_328),
    "dcgan": ("pytorch/examples' DCGAN", 3_576_704 + 2_765_568),
    "wgan": ("pytorch/examples' DCGAN", 3_576_704 + 2_765_568),
    "wgan-gp": ("the same by hand, 28 latents more", 3_576_704 + 28 * 16 * 512 + 2_765_568),
    "progan": ("the paper's table 2, by hand", 23_086_795 + 23_087_249),
}


@dataclass(frozen=True)
class Check:
    system: str
    """The size that was built, or the system that is a block without sizes."""
    reference: str
    quantity: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound

    def json(self) -> dict[str, Any]:
        """JSON knows no infinity or NaN: such an error is null."""
        return asdict(self) | {"error": self.error if math.isfinite(self.error) else None, "ok": self.ok}


def run(systems: list[str] | None = None) -> list[Check]:
    """All checks of these systems or sizes, or of all. UsageError names the nearest where one is unknown."""
    rows = catalog.SYSTEMS if systems is None else [catalog.system(name) for name in systems]
    sizes = [
        size for row in rows for size in row.sizes or (row.name,) if systems is None or {row.name, size} & set(systems)
    ]
    return [check for size in dict.fromkeys(sizes) for check in checks(size)]


def checks(size: str) -> Iterator[Check]:
    """The checks of one size, or of a block."""
    if size in PARAMETERS:
        reference, count = PARAMETERS[size]
        yield Check(size, reference, "parameters", abs(catalog.count(size) - count), 0)
    if size in GOLDEN:
        yield from golden_checks(size)
    if size == "mlp":
        yield mlp_formula()
    if size in ("rnn", "lstm"):
        yield recurrent_formula(size)
    if size == "deformable":
        yield from deformable_checks()
    if size == "cnn":
        yield cnn_formula()
    if size == "rrdbnet_x4":
        yield from realesrgan_checks()
    if size in language.GOLDEN:
        reference = language.GOLDEN[size]
        yield from (Check(size, reference, quantity, error, bound) for quantity, error, bound in language.errors(size))
    yield from (Check(size, *found) for found in generative.errors(size))
    if size in detection.GOLDEN:
        reference = detection.GOLDEN[size]
        yield from (Check(size, reference, quantity, error, bound) for quantity, error, bound in detection.errors(size))
    if size in graph.FORMULAS:
        yield from (Check(size, *found, graph.BOUND) for found in graph.errors(size))


def golden_checks(size: str) -> Iterator[Check]:
    """Outputs on the golden file's weights, read through its reference's layout."""
    reference, layout = GOLDEN[size]
    expected = golden.load(size)
    model = load_weights(catalog.model(size), expected.weights, source=layout).eval()
    with torch.no_grad():
        answer = model(expected.image)
    (name,) = expected.meta["outputs"]
    for quantity, error in expected.errors(name, answer).items():
        yield Check(size, reference, quantity, error, golden.BOUND)
    yield from prepared_checks(size, model, expected.image, answer)


def prepared_checks(size: str, model: nn.Module, image: Tensor, output: Tensor) -> Iterator[Check]:
    """What `prepare_for_inference`, in which predict, eval and serve run, changes of a network's output."""
    for name, dtype, bound in (("fp32", None, golden.BOUND), ("bf16", torch.bfloat16, BF16_BOUND)):
        with torch.no_grad():
            prepared = prepare_for_inference(model, dtype=dtype, channels_last=True)(image)
        error = float((prepared - output).norm() / output.norm())
        yield Check(size, "itself, as it was trained", f"prepared for inference, {name}", error, bound)


def realesrgan_checks() -> Iterator[Check]:
    """Real-ESRGAN's published weights, where they are on this machine, against what ncnn itself makes of them."""
    expected = golden.load("realesrgan")
    for name, depth in (("realesrgan", 23), ("realesrgan-anime", 6)):
        if fetch.status(name).state == "missing":
            continue
        (path,) = fetch.path(name).glob("*.param")
        model = load_weights(catalog.model("rrdbnet_x4", depth=depth), path, source="ncnn").eval()
        with torch.no_grad():
            answer = model(expected.image)
        for quantity, error in expected.errors(name, answer).items():
            yield Check("rrdbnet_x4", "ncnn 1.0.20261020", quantity, error, golden.BOUND)


def formula_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Deterministic weights in float64, which `model` gets too."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = {name: golden.weight(0, name, shape) for name, shape in shapes.items()}
    load_weights(model, {name: torch.from_numpy(array) for name, array in weights.items()})
    return {name: array.astype(np.float64) for name, array in weights.items()}


def mlp_formula() -> Check:
    """The perceptron against z = W x + b and ReLU, in float64 numpy."""
    model = catalog.model("mlp", in_features=20, hidden=(30, 40), num_classes=5)
    weights = formula_weights(model)
    x = golden.generator(0, "input").standard_normal((8, 20))
    expected = x
    for layer in ("hidden.0", "hidden.1", "head"):
        expected = expected @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        expected = expected if layer == "head" else np.maximum(expected, 0)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(x).float()).numpy()
    error = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
    return Check("mlp", "z = W x + b, ReLU", "logits", error, 1e-5)


def recurrent_formula(size: str) -> Check:
    """A recurrent language model of two layers against its cell's formulas, in float64 numpy; the weights under the
    names of PyTorch's word-language example."""
    model = catalog.model(size, vocab_size=11, embedding=6, width=8, depth=2)
    theirs = {"embedding": "encoder", "recurrent": "rnn", "head": "decoder"}
    weights = {}
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        weights[f"{theirs[part]}.{rest}"] = golden.weight(0, name, tuple(tensor.shape))
    load_weights(model, {name: torch.from_numpy(array) for name, array in weights.items()}, source="torch")
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    ids = golden.generator(0, "input").integers(0, 11, (3, 7))

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    h, c = np.zeros((2, 3, 8)), np.zeros((2, 3, 8))
    expected = []
    for t in range(7):
        x = w["encoder.weight"][ids[:, t]]
        for layer in range(2):
            z = x @ w[f"rnn.weight_ih_l{layer}"].T + w[f"rnn.bias_ih_l{layer}"]
            z += h[layer] @ w[f"rnn.weight_hh_l{layer}"].T + w[f"rnn.bias_hh_l{layer}"]
            if size == "rnn":
                h[layer] = np.tanh(z)
            else:
                i, f, g, o = np.split(z, 4, axis=1)
                c[layer] = sigmoid(f) * c[layer] + sigmoid(i) * np.tanh(g)
                h[layer] = sigmoid(o) * np.tanh(c[layer])
            x = h[layer]
        expected.append(x @ w["decoder.weight"].T + w["decoder.bias"])
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(ids))[0].numpy()
    difference = np.linalg.norm(logits - np.stack(expected, 1)) / np.linalg.norm(expected)
    formula = "h = tanh(W x + b + U h + b')" if size == "rnn" else "c = f c + i g, h = o tanh(c)"
    return Check(size, formula, "logits", float(difference), 1e-5)


def deformable_checks() -> Iterator[Check]:
    """Deformable convolution in two weight groups and two offset groups: outputs and gradients of (y * y).sum()."""
    expected = golden.load("deform_conv2d")
    seed, inputs = expected.meta["seed"], expected.meta["inputs"]
    x, w, b = (torch.from_numpy(golden.weight(seed, name, tuple(inputs[name]))) for name in ("x", "w", "b"))
    errors: dict[str, float] = {}
    for case, stride in (("s1", 1), ("s2d2", 2)):  # padding and dilation are as large as the stride
        n, _, p, q = expected.meta["outputs"][f"{case}_v1"]
        channels = inputs["offset_groups"] * w.shape[2] * w.shape[3]
        drawn = golden.generator(seed, f"offset{case}")
        offset = torch.from_numpy((2 * drawn.standard_normal((n, 2 * channels, p, q))).astype(np.float32))
        mask = torch.from_numpy(drawn.uniform(0, 1, (n, channels, p, q)).astype(np.float32))
        for version in ("v1", "v2"):
            leaves = [tensor.clone().requires_grad_() for tensor in (x, w, offset)]
            moved = mask if version == "v2" else None
            y = deform_conv2d(
                leaves[0], leaves[2], leaves[1], b, stride=stride, padding=stride, dilation=stride, mask=moved
            )
            gradients = torch.autograd.grad((y * y).sum(), leaves)
            answers = dict(zip(("output", "gradient by x", "gradient by w", "gradient by offset"), (y, *gradients)))
            for (quantity, answer), suffix in zip(answers.items(), ("", "_dx", "_dw", "_doff")):
                found = expected.errors(f"{case}_{version}{suffix}", answer)
                key = f"{version} {quantity}"
                errors[key] = max(errors.get(key, 0.0), *found.values())
    for quantity, error in errors.items():
        yield Check("deformable", "torchvision 0.29.1", quantity, error, golden.BOUND)


def cnn_formula() -> Check:
    """Convolution as a sum over windows, ReLU, the largest of two by two, then z = W x + b, in float64 numpy."""
    model = catalog.model("cnn", in_channels=2, side=12, channels=(3, 4), kernel=3, hidden=(8,), num_classes=5)
    weights = formula_weights(model)
    x = golden.generator(0, "input").standard_normal((4, 2, 12, 12))
    expected = x
    for block in ("blocks.0", "blocks.1"):
        padded = np.pad(expected, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
        maps = np.einsum("bcijuv,dcuv->bdij", windows, weights[f"{block}.conv.weight"])
        maps = np.maximum(maps + weights[f"{block}.conv.bias"][:, None, None], 0)
        batch, channels, side, _ = maps.shape
        expected = maps.reshape(batch, channels, side // 2, 2, side // 2, 2).max((3, 5))
    expected = expected.reshape(4, -1) @ weights["hidden.0.weight"].T + weights["hidden.0.bias"]
    expected = np.maximum(expected, 0) @ weights["head.weight"].T + weights["head.bias"]
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(x).float()).numpy()
    error = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
    return Check("cnn", "convolution, ReLU, pooling, z = W x + b", "logits", error, 1e-5)
