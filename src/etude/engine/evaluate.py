"""Batches on their way to the model, and the measuring of a split: shared by training, `eval` and `predict`."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from etude.data.base import Batch, Dataset
from etude.engine.parallel import World
from etude.engine.precision import DTYPES, Resolved, autocast
from etude.engine.prefetch import prefetch
from etude.engine.recipe import Recipe
from etude.nn.inference import CONVOLUTIONS, prepare_for_inference
from etude.tasks.metrics import Metric


def leave(batch: Batch, dataset: Dataset, recipe: Recipe, device: torch.device) -> Batch:
    """What a data worker does last: finish the batch, or pin its memory for a GPU, which finishes it faster."""
    if device.type == "cuda":
        return {name: value.pin_memory() for name, value in batch.items()}
    return dataset.finish(batch, seed=recipe.seed)


def arrive(batch: Batch, dataset: Dataset, recipe: Recipe, device: torch.device) -> Batch:
    """The batch where the model is, finished and in its memory format; "index" and "epoch" stay on the CPU."""
    if device.type != "cpu":
        stay = ("index", "epoch")
        batch = {n: v if n in stay else v.to(device, non_blocking=True) for n, v in batch.items()}
    if device.type == "cuda":
        batch = dataset.finish(batch, seed=recipe.seed)
    return laid_out(batch, recipe)


def laid_out(batch: Batch, recipe: Recipe) -> Batch:
    """Pictures in the memory format that the recipe trains in."""
    if not recipe.channels_last:
        return batch
    return {n: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for n, v in batch.items()}


def answering(model: nn.Module, recipe: Recipe, precision: Resolved) -> nn.Module:
    """What answers for the model in measuring and predicting: a network of convolutions prepared for it, once; any
    other, and one whose weights are spread over processes, the model itself. It is called within `autocast`."""
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    if sharded or not any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        return model
    dtype = None if precision == "fp32" else DTYPES[precision]
    return prepare_for_inference(model, dtype=dtype, channels_last=recipe.channels_last)


@torch.no_grad()
def measure(
    model: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    split: str,
    *,
    world: World,
    precision: Resolved,
    workers: int = 0,
) -> dict[str, Metric]:
    """The task's measures over a split: every sample once, merged over all processes. The model's mode is kept."""
    spans = dataset.spans(split, batch_size=recipe.eval_batch_size, rank=world.rank, world=world.size)

    def make(i: int) -> Batch:
        return leave(dataset.fetch(split, spans[i]), dataset, recipe, world.device)

    batches = (arrive(b, dataset, recipe, world.device) for b in prefetch(make, 0, len(spans), workers=workers))
    training = model.training
    model.eval()
    with autocast(precision, world.device):
        mine = recipe.task.evaluate_on(dataset, answering(model, recipe, precision), batches)
    model.train(training)
    merged, *others = world.gather(mine)
    for other in others:
        for name, metric in other.items():
            if name in merged:
                merged[name].merge(metric)
            else:
                merged[name] = metric
    return merged


def numbers(measured: dict[str, Metric]) -> dict[str, float]:
    """The measures that are numbers, for logs and results."""
    values = {name: metric.value() for name, metric in measured.items()}
    return {name: value for name, value in values.items() if isinstance(value, float)}
