"""Knowledge distillation: a student learns from labels and from a trained teacher's soft answers.

Hinton, Vinyals, Dean, 2015, arXiv 1503.02531, section 2, with student logits z_s and teacher logits z_t:
    loss = alpha CE(y, softmax(z_s)) + (1 - alpha) T^2 KL(softmax(z_t / T) || softmax(z_s / T))
T^2 keeps the second term's gradients as large as the first's, whatever the temperature.

    etude train mlp.digits --teacher runs/resnet.digits/1 [--task.alpha 0.5] [--task.temperature 4]

Shapes: B batch, K classes.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.base import Batch, Dataset
from etude.engine import checkpoint
from etude.engine.recipe import Recipe
from etude.engine.run import Run
from etude.errors import RefusedError, UsageError
from etude.tasks.base import LossLogs
from etude.tasks.classify import Classify


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(z_t / T) || softmax(z_s / T)), a mean over the batch. (B, K), (B, K) -> ()"""
    log_p, log_q = ((z / temperature).log_softmax(1) for z in (teacher, student))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Distill(Classify):
    """Classification that also learns from a teacher, which sees the same augmented and mixed pictures."""

    teacher: str = ""
    """The run directory of a trained classifier of the same data."""
    teacher_sha256: str = ""
    """The digest of its weights: a resumed run must learn from the same teacher."""
    alpha: float = 0.5
    """The share of the labels; 1 ignores the teacher."""
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1 or self.temperature <= 0:
            raise UsageError(
                f"task.alpha is {self.alpha} and task.temperature {self.temperature}; the first must lie in [0, 1], "
                "the second above 0"
            )

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model and the teacher both answer this data's classes. RefusedError where the teacher's weights
        are not those that the recipe was made with."""
        super().check(model, dataset)
        classes = Run(self.teacher).facts.get("classes")
        if classes != dataset.facts["classes"]:
            raise UsageError(f"the teacher {self.teacher} knows other classes: {classes}")
        _network(self.teacher, self.teacher_sha256, next(model.parameters()).device)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """alpha of the labels' cross-entropy, 1 - alpha of the teacher's soft loss."""
        logits = model(batch["image"])
        with torch.no_grad():
            taught = _network(self.teacher, self.teacher_sha256, logits.device)(batch["image"].float())
        hard = self.cross_entropy(logits, batch)
        exact = torch.float64 if logits.dtype == torch.float64 else torch.float32  # float64: gradcheck
        soft = soft_loss(logits.to(exact), taught.to(exact), self.temperature)
        loss = self.alpha * hard + (1 - self.alpha) * soft
        return loss, {"loss": loss, "hard_loss": hard, "soft_loss": soft, "accuracy": self.accuracy(logits, batch)}


def distill(recipe: Recipe, teacher: str | Path) -> Recipe:
    """The recipe with a teacher: a finished run of a classifier of pictures prepared alike. Set `task.alpha` and
    `task.temperature` with `Recipe.with_`."""
    if type(recipe.task) is not Classify:
        raise UsageError(f"{recipe.name} does not classify: there is nothing that a teacher could soften")
    run = Run(Path(teacher).absolute())
    digest = str(run.result["weights_sha256"])
    if not isinstance(run.recipe.task, Classify):
        raise UsageError(f"the teacher {teacher} is no classifier but does {run.recipe.name}")
    for name in ("mean", "std", "side"):
        mine, theirs = getattr(recipe.data, name, None), getattr(run.recipe.data, name, None)
        if mine != theirs:
            raise UsageError(f"the teacher {teacher} was trained with data.{name} {theirs}, the student has {mine}")
    plain = {field.name: getattr(recipe.task, field.name) for field in fields(Classify)}
    task = Distill(**plain, teacher=str(run.path), teacher_sha256=digest)
    return replace(recipe, task=task)


@lru_cache(maxsize=2)
def _network(path: str, sha256: str, device: torch.device) -> nn.Module:
    """The teacher in evaluation mode, its weights fixed; read once a process. RefusedError as above."""
    network = Run(path).model(str(device)).requires_grad_(False)
    found = checkpoint.digest({name: value.cpu() for name, value in network.state_dict().items()})
    if found != sha256:
        raise RefusedError(
            f"the teacher {path} has changed: its weights were {sha256[:12]}... and are {found[:12]}...",
            hint="train the student anew",
        )
    return network
