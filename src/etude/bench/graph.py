"""Graph networks against torch-geometric's layers, on the same weights: a training step, forward and backward.

The large graph has 200,000 nodes, 128 features and 2,000,000 entries in `edges`: 1,000,000 random undirected edges,
each stored in both directions. The small one is of Cora's size: 2,708 nodes, 10,556 entries, 1,433 features, 18 of them
set. Networks are the papers': GCN with 16 hidden units, GAT with 8 heads of 8. torch-geometric's GCN keeps its
normalised edges between steps (cached=True), as ours does; its CSR path is given the transposed adjacency as a torch
sparse CSR tensor.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import catalog
from etude.bench import Contest, clock
from etude.weights import load_weights

CLASSES = 7
Size = Literal["large", "cora"]
Path = Literal["default", "CSR"]


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: GCN on the large graph 4 times the peer's default and 3 times its CSR path, GAT 1.2 times, at the same
    dropout; at Cora's size no slower. `compiled` changes nothing here."""
    return [
        _contest("gcn", "large", "default", 0.5, 4.0),
        _contest("gcn", "large", "CSR", 0.5, 3.0),
        _contest("gcn", "large", "default", 0.0, 4.0),
        _contest("gcn", "large", "CSR", 0.0, 3.0),
        _contest("gat", "large", "default", 0.6, 1.2),
        _contest("gat", "large", "default", 0.0, 1.2),
        _contest("gcn", "cora", "default", 0.5, 1.0),
        _contest("gat", "cora", "default", 0.6, 1.0),
    ]


def _contest(name: str, size: Size, path: Path, dropout: float, target: float) -> Contest:
    version, note = None, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_geometric  # pyright: ignore[reportMissingImports]

        version = torch_geometric.__version__
    except ImportError as error:
        note = f"peer not importable here ({error}); pip install torch_geometric"
    what = "200k nodes, 2M edges, 128 features" if size == "large" else "Cora's size"
    slow = name == "gat" and size == "large"
    return Contest(
        name=f"{name}.{size}.{path}.dropout{dropout}",
        what=f"{name.upper()} training step, {what}, dropout {dropout}",
        amount=1,
        unit="steps/s",
        ours=clock(lambda: _step(*_ours(name, size, dropout))),
        peer=clock(lambda: _step(*_theirs(name, size, path, dropout))) if version else None,
        peer_name=f"torch_geometric, {path}",
        peer_version=version,
        target=target,
        note=note,
        rounds=3 if slow else 9 if size == "large" else 50,
        warmup=1 if slow else 2 if size == "large" else 10,
    )


def _step(model: Callable[..., Tensor], x: Tensor, edges: Any, label: Tensor) -> None:
    for p in model.parameters():  # pyright: ignore[reportFunctionMemberAccess]
        p.grad = None
    F.cross_entropy(model(x, edges), label).backward()


@cache
def _graph(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    nodes, pairs, features = (200_000, 1_000_000, 128) if size == "large" else (2_708, 5_278, 1_433)
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(nodes, (2, pairs), generator=generator)
    ends[1] = (
        ends[0] + 1 + ends[1] % (nodes - 1)
    ) % nodes  # no loops: the peer's two paths differ in what they make of them
    x = torch.randn(nodes, features, generator=generator)
    if size == "cora":
        x = (torch.rand(nodes, features, generator=generator) < 18 / features).float() / 18
    return x, torch.cat([ends, ends.flip(0)], 1), torch.randint(CLASSES, (nodes,), generator=generator)


@cache
def _peer_network(name: str, size: Size, dropout: float) -> nn.Module:
    from torch_geometric.nn import GATConv, GCNConv  # pyright: ignore[reportMissingImports]

    features = _graph(size)[0].shape[1]

    class Peer(nn.Module):
        def __init__(self):
            super().__init__()
            if name == "gcn":
                self.conv1 = GCNConv(features, 16, cached=True)
                self.conv2 = GCNConv(16, CLASSES, cached=True)
            else:
                self.conv1 = GATConv(features, 8, 8, dropout=dropout)
                self.conv2 = GATConv(64, CLASSES, 1, concat=False, dropout=dropout)

        def forward(self, x: Tensor, edges: Any) -> Tensor:
            x = self.conv1(F.dropout(x, dropout, self.training), edges)
            x = x.relu() if name == "gcn" else F.elu(x)
            return self.conv2(F.dropout(x, dropout, self.training), edges)

    torch.manual_seed(0)
    return Peer()


@cache
def _theirs(name: str, size: Size, path: Path, dropout: float) -> tuple[nn.Module, Tensor, Any, Tensor]:
    x, edges, label = _graph(size)
    if path == "CSR":
        with warnings.catch_warnings():  # torch calls its CSR tensors a beta
            warnings.simplefilter("ignore")
            ones = torch.ones(edges.shape[1])
            edges = torch.sparse_coo_tensor(edges.flip(0), ones, (len(x), len(x))).coalesce().to_sparse_csr()
    return _peer_network(name, size, dropout), x, edges, label


@cache
def _ours(name: str, size: Size, dropout: float) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """On the peer's weights, where there is one; compared with it once, before dropout."""
    x, edges, label = _graph(size)
    model = catalog.model(name, in_features=x.shape[1], num_classes=CLASSES, dropout=dropout)
    try:
        peer = _peer_network(name, size, dropout)
    except ImportError:
        return model, x, edges, label
    load_weights(model, peer.state_dict(), source="pyg")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x, edges), peer.eval()(x, edges), rtol=1e-3, atol=1e-4)
    return model.train(), x, edges, label
