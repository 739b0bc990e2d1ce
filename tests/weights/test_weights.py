"""The importer: strict, short in its complaints, and the same from every kind of file."""

import json
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from etude import catalog
from etude.errors import MissingError, RefusedError, UsageError
from etude.weights import load_weights, published, read_tensors, state_dict


class Toy(nn.Module):
    """Names of its own, and BatchNorm's buffers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.first(x)).mean((2, 3)))


RENAME = {"theirs": ((r"^stem\.conv\.", "first."), (r"^stem\.bn\.", "norm."), (r"^fc\b", "head"))}
"""Found by the importer because it stands in the module of the model's class."""


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(t.shape) if t.is_floating_point() else t for name, t in Toy().state_dict().items()}


def filled(model: nn.Module, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def theirs(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"first.": "stem.conv.", "norm.": "stem.bn.", "head.": "fc."}
    return {names[name[: name.index(".") + 1]] + name[name.index(".") + 1 :]: t for name, t in weights.items()}


# ---------------------------------------------------------------- load_weights


def test_fills_everything(weights):
    model = Toy()
    assert load_weights(model, weights) is model
    assert filled(model, weights)
    assert model.first.weight.requires_grad


def test_layouts_rename(weights):
    assert filled(load_weights(Toy(), theirs(weights), source="theirs"), weights)
    with pytest.raises(RefusedError, match=r"8 missing: first\.weight, .* and 4 more; 9 unused: stem\.conv\.weight, "):
        load_weights(Toy(), theirs(weights))
    with pytest.raises(UsageError, match="no layout 'their'") as caught:
        load_weights(Toy(), weights, source="their")
    assert caught.value.hint == "one of etude, theirs"


def test_two_names_become_one(weights):
    with pytest.raises(RefusedError, match=r"two tensors would both be called head\.bias"):
        load_weights(Toy(), {**weights, "fc.bias": weights["head.bias"]}, source="theirs")


def test_lists_what_differs_and_changes_nothing(weights):
    model = Toy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong = {**weights, "head.weight": torch.zeros(7, 4), "norm.running_mean": torch.zeros(4).long()}
    wrong |= {f"extra.{i}": torch.zeros(1) for i in range(6)}
    del wrong["first.bias"]
    with pytest.raises(ValueError) as caught:
        load_weights(model, wrong)
    assert str(caught.value) == (
        "the state dict does not fit Toy in layout 'etude': 1 missing: first.bias; "
        "6 unused: extra.0, extra.1, extra.2, extra.3 and 2 more; "
        "1 of another shape: head.weight (7, 4) for (2, 4); "
        "1 of another kind: norm.running_mean torch.int64 for torch.float32"
    )
    assert isinstance(caught.value, RefusedError) and caught.value.code == 4
    assert filled(model, before)


def test_a_broadcastable_shape_is_another_shape(weights):
    with pytest.raises(RefusedError, match=r"head\.bias \(1,\) for \(2,\)"):
        load_weights(Toy(), {**weights, "head.bias": torch.zeros(1)})


def test_counters_may_be_absent(weights):
    del weights["norm.num_batches_tracked"]
    model = load_weights(Toy(), weights)
    assert filled(model, {**weights, "norm.num_batches_tracked": torch.tensor(0)})
    del weights["norm.running_var"]
    with pytest.raises(RefusedError, match=r"1 missing: norm\.running_var$"):
        load_weights(Toy(), weights)


def test_half_precision_is_converted(weights):
    halves = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    model = load_weights(Toy(), halves)
    assert model.get_parameter("head.weight").dtype == torch.float32
    torch.testing.assert_close(model.get_parameter("head.weight").data, weights["head.weight"].half().float())


def test_a_wrong_number_of_classes_is_explained():
    resnet = {"num_classes": 10, "depths": (1,), "width": 4}
    state = catalog.model("resnet18", **resnet).state_dict()
    with pytest.raises(RefusedError, match=r"2 of another shape: fc\.weight \(10, 4\) for \(1000, 4\), fc\.bias"):
        load_weights(catalog.model("resnet18", **{**resnet, "num_classes": 1000}), state, source="torchvision")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])  # the content decides, not the name
def test_every_kind_of_file(weights, kind, name, tmp_path):
    if kind == "safetensors":
        save_file(weights, tmp_path / name)
    else:
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    assert filled(load_weights(Toy(), tmp_path / name), weights)
    assert filled(load_weights(Toy(), str(tmp_path / name)), weights)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module.", "state_dict of module."])
def test_known_wrappers(weights, wrap, tmp_path):
    content: Any = {f"module.{name}": t for name, t in weights.items()} if "module." in wrap else weights
    if wrap != "module.":
        content = {wrap.split()[0]: OrderedDict(content), "epoch": 7, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "wrapped.pt")
    assert filled(load_weights(Toy(), tmp_path / "wrapped.pt"), weights)
    assert filled(load_weights(Toy(), content), weights)


def test_a_prefix_that_only_some_have_stays(weights):
    mixed = {"module.first.weight" if name == "first.weight" else name: tensor for name, tensor in weights.items()}
    with pytest.raises(RefusedError, match=r"1 missing: first\.weight; 1 unused: module\.first\.weight"):
        load_weights(Toy(), mixed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "its entry 'epoch' is not a tensor but a int"),
        ({"weights": {"w": torch.zeros(1)}}, "its entry 'weights' is not a tensor but a dict"),
        ({1: torch.zeros(1)}, "its entry 1 is named by a int"),
        (torch.zeros(2), "holds no state dict"),
        ({}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
    ],
)
def test_files_without_a_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(RefusedError, match=message) as caught:
        read_tensors(tmp_path / "file.pt")
    assert "file.pt is refused" in str(caught.value)


def test_missing_files(tmp_path):
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(MissingError, match="cannot be read"):
            load_weights(Toy(), path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_tensors_of_a_whole_pickled_model(zipped, tmp_path):
    """What YOLOv5's files hold: an object, in half precision. Its tensors are found by their names in it."""
    model = nn.Sequential(OrderedDict(body=Toy(), again=nn.Sequential(Toy(), nn.SiLU()))).half()
    model.register_buffer("anchors", torch.arange(4.0))
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    torch.save({"model": model, "ema": None, "epoch": -1}, tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(RefusedError, match="it asks for"):
        read_tensors(tmp_path / "whole.pt")
    found = read_tensors(tmp_path / "whole.pt", objects="inert")
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_published_checkpoint_names():
    """Each names its digest; each is of a size that the catalog knows, in a layout that its module reads."""
    sizes = [size for row in catalog.SYSTEMS for size in row.sizes]
    checkpoints = published(sizes)
    assert len({checkpoint.url for checkpoint in checkpoints}) == len(checkpoints) == 10
    for checkpoint in checkpoints:
        assert checkpoint.url.endswith(f"/{checkpoint.model}-{checkpoint.sha256}.pth")
        assert checkpoint.layout in catalog.system(checkpoint.model).layouts
        assert 69 < checkpoint.top1 < 83
    assert published(["mlp"]) == []
    assert published(["resnet18"])[0].url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"


# ---------------------------------------------------------------- hostile safetensors


def safetensors(header: Any, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


@pytest.mark.parametrize(
    "data",
    [
        safetensors(entry(shape=[2, 3])),
        safetensors(entry(shape=[-2, -2])),
        safetensors(entry(shape=[1 << 62, 1 << 62])),
        safetensors(entry(data_offsets=[0, 1 << 40])),
        safetensors(entry(data_offsets=[16, 0])),
        safetensors(entry(dtype="F33")),
        safetensors(entry(dtype=None)),
        safetensors(b"{" * 1000),
        safetensors(b'{"w": 1}'),
        safetensors(entry(), bytes(15)),
        safetensors(entry(), bytes(17)),
        struct.pack("<Q", 1 << 62) + b"{}",
        safetensors({}),
    ],
)
def test_hostile_safetensors(data, tmp_path):
    (tmp_path / "file.safetensors").write_bytes(data)
    with pytest.raises(RefusedError, match=r"file\.safetensors is refused"):
        read_tensors(tmp_path / "file.safetensors")


def test_fuzzed_safetensors(tmp_path):
    """One changed byte of the header at a time: read or refused, nothing else."""
    save_file({"w": torch.randn(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "honest.safetensors")
    honest = (tmp_path / "honest.safetensors").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        data = bytearray(honest)
        for _ in range(rng.integers(1, 3)):
            data[rng.integers(0, len(data))] = rng.integers(0, 256)
        (tmp_path / "mutated").write_bytes(data)
        try:
            tensors = read_tensors(tmp_path / "mutated")
        except RefusedError:
            refused += 1
        else:
            assert all(isinstance(name, str) and t.clone().numel() == t.numel() for name, t in tensors.items())
    assert 500 < refused < 1500


def test_state_dict_takes_no_names_from_wrappers(weights):
    """A tensor that happens to be called "model" is a tensor."""
    assert state_dict({"model": torch.zeros(1), **weights}).keys() == {"model", *weights}
