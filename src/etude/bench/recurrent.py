"""LSTM language model, one layer of 512, batches of 64 x 128 characters: training steps against the loop that PyTorch
users write around nn.LSTM: the same weights, Adam at its defaults, clipping, cross-entropy, fp32."""

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from etude.basics import rnn
from etude.bench import Contest, clock
from etude.bench.step import Same, engine_step, operations_of
from etude.data.text import Text
from etude.engine.optim import Optim, Schedule
from etude.engine.precision import pick_device
from etude.engine.recipe import Recipe
from etude.tasks.language_model import LanguageModel

BATCH, LENGTH, VOCABULARY = 64, 128, 64


@dataclass(frozen=True)
class Letters(Text):
    """Letters at random: speed does not depend on what they say."""

    def load(self) -> str:
        rng = np.random.default_rng(0)
        return "".join(map(chr, 48 + rng.permutation(np.arange(100_000) % VOCABULARY)))


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: torch's own speed in fp32. With bf16, where the hardware has it, no target is set. `compiled` changes
    nothing here."""
    return [_contest("fp32", 0.97), _contest("auto", None)]


def _contest(precision: Literal["fp32", "auto"], target: float | None) -> Contest:
    device = pick_device()
    data = Letters(length=LENGTH, context=LENGTH)
    tokens = data.open().batch(seed=0, step=0, batch_size=BATCH)["tokens"].to(device)
    torch.manual_seed(0)
    model = rnn.Config(cell="lstm", vocab_size=VOCABULARY, embedding=64, width=512).build().to(device)

    embedding, lstm = copy.deepcopy(model.embedding), copy.deepcopy(model.recurrent)
    head = copy.deepcopy(model.head)
    assert isinstance(head, nn.Linear)
    theirs = nn.ModuleList([embedding, lstm, head]).train()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)

    def plain() -> float:
        optimizer.zero_grad()
        output, _ = lstm(embedding(tokens[:, :-1]))
        logits = head(output)
        loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    recipe = Recipe(
        name="bench.lstm",
        model=Same(model),
        data=data,
        task=LanguageModel(),
        optim=Optim("adam", lr=1e-3),
        schedule=Schedule("constant"),
        batch_size=BATCH,
        clip=1.0,
        precision=precision,
    )
    return Contest(
        name=f"lstm.{precision}",
        what=f"LSTM 512 b{BATCH} x {LENGTH} training" + ("" if precision == "fp32" else ", auto precision"),
        amount=BATCH * LENGTH,
        unit="tokens/s",
        ours=clock(engine_step(recipe, {"tokens": tokens})),
        peer=clock(plain),
        peer_name="nn.LSTM in a plain fp32 loop",
        peer_version=torch.__version__,
        target=target,
        operations=operations_of(plain),
        precision=precision,
    )
