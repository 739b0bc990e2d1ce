"""Recipes of GPT: a small one that two cores train, GPT-2's size on any text, and GPT-3 as its paper trained it."""

import math
from dataclasses import replace

from etude.data.corpus import Corpus
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Ramp, Recipe, ramped
from etude.language import gpt
from etude.tasks.language_model import CorpusModel


def bible() -> Recipe:
    """The World English Bible in 4,096 byte pairs learned from it: 1.620 bits per byte on the test part (validation
    1.546), which is 1.634 a character, where lstm.bible has 1.718; seed 0, in 26 min 35 s on one core of an AMD EPYC
    with avx512_bf16 that had other work to do. Without dropout, which costs two fifths of a step on a CPU."""
    return Recipe(
        name="gpt.bible",
        model=gpt.Config(vocab_size=0, context=256, width=256, depth=6, num_heads=4, dropout=0.0),
        data=Corpus(source="bible", tokens="bpe", vocab_size=4096, length=256, context=128),
        task=CorpusModel(),
        optim=Optim("adamw", lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, decay_vectors=False),
        schedule=Schedule("cosine", warmup=100, final=0.05),
        steps=3000,
        batch_size=8,
        eval_every=500,
        eval_batch_size=32,
        clip=1.0,
    )


def small() -> Recipe:
    """GPT-2's smallest size, 124M parameters, on any text (--data.path FILE_OR_FOLDER) in GPT-2's vocabulary. Batches
    of 32,768 tokens are computed in parts of four windows: more at once on a GPU, by --accumulate. A text that is read
    more than a few times asks for --model.dropout 0.1, GPT-2's own. Not run here."""
    return Recipe(
        name="gpt.small",
        model=replace(gpt.sizes["gpt2"], dropout=0.0),
        data=Corpus(source="bible", tokens="gpt2", length=1024, context=512),
        task=CorpusModel(),
        optim=Optim("adamw", lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, decay_vectors=False),
        schedule=Schedule("cosine", warmup=500, final=0.1),
        steps=20_000,
        batch_size=32,
        accumulate=8,
        eval_every=1000,
        eval_batch_size=4,
        clip=1.0,
    )


LENGTH = 2048
TOKENS, FALLING, WARMUP = 300e9, 260e9, 375e6
"""Tokens of the whole training, those over which the cosine falls to a tenth, and those of the warm-up."""


def _gpt3(size: str, *, lr: float, batch_size: int, ramp_tokens: float) -> Recipe:
    """Language Models are Few-Shot Learners (Brown et al., 2020, arXiv 2005.14165), table 2.1 and appendix B: Adam of
    betas 0.9 and 0.95 and epsilon 1e-8, weight decay 0.1, the gradient's norm at most 1; the rate rises over 375
    million tokens and falls by a cosine to a tenth over 260 billion of 300; the batch grows from 32 thousand tokens
    over the first 4 to 12 billion. Which size took how many of these, and whether vectors decayed, the paper does not
    say, nor anything of dropout: there is none. Batches are in whole windows of 2,048 tokens, computed one by one: more
    at once, or on several processes, by --accumulate."""
    ramp = Ramp(first=16, samples=round(ramp_tokens / LENGTH))
    starts = ramped(ramp, batch_size, 1)
    steps = len(starts) - 1 + math.ceil((TOKENS / LENGTH - starts[-1]) / batch_size)
    return Recipe(
        name=f"gpt.{size.replace('-', '_').replace('.', '_')}",
        model=replace(gpt.sizes[size], dropout=0.0),
        data=Corpus(source="bible", tokens="gpt2", length=LENGTH, context=LENGTH // 2),
        task=CorpusModel(),
        optim=Optim("adamw", lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, decay_vectors=False),
        schedule=Schedule("cosine", warmup=round(WARMUP / LENGTH / batch_size), final=0.1, fall=FALLING / TOKENS),
        steps=steps,
        batch_size=batch_size,
        ramp=ramp,
        accumulate=batch_size,
        eval_every=1000,
        eval_batch_size=2,
        clip=1.0,
    )


def gpt3_125m() -> Recipe:
    """GPT-3 of 125 million parameters: the paper's settings, on any text (--data.path). Not run here."""
    return _gpt3("gpt3-125m", lr=6e-4, batch_size=256, ramp_tokens=4e9)


def gpt3_350m() -> Recipe:
    """GPT-3 of 350 million parameters: the paper's settings, on any text (--data.path). Not run here."""
    return _gpt3("gpt3-350m", lr=3e-4, batch_size=256, ramp_tokens=4e9)


def gpt3_760m() -> Recipe:
    """GPT-3 of 760 million parameters: the paper's settings, on any text (--data.path). Not run here."""
    return _gpt3("gpt3-760m", lr=2.5e-4, batch_size=256, ramp_tokens=4e9)


def gpt3_1_3b() -> Recipe:
    """GPT-3 of 1.3 billion parameters: the paper's settings, on any text (--data.path). Not run here."""
    return _gpt3("gpt3-1.3b", lr=2e-4, batch_size=512, ramp_tokens=6e9)


def gpt3_2_7b() -> Recipe:
    """GPT-3 of 2.7 billion parameters: the paper's settings, on any text (--data.path). Not run here."""
    return _gpt3("gpt3-2.7b", lr=1.6e-4, batch_size=512, ramp_tokens=6e9)


def gpt3_6_7b() -> Recipe:
    """GPT-3 of 6.7 billion parameters: the paper's settings, on any text (--data.path). Not run here."""
    return _gpt3("gpt3-6.7b", lr=1.2e-4, batch_size=1024, ramp_tokens=8e9)


def gpt3_13b() -> Recipe:
    """GPT-3 of 13 billion parameters: the paper's settings, on any text (--data.path). Not run here."""
    return _gpt3("gpt3-13b", lr=1e-4, batch_size=1024, ramp_tokens=8e9)


def gpt3_175b() -> Recipe:
    """GPT-3 of 175 billion parameters: the paper's settings, on any text (--data.path). Not run here."""
    return _gpt3("gpt3-175b", lr=0.6e-4, batch_size=1568, ramp_tokens=12e9)
