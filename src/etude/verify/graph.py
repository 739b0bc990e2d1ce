"""Graph networks against their formulas, computed densely, and against torch_geometric where it is installed."""

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import catalog
from etude.verify import golden
from etude.weights import load_weights

NODES, FEATURES, CLASSES = 24, 6, 5
BOUND = 1e-10


def errors(size: str) -> Iterator[tuple[str, str, float]]:
    """(reference, quantity, relative error) in float64, on a directed multigraph with loops and nodes without edges."""
    draw = golden.generator(0, "edges")
    edges = torch.from_numpy(draw.integers(0, NODES - 3, (2, 60)))
    edges = torch.cat([edges, edges[:, :5], torch.tensor([[4, 7, 4], [4, 7, 4]])], 1)
    x, towards = (torch.from_numpy(draw.standard_normal((NODES, width))) for width in (FEATURES, CLASSES))
    model = catalog.model(size, in_features=FEATURES, hidden=(4,), num_classes=CLASSES, dropout=0.0).double()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    weights = {name: torch.from_numpy(draw.standard_normal(shape)) for name, shape in shapes.items()}
    load_weights(model, weights)
    output = model(x, edges)
    yield FORMULAS[size], "outputs", _error(output, _dense(size, weights, x, edges))
    try:
        with warnings.catch_warnings():  # its import uses what torch is about to drop
            warnings.simplefilter("ignore")
            import torch_geometric  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    reference = f"torch_geometric {torch_geometric.__version__}"
    peer = _peer(size, weights)
    theirs = peer(x, edges)
    (output * towards).sum().backward()
    (theirs * towards).sum().backward()
    yield reference, "outputs", _error(output, theirs)
    theirs = {_ours(name): p.grad for name, p in peer.named_parameters()}
    yield reference, "gradients", max(_error(p.grad, theirs[name]) for name, p in model.named_parameters())


FORMULAS = {"gcn": "D^-1/2 (A + I) D^-1/2 X W", "gat": "softmax(LeakyReLU(a [W h_i ; W h_j]))"}


def _error(found: Tensor | None, expected: Tensor | None) -> float:
    assert found is not None and expected is not None
    return ((found - expected).norm() / expected.norm()).item()


def _dense(size: str, weights: dict[str, Tensor], x: Tensor, edges: Tensor) -> Tensor:
    """Two layers by matrices: adjacency[i, j] counts the edges j -> i; loops as the docstring of the models says."""
    adjacency = torch.zeros(NODES, NODES, dtype=torch.float64)
    for source, target in edges.T.tolist():
        adjacency[target, source] += source != target
    adjacency += torch.eye(NODES, dtype=torch.float64)
    for layer in range(2):
        w, bias = weights[f"convs.{layer}.linear.weight"], weights[f"convs.{layer}.bias"]
        if size == "gcn":
            root = torch.diag(adjacency.sum(1) ** -0.5)
            x = root @ adjacency @ root @ x @ w.T + bias
            x = x.relu() if layer == 0 else x
            continue
        heads = []
        a_src, a_dst = weights[f"convs.{layer}.att_src"][0], weights[f"convs.{layer}.att_dst"][0]
        for k, wh in enumerate((x @ w.T).chunk(len(a_src), 1)):
            score = F.leaky_relu((wh @ a_dst[k])[:, None] + (wh @ a_src[k])[None, :], 0.2)
            p = adjacency * (score - score.amax(1, keepdim=True)).exp()
            heads.append(p / p.sum(1, keepdim=True) @ wh)
        x = F.elu(torch.cat(heads, 1) + bias) if layer == 0 else torch.stack(heads).mean(0) + bias
    return x


def _ours(name: str) -> str:
    return name.replace("conv1", "convs.0").replace("conv2", "convs.1").replace(".lin.", ".linear.")


def _peer(size: str, weights: dict[str, Tensor]) -> nn.Module:
    from torch_geometric.nn import GATConv, GCNConv  # pyright: ignore[reportMissingImports]

    class Peer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = GCNConv(FEATURES, 4) if size == "gcn" else GATConv(FEATURES, 4, 8)
            self.conv2 = GCNConv(4, CLASSES) if size == "gcn" else GATConv(32, CLASSES, 1, concat=False)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            x = self.conv1(x, edges)
            return self.conv2(x.relu() if size == "gcn" else F.elu(x), edges)

    peer = Peer().double()
    peer.load_state_dict({name: weights[_ours(name)] for name in peer.state_dict()})
    return peer
