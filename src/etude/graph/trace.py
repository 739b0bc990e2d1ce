"""What one real forward pass did: which operators ran, in which modules, on which tensors; and what came back.

The pass runs as it always does. Three things listen: a TorchFunctionMode sees each operator as it is called from
Python, hooks on the modules tell in which module, and a TorchDispatchMode counts floating-point operations by the
formulas of torch.utils.flop_counter (a multiplication and an addition are two). So control flow, in-place operators,
masks and custom autograd functions are no obstacle, and nothing is traced symbolically.

A tensor is known by its identity and version: every tensor met is kept alive until the pass is over, so that no two
share an id, and one that an in-place operator has changed is that operator's output from then on, in all its views.

The gradient of an edge, from a tensor to one of its consumers, is what comes back from that consumer alone. To tell it
from the others, an operator gets an alias of the tensor (a view of all of it) with a hook on it. The chain rule says
that the gradient of a tensor is the sum over its edges; into a folded module, it is the sum over the operators within.
"""

import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


@dataclass(eq=False)
class Call:
    """One call of a module; the outermost stands for the whole computation and has no module."""

    index: int
    path: str
    """The module's name in the model; a module called twice has two calls."""
    label: str
    """The name within the parent, with the number of the call where there are several."""
    module: nn.Module | None
    parent: "Call | None"

    @property
    def kind(self) -> str:
        """The module's class."""
        return type(self.module).__name__ if self.module is not None else ""

    def chain(self) -> list["Call"]:
        """This call and all that it is within, innermost first."""
        return [self, *(self.parent.chain() if self.parent else [])]


@dataclass(eq=False)
class Value:
    """A tensor as an operator left it, or an input."""

    index: int
    shape: tuple[int, ...]
    dtype: str
    source: "Op | None"
    """The operator that made it; None for an input."""
    name: str = ""
    """An input's or an output's name."""


@dataclass(eq=False)
class Op:
    """One call of an operator."""

    index: int
    name: str
    call: Call
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    """The parameters that it reads, with their number of entries."""
    flops: int = 0


@dataclass(eq=False)
class Trace:
    root: Call
    calls: list[Call]
    ops: list[Op]
    """Those that the outputs depend on, in the order in which they ran."""
    inputs: list[Value]
    outputs: list[Value]
    parameters: dict[str, int]
    """All of the model's, with their number of entries; a shared one counts once."""
    backward: bool
    edges: dict[tuple[Value, "Op | Call"], float] = field(default_factory=dict)
    """The 2-norm of what came back along an edge, from a tensor to an operator or a module that consumes it."""
    totals: dict[Value, float] = field(default_factory=dict)
    """The 2-norm of the gradient of a tensor."""
    weights: dict[str, float] = field(default_factory=dict)
    """The 2-norm of the gradient of a parameter."""
    hidden: set[tuple[Value, "Op | Call"]] = field(default_factory=set)
    """Edges whose own share is not known."""
    loss: float | None = None

    def gradient(self, value: Value, consumer: "Op | Call | None") -> float | None:
        """The norm of what came back along this edge; of the tensor's whole gradient where the consumer is None, or
        where the edge's own share is not known (an in-place operator's, or one inside a custom autograd function).
        None where no gradient flows."""
        if consumer is not None and (value, consumer) in self.edges:
            return self.edges[value, consumer]
        if consumer is not None and (value, consumer) not in self.hidden:
            return None
        return self.totals.get(value)


# -------------------------------------------------------------------- floating-point operations


def _attention_on_cpu(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _lstm_on_cpu(x: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.shape[0] * x.shape[1] * (w_ih.numel() + w_hh.numel())


def _attention_on_cpu_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


def _lstm_on_cpu_backward(x: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _lstm_on_cpu(x, w_ih, w_hh)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, _: Any, *how: Any) -> int:
    *settings, wanted = how
    forward = flop_registry[aten.convolution](x, weight, None, *settings, out_val=gradient)
    return int(forward * (wanted[0] + wanted[1]))


MORE_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_on_cpu_backward,
    aten.mkldnn_rnn_layer: _lstm_on_cpu,
    aten.mkldnn_rnn_layer_backward: _lstm_on_cpu_backward,
    aten.convolution_backward: _convolution_backward,
}
"""Kernels of CPUs that torch's table of formulas leaves out, and one of which it forgets the groups."""


def flops(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Of one call of an aten operator; a sparse matrix counts its entries, not its zeros."""
    matrices = [a for a in args if isinstance(a, Tensor)]
    sparse = [a for a in matrices if a.layout is not torch.strided]
    if sparse:
        dense = [a for a in matrices if a.layout is torch.strided and a.ndim == 2]
        return 2 * sparse[0]._nnz() * dense[-1].shape[1] if dense and packet in (aten.mm, aten.addmm) else 0
    if packet in MORE_FORMULAS:
        return MORE_FORMULAS[packet](*args, **kwargs)
    return int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0


class FlopCounter(TorchDispatchMode):
    """Counts, in `total`, the operations of what is computed within, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # there an operator made of others, such as linear, comes as a whole
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.total += flops(func._overloadpacket, args, kwargs, out)
        return out


# -------------------------------------------------------------------- recording


CHECKS = {"has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"}
"""By which functions of torch.nn.functional hand themselves to a mode as a whole."""


@cache
def _opened(function: types.FunctionType) -> Callable[..., Any]:
    """The same function of torch.nn.functional without its check for modes, so that what it does within is seen: a
    multi-head attention is its products and softmax, and relu(inplace=True) the in-place operator."""
    names = {**function.__globals__, **dict.fromkeys(CHECKS, _never)}
    opened = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def _never(*_: Any) -> bool:
    return False


def _name(func: Any) -> str:
    name = getattr(func, "__name__", type(func).__name__)
    if name == "__get__":
        name = func.__self__.__name__
    return name.strip("_") if name.startswith("__") else name.lstrip("_")


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call may change its first argument or say something about it, so that an alias will not do."""
    name = getattr(func, "__name__", "")
    plain = name.strip("_")
    dunder = name.startswith("__")
    in_place = dunder and (plain.startswith("set") or (plain.startswith("i") and plain not in ("invert", "index")))
    about = plain in ("register_hook", "retain_grad", "backward", "get") and (plain != "get" or _name(func) == "grad")
    return in_place or about or (name.endswith("_") and not dunder) or "out" in kwargs


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, *, backward: bool) -> None:
        super().__init__()
        self.model, self.backward = model, backward
        self.root = Call(0, "", "", None, None)
        self.calls, self.stack = [self.root], [self.root]
        self.times: dict[tuple[Call, str], int] = defaultdict(int)
        self.ops: list[Op] = []
        self.values: list[Value] = []
        self.known: dict[int, tuple[Value, int]] = {}
        """id of a tensor -> what it holds, and its version then."""
        self.stored: dict[int, Value] = {}
        """Address of a storage -> what was last written into it."""
        self.kept: list[Any] = []
        self.names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        self.constant = set(self.names) | {id(b) for b in model.buffers()}
        self.counter = FlopCounter()
        self.watched: set[int] = set()
        self.totals: dict[Value, float] = {}
        self.uses: list[tuple[Value, Op, dict[str, Tensor] | None]] = []
        """Which operator consumed what, and where its share of the gradient will be laid."""

    # ---- tensors

    def add(self, tensor: Tensor, source: Op | None, name: str = "") -> Value:
        value = Value(len(self.values), tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), source, name)
        self.values.append(value)
        self.hold(tensor, value)
        address = _address(tensor)
        if address:
            self.stored[address] = value
        return value

    def hold(self, tensor: Tensor, value: Value) -> None:
        self.kept.append(tensor)
        self.known[id(tensor)] = (value, tensor._version)
        self.watch(tensor, value)

    def watch(self, tensor: Tensor, value: Value) -> None:
        """The whole gradient of the value, as soon as the tensor is part of autograd's graph: what a custom autograd
        function returns is so only after it returned."""
        if not self.backward or value.index in self.watched or not tensor.requires_grad:
            return
        self.watched.add(value.index)

        def keep(grad: Tensor) -> None:
            self.totals[value] = _norm(grad)

        tensor.register_hook(keep)

    def find(self, tensor: Tensor) -> Value | None:
        """What the tensor holds now; None for parameters, buffers and constants."""
        if id(tensor) in self.constant:
            return None
        value, version = self.known.get(id(tensor), (None, -1))
        if value is not None and version == tensor._version:
            self.watch(tensor, value)
            return value
        written = self.stored.get(_address(tensor))
        if written is not None:
            self.kept.append(tensor)
            self.known[id(tensor)] = (written, tensor._version)
        return written or value

    # ---- operators

    def __torch_function__(self, func: Any, types_: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            isinstance(func, types.FunctionType)
            and CHECKS & set(func.__code__.co_names)
            and func.__globals__ is vars(F)
        ):
            with self:
                return _opened(func)(*args, **kwargs)
        read = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        before = {key: t._version for key, t in read.items()}
        sources = {key: value for key, t in read.items() if (value := self.find(t)) is not None}
        given, shares = self._aliases(func, args, kwargs, read, sources)
        counted = self.counter.total
        result = func(*given[0], **given[1])
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        changed = [t for key, t in read.items() if t._version != before[key] and key not in self.constant]
        new = [t for t in made if id(t) not in self.known or self.known[id(t)][1] != t._version]
        new = [t for t in new if id(t) not in self.constant and id(t) not in {id(c) for c in changed}]
        if not new and not changed:
            return result
        op = Op(len(self.ops), _name(func), self.stack[-1], flops=self.counter.total - counted)
        self.ops.append(op)
        op.inputs = list(dict.fromkeys(sources.values()))
        op.parameters = {self.names[key]: t.numel() for key, t in read.items() if key in self.names}
        op.outputs = [self.add(t, op) for t in [*changed, *new]]
        self.uses += [(value, op, shares.get(key)) for key, value in sources.items()]
        return result

    def _aliases(
        self, func: Any, args: Any, kwargs: Any, read: dict[int, Tensor], sources: dict[int, Value]
    ) -> tuple[tuple[Any, Any], dict[int, dict[str, Tensor]]]:
        """The arguments, each tensor that has a gradient replaced by an alias whose gradient is this call's share."""
        if not self.backward or not torch.is_grad_enabled() or _writes(func, kwargs):
            return (args, kwargs), {}
        aliases: dict[int, Tensor] = {}
        shares: dict[int, dict[str, Tensor]] = {}
        for key, value in sources.items():
            tensor = read[key]
            if tensor.requires_grad and tensor.layout is torch.strided and not isinstance(tensor, nn.Parameter):
                alias = aliases[key] = tensor.view_as(tensor)
                share = shares[key] = {}
                self.kept.append(alias)
                self.known[id(alias)] = (value, alias._version)
                alias.register_hook(lambda grad, share=share: share.update(grad=grad.detach()))
        if not aliases:
            return (args, kwargs), {}

        def replaced(x: Any) -> Any:
            return aliases.get(id(x), x) if isinstance(x, Tensor) else x

        return tree_map(replaced, (args, kwargs)), shares

    # ---- modules

    def enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            parent = self.stack[-1]
            label = path.removeprefix(parent.path + ".") if parent.path else path
            self.times[parent, path] += 1
            again = self.times[parent, path]
            call = Call(len(self.calls), path, label + (f" ({again})" if again > 1 else ""), module, parent)
            self.calls.append(call)
            self.stack.append(call)

        return hook

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.stack.pop()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _norm(grad: Tensor) -> float:
    values = grad if grad.layout is torch.strided else grad.coalesce().values()
    return float(torch.linalg.vector_norm(values.detach().to(torch.float64)))


def trace(
    model: nn.Module,
    function: Callable[[], Any],
    inputs: Mapping[str, Tensor],
    *,
    backward: Callable[[Any], Tensor] | None = None,
    name: str = "output",
) -> Trace:
    """Run `function()`, which calls `model` on `inputs`, and record it.

    `backward` makes the scalar of what the function returned, whose gradient is sent back along every edge; floating
    `inputs` that are leaves must require a gradient to get one. `name` is what the outputs are called.
    """
    recorder = _Recorder(model, backward=backward is not None)
    values = [recorder.add(tensor, None, name) for name, tensor in inputs.items()]
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:  # the model itself is the whole drawing
                for handle in (
                    module.register_forward_pre_hook(recorder.enter(path), prepend=True),
                    module.register_forward_hook(recorder.leave, always_call=True),
                ):
                    stack.callback(handle.remove)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)  # one fused kernel that hides the layers
        with torch.set_grad_enabled(backward is not None), recorder.counter, recorder:
            result = function()
        outputs = {value: None for t in tree_leaves(result) if isinstance(t, Tensor) if (value := recorder.find(t))}
        for i, output in enumerate(outputs):
            output.name = name if len(outputs) == 1 else f"{name} {i}"
        needed = _ancestors(outputs)
        found = Trace(
            recorder.root,
            recorder.calls,
            [op for op in recorder.ops if op in needed],
            [value for value in values if any(value in op.inputs for op in needed)],
            list(outputs),
            {name: p.numel() for name, p in model.named_parameters()},
            backward is not None,
        )
        if backward is not None:
            _send_back(found, recorder, backward(result), model)
    return found


def _ancestors(outputs: Iterable[Value]) -> set[Op]:
    needed: set[Op] = set()
    ahead = [value.source for value in outputs if value.source]
    while ahead:
        op = ahead.pop()
        if op not in needed:
            needed.add(op)
            ahead += [value.source for value in op.inputs if value.source]
    return needed


def _send_back(found: Trace, recorder: _Recorder, loss: Tensor, model: nn.Module) -> None:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name: p.grad for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    loss.backward()
    found.loss = loss.item()
    found.totals = recorder.totals
    for name, p in parameters.items():
        if p.grad is not None:
            found.weights[name] = _norm(p.grad)
        p.grad = kept[name]
    shares: dict[tuple[Value, Op | Call], list[Tensor]] = defaultdict(list)
    for value, op, share in recorder.uses:
        inside = set(value.source.call.chain()) if value.source else {recorder.root}
        consumers = [op, *(call for call in op.call.chain() if call not in inside)]
        for consumer in consumers:
            if share is None:
                found.hidden.add((value, consumer))
            elif "grad" in share:
                shares[value, consumer].append(share["grad"])
    for key, grads in shares.items():
        if key not in found.hidden:
            found.edges[key] = _norm(grads[0] if len(grads) == 1 else torch.stack(grads).sum(0))
