"""Recipes of ProGAN: the same growth from small pictures to 1024x1024."""

from dataclasses import replace

from etude.data.pictures import Pictures
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.generative import progan
from etude.recipes.gan import Players, clothes
from etude.tasks.progressive import Progressive

ADAM = Optim("adam", lr=1e-3, betas=(0.0, 0.99), eps=1e-8)
QUICK = Players(replace(ADAM, lr=6e-3), replace(ADAM, lr=3e-3))
"""For runs of an hour or less. A step moves a weight, N(0, 1) here, by about the rate: what DCGAN's, N(0, 0.02), are
moved by at 50 times smaller rates. The paper's 1e-3 is for twelve million pictures; at twice these rates the critic
may lag behind for good (docs/progan.md)."""


def fashion() -> Recipe:
    """Fashion-MNIST to 32x32 in a small ProGAN: 16,000 images a stage and fade, the rest at 32x32. Fréchet
    distance 0.765, precision 0.832, recall 0.610 on the test split (features of `cnn.fashion_features`, seed 0) in
    1 h 10 min on an AMD EPYC: 2,885 steps on one core with another training beside it, the rest on two."""
    return Recipe(
        name="progan.fashion",
        model=progan.Config(
            latent=128, channels=1, side=32, width_base=256, width_max=128, stable=16_000, fading=16_000
        ),
        data=clothes(),
        task=Progressive(batch_sizes=(64, 64, 32, 32)),
        optim=QUICK,
        schedule=Schedule("linear", final=0.0),
        steps=20_000,
        batch_size=64,
        ema=0.999,
        channels_last=True,
        log_every=25,
    )


def photos() -> Recipe:
    """Patches of photographs to 64x64, in colours. Fréchet distance of 8x8 thumbnails 1.364 (two sets of real patches
    have 0.45), recall 0.318, in 23 min 45 s on one core of an AMD EPYC that had other work beside it: colours and soft
    shapes, no fine texture."""
    return Recipe(
        name="progan.photos",
        model=progan.Config(
            latent=128, channels=3, side=64, width_base=256, width_max=128, stable=16_000, fading=16_000
        ),
        data=Pictures(source="photos", side=64, channels=3, flip=True, validation=1000),
        task=Progressive(batch_sizes=(64, 64, 32, 32, 16), features="thumbnails"),
        optim=QUICK,
        schedule=Schedule("linear", final=0.0),
        steps=3500,
        batch_size=64,
        ema=0.996,  # the paper's 0.999 for each 16 images
        channels_last=True,
        log_every=25,
    )


def faces() -> Recipe:
    """The paper's run, for any folder of pictures (CelebA-HQ: 7.30 of Inception's FID, published) to 1024x1024:
    --data.path DIR. 600,000 images a stage and fade, 12 million in all. Not run here."""
    return Recipe(
        name="progan.faces",
        model=progan.sizes["progan"],
        data=Pictures(source="folder", side=1024, channels=3, flip=True, noise=1024),
        task=Progressive(features="thumbnails"),
        optim=Players(ADAM, ADAM),
        schedule=Schedule("constant"),
        steps=750_000,
        batch_size=16,
        ema=0.999,
        channels_last=True,
        log_every=100,
        eval_batch_size=8,
    )
