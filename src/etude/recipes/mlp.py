"""Recipes of the multilayer perceptron."""

from etude.basics import mlp
from etude.data.images import Images
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.classify import Classify


def digits() -> Recipe:
    """The 8x8 digits that the package carries: 99.44 % (seed 0) in 1 s on 2 cores of an AMD EPYC."""
    return Recipe(
        name="mlp.digits",
        model=mlp.Config(in_features=64, hidden=(256, 256), num_classes=10, dropout=0.2),
        data=Images(source="digits", mean=(0.305,), std=(0.376,)),
        task=Classify(label_smoothing=0.05),
        optim=Optim("adamw", lr=3e-3, weight_decay=0.05),
        schedule=Schedule("cosine", warmup=20),
        steps=1000,
        batch_size=64,
        precision="fp32",
    )


def fashion() -> Recipe:
    """Fashion-MNIST, official split: 90.20 % (seed 0) in 27 s on 2 cores of an AMD EPYC."""
    return Recipe(
        name="mlp.fashion",
        model=mlp.Config(in_features=784, hidden=(512, 256), num_classes=10, dropout=0.2),
        data=Images(source="fashion-mnist", mean=(0.286,), std=(0.353,)),
        task=Classify(label_smoothing=0.05),
        optim=Optim("adamw", lr=2e-3, weight_decay=0.05),
        schedule=Schedule("cosine", warmup=200),
        steps=6000,
        batch_size=128,
        precision="fp32",
    )
