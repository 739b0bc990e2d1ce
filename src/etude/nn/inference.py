"""A trained model made faster to ask: BatchNorm folded away, bf16, channels-last memory, compiled with its weights."""

import copy
import warnings
from collections import Counter
from functools import partial
from typing import Any

import jaxtyping
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_map_only

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
    cores prefer. An `ExactConv2d` stays float32, and so do the inputs of a model that has one. `compile` compiles at
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
    return Compiled(model) if compile else model


def conv_bn_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of the convolutions whose output goes to one BatchNorm and nowhere else, and of that BatchNorm.

    Empty for a model that cannot be traced, because what it does depends on the values of its input.
    """
    checks = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # the symbols that trace a model have no shapes to check
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # whatever the model's own code raises when it meets a symbol instead of a tensor
        return []
    finally:
        jaxtyping.config.update("jaxtyping_disable", checks)
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
