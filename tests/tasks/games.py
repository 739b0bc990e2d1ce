"""Small games on the digits, for test_adversarial.py and its worker of two processes."""

from typing import Any

from etude.data.pictures import Pictures
from etude.data.ring import Ring
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.generative import gan, progan
from etude.recipes.gan import Players
from etude.tasks.adversarial import GAN, WGAN, WGANGP
from etude.tasks.progressive import Progressive

ADAM = Optim("adam", lr=1e-3, betas=(0.5, 0.9))


def game(task: Any, *, norm: gan.Norm = "layer", **changes: Any) -> Recipe:
    """DCGAN's players at 8x8."""
    recipe = Recipe(
        name="toy.digits",
        model=gan.Config(latent=4, channels=1, side=8, width=6, critic_norm=norm),
        data=Pictures(source="digits", side=8, noise=8),
        task=task,
        optim=Players(ADAM, ADAM),
        schedule=Schedule("constant"),
        steps=4,
        batch_size=24,
        ema=0.9,
        precision="fp32",
        log_every=1,
        eval_every=4,
        eval_batch_size=90,
    )
    return recipe.with_(**changes)


def growing(**changes: Any) -> Recipe:
    """4x4 for 64 images, a fade of 96, 8x8; minibatches of 16 and 8 within batches of 16."""
    recipe = game(
        Progressive(batch_sizes=(16, 8), features="thumbnails"),
        model=progan.Config(latent=4, channels=1, side=8, width_base=16, width_max=8, stable=64, fading=96),
        batch_size=16,
        steps=9,
        eval_every=9,
    )
    return recipe.with_(**changes)


def ring() -> Recipe:
    """Points."""
    return game(WGANGP(features="points"), data=Ring(train=200, test=100), model=gan.Points(width=8, depth=1))


RECIPES = {
    "gan": game(GAN(features="thumbnails"), norm="batch"),
    "wgan": game(WGAN(critic_steps=3, features="thumbnails"), norm="batch", **{"optim.critic.name": "rmsprop"}),
    "wgan_gp": game(WGANGP(critic_steps=3, features="thumbnails")),
    "progan": growing(),
    "ring": ring().with_(batch_size=20),
}
