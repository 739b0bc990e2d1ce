"""ncnn's files: what is read, against bytes written here, and what is refused in one line."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import etude
from etude.errors import MissingError, RefusedError
from etude.vision import esrgan
from etude.weights import load_weights, ncnn, read_tensors


def write(folder: Path, layers: list[tuple[str, np.ndarray, np.ndarray | None]], tag: int = ncnn.FP16) -> Path:
    """NAME.param and NAME.bin of convolutions in a row, with layers without weights between them."""
    lines, raw = ["Input in 0 1 data"], b""
    for i, (name, weight, bias) in enumerate(layers):
        out, _, height, width = weight.shape
        lines.append(
            f"Convolution {name} 1 1 b{i} b{i + 1} 0={out} 1={width} 11={height} 4=1 5={int(bias is not None)} "
            f"6={weight.size} 9=2 -23310=1,2.000000e-01"
        )
        lines.append(f"Split s{i} 1 2 b{i + 1} b{i + 1}a b{i + 1}b")
        stored = weight.astype("<f2" if tag == ncnn.FP16 else "<f4").tobytes()
        raw += struct.pack("<I", tag) + stored + b"\0" * (-len(stored) % 4)
        raw += b"" if bias is None else bias.astype("<f4").tobytes()
    text = "\n".join(["7767517", f"{len(lines)} 99", *lines]) + "\n"
    (folder / "net.param").write_text(text)
    (folder / "net.bin").write_bytes(raw)
    return folder / "net.param"


def layers(seed: int = 0) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16).astype(np.float32)

    return [
        ("Conv_0", draw(3, 1, 3, 3), draw(3)),
        ("Conv_1", draw(2, 3, 1, 5), None),
        ("Conv_7", draw(1, 2, 3, 3), draw(1)),
    ]


@pytest.mark.parametrize("tag", [ncnn.FP16, ncnn.FP32])
def test_weights_come_back(tmp_path: Path, tag: int):
    param = write(tmp_path, layers(), tag)
    for path in (param, tmp_path / "net.bin") if tag == ncnn.FP16 else (param,):
        tensors = read_tensors(path)
        names = ["Conv_0.weight", "Conv_0.bias", "Conv_1.weight", "Conv_7.weight", "Conv_7.bias"]
        assert list(tensors) == names and all(t.dtype == torch.float32 for t in tensors.values())
        for name, weight, bias in layers():
            assert np.array_equal(tensors[f"{name}.weight"].numpy(), weight)
            assert bias is None or np.array_equal(tensors[f"{name}.bias"].numpy(), bias)


def test_what_does_not_fit_is_refused(tmp_path: Path):
    param = write(tmp_path, layers())
    text, raw = param.read_text(), (tmp_path / "net.bin").read_bytes()
    graphs = {
        "says 8": text.replace("7 99", "8 99"),
        "is a PReLU": text.replace("Split s0", "PReLU s0"),
        "no graph": "7767517\nnonsense\n",
        "which are not": text.replace("6=27", "6=28"),
        "of one name|one name": text.replace("Conv_1 ", "Conv_0 "),
        "no convolutions": "7767517\n1 1\nInput in 0 1 data\n",
        "refused": text.replace("0=3 ", ""),
    }
    for said, graph in graphs.items():
        param.write_text(graph)
        with pytest.raises(RefusedError, match=said) as caught:
            read_tensors(param)
        assert "net.param" in str(caught.value) and "\n" not in str(caught.value)
    param.write_text(text)
    weights = {
        "ends within": raw[:-3],
        "tells of": raw[:20],
        "more than the layers take": raw + b"\0\0\0\0",
        "stored as 0xd4b38": struct.pack("<I", 0x000D4B38) + raw[4:],
    }
    for said, content in weights.items():
        (tmp_path / "net.bin").write_bytes(content)
        with pytest.raises(RefusedError, match=said) as caught:
            read_tensors(param)
        assert "net.bin" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "net.bin").unlink()
    with pytest.raises(MissingError, match=r"net\.bin is missing"):
        read_tensors(param)


def test_convolutions_in_order_fill_an_rrdbnet(tmp_path: Path):
    config = esrgan.Config(width=8, depth=2, growth=4)
    model, other = config.build(), config.build()
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    order = [name for name, _ in named]
    assert order[0] == "conv_first" and order[-1] == "conv_last" and len(order) == 15 * 2 + 6
    stored = []
    for i, (_, conv) in enumerate(named):
        assert conv.bias is not None
        conv.weight.data, conv.bias.data = conv.weight.data.half().float(), conv.bias.data
        stored.append((f"Conv_{3 * i}", conv.weight.detach().numpy(), conv.bias.detach().numpy()))
    load_weights(other, write(tmp_path, stored), source="ncnn")
    x = torch.rand(1, 3, 5, 6)
    assert torch.equal(model(x), other(x))
    with pytest.raises(RefusedError, match="no name of ncnn's"):
        load_weights(other, model.state_dict(), source="ncnn")
    with pytest.raises(RefusedError, match="35 convolutions"):
        load_weights(other, write(tmp_path, stored[:-1]), source="ncnn")
    with pytest.raises(RefusedError, match="of another shape"):
        load_weights(esrgan.Config(width=4, depth=2, growth=4).build(), write(tmp_path, stored), source="ncnn")


def test_other_files_are_still_read(tmp_path: Path):
    model = esrgan.Config(width=4, depth=1, growth=2).build()
    torch.save({"params": {}, "params_ema": model.state_dict()}, tmp_path / "a.pth")
    assert read_tensors(tmp_path / "a.pth").keys() == model.state_dict().keys()
    assert etude.load_weights(model, tmp_path / "a.pth", source="esrgan") is model
