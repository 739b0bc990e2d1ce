"""Graph networks: the graph convolutional network (GCN) and the graph attention network (GAT).

Sources:
    GCN   Kipf and Welling, 2017, arXiv 1609.02907, equations 2 and 9: H' = relu(D^-1/2 (A + I) D^-1/2 H W)
    GAT   Velickovic et al., 2018, arXiv 1710.10903, equations 1 to 6:
          h'_i = sum_j alpha_ij W h_j with alpha_i = softmax_j(LeakyReLU(a [W h_i ; W h_j]))
Equal to torch_geometric 2.8.1's GCNConv and GATConv on the same weights, outputs and gradients, within 1e-10 in
float64, self-loops, parallel edges, edge weights and directed graphs included. What it does with self-loops is done
here too: GCN keeps the weight of an existing loop (of several, the last) and adds the missing ones with weight 1; GAT
replaces them all by one a node. Parallel edges count as often as they stand there. Messages flow along an edge from
edges[0] to edges[1].

Messages pass as products with a matrix in compressed sparse rows, forwards by target and backwards by source. No kernel
of torch's is faster at that on a CPU than `embedding_bag`'s weighted sum of rows, so it does the arithmetic.

Shapes: N nodes, E edges, M messages (the edges that are no loops, and N loops), F input features, C channels, H heads,
K classes.
"""

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class GCNConfig:
    in_features: int = 1433
    hidden: tuple[int, ...] = (16,)
    num_classes: int = 7
    dropout: float = 0.5
    """Of every layer's input."""

    def __post_init__(self):
        _check(self)

    def build(self) -> "GCN":
        return GCN(self)


@dataclass(frozen=True)
class GATConfig:
    in_features: int = 1433
    hidden: tuple[int, ...] = (8,)
    """Channels a head."""
    num_classes: int = 7
    heads: int = 8
    """Of the hidden layers, whose outputs stand side by side."""
    last_heads: int = 1
    """Of the last layer, whose outputs are averaged."""
    dropout: float = 0.6
    """Of every layer's input, and of the attention coefficients."""
    slope: float = 0.2
    """Of LeakyReLU below zero."""

    def __post_init__(self):
        _check(self)
        for name in ("heads", "last_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def build(self) -> "GAT":
        return GAT(self)


def _check(config: GCNConfig | GATConfig) -> None:
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout is {config.dropout}; it must lie in [0, 1)")
    if min(config.in_features, config.num_classes, *config.hidden) < 1:
        raise ValueError(
            f"in_features {config.in_features}, hidden {config.hidden} and num_classes {config.num_classes} must be at "
            "least 1"
        )


class Structure:
    """Where the messages of a graph go: M pairs (source, target), sorted by target, then source.

    Row i of `rows` says where the messages to node i begin. `back` sorts them by source, for the backward pass.
    """

    def __init__(self, edges: Tensor, num_nodes: int):
        _check_edges(edges, num_nodes)
        self.key = _version(edges, num_nodes)
        nodes = torch.arange(num_nodes, device=edges.device)
        self.loop = edges[0] == edges[1]
        self.loop_nodes = edges[0, self.loop]
        source, target = torch.cat([edges[:, ~self.loop], nodes.expand(2, -1)], 1)
        self.order = torch.argsort(target * num_nodes + source, stable=True)
        self.source, self.target = source[self.order], target[self.order]
        self.back = torch.argsort(self.source, stable=True)
        self.back_target = self.target[self.back]
        self.rows, self.back_rows = (_offsets(ends, num_nodes) for ends in (self.target, self.source))
        self._normalised: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def normalised(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """D^-1/2 (A + I) D^-1/2 of the graph without weights, (M,) by target and (M,) by source; kept."""
        if dtype not in self._normalised:
            with torch.inference_mode(False):  # what is kept must serve training too
                values = self.weighted(torch.ones(len(self.loop), dtype=dtype, device=self.rows.device))
                self._normalised[dtype] = (values, values[self.back])
        return self._normalised[dtype]

    def weighted(self, edge_weight: Tensor) -> Tensor:
        """The same with edge weights, degrees being sums of weights: (E,) -> (M,), differentiable."""
        num_nodes = len(self.rows) - 1
        loops = edge_weight.new_ones(num_nodes).index_put((self.loop_nodes,), edge_weight[self.loop])
        weight = torch.cat([edge_weight[~self.loop], loops])[self.order]
        degree = weight.new_zeros(num_nodes).index_add(0, self.target, weight)
        root = degree.pow(-0.5)
        root = root.masked_fill(root == math.inf, 0)
        return root[self.source] * weight * root[self.target]

    def gather(self, x: Tensor, values: Tensor) -> Tensor:
        """y_i = sum over messages j -> i of values_ij x_j: (N, C), (M,) -> (N, C)"""
        return _bags(x, values, self.source, self.rows)

    def scatter(self, x: Tensor, values_back: Tensor) -> Tensor:
        """The transposed product, y_j = sum over messages j -> i of values_ij x_i; values sorted by source."""
        return _bags(x, values_back, self.back_target, self.back_rows)

    def dots(self, target: Tensor, source: Tensor) -> Tensor:
        """<target_i, source_j> for each message j -> i: (N, C), (N, C) -> (M,)"""
        zeros = target.new_zeros(len(self.source))
        with warnings.catch_warnings():  # torch calls its CSR tensors a beta
            warnings.simplefilter("ignore")
            pattern = torch.sparse_csr_tensor(self.rows, self.source, zeros, (len(target), len(source)))
            return torch.sparse.sampled_addmm(pattern, target, source.T, beta=0.0).values()

    def sums(self, values: Tensor) -> Tensor:
        """Each node's sum over the messages to it: (M,) -> (N,)"""
        return torch.segment_reduce(values, "sum", offsets=self.rows)

    def sums_back(self, values_back: Tensor) -> Tensor:
        """Each node's sum over the messages from it; values sorted by source."""
        return torch.segment_reduce(values_back, "sum", offsets=self.back_rows)


def _bags(x: Tensor, values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    return F.embedding_bag(
        indices, x.contiguous(), rows, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def _offsets(ends: Tensor, num_nodes: int) -> Tensor:
    return F.pad(torch.bincount(ends, minlength=num_nodes).cumsum(0), (1, 0))


def _check_edges(edges: Tensor, num_nodes: int) -> None:
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype != torch.int64:
        raise ValueError(f"edges are {edges.dtype} of shape {tuple(edges.shape)}; they must be int64 of shape (2, E)")
    outside = ((edges < 0) | (edges >= num_nodes)).any(0)
    if outside.any():
        first = int(outside.nonzero()[0])
        source, target = edges[:, first].tolist()
        raise ValueError(
            f"edge {first} joins {source} and {target}, in a graph of {num_nodes} nodes (0 to {num_nodes - 1})"
        )


_structures = WeakTensorKeyDictionary()
"""Of the edge tensors that are alive: sorting the edges takes longer than a step of training."""


def structure(edges: Tensor, num_nodes: int) -> Structure:
    """The structure of a graph, made once for an edge tensor and anew when something was written to it."""
    if edges.is_inference():  # torch does not count what is written to such tensors
        return Structure(edges, num_nodes)
    kept = _structures.get(edges)
    if kept is None or kept.key != _version(edges, num_nodes):
        with torch.inference_mode(False):  # autograd takes no tensor that was made in inference mode
            kept = _structures[edges] = Structure(edges, num_nodes)
    return kept


def _version(edges: Tensor, num_nodes: int) -> tuple[int, ...]:
    return (num_nodes, 0 if edges.is_inference() else edges._version, edges.data_ptr())


class Propagate(torch.autograd.Function):
    """y = A x, A being a sparse matrix by its values: x (N, C), values (M,) -> (N, C).

    `values_back`, the values sorted by source, spare the backward pass the sorting where they are known.
    """

    @staticmethod
    def forward(ctx, x: Tensor, values: Tensor, values_back: Tensor | None, structure: Structure) -> Tensor:
        ctx.structure = structure
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values, values_back)
        return structure.gather(x, values)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, values, values_back = ctx.saved_tensors
        structure: Structure = ctx.structure
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = structure.scatter(grad, values[structure.back] if values_back is None else values_back)
        if ctx.needs_input_grad[1]:
            grad_values = structure.dots(grad, x)
        return grad_x, grad_values, None, None


class Attend(torch.autograd.Function):
    """One head: y_i = sum_j alpha_ij x_j, alpha_i = softmax_j(LeakyReLU(source_j + target_i)), dropped as `keep` says.

    x (N, C), source (N,) and target (N,), the two halves of a [W h_i ; W h_j] -> (N, C). `keep` is (M,) bool or None,
    `share` the part of the coefficients that it keeps. Coefficients are never normalised one by one: sums are.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        keep: Tensor | None,
        share: float,
        slope: float,
        structure: Structure,
    ) -> Tensor:
        score = source.index_select(0, structure.source).add_(target.index_select(0, structure.target))
        positive = score > 0
        score = F.leaky_relu_(score, slope)
        peak = torch.segment_reduce(score, "max", offsets=structure.rows)
        p = score.sub_(peak.index_select(0, structure.target)).exp_()
        total = structure.sums(p).mul_(share).unsqueeze(1)
        y = structure.gather(x, p if keep is None else p * keep).div_(total)
        ctx.share, ctx.slope, ctx.structure = share, slope, structure
        ctx.save_for_backward(x, p, positive, keep, total, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        """dL/dp_ij = (keep_ij <g_i, x_j> / share - <g_i, y_i>) / sum_j p_ij; the peak cancels."""
        x, p, positive, keep, total, y = ctx.saved_tensors
        structure: Structure = ctx.structure
        grad = grad / total
        grad_x = structure.scatter(grad, (p if keep is None else p * keep).index_select(0, structure.back))
        back = structure.dots(grad, x)
        if keep is not None:
            back.mul_(keep)
        common = (grad * y).sum(1).mul_(ctx.share)
        back.sub_(common.index_select(0, structure.target)).mul_(p)
        back = torch.where(positive, back, back * ctx.slope)
        grad_source = structure.sums_back(back.index_select(0, structure.back))
        return grad_x, grad_source, structure.sums(back), None, None, None, None


def keep_mask(shape: tuple[int, ...], p: float, device: torch.device) -> tuple[Tensor, float]:
    """Which values dropout keeps, bool, and their share: 1 - p, on a CPU rounded to a multiple of 2^-16.

    A CPU draws 16 bits a value, as drawing whole floats, one at a time, takes longer than a graph's layer.
    """
    if device.type != "cpu":
        return torch.rand(shape, device=device) >= p, 1 - p
    count, dropped = math.prod(shape), round(p * 2**16)
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return bits.view(torch.int16)[:count].view(shape) >= dropped - 2**15, 1 - dropped / 2**16


class Dropout(nn.Dropout):
    """Srivastava et al., 2014: a value is dropped with probability p, kept ones are scaled by 1 / (1 - p)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1:
            return super().forward(input)
        keep, share = keep_mask(tuple(input.shape), self.p, input.device)
        return (input * keep).mul_(1 / share)


def _glorot_(weight: Tensor) -> None:
    """Glorot and Bengio's uniform initialisation over the last two dimensions."""
    bound = math.sqrt(6 / (weight.shape[-1] + weight.shape[-2]))
    nn.init.uniform_(weight, -bound, bound)


class GCNConv(nn.Module):
    """H' = D^-1/2 (A + I) D^-1/2 H W + b. (N, F) -> (N, C)"""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.bias = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _glorot_(self.linear.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, structure: Structure, edge_weight: Tensor | None) -> Tensor:
        x = _wide(self.linear(x))
        if edge_weight is None:
            values, values_back = structure.normalised(x.dtype)
        else:
            values, values_back = structure.weighted(edge_weight.to(x.dtype)), None
        return Propagate.apply(x, values, values_back, structure) + self.bias


class GATConv(nn.Module):
    """h'_i = sum_j alpha_ij W h_j + b, the heads side by side or averaged. (N, F) -> (N, H C) or (N, C)"""

    def __init__(self, in_features: int, out_features: int, heads: int, *, average: bool, dropout: float, slope: float):
        super().__init__()
        self.heads, self.average, self.dropout, self.slope = heads, average, dropout, slope
        self.linear = nn.Linear(in_features, heads * out_features, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_features))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_features))
        self.bias = nn.Parameter(torch.empty(out_features * (1 if average else heads)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in (self.linear.weight, self.att_src, self.att_dst):
            _glorot_(weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, structure: Structure) -> Tensor:
        x = _wide(self.linear(x)).unflatten(1, (self.heads, -1)).transpose(0, 1).contiguous()  # (H, N, C)
        source, target = (torch.bmm(x, a[0].to(x.dtype).unsqueeze(2)).squeeze(2) for a in (self.att_src, self.att_dst))
        heads = zip(x.unbind(), source.unbind(), target.unbind())
        y = torch.stack([Attend.apply(*head, *self._kept(structure), self.slope, structure) for head in heads], 1)
        return (y.mean(1) if self.average else y.flatten(1)) + self.bias

    def _kept(self, structure: Structure) -> tuple[Tensor | None, float]:
        if not self.training or self.dropout == 0:
            return None, 1.0
        return keep_mask(tuple(structure.source.shape), self.dropout, structure.source.device)


def _wide(x: Tensor) -> Tensor:
    """Sums over neighbours are in fp32 where autocast made the products bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class GCN(nn.Module):
    """(N, F), (2, E) -> (N, K): convolutions with ReLU between them."""

    def __init__(self, config: GCNConfig):
        super().__init__()
        widths = (config.in_features, *config.hidden, config.num_classes)
        self.dropout = Dropout(config.dropout)
        self.convs = nn.ModuleList(GCNConv(n_in, n_out) for n_in, n_out in pairwise(widths))

    def forward(
        self,
        x: Float[Tensor, "N F"],
        edges: Int64[Tensor, "2 E"],
        edge_weight: Float[Tensor, "E"] | None = None,
    ) -> Float[Tensor, "N K"]:
        if edge_weight is not None and edge_weight.shape != edges.shape[1:]:
            raise ValueError(f"edge_weight has the shape {tuple(edge_weight.shape)}, for {edges.shape[-1]} edges")
        messages = structure(edges, len(x))
        for conv in self.convs[:-1]:
            x = conv(self.dropout(x), messages, edge_weight).relu()
        return self.convs[-1](self.dropout(x), messages, edge_weight)


class GAT(nn.Module):
    """(N, F), (2, E) -> (N, K): attention layers with ELU between them. The paper has no edge weights, nor has this."""

    def __init__(self, config: GATConfig):
        super().__init__()
        shared = {"dropout": config.dropout, "slope": config.slope}
        widths = (config.in_features, *(config.heads * width for width in config.hidden))
        self.dropout = Dropout(config.dropout)
        self.convs = nn.ModuleList(
            GATConv(n_in, n_out, config.heads, average=False, **shared) for n_in, n_out in zip(widths, config.hidden)
        )
        self.convs.append(GATConv(widths[-1], config.num_classes, config.last_heads, average=True, **shared))

    def forward(
        self,
        x: Float[Tensor, "N F"],
        edges: Int64[Tensor, "2 E"],
        edge_weight: Float[Tensor, "E"] | None = None,
    ) -> Float[Tensor, "N K"]:
        if edge_weight is not None:  # taken only to be refused: graph networks are called alike
            raise ValueError("GAT learns how much an edge counts: it takes no edge_weight")
        messages = structure(edges, len(x))
        for conv in self.convs[:-1]:
            x = F.elu(conv(self.dropout(x), messages))
        return self.convs[-1](self.dropout(x), messages)


def example(config: GCNConfig | GATConfig) -> tuple[Tensor, Tensor]:
    """Inputs that the model takes: features of six nodes, and edges with a loop, a pair and a node without any."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, config.in_features, generator=generator)
    return x, torch.tensor([[0, 1, 1, 2, 2, 3, 4, 4], [1, 0, 2, 1, 3, 2, 4, 0]])


sizes = {"gcn": GCNConfig(), "gat": GATConfig()}

# "conv1", "conv2", as a module of two layers calls them; torch_geometric's own models say "convs.0" as we do. A rule
# replaces a text by a text and cannot subtract one, so each number has its own: up to eight layers, as deeper networks
# of these kinds are not written out one attribute a layer
RENAME = {"pyg": (*((rf"^conv{i + 1}\.", f"convs.{i}.") for i in range(8)), (r"\.lin\.", ".linear."))}
