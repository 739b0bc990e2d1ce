"""GPT-2 124M beside transformers, which is given its defaults: eager, fp32.

Writing: 64 tokens after a prompt of 64, greedy, one text. In fp32 the tokens must be transformers'; bf16 and int8 keep
the weights so (nn/lowbit.py), and what they cost is measured on weights that were trained: the int8 row says how much
of MiniLM's embeddings stays, and `python -m etude.bench.gpt RUN` the bits per byte of a language model's run.
Training: steps of 4 x 256 tokens, AdamW, dropout 0.1, with the share of the machine's matrix peak.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import etude
from etude import catalog
from etude.bench import Contest, clock
from etude.bench.bert import kept
from etude.bench.peak import training_operations
from etude.bench.step import engine_step
from etude.data.text import Text
from etude.engine.evaluate import measure, numbers
from etude.engine.optim import Optim, Schedule
from etude.engine.parallel import World
from etude.engine.precision import pick_device
from etude.engine.recipe import Recipe
from etude.errors import EtudeError
from etude.language import gpt
from etude.nn.lowbit import WEIGHTS, fast_linears
from etude.tasks.language_model import LanguageModel
from etude.weights import load_weights

PROMPT, WRITTEN = 64, 64
BATCH, LENGTH = 4, 256
COSINE = 0.99
"""Of each of MiniLM's embeddings with int8 weights, with that in fp32."""


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: 1.4 times transformers in fp32, 2.5 in bf16, 4 in int8. `compiled` changes nothing here."""
    return [_writing("fp32", 1.4), _writing("bf16", 2.5), _writing("int8", 4.0), _training()]


def _writing(kind: str, target: float) -> Contest:
    device = pick_device()
    version, theirs = _transformers()
    model = gpt.sizes["gpt2"].build().eval()
    if theirs is not None:
        load_weights(model, theirs.state_dict(), source="transformers")
        theirs.to(device).eval()
    fast: Any = fast_linears(model.to(device), dtype=WEIGHTS[kind])
    prompt = torch.randint(0, 50_257, (1, PROMPT), generator=torch.Generator().manual_seed(1)).to(device)
    expected: Tensor | None = None

    @torch.inference_mode()
    def peer() -> None:
        nonlocal expected
        asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": WRITTEN, "do_sample": False}
        assert theirs is not None
        expected = theirs.generate(prompt, pad_token_id=0, eos_token_id=None, **asked)[:, PROMPT:].cpu()

    def ours() -> None:
        made = fast.generate(prompt, WRITTEN).cpu()
        if kind == "fp32" and expected is not None and not torch.equal(made, expected):
            raise EtudeError(f"{int((made != expected).sum())} of {WRITTEN} tokens differ from transformers'")

    return Contest(
        name=f"gpt.writing.{kind}",
        what=f"GPT-2 124M, {PROMPT}+{WRITTEN} tokens, greedy, one text, {kind} weights",
        amount=WRITTEN,
        unit="tokens/s",
        ours=clock(ours),
        peer=clock(peer) if theirs is not None else None,
        peer_name="transformers generate, fp32",
        peer_version=version,
        target=target,
        note=kept(lambda model: fast_linears(model, dtype=torch.int8), COSINE) if kind == "int8" else "",
        rounds=5,
        warmup=1,
    )


def _transformers() -> tuple[str | None, Any]:
    """The peer's version and its model; none where it is not installed. Weights are wide enough that tokens vary."""
    try:
        import transformers
    except ImportError:
        return None, None
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    for name, p in theirs.named_parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.2 if "wpe" in name else 0.05)
    return transformers.__version__, theirs


@dataclass(frozen=True)
class Noise(Text):
    """Characters at random: speed does not depend on what they say."""

    def load(self) -> str:
        return "".join(map(chr, 48 + np.random.default_rng(0).integers(0, 64, 20_000)))


def _training() -> Contest:
    device = pick_device()
    config = gpt.sizes["gpt2"]
    tokens = torch.randint(0, config.vocab_size, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    tokens = tokens.to(device)
    version, theirs = _transformers()
    peer = None
    if theirs is not None:
        theirs.to(device).train()
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)

        def plain() -> float:
            optimizer.zero_grad()
            logits = theirs(input_ids=tokens[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            return loss.item()

        peer = plain
    recipe = Recipe(
        name="bench.gpt",
        model=config,
        data=Noise(length=LENGTH, context=LENGTH),
        task=_Unchecked(),
        optim=Optim("adamw", lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1),
        schedule=Schedule("constant"),
        batch_size=BATCH,
    )
    parameters = catalog.count("gpt2") - config.context * config.width  # positions are looked up, not multiplied
    each = training_operations(parameters, depth=config.depth, width=config.width, length=LENGTH)
    return Contest(
        name="gpt.training",
        what=f"GPT-2 124M b{BATCH} x {LENGTH} training, auto precision, by the engine's step",
        amount=BATCH * LENGTH,
        unit="tokens/s",
        ours=clock(engine_step(recipe, {"tokens": tokens})),
        peer=clock(peer) if peer else None,
        peer_name="transformers in a plain fp32 loop",
        peer_version=version,
        target=None,
        operations=BATCH * LENGTH * each,
        rounds=5,
        warmup=1,
    )


class _Unchecked(LanguageModel):
    """Tokens of the whole vocabulary, whatever characters the text has."""

    def check(self, model: Any, dataset: Any) -> None: ...


def quality(place: str, split: str = "validation", windows: int = 200) -> dict[str, float]:
    """What the weights' type costs a language model that was trained: its run's bits per byte (or character) over the
    first `windows` windows of a split, by type."""
    run = etude.open(place)
    dataset = run.recipe.data.reopen(run.facts)
    dataset.sizes[split] = min(dataset.sizes[split], windows)
    measured = {}
    for kind, dtype in WEIGHTS.items():
        fast = fast_linears(run.model("cpu"), dtype=dtype)
        found = numbers(measure(fast, run.recipe, dataset, split, world=World(torch.device("cpu")), precision="fp32"))
        measured[kind] = found[run.recipe.task.measure]
    return measured


if __name__ == "__main__":
    for place in sys.argv[1:]:
        bits = quality(place)
        parts = (f"{kind} {value:.4f} ({value / bits['fp32'] - 1:+.2%})" for kind, value in bits.items())
        print(f"{place}: {', '.join(parts)}")
