"""GCN and GAT: the formulas by hand, torch_geometric's layers on the same weights, equivariance, what is kept."""

import math
import warnings
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from etude import catalog
from etude.basics.graph import Dropout, Structure, example, keep_mask, sizes, structure
from etude.data.graphs import read
from etude.weights import load_weights

with warnings.catch_warnings():  # its import uses what torch is about to drop
    warnings.simplefilter("ignore")
    pyg = pytest.importorskip("torch_geometric.nn")

NODES, FEATURES, CLASSES = 24, 6, 5


def multigraph(directed: bool = True) -> Tensor:
    """Random edges, five of them twice, loops (one twice), and three nodes without any."""
    generator = torch.Generator().manual_seed(3)
    edges = torch.randint(NODES - 3, (2, 60), generator=generator)
    loops = torch.tensor([[4, 7, 4], [4, 7, 4]])
    edges = torch.cat([edges, edges[:, :5], loops], 1)
    return edges if directed else torch.cat([edges, edges.flip(0)], 1)


def karate() -> Tensor:
    return read("karate").edges


class Peer(nn.Module):
    """Two layers of torch_geometric's, called as its users call them."""

    def __init__(self, name: str, heads: int):
        super().__init__()
        self.gat = name == "gat"
        self.conv1 = pyg.GATConv(FEATURES, 4, heads) if self.gat else pyg.GCNConv(FEATURES, 8)
        self.conv2 = pyg.GATConv(4 * heads, CLASSES, 2, concat=False) if self.gat else pyg.GCNConv(8, CLASSES)

    def forward(self, x, edges, weight=None):
        if self.gat:
            return self.conv2(F.elu(self.conv1(x, edges)), edges)
        return self.conv2(self.conv1(x, edges, weight).relu(), edges, weight)


def ours(name: str, heads: int = 3, **settings) -> nn.Module:
    more = {"hidden": (4,), "heads": heads, "last_heads": 2} if name == "gat" else {"hidden": (8,)}
    return catalog.model(
        name, in_features=FEATURES, num_classes=CLASSES, **({"dropout": 0.0} | more | settings)
    ).double()


def both(name: str) -> tuple[nn.Module, nn.Module]:
    """The peer on random weights, and ours on the same, through the importer."""
    torch.manual_seed(1)
    peer = Peer(name, 3).double()
    for p in peer.parameters():
        nn.init.normal_(p)
    return peer, load_weights(ours(name), peer.state_dict(), source="pyg")


GRAPHS = {
    "directed multigraph with loops": multigraph(),
    "undirected multigraph with loops": multigraph(directed=False),
    "no edges": torch.zeros(2, 0, dtype=torch.int64),
}


@pytest.mark.parity
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("name", "weighted"), [("gcn", False), ("gcn", True), ("gat", False)])
def test_equal_to_torch_geometric(name, weighted, graph):
    """Outputs, and the gradients of features, edge weights and parameters, in float64."""
    edges = GRAPHS[graph]
    torch.manual_seed(2)
    x, weight = torch.randn(NODES, FEATURES).double(), torch.rand(edges.shape[1]).double()
    towards = torch.randn(NODES, CLASSES).double()
    found = []
    for model in both(name):
        inputs = [x.clone().requires_grad_(), edges, *([weight.clone().requires_grad_()] if weighted else [])]
        output = model(*inputs)
        (output * towards).sum().backward()
        state = {n: p.grad for n, p in model.named_parameters()}
        grads = [leaf.grad for leaf in inputs if leaf.requires_grad]
        found.append((output.detach(), grads, state))
    (theirs, their_grads, their_state), (output, grads, state) = found
    torch.testing.assert_close(output, theirs, rtol=1e-10, atol=1e-10)
    for mine, other in zip(grads, their_grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    renamed = {n.replace("conv1", "convs.0").replace("conv2", "convs.1").replace(".lin.", ".linear."): g
               for n, g in their_state.items()}  # fmt: skip
    assert renamed.keys() == state.keys()
    for parameter, grad in state.items():
        torch.testing.assert_close(
            grad, renamed[parameter], rtol=1e-10, atol=1e-10, msg=lambda m, p=parameter: f"{p}: {m}"
        )


@pytest.mark.parity
def test_the_layout_of_its_own_models_is_read():
    """torch_geometric.nn.GCN calls its layers convs.0, convs.1, ..."""
    peer = pyg.GCN(FEATURES, 8, 3, CLASSES).double().eval()
    model = load_weights(ours("gcn", hidden=(8, 8)), peer.state_dict(), source="pyg")
    x, edges = torch.randn(NODES, FEATURES).double(), multigraph()
    torch.testing.assert_close(model(x, edges), peer(x, edges), rtol=1e-10, atol=1e-10)


def test_a_convolution_is_the_formula():
    """D^-1/2 (A + I) D^-1/2 X W + b on the karate club, dense in numpy."""
    torch.manual_seed(0)
    model: Any = catalog.model("gcn", in_features=3, hidden=(), num_classes=2, dropout=0.0).double()
    nn.init.normal_(model.convs[0].bias)
    x = torch.randn(34, 3).double()
    adjacency = np.eye(34)
    for a, b in karate().T.tolist():
        adjacency[b, a] += 1
    root = np.diag(adjacency.sum(1) ** -0.5)
    weight, bias = (p.detach().numpy() for p in (model.convs[0].linear.weight, model.convs[0].bias))
    expected = root @ adjacency @ root @ x.numpy() @ weight.T + bias
    np.testing.assert_allclose(model(x, karate()).detach().numpy(), expected, rtol=1e-12)


def test_attention_is_the_formula():
    """Equations 1 to 6 on a graph of four nodes, edge by edge: 0 -> 1, 2 -> 1, 1 -> 3, and each node to itself."""
    torch.manual_seed(0)
    model: Any = catalog.model("gat", in_features=3, hidden=(), num_classes=2, dropout=0.0, last_heads=2).double()
    conv, x = model.convs[0], torch.randn(4, 3).double()
    nn.init.normal_(conv.bias)
    into = {0: [0], 1: [0, 1, 2], 2: [2], 3: [1, 3]}
    w = conv.linear.weight.detach().numpy().reshape(2, 2, 3)
    left, right = conv.att_src[0].tolist(), conv.att_dst[0].tolist()
    expected = np.zeros((4, 2))
    for head in range(2):
        h = x.numpy() @ w[head].T
        for i, sources in into.items():
            scores = []
            for j in sources:
                e = sum(a * b for a, b in zip(left[head], h[j])) + sum(a * b for a, b in zip(right[head], h[i]))
                scores.append(math.exp(e if e > 0 else 0.2 * e))
            for j, score in zip(sources, scores):
                expected[i] += score / sum(scores) * h[j] / 2
    edges = torch.tensor([[0, 2, 1], [1, 1, 3]])
    np.testing.assert_allclose(model(x, edges).detach().numpy(), expected + conv.bias.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ["gcn", "gat"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_permuting_the_nodes_permutes_the_output(name, data):
    size = data.draw(st.integers(1, 9))
    pair = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))
    edges = torch.tensor(data.draw(st.lists(pair, max_size=20)), dtype=torch.int64).reshape(-1, 2).T
    order = torch.tensor(data.draw(st.permutations(range(size))))
    shuffled = torch.tensor(data.draw(st.permutations(range(edges.shape[1]))), dtype=torch.int64)
    torch.manual_seed(0)
    model, x = ours(name), torch.randn(size, FEATURES).double()
    moved = torch.empty_like(x)
    moved[order] = x
    torch.testing.assert_close(model(moved, order[edges][:, shuffled])[order], model(x, edges), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_gradients_are_finite_differences(name):
    torch.manual_seed(0)
    model = ours(name)
    x = torch.randn(NODES, FEATURES).double().requires_grad_()
    edges = multigraph()
    assert torch.autograd.gradcheck(lambda x: model(x, edges), x)


def test_attention_dropout_is_undone_in_the_gradient():
    """With the same masks the gradient is that of finite differences: seeds make them the same."""
    torch.manual_seed(0)
    model = ours("gat", dropout=0.5).train()
    x, edges = torch.randn(NODES, FEATURES).double().requires_grad_(), multigraph()

    def drawn(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return model(x, edges)

    assert torch.autograd.gradcheck(drawn, x)
    assert not torch.allclose(drawn(x), model.eval()(x, edges))


def test_attention_dropout_keeps_the_mean():
    """The mean over many masks is the output without dropout."""
    torch.manual_seed(0)
    model: Any = ours("gat", hidden=(), dropout=0.6).train()
    model.dropout = nn.Identity()
    x, edges = torch.randn(NODES, FEATURES).double(), multigraph()
    with torch.no_grad():
        outputs = torch.stack([model(x, edges) for _ in range(3000)])
        model.eval()
        error = (outputs.mean(0) - model(x, edges)) / (outputs.std(0) / 3000**0.5 + 1e-9)
    assert error.abs().max() < 5


def test_large_scores_do_not_overflow():
    """The softmax is shifted by each node's largest score: finite where a score is 1,000, and sums stay one."""
    model: Any = ours("gat", hidden=(), last_heads=1).float()
    nn.init.constant_(model.convs[0].att_src, 1000.0)
    x = torch.randn(NODES, FEATURES)
    output = model(x, multigraph())
    output.sum().backward()
    assert torch.isfinite(output).all() and torch.isfinite(model.convs[0].linear.weight.grad).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.6])
def test_dropout_keeps_a_share(p):
    torch.manual_seed(0)
    keep, share = keep_mask((1000, 1001), p, torch.device("cpu"))
    assert share == pytest.approx(1 - p, abs=2**-17)
    assert keep.float().mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / 1e6) ** 0.5)
    columns = keep.float().mean(0)  # every lane of the drawn words is as good as the others
    assert columns.std() < 1.2 * (p * (1 - p) / 1000) ** 0.5
    layer, x = Dropout(p), torch.rand(500, 40, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, x * (y > 0) / share)
    torch.testing.assert_close(x.grad, (y > 0) / share)
    assert layer.eval()(x) is x


def test_dropout_of_everything_and_nothing():
    x = torch.rand(3, 4)
    assert not Dropout(1.0)(x).any() and torch.equal(Dropout(0.0)(x), x)


def test_a_structure_is_made_once_and_anew_when_the_edges_change():
    edges = multigraph()
    first = structure(edges, NODES)
    assert structure(edges, NODES) is first
    assert structure(edges.clone(), NODES) is not first
    assert structure(edges, NODES + 1) is not first
    kept = structure(edges, NODES)
    edges[1, 0] = (edges[1, 0] + 1) % NODES
    changed = structure(edges, NODES)
    assert changed is not kept and not torch.equal(changed.target, first.target)
    model, x = ours("gcn"), torch.randn(NODES, FEATURES).double()
    before = model(x, edges)
    edges.copy_(multigraph())
    torch.testing.assert_close(model(x, edges), model(x, multigraph()))
    assert not torch.allclose(before, model(x, edges))
    with torch.inference_mode():
        torch.testing.assert_close(model(x, edges.clone()), model(x, edges))


def test_messages_are_sorted():
    held = Structure(multigraph(), NODES)
    assert (held.target.diff() >= 0).all() and held.rows.tolist()[-1] == len(held.source)
    assert (held.source[held.back].diff() >= 0).all()
    assert held.rows.diff().min() >= 1  # everyone hears of oneself


def test_bf16_products_are_summed_in_fp32():
    model, (x, edges) = ours("gcn").float(), (torch.randn(NODES, FEATURES), multigraph())
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x, edges)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, model(x, edges), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_examples_fit(name):
    config: Any = sizes[name]
    assert config.build().eval()(*example(config)).shape == (6, config.num_classes)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.tensor([[0, 1, 30], [1, 2, 0]]), "edge 2 joins 30 and 0, in a graph of 24 nodes"),
        (torch.tensor([[0, -1], [1, 2]]), "edge 1 joins -1 and 2"),
        (torch.tensor([[0, 1, 2]]), r"shape \(1, 3\); they must be int64 of shape \(2, E\)"),
        (torch.tensor([[0.0], [1.0]]), "edges are torch.float32"),
    ],
)
def test_bad_edges_are_named(edges, message):
    with pytest.raises(ValueError, match=message):
        structure(edges, NODES)


def test_bad_weights_are_named(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, whose shapes nobody checks
    x, edges = torch.randn(NODES, FEATURES).double(), multigraph()
    with pytest.raises(ValueError, match="GAT learns how much an edge counts"):
        ours("gat")(x, edges, torch.ones(edges.shape[1]).double())
    with pytest.raises(ValueError, match=r"edge_weight has the shape \(3,\), for 68 edges"):
        ours("gcn")(x, edges, torch.ones(3).double())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_equal_on_a_gpu(name):
    """Outputs and gradients are those of the CPU."""
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = ours(name).to(device)
        x = (
            torch.randn(NODES, FEATURES, generator=torch.Generator().manual_seed(1))
            .double()
            .to(device)
            .requires_grad_()
        )
        output = model(x, multigraph().to(device))
        output.square().sum().backward()
        leaves = [x, *model.parameters()]
        found.append([output.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves if leaf.grad is not None)])
    for here, there in zip(*found):
        torch.testing.assert_close(there, here, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["gcn", "gat"])
def test_training_follows_inference_on_the_same_edges(name):
    """What a forward pass in inference mode leaves behind for an edge tensor serves autograd."""
    model, x, edges = ours(name).float(), torch.randn(NODES, FEATURES), multigraph()
    with torch.inference_mode():
        before = model.eval()(x, edges)
    after = model(x, edges)
    torch.testing.assert_close(after, before)
    after.sum().backward()
    fresh = ours(name).float()
    fresh.load_state_dict(model.state_dict())
    fresh.eval()(x, multigraph()).sum().backward()
    for p, q in zip(model.parameters(), fresh.parameters()):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gcn", {"dropout": 1.0}, r"dropout is 1.0; it must lie in \[0, 1\)"),
        ("gat", {"dropout": -0.1}, "dropout is -0.1"),
        ("gcn", {"hidden": (16, 0)}, r"hidden \(16, 0\)"),
        ("gat", {"in_features": 0}, "in_features 0"),
        ("gat", {"heads": 0}, "heads is 0; it must be at least 1"),
        ("gat", {"last_heads": 0}, "last_heads is 0"),
    ],
)
def test_wrong_settings(name, change, message):
    with pytest.raises(ValueError, match=message):
        catalog.model(name, **change)
