"""Recipes of BERT."""

from dataclasses import replace

from etude.data.masked import Masked
from etude.data.sentences import Sentences
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe, Start
from etude.language import bert
from etude.tasks.masked_lm import MaskedLM
from etude.tasks.sentences import ClassifySentences

MINILM = replace(bert.sizes["bert-minilm-classifier"], attention_dropout=0.0)
"""Without dropout of attention weights."""


def reviews() -> Recipe:
    """MiniLM fine-tuned on sentences of film reviews: 87.0 and 86.9 % on the fixed test split of 1,000 (validation 89.2
    and 89.3 %; TF-IDF and logistic regression 79.6 %) in two runs of seed 0 on 2 cores of an AMD EPYC with avx512_bf16:
    the first in 7 min 5 s beside other work, the second, stopped and resumed on one crowded core, in 22 minutes. On two
    free cores its steps took 0.26 s, 3 min 20 s for all."""
    return Recipe(
        name="bert.reviews",
        model=MINILM,
        data=Sentences(source="reviews", vocabulary="minilm", length=80),
        task=ClassifySentences(),
        start=Start(weights="minilm", layout="transformers", part="bert"),
        optim=Optim("adamw", lr=1e-4, weight_decay=0.01, decay_vectors=False),
        schedule=Schedule("linear", warmup=50),
        steps=750,
        batch_size=32,
        eval_batch_size=64,
        eval_every=150,
        clip=1.0,
    )


def sst2() -> Recipe:
    """Not run here: SST-2 of GLUE at --data.path, --data.vocabulary the vocab.txt of bert-base-cased, --start.weights
    its model.safetensors. The settings are those of transformers' GLUE page: three epochs in batches of 32, 2e-5,
    linear decay; published 92.32 % on dev, which is the test split here, as the official test file has no labels."""
    return Recipe(
        name="bert.sst2",
        model=bert.sizes["bert-base-classifier"],
        data=Sentences(source="sst2", vocabulary="vocab.txt", lowercase=False, length=128, validation=0),
        task=ClassifySentences(),
        start=Start(weights="model.safetensors", layout="transformers", part="bert"),
        optim=Optim("adamw", lr=2e-5),
        schedule=Schedule("linear"),
        steps=6315,
        batch_size=32,
        eval_batch_size=128,
        eval_every=2105,
        clip=1.0,
    )


def mlm() -> Recipe:
    """A small encoder begins to learn to fill in hidden words of the World English Bible: of 4,096 tokens it finds 13 %
    (perplexity 341, seed 0) after 1 min 43 s on one core of an AMD EPYC with avx512_bf16. That is little more than how
    frequent words are; `--steps 20000` and more are for an evening, and not run here."""
    return Recipe(
        name="bert.mlm",
        model=bert.MaskedLMConfig(
            vocab_size=4096,
            width=256,
            depth=3,
            num_heads=4,
            ffn=1024,
            positions=128,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        data=Masked(source="bible", vocab_size=4096, length=64),
        task=MaskedLM(),
        optim=Optim("adamw", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, decay_vectors=False),
        schedule=Schedule("linear", warmup=100),
        steps=600,
        batch_size=32,
        eval_batch_size=64,
        eval_every=300,
        clip=1.0,
    )
