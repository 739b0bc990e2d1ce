"""A trained model made faster to ask: BatchNorm folded away, bf16, channels-last memory, compiled with its weights."""

import copy
import functools
import warnings
from collections import Counter
from functools import partial
from typing import Any, cast

import jaxtyping
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_map_only

from etude import cpu
from etude.nn import weight_gradient
from etude.nn.exact import ExactConv2d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def prepare_for_inference(
    model: nn.Module, *, dtype: torch.dtype | None = None, channels_last: bool = False, compile: bool = False
) -> nn.Module:
    """A copy of `model` that answers the same, faster; it cannot be trained.

    It is in eval mode, and every BatchNorm that directly follows a convolution is folded into it: equal to the model in
    fp32 to about 1e-6 relative. With `dtype` its weights and the inputs are of that type, and answers are float32
    again; buffers and the BatchNorms that could not be folded stay as they are, so what is computed from them keeps
    its exactness. `channels_last` stores pictures with their channels innermost, which convolutions on CPUs and tensor
    cores prefer. On a CPU, oneDNN applies an activation while it writes the output of the convolution before it. An
    `ExactConv2d` stays float32, and so do the inputs of a model that has one. `compile` compiles at
    the first call for each shape of input (half a minute), the weights built in as constants; where that fails it warns
    and runs without.

    A model without a forward of its own, which only holds several players, is prepared player by player.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if type(model).forward is nn.Module.forward:
        for name, player in model.named_children():
            model.set_submodule(
                name, prepare_for_inference(player, dtype=dtype, channels_last=channels_last, compile=compile)
            )
        return model
    weight_gradient.slow_down(model)
    for conv_name, bn_name in conv_bn_pairs(model):
        conv: Any = model.get_submodule(conv_name)
        bn: Any = model.get_submodule(bn_name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        model.set_submodule(bn_name, nn.Identity())
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        model.register_forward_pre_hook(to_channels_last)
    if dtype is not None:
        # a norm that processes share is a class of its own
        stay = (ExactConv2d, nn.modules.batchnorm._NormBase)
        for module in model.modules():
            if not isinstance(module, stay):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
        if not any(isinstance(module, ExactConv2d) for module in model.modules()):
            model.register_forward_pre_hook(partial(cast_inputs, dtype=dtype))
        model.register_forward_hook(cast_outputs)
    if compile:
        return Compiled(model)
    if next(model.parameters(), torch.empty(0)).device.type == "cpu":
        fuse_activations(model)
    return model


def fuse_activations(model: nn.Module) -> None:
    """Have oneDNN compute a traceable model's convolutions with the activations that follow them, in place: each fused
    convolution becomes a `FusedConv2d`, its activation an identity, which is right for what the model's forward calls.
    An activation module that is used elsewhere too stays, and so does what has hooks, and all where this torch has no
    such kernels."""
    graph = traced(model)
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module") if graph else Counter()

    def source(node: fx.Node) -> fx.Node | None:
        """The convolution whose output this activation is given, and nothing else is."""
        before = node.args[0]
        while isinstance(before, fx.Node) and before.op == "call_module" and list(before.users) == [node]:
            if type(modules[str(before.target)]) is not nn.Identity:
                conv = modules[str(before.target)]
                return before if calls[before.target] == 1 and type(conv) is nn.Conv2d and fusable(conv) else None
            node, before = before, before.args[0]
        return None

    found: dict[str, list[fx.Node | None]] = {}
    for node in graph.nodes if graph else ():
        if node.op == "call_module" and post_operation(modules[str(node.target)]):
            found.setdefault(str(node.target), []).append(source(node))
    for name, convs in found.items():
        if all(convs):
            for conv in convs:
                assert conv is not None
                fused = FusedConv2d(cast(nn.Conv2d, modules[str(conv.target)]), modules[name])
                model.set_submodule(str(conv.target), fused)
            for place, module in list(model.named_modules(remove_duplicate=False)):
                if module is modules[name]:  # one module may have several names
                    model.set_submodule(place, nn.Identity())


def post_operation(module: nn.Module) -> tuple[str, list[float]] | None:
    """oneDNN's name of an activation, and its numbers; None where it has none. Its ReLU and ReLU6 turn NaN into 0,
    which would hide what is wrong with a network."""
    match module:
        case nn.LeakyReLU():
            return "leaky_relu", [module.negative_slope]
        case nn.SiLU():
            return "swish", []
    return None


def fusable(conv: nn.Conv2d) -> bool:
    """Whether oneDNN's fused kernel can take this convolution's place."""
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    hooked = conv._forward_hooks or conv._forward_pre_hooks
    return plain and not hooked and has_fused(conv.weight.dtype)


@functools.cache
def has_fused(dtype: torch.dtype) -> bool:
    """Whether this torch computes fused convolutions in `dtype` on this CPU: an AVX2 one has none in bf16."""
    with cpu.plainly(), torch.random.fork_rng(devices=[]):
        conv, x, act = nn.Conv2d(8, 8, 3, padding=1).to(dtype), torch.ones(1, 8, 4, 4, dtype=dtype), nn.SiLU()
        try:
            return torch.allclose(FusedConv2d(conv, act)(x).float(), act(conv(x)).float(), rtol=0.05, atol=0.05)
        except (RuntimeError, AttributeError):
            return False


class FusedConv2d(nn.Module):
    """A convolution and its activation in one pass, the weights in oneDNN's order for the last shape of inputs.
    (B, C, H, W) -> (B, C', H', W'); it cannot be trained or saved."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.how = (conv.padding, conv.stride, conv.dilation, conv.groups)
        operation = post_operation(activation)
        assert operation is not None
        self.operation, self.packed = operation, (torch.Size(), torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.forward(x[None])[0]
        x = x.to(self.weight.dtype)  # which autocast does to torch's own operators
        shape, weight = self.packed
        if shape != x.shape:
            weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.how, x.shape)
            self.packed = (x.shape, weight)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self.how, *self.operation, "")


class Tracer(fx.Tracer):
    """fx's, to which a convolution is one step whoever wrote its class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module) -> fx.Graph | None:
    """What a model calls, in order; None where it cannot be traced, as what it does depends on its input's values."""
    checks = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # the symbols that trace a model have no shapes to check
    try:
        return Tracer().trace(model)
    except Exception:  # whatever the model's own code raises when it meets a symbol instead of a tensor
        return None
    finally:
        jaxtyping.config.update("jaxtyping_disable", checks)


def conv_bn_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions whose output goes to one BatchNorm and nowhere else, and of that BatchNorm; none for a
    model that cannot be traced."""
    graph = traced(model)
    if graph is None:
        return []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    modules = dict(model.named_modules())
    pairs = []
    for bn in graph.nodes:
        conv = bn.args[0] if bn.op == "call_module" and len(bn.args) == 1 else None
        if (
            isinstance(conv, fx.Node)
            and conv.op == "call_module"
            and list(conv.users) == [bn]
            and calls[conv.target] == calls[bn.target] == 1
            and type(modules[str(conv.target)]) in CONVOLUTIONS  # no subclass: it may compute its weight
            and type(modules[str(bn.target)]) in BATCH_NORMS
            and modules[str(bn.target)].running_mean is not None
        ):
            pairs.append((str(conv.target), str(bn.target)))
    return pairs


def to_channels_last(module: nn.Module, inputs: tuple) -> tuple:
    return tree_map_only(Tensor, lambda x: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x, inputs)


def cast_inputs(module: nn.Module, inputs: tuple, dtype: torch.dtype) -> tuple:
    return tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)


def cast_outputs(module: nn.Module, inputs: tuple, output: Any) -> Any:
    return tree_map_only(Tensor, lambda y: y.float() if y.is_floating_point() else y, output)


class Compiled(nn.Module):
    """`model`, compiled by torch.compile's inductor with freezing; its weights must not change any more."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.call = torch.compile(self.eager)

    def eager(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def forward(self, *inputs: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor import config

        # `torch.compile(options={"freezing": True})` comes too late: the weights are made constants while the graph is
        # recorded, by this setting and without gradients only. So it is set whenever a call might compile.
        with torch.no_grad(), config.patch(freezing=True):
            try:
                return self.call(*inputs)
            except TorchDynamoException as error:
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"not compiled, running without: {reason}", stacklevel=2)
                self.call = self.eager
                return self.call(*inputs)
