"""Small systems that exercise the engine: a classifier with everything on, and a game of two players."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data import order
from etude.data.base import Batch, Data, Dataset
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.base import Logs, LossLogs, Task
from etude.tasks.classify import Classify
from etude.tasks.metrics import Mean, Metric


@dataclass(frozen=True)
class Blobs(Data):
    """Pictures (1, 4, 4) of three classes, with noise drawn anew in each epoch. A prime number of them by default."""

    train: int = 211
    test: int = 101
    validation: int = 0
    poison: int = -1
    """The index of a sample whose picture is NaN."""

    def open(self) -> "BlobSet":
        return BlobSet(self)

    def prepare(self, raw: Any) -> Tensor:
        return torch.as_tensor(raw)

    def collate(self, samples: list[Tensor]) -> Batch:
        return {"image": torch.stack(samples)}


class BlobSet(Dataset):
    def __init__(self, data: Blobs):
        self.data = data
        self.sizes = {"train": data.train, "test": data.test}
        if data.validation:
            self.sizes["validation"] = data.validation
        self.facts = {"source": "blobs", "classes": ["a", "b", "c"], "sizes": self.sizes}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        places = np.asarray(indices)
        offset = {"train": 0, "test": 10_000, "validation": 20_000}[split]
        labels = (places * 7 + 3) % 3
        image = order.uniform(99, 0, places + offset, 16) + labels[:, None] * 0.35
        if epochs is not None:
            image = image + 0.3 * order.uniform(seed, epochs, places, 16)
        batch = {
            "image": torch.from_numpy((image * 120).astype(np.uint8)).view(-1, 1, 4, 4),
            "label": torch.from_numpy(labels),
            "index": torch.from_numpy(places.astype(np.int64)),
        }
        if epochs is not None:
            batch["epoch"] = torch.from_numpy(np.broadcast_to(epochs, places.shape).astype(np.int64))
        return batch

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        image = batch["image"].float() / 120
        if "epoch" in batch and self.data.poison >= 0:
            image[batch["index"] == self.data.poison] = torch.nan
        return batch | {"image": image}


@dataclass(frozen=True)
class Net:
    """conv - BatchNorm - ReLU - dropout - linear."""

    dropout: float = 0.25
    width: int = 8
    batchnorm: bool = True

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, self.width, 3, padding=1, bias=not self.batchnorm),
            nn.BatchNorm2d(self.width) if self.batchnorm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Dropout(self.dropout),
            nn.Flatten(),
            nn.Linear(self.width * 16, 3),
        )


def everything(**changes: Any) -> Recipe:
    """Shuffling, augmentation, dropout, BatchNorm, EMA, bf16, accumulation, clipping: all that resume must restore."""
    recipe = Recipe(
        name="toy.everything",
        model=Net(),
        data=Blobs(),
        task=Classify(label_smoothing=0.1),
        optim=Optim("adamw", lr=0.01, weight_decay=0.1),
        schedule=Schedule("cosine", warmup=5),
        steps=60,
        batch_size=12,
        accumulate=2,
        clip=1.0,
        ema=0.9,
        precision="bf16",
        channels_last=True,
        eval_every=20,
        log_every=5,
        seed=3,
    )
    return recipe.with_(**changes)


@dataclass(frozen=True)
class Optims:
    """One optimiser a player."""

    maker: Optim = Optim("adam", lr=0.02, betas=(0.5, 0.9))
    critic: Optim = Optim("sgd", lr=0.05, momentum=0.0)


@dataclass(frozen=True)
class Pair:
    """A maker of numbers and a critic of them."""

    def build(self) -> nn.Module:
        pair = nn.Module()
        pair.maker = nn.Linear(2, 1)
        pair.critic = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        return pair


@dataclass(frozen=True)
class Game(Task):
    """Wasserstein GAN on numbers, as its Algorithm 1 reads: critic steps, then one step of the maker."""

    critic_steps: int = 2
    measure: ClassVar[str] = "distance"

    def step(self, model: nn.Module, batch: Batch, update) -> Logs:
        logs: Logs = {}
        for _ in range(self.critic_steps):
            logs = update(self.critic_loss, batch, "critic")
        return logs | update(self.maker_loss, batch, "maker")

    def _made(self, model: Any, batch: Batch) -> Tensor:
        return model.maker(torch.randn(len(batch["index"]), 2))

    def critic_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        real = batch["image"].flatten(1).mean(1, keepdim=True)
        loss = model.critic(self._made(model, batch).detach()).mean() - model.critic(real).mean()
        loss = loss + 0.1 * sum(p.square().sum() for p in model.critic.parameters())
        return loss, {"loss": loss}

    def maker_loss(self, model: Any, batch: Batch) -> tuple[Tensor, LossLogs]:
        loss = -model.critic(self._made(model, batch)).mean()
        return loss, {"loss": loss}

    def evaluate(self, model: Any, batches) -> dict[str, Metric]:
        distance = Mean()
        for batch in batches:
            noise = torch.from_numpy(order.uniform(1, 0, batch["index"].numpy(), 2)).float()
            distance.add((model.maker(noise).squeeze(1) - batch["image"].flatten(1).mean(1)).abs())
        return {"distance": distance}


def game(**changes: Any) -> Recipe:
    """The two-player recipe."""
    recipe = Recipe(
        name="toy.game",
        model=Pair(),
        data=Blobs(),
        task=Game(),
        optim=Optims(),
        schedule=Schedule("constant"),
        steps=30,
        batch_size=12,
        precision="fp32",
        log_every=5,
    )
    return recipe.with_(**changes)


@dataclass(frozen=True)
class LogOfLogits(Classify):
    """A loss that takes the log of a number that can be zero or less."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        logits = model(batch["image"])
        loss = F.nll_loss(torch.log(logits), batch["label"])
        return loss, {"loss": loss}


@dataclass(frozen=True)
class RootAtZero(Classify):
    """A finite loss whose gradient is infinite: the square root at 0."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        logits = model(batch["image"])
        loss = torch.sqrt((logits - logits.detach()).abs().sum())
        return loss, {"loss": loss}


TYPES = (Blobs, Net, Optims, Pair, Game, LogOfLogits, RootAtZero)
