"""One process or many: the mesh (replicas x shards), and the call through which gradients are shared.

`torchrun --nproc-per-node N -m etude train ...` sets RANK, WORLD_SIZE and LOCAL_RANK, and nothing else is needed.
Replicas use DistributedDataParallel, shards `fully_shard` (FSDP2). With equal shares of the batch the mean over
processes of the mean over a share is the mean over the batch, so N processes take the step that one would;
BatchNorm's statistics are taken over all processes for the same reason.
"""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from etude.data.base import Batch
from etude.engine.precision import pick_device
from etude.errors import UsageError
from etude.tasks.base import LossFn, LossLogs


@dataclass(frozen=True)
class World:
    """Where this process stands among all."""

    device: torch.device
    rank: int = 0
    size: int = 1
    shard: int = 1
    mesh: DeviceMesh | None = None

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in the order of ranks, on every process."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered

    def largest(self, value: int) -> int:
        """The largest of all processes' small whole numbers: how they agree to save or to stop."""
        if self.size == 1:
            return value
        flag = torch.tensor(value)  # on the CPU: gloo carries it, and no GPU has to wait
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return int(flag)


def join(device: str = "auto", *, shard: int = 1) -> World:
    """Enter the group that torchrun describes in the environment, or stand alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if shard > 1 and size % shard:
        raise UsageError(
            f"shard is {shard}, but {size} process{'es' * (size > 1)} cannot be divided so",
            hint=f"torchrun --nproc-per-node {shard} -m etude train ...",
        )
    if size == 1:
        return World(pick_device(device))
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    mesh = init_device_mesh(place.type, (size // shard, shard), mesh_dim_names=("replicate", "shard"))
    return World(place, dist.get_rank(), size, shard, mesh)


def leave() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class _Called(nn.Module):
    """A model with the loss as its forward, so that DDP sees every forward pass however a task computes its loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, loss_fn: LossFn, batch: Batch) -> tuple[Tensor, LossLogs]:
        return loss_fn(self.model, batch)


class Player:
    """The weights that one optimiser moves, and the call that computes their gradients over all processes."""

    def __init__(
        self, model: nn.Module, module: nn.Module, mine: list[nn.Parameter], others: list[nn.Parameter], world: World
    ):
        self.module, self.parameters, self._others = module, mine, others
        self.take_turn()
        self.call: nn.Module = _Called(model)
        if world.size > 1 and world.shard == 1:
            # buffers need no broadcast: BatchNorm takes its statistics over all processes
            self.call = DistributedDataParallel(
                self.call, forward_sync_buffers=False, find_unused_parameters=getattr(model, "grows", False)
            )

    def take_turn(self) -> None:
        """Only this player's weights take gradients until another's turn."""
        if self._others:
            for p in self._others:
                p.requires_grad_(False)
            for p in self.parameters:
                p.requires_grad_(True)

    def unsynced(self) -> contextlib.AbstractContextManager:
        """Within, gradients stay on this process: for all parts of an accumulated batch but the last."""
        if isinstance(self.call, DistributedDataParallel):
            return self.call.no_sync()
        return contextlib.nullcontext()


def assemble(model: nn.Module, names: Iterable[str], world: World) -> dict[str, Player]:
    """The players of a model: "model" is the whole, other names are child modules. Frozen weights belong to nobody."""
    modules = {name: model if name == "model" else model.get_submodule(name) for name in names}
    owned = {name: [p for p in module.parameters() if p.requires_grad] for name, module in modules.items()}
    others = {name: [p for other in owned if other != name for p in owned[other]] for name in owned}
    return {name: Player(model, modules[name], owned[name], others[name], world) for name in owned}


def distribute(model: nn.Module, world: World) -> nn.Module:
    """Prepare a model for more than one process, in place where possible: shared statistics, shards."""
    if world.size == 1:
        return model
    model = _sync_batchnorm(model)
    if world.shard > 1:
        assert world.mesh is not None
        mesh = world.mesh["shard"] if world.size == world.shard else world.mesh
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for name in ("packed",):  # other ways into a model than its forward; its weights are gathered for them too
            if hasattr(model, name):
                register_fsdp_forward_method(model, name)
    else:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)
    return model


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, gathered and freed one at a time: what its outermost lists and sequences hold."""
    blocks = []
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            blocks += [block for block in child if any(True for _ in block.parameters())]
        else:
            blocks += _blocks(child)
    return blocks


def full(value: Tensor) -> Tensor:
    """A sharded tensor gathered whole (a collective call); others as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a possibly sharded one."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm (arXiv 1502.03167) whose training statistics are those of all processes' samples, on any device."""

    alone: ClassVar[bool] = False
    """Whether this process's samples count alone: while a NaN is explained, for which no other process waits."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def _everywhere(self, value: Tensor) -> Tensor:
        if self.alone:
            return value
        summed = _AllReduce.apply(value)
        assert isinstance(summed, Tensor)
        return summed

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...)"""
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
        total, count = self._everywhere(torch.cat([x.sum(axes), count])).split([x.shape[1], 1])
        mean = total / count
        # around the mean of all, not E[x^2] - mean^2, which cancels where the mean is large
        variance = self._everywhere((x - mean.view(shape)).square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = torch.rsqrt(variance + self.eps) * (self.weight if self.weight is not None else 1)
        shift = -mean * scale + (self.bias if self.bias is not None else 0)
        return (x * scale.view(shape) + shift.view(shape)).to(input.dtype)


def _sync_batchnorm(model: nn.Module) -> nn.Module:
    """Every BatchNorm -> one with shared statistics and the same parameters, buffers and names."""
    if any(p.is_cuda for p in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                shared = SyncBatchNorm(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                shared.load_state_dict(child.state_dict())
                shared.train(child.training)
                setattr(parent, name, shared)
    return model
