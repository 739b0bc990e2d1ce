"""Recipes of the convolutional network."""

from etude.data.augment import Augment
from etude.data.images import Images
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.classify import Classify
from etude.vision import cnn


def fashion() -> Recipe:
    """Fashion-MNIST, official split."""
    return Recipe(
        name="cnn.fashion",
        model=cnn.Config(dropout=0.25),
        data=Images(source="fashion-mnist", mean=(0.286,), std=(0.353,), augment=Augment(flip=0.5)),
        task=Classify(label_smoothing=0.05),
        optim=Optim("adamw", lr=2e-3, weight_decay=0.05),
        schedule=Schedule("cosine", warmup=200),
        steps=4000,
        batch_size=128,
        channels_last=True,
    )
