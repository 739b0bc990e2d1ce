"""Recipes of ResNet: the path from the digits in the package over MNIST and CIFAR to ImageNet."""

from etude.data.augment import Augment
from etude.data.images import Images
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.classify import Classify
from etude.vision.resnet import ResNet


def digits() -> Recipe:
    """The 8x8 digits that the package carries: the quick start. Figures: see the table in README.md."""
    return Recipe(
        name="resnet.digits",
        model=ResNet(depth=18, in_channels=1, num_classes=10, stem="cifar", width=32),
        data=Images(
            source="digits", mean=(0.305,), std=(0.376,), augment=Augment(degrees=10, translate=0.1, scale=(0.9, 1.1))
        ),
        task=Classify(label_smoothing=0.1),
        optim=Optim("sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_vectors=False),
        schedule=Schedule("cosine", warmup=20),
        steps=400,
        batch_size=128,
        ema=0.98,
        channels_last=True,
    )


def fashion() -> Recipe:
    """Fashion-MNIST, official split. Figures: see the table in README.md."""
    return Recipe(
        name="resnet.fashion",
        model=ResNet(depth=18, in_channels=1, num_classes=10, stem="cifar", width=32),
        data=Images(source="fashion-mnist", mean=(0.286,), std=(0.353,), augment=Augment(flip=0.5, crop=2)),
        task=Classify(label_smoothing=0.1),
        optim=Optim("sgd", lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_vectors=False),
        schedule=Schedule("cosine", warmup=150),
        steps=3000,
        batch_size=256,
        ema=0.995,
        channels_last=True,
    )
