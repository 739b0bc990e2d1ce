"""Recipes of BERT."""

from dataclasses import replace

from etude.data.sentences import Sentences
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe, Start
from etude.language import bert
from etude.tasks.sentences import ClassifySentences

MINILM = replace(
    bert.sizes["bert-minilm-classifier"], attention_dropout=0.0
)  # which on a CPU costs four times the rest


def reviews() -> Recipe:
    """not run"""
    return Recipe(
        name="bert.reviews",
        model=MINILM,
        data=Sentences(source="reviews", vocabulary="minilm", length=80),
        task=ClassifySentences(),
        start=Start(weights="minilm", layout="transformers", part="bert"),
        optim=Optim("adamw", lr=1e-4, weight_decay=0.01, decay_vectors=False),
        schedule=Schedule("linear", warmup=50),
        steps=1000,
        batch_size=32,
        eval_batch_size=64,
        eval_every=250,
        clip=1.0,
    )
