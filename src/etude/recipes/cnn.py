"""Recipes of the convolutional network."""

from etude.data.augment import Augment
from etude.data.images import Images
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.classify import Classify
from etude.vision import cnn


def fashion() -> Recipe:
    """Fashion-MNIST, official split: 92.38 % (seed 0) in 6 min 24 s on 2 cores of an AMD EPYC with avx512_bf16 that
    had other work beside it; a step alone takes 18 ms, which makes 95 s."""
    return Recipe(
        name="cnn.fashion",
        model=cnn.Config(dropout=0.25),
        data=Images(source="fashion-mnist", mean=(0.286,), std=(0.353,), augment=Augment(flip=0.5)),
        task=Classify(label_smoothing=0.05),
        optim=Optim("adamw", lr=2e-3, weight_decay=0.05),
        schedule=Schedule("cosine", warmup=200),
        steps=5000,
        batch_size=128,
        channels_last=True,
    )


def fashion_features() -> Recipe:
    """A small classifier of Fashion-MNIST (official split) whose 96 last hidden units are the features in which the
    pictures of generative models are judged: `tasks/clouds.py`. Its weights are in the package."""
    return Recipe(
        name="cnn.fashion_features",
        model=cnn.Config(channels=(24, 48, 64), kernel=3, hidden=(96,), dropout=0.15),
        data=Images(source="fashion-mnist", mean=(0.286,), std=(0.353,), augment=Augment(flip=0.5)),
        task=Classify(label_smoothing=0.05),
        optim=Optim("adamw", lr=3e-3, weight_decay=0.05),
        schedule=Schedule("cosine", warmup=200),
        steps=5000,
        batch_size=128,
        channels_last=True,
    )
