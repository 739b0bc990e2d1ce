"""Run by test_kill.py, which kills it: trains a toy recipe with everything on, or goes on with it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from toys import TYPES, Net, everything

from etude.data.base import Batch
from etude.engine import fit
from etude.tasks.base import LossLogs
from etude.tasks.classify import Classify


@dataclass(frozen=True)
class Traced(Classify):
    """Logs which samples each step saw, so that the metric log proves that none was skipped or repeated."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        loss, logs = super().loss(model, batch)
        place = torch.arange(1.0, len(batch["index"]) + 1)
        return loss, {**logs, "samples": (batch["index"] * place).sum()}


KINDS = (*TYPES, Traced)
RECIPE = everything(
    task=Traced(label_smoothing=0.1), model=Net(width=1500), steps=120, save_every=4, log_every=1, eval_every=30
)


def main(directory: Path) -> None:
    if (directory / "recipe.json").exists():
        fit.resume(directory, workers=2, quiet=True, types=KINDS)
    else:
        fit.train(RECIPE, run=directory, workers=2, quiet=True, types=KINDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
