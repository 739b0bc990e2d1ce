"""What is recorded of a forward pass, against what the model did; gradients against autograd's own."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import catalog
from etude.graph import subject
from etude.graph.trace import Trace, trace


def record(model: nn.Module, *inputs: Tensor, scalar: Callable[[Any], Tensor] | None = torch.sum) -> Trace:
    named = {f"x{i}": x for i, x in enumerate(inputs)}
    for x in inputs:
        if scalar and x.is_floating_point():
            x.requires_grad_()
    return trace(model, lambda: subject.through(model, *inputs), named, backward=scalar)


def names(found: Trace) -> list[str]:
    return [op.name for op in found.ops]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x).relu_()


def test_the_gradient_of_a_tensor_is_the_sum_over_its_edges():
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(3, 4)
    found = record(model, x)
    assert names(found) == ["linear", "relu_", "add"]
    linear, relu, add = found.ops
    value = found.inputs[0]
    mask = (model.branch(x) > 0).double().detach()
    through = mask @ model.branch.weight.double().detach()
    assert found.gradient(value, add) == pytest.approx(math.sqrt(12))  # ones
    assert found.gradient(value, linear) == pytest.approx(through.norm().item(), rel=1e-5)
    assert found.gradient(value, linear.call) == found.gradient(value, linear)
    assert found.gradient(value, None) == pytest.approx((1 + through).norm().item(), rel=1e-5)
    assert found.gradient(linear.outputs[0], relu) == pytest.approx(mask.norm().item())
    assert found.weights["branch.bias"] == pytest.approx(mask.sum(0).norm().item())
    assert model.branch.weight.grad is None


def test_a_folded_module_gets_the_sum_of_what_its_operators_send_back():
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x - 2 * x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + x

    found = record(Outer(), torch.randn(4))
    value = found.inputs[0]
    three, two, *_ = found.ops
    assert found.gradient(value, three) == pytest.approx(6)  # 3 on each of 4 entries
    assert found.gradient(value, two) == pytest.approx(4)
    assert found.gradient(value, three.call) == pytest.approx(2)
    assert found.gradient(value, None) == pytest.approx(4)


def test_what_is_computed_is_left_as_it_is():
    torch.manual_seed(0)
    model, x = catalog.model("resnet18", num_classes=5, width=8), torch.randn(2, 3, 32, 32)
    expected = model(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found = record(model, x, scalar=lambda y: y.square().sum())
    assert found.loss == pytest.approx(expected.square().sum().item(), rel=1e-6)
    for name, gradient in gradients.items():
        assert found.weights[name] == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert not model._forward_hooks and not model.get_submodule("layer1.0")._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_edges_follow_in_place_operators_and_views():
    def f(x: Tensor) -> Tensor:
        y = x * 2
        row = y[0]
        row.add_(1)  # changes y, too
        y[1] = 7
        z = y.view(-1)
        z.mul_(3)
        return y.sum()

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return f(x)

    for scalar in (None, torch.sum):
        found = record(Model(), torch.randn(2, 3), scalar=scalar)
        assert names(found) == ["mul", "getitem", "add_", "setitem", "view", "mul_", "sum"]
        sources = [[v.source.name if v.source else "x" for v in op.inputs] for op in found.ops]
        assert sources == [["x"], ["mul"], ["getitem"], ["add_"], ["setitem"], ["view"], ["mul_"]]


def test_control_flow_loops_and_several_calls():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            while len(seen) < 5 and x.sum() < 10:
                seen.append(x)
                x = self.cell(x) + 3
            return x

    seen: list[Tensor] = []
    found = record(Model(), torch.zeros(1, 2))
    labels = [call.label for call in found.calls if call.path == "cell"]
    assert labels[:2] == ["cell", "cell (2)"] and names(found)[:3] == ["linear", "add", "linear"]


def test_what_the_outputs_do_not_need_is_left_out():
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            (x * 5).exp()
            return x + 1

    assert names(record(Model(), torch.randn(3))) == ["add"]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * 2


def test_custom_autograd_functions_are_seen_within():
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(x.exp()).sin()  # pyright: ignore[reportAttributeAccessIssue]

    x = torch.randn(5)
    found = record(Model(), x)
    assert names(found) == ["exp", "mul", "sin"]
    exp, double, sin = found.ops
    cosine = (2 * x.exp()).cos().detach()
    assert found.gradient(double.outputs[0], sin) == pytest.approx(cosine.norm().item(), rel=1e-5)
    assert found.gradient(exp.outputs[0], double) == pytest.approx(2 * cosine.norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "flops"),
    # twice the multiplications and additions that the papers and torchvision state: 1.81, 4.09 and 0.30 G
    [("resnet18", 2 * 1_814_073_344), ("resnet50", 2 * 4_089_184_256), ("mobilenet_v2", 2 * 300_774_272)],
)
def test_flops_are_those_known(size, flops):
    model = catalog.model(size).eval()
    found = record(model, *catalog.example(size), scalar=None)
    assert sum(op.flops for op in found.ops) == flops


def test_flops_of_attention_recurrent_and_sparse_layers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            q = self.lstm(x)[0]
            q = F.scaled_dot_product_attention(q[:, None], q[:, None], q[:, None], is_causal=True)[:, 0]
            rows, columns = torch.tensor([[0, 1, 1], [2, 0, 1]])
            sparse = torch.sparse_coo_tensor(torch.stack([rows, columns]), torch.ones(3), (2, 3), check_invariants=True)
            return sparse @ q[0]

    found = record(Model().eval(), torch.randn(2, 3, 3), scalar=None)
    flops = {op.name: op.flops for op in found.ops if op.flops}
    assert flops == {
        "lstm": 2 * 2 * 3 * (4 * 5 * 3 + 4 * 5 * 5),
        "scaled_dot_product_attention": 2 * 2 * (2 * 3 * 3 * 5),
        "matmul": 2 * 3 * 5,  # three entries, not 2 x 3
    }


@pytest.mark.parametrize("training", [False, True])
def test_transformers_masks_and_attention(training):
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 1, 1, 32, dropout=0.1, batch_first=True).train(training)
    mask = nn.Transformer.generate_square_subsequent_mask(4)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer = model

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            return self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True)

    found = record(Masked(), torch.randn(2, 5, 16), torch.randn(2, 4, 16), scalar=torch.sum if training else None)
    assert names(found).count("scaled_dot_product_attention") == 3
    paths = {op.call.path for op in found.ops}
    assert {"transformer.encoder.layers.0.self_attn", "transformer.decoder.layers.0.multihead_attn"} <= paths
    memory = [v for op in found.ops if op.call.path.endswith("multihead_attn") for v in op.inputs if v.source]
    assert any(v.source and v.source.call.path == "transformer.encoder.norm" for v in memory)


def test_integer_inputs_have_no_gradient():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.embedding(tokens).sum()

    found = record(Model(), torch.randint(7, (2, 4)), scalar=lambda y: y)
    embedding, total = found.ops
    assert found.gradient(found.inputs[0], embedding) is None
    assert found.gradient(embedding.outputs[0], total) == pytest.approx(math.sqrt(24))
    assert embedding.parameters == {"embedding.weight": 21}


NARROW: dict[str, dict[str, Any]] = {
    "unet": {"width": 8},
    "rrdbnet_x4": {"width": 16, "growth": 8},
    "yolov5n": {"width": 0.125},
    "gpt2": {"width": 96, "vocab_size": 500},
    "bert-base": {"width": 96, "ffn": 96, "vocab_size": 500},
    "transformer-base": {"width": 64, "ffn": 64, "vocab_size": 500},
}
"""Of the systems that take seconds."""


@pytest.mark.parametrize("size", [size for row in catalog.SYSTEMS for size in list(row.sizes)[:1]])
def test_every_system_offers_an_example_that_traces_back(size):
    torch.manual_seed(0)
    model = catalog.model(size, **NARROW.get(size, {}))

    def answer(y: Any) -> Tensor:  # recurrent networks answer with their state, detectors with three maps
        maps = y if isinstance(y, list) else [y[0] if isinstance(y, tuple) else y]
        return torch.stack([one.square().sum() for one in maps]).sum()

    found = record(model, *catalog.example(size), scalar=answer)
    assert found.inputs and found.ops and found.weights
    unread = {"bert-base": {"pooler.weight", "pooler.bias"}}.get(size, set())  # which classifiers read
    if size == "progan":  # at its beginning it makes pictures of 4x4
        unread = {name for name, _ in model.named_parameters() if name.split(".")[2] != "0"}
    assert set(found.weights) == {name for name, p in model.named_parameters()} - unread


def test_operators_on_integers_are_one_box():
    from etude.graph.fold import fold, shown

    class Model(nn.Module):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            edges = edges[:, edges[0] != edges[1]].sort(dim=1).values
            return x[edges[0]] * x[edges[1]]

    root = fold(record(Model(), torch.randn(5, 2), torch.randint(5, (2, 9))))
    seen, _ = shown(root, set())
    assert [node["name"] for node in seen if node["kind"] == "module"] == ["index arithmetic"]
    assert [node["name"] for node in seen if node["kind"] == "operator"] == ["getitem", "getitem", "mul"]
    everything, _ = shown(root, {group.number for group in root.groups()})
    assert [node["name"] for node in everything].count("getitem") == 7
