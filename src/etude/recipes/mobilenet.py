"""Recipes of MobileNet."""

import dataclasses

from etude.data.augment import Augment
from etude.data.images import Images
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.classify import Classify
from etude.vision import mobilenet


def fashion() -> Recipe:
    """Fashion-MNIST with MobileNet V2, its stem at full resolution. Not run here in full: with --steps 400
    --eval-every 200, 85.11 % in 2 min 22 s on 2 cores of an AMD EPYC (seed 0)."""
    return Recipe(
        name="mobilenet.fashion",
        model=dataclasses.replace(mobilenet.sizes["mobilenet_v2"], in_channels=1, num_classes=10, stem_stride=1),
        data=Images(source="fashion-mnist", mean=(0.286,), std=(0.353,), augment=Augment(flip=0.5, crop=2)),
        task=Classify(label_smoothing=0.1),
        optim=Optim("adamw", lr=3e-3, weight_decay=0.05, decay_vectors=False),
        schedule=Schedule("cosine", warmup=60),
        steps=1200,
        batch_size=128,
        ema=0.99,
        channels_last=True,
    )


def imagenet() -> Recipe:
    """ImageNet with MobileNet V2: rate 0.045 over 256 samples, weight decay 4e-5, cosine over 300 epochs. Not run here;
    the paper has 72.0 %."""
    return Recipe(
        name="mobilenet.imagenet",
        model=mobilenet.sizes["mobilenet_v2"],
        data=Images(
            source="imagenet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), augment=Augment(flip=0.5)
        ),
        task=Classify(),
        optim=Optim("sgd", lr=0.045, momentum=0.9, weight_decay=4e-5),
        schedule=Schedule("cosine", warmup=25_000),
        steps=1_501_200,
        batch_size=256,
        ema=0.9999,
        channels_last=True,
        eval_every=5_004,
    )
