"""YOLOv5's blocks and decoding by their formulas, published files, and bf16. Equality with v7.0: tests/verify."""

import sys
import types
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import etude.weights as weights
from etude import catalog
from etude.errors import RefusedError
from etude.nn.inference import conv_bn_pairs
from etude.verify import golden
from etude.vision.yolo import C3, COCO_ANCHORS, SPPF, STRIDES, Config, ConvBNAct, decode, example, sizes
from etude.weights import load_weights


@pytest.fixture
def small() -> Any:
    torch.manual_seed(0)
    return Config(depth=0.33, width=0.125, num_classes=3).build()


def test_blocks_are_their_formulas():
    torch.manual_seed(0)
    block: Any = ConvBNAct(3, 4, 3, 2).eval()
    x = torch.randn(2, 3, 8, 6)
    y = F.conv2d(x, block.conv.weight, stride=2, padding=1)
    mean, var, gamma, beta = (
        t.view(1, -1, 1, 1) for t in (block.bn.running_mean, block.bn.running_var, block.bn.weight, block.bn.bias)
    )
    y = gamma * (y - mean) / torch.sqrt(var + 1e-3) + beta
    torch.testing.assert_close(block(x), y * torch.sigmoid(y))

    c3: Any = C3(4, 6, 2, shortcut=True).eval()
    x = torch.randn(2, 4, 5, 5)
    inner = c3.cv1(x)
    for bottleneck in c3.m:
        inner = inner + bottleneck.cv2(bottleneck.cv1(inner))
    torch.testing.assert_close(c3(x), c3.cv3(torch.cat([inner, c3.cv2(x)], 1)))
    without: Any = C3(4, 6, 1, shortcut=False).eval()
    inner = without.m[0].cv2(without.m[0].cv1(without.cv1(x)))
    torch.testing.assert_close(without(x), without.cv3(torch.cat([inner, without.cv2(x)], 1)))

    sppf: Any = SPPF(8).eval()
    x = torch.randn(2, 8, 9, 9)
    inner = sppf.cv1(x)
    pooled = [F.max_pool2d(inner, k, 1, k // 2) for k in (5, 9, 13)]  # SPP's own form
    torch.testing.assert_close(sppf(x), sppf.cv2(torch.cat([inner, *pooled], 1)))


def test_training_and_eval_shapes(small):
    x = torch.rand(2, 3, 64, 96)
    maps = small.train()(x)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 64 // s, 96 // s, 8) for s in STRIDES]
    decoded, raw = small.eval()(x)
    assert decoded.shape == (2, 3 * (8 * 12 + 4 * 6 + 2 * 3), 8) and [m.shape for m in raw] == [m.shape for m in maps]
    assert decoded[..., 4:].min() >= 0 and decoded[..., 4:].max() <= 1
    decoded.sum().backward()  # what is decoded has gradients too
    assert all(p.grad is not None for p in small.parameters())


def test_sides_that_the_strides_do_not_divide(small):
    with pytest.raises(ValueError, match="100 x 64 pixels: the sides must be multiples of 32"):
        small.eval()(torch.rand(1, 3, 64, 100))


def test_decoding_is_the_formula():
    torch.manual_seed(0)
    maps = [torch.randn(1, 3, 4 // s, 8 // s, 6) for s in (1, 2, 4)]
    anchors = torch.tensor(COCO_ANCHORS) / torch.tensor(STRIDES)[:, None, None]
    expected = []
    for raw, level, stride in zip(maps, COCO_ANCHORS, STRIDES):
        for a in range(3):
            for row in range(raw.shape[2]):
                for column in range(raw.shape[3]):
                    p = torch.sigmoid(raw[0, a, row, column]).double()
                    x, y = (2 * p[0] - 0.5 + column) * stride, (2 * p[1] - 0.5 + row) * stride
                    w, h = (2 * p[2]) ** 2 * level[a][0], (2 * p[3]) ** 2 * level[a][1]
                    expected.append(torch.stack([x, y, w, h, p[4], p[5]]))
    torch.testing.assert_close(decode(maps, anchors)[0].double(), torch.stack(expected), rtol=1e-6, atol=1e-5)


def test_bf16_maps_are_decoded_in_fp32(small):
    """Weights in bf16 must not round the arithmetic that follows them."""
    x = torch.rand(1, 3, 640, 640)
    half = small.eval().to(torch.bfloat16)
    half.head.anchors = half.head.anchors.float()
    with torch.no_grad():
        decoded, maps = half(x.to(torch.bfloat16))
        assert maps[0].dtype == torch.bfloat16 and decoded.dtype == torch.float32
        again = decode([m.float() for m in maps], half.head.anchors)
    assert torch.equal(decoded, again)


def test_every_convolution_can_be_folded(small):
    convolutions = sum(isinstance(m, nn.BatchNorm2d) for m in small.modules())
    assert len(conv_bn_pairs(small.eval())) == convolutions == 57


def test_priors_of_the_heads():
    """A fresh network expects about 8 objects in a picture of 640 pixels."""
    torch.manual_seed(0)
    model: Any = catalog.model("yolov5n").eval()
    with torch.no_grad():
        decoded = model(torch.zeros(1, 3, 640, 640))[0][0]
    assert 8 < decoded[:, 4].sum() < 80  # three levels, three anchors a cell
    assert 0.005 < decoded[:, 5:].mean() < 0.01


def test_configurations_that_make_no_sense():
    with pytest.raises(ValueError, match="anchors are"):
        Config(anchors=(((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)),) * 2)
    with pytest.raises(ValueError, match="num_classes is 0"):
        Config(num_classes=0).build()
    with pytest.raises(ValueError, match="must be positive"):
        Config(width=0.0)
    assert example(sizes["yolov5n"])[0].shape == (1, 3, 640, 640)


# ---------------------------------------------------------------- published files


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file as v7.0's training writes it: whole module objects in fp16 and what else it saves, under classes that do
    not exist when it is read."""
    names = ("models", "models.yolo", "models.common")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def stand_in(module: str, name: str) -> type[nn.Module]:
        kind = type(name, (nn.Module,), {"__module__": module})
        setattr(sys.modules[module], name, kind)
        return kind

    whole, part = stand_in("models.yolo", "DetectionModel"), stand_in("models.common", "Conv")
    expected = golden.load("yolov5n")
    tensors = expected.weights | {"model.24.anchors": catalog.model("yolov5n").get_buffer("head.anchors")}

    def tree(scale: float) -> nn.Module:
        root = whole()
        for name, tensor in tensors.items():
            module, *path = root, *name.split(".")
            for step in path[:-1]:
                if step not in module._modules:
                    module.add_module(step, part())
                module = module.get_submodule(step)
            value = tensor * (scale if "anchors" not in name else 1)
            if "running" in name or "anchors" in name:
                module.register_buffer(path[-1], value)
            else:
                module.register_parameter(path[-1], nn.Parameter(value))
        root.yaml = {"nc": 80, "anchors": 3}  # pyright: ignore
        root.names, root.stride = ["person"], torch.tensor(STRIDES)  # pyright: ignore
        return root.half()

    def write(name: str, *, ema: bool = False) -> str:
        content: dict[str, Any] = {"epoch": -1, "best_fitness": np.array([0.37]), "model": tree(2.0 if ema else 1.0)}
        content |= {"ema": tree(1.0) if ema else None, "updates": 7, "optimizer": None}
        content |= {"opt": OrderedDict(hyp={"lr0": 0.01}), "git": None, "date": "2022-11-22"}
        torch.save(content, tmp_path / name)
        for module in names:
            monkeypatch.delitem(sys.modules, module, raising=False)
        return str(tmp_path / name)

    return write, tensors


@pytest.mark.parametrize("ema", [False, True])
def test_a_published_file_is_read_without_its_classes(published, ema, capsys):
    write, tensors = published
    path = write("yolov5n.pt", ema=ema)
    weights.say_once.cache_clear()
    model: Any = load_weights(catalog.model("yolov5n"), path, source="yolov5")
    torch.testing.assert_close(model.stem.conv.weight, tensors["model.0.conv.weight"].half().float())
    torch.testing.assert_close(model.head.anchors[2, 2], torch.tensor([373 / 32, 326 / 32]))
    load_weights(catalog.model("yolov5n"), path, source="yolov5")
    assert capsys.readouterr().err.count("AGPL-3.0") == 1
    assert not any(name.startswith("models") for name in sys.modules)


def test_a_pickle_that_would_run_code_runs_none(tmp_path):
    """Reading objects as inert records calls nothing, whatever the file names."""

    class Trap:
        def __reduce__(self):
            return (print, ("caught",))

    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(RefusedError, match=r"no state dict|does not fit"):
        load_weights(catalog.model("yolov5n"), tmp_path / "trap.pt", source="yolov5")


def test_other_classes_are_told(published):
    write, _ = published
    with pytest.raises(RefusedError, match=r"of another shape: head\.m\.0\.weight \(255, 64, 1, 1\) for \(24, 64"):
        load_weights(catalog.model("yolov5n", num_classes=3), write("yolov5n.pt"), source="yolov5")
