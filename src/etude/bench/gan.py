"""Adversarial training, this library's way against the way it is usually written, on the same weights and pictures.

Usually: both networks in fp32 as they come, of torch's own layers, torch.optim.Adam at its defaults but for rate and
betas, real and made pictures in passes of their own, and a generator's turn that also computes the critic's gradients,
which nobody uses. DCGAN as in pytorch/examples, whose generator makes one batch a step for both turns; WGAN-GP with the
penalty as it is commonly copied. Ours: a step of the Trainer with channels_last, bf16 where the hardware has it (the
penalty in fp32, twice differentiated by the rule in `nn/twice.py`), fused Adam, the other player's weights frozen, one
pass where no sample's score depends on others.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import catalog
from etude.bench import Contest, clock
from etude.bench.step import Same, engine_step, operations_of
from etude.data.base import Batch
from etude.data.latents import Latents, LatentSet
from etude.engine.optim import Optim, Schedule
from etude.engine.precision import pick_device
from etude.engine.recipe import Recipe
from etude.nn import twice
from etude.recipes.gan import Players
from etude.tasks.adversarial import GAN, WGANGP, Adversarial

SIDE, BATCH = 64, 64


@dataclass(frozen=True)
class Noise(Latents):
    """Pictures of noise: speed does not depend on what they show."""

    def open(self) -> "NoiseSet":
        return NoiseSet(self)


class NoiseSet(LatentSet):
    def __init__(self, data: Noise):
        self.data, self.noise, self.shape = data, data.noise, (3, SIDE, SIDE)
        self.sizes = {"train": 10_000, "test": 10}
        self.facts = {"source": "noise", "sizes": self.sizes}

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        count, generator = len(indices), torch.Generator().manual_seed(seed)
        images = torch.rand(count, *self.shape, generator=generator) * 2 - 1
        noise = torch.randn(count, self.noise, generator=generator)
        mix = torch.rand(count, generator=generator)
        return {"image": images, "noise": noise, "mix": mix, "index": torch.arange(count)}


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: DCGAN's step 1.6 times, a critic's and a generator's step of WGAN-GP 1.7 times."""
    adam, gp_adam = Optim("adam", lr=2e-4, betas=(0.5, 0.999)), Optim("adam", lr=1e-4, betas=(0.0, 0.9))
    return [
        _contest("dcgan", GAN(features="thumbnails"), adam, 1.6, "DCGAN 64x64 b64 training"),
        _contest(
            "wgan-gp", WGANGP(critic_steps=1, features="thumbnails"), gp_adam, 1.7, "WGAN-GP 64x64 b64, 1 + 1 steps"
        ),
    ]


def _contest(name: str, task: Adversarial, adam: Optim, target: float, what: str) -> Contest:
    device = pick_device()
    model: Any = catalog.model(name).to(device)
    noise = Noise(noise=2 * model.latent)
    batch = {key: value.to(device) for key, value in noise.open().fetch("train", range(BATCH)).items()}
    theirs = as_usually_written(model).train()
    players = {
        player: torch.optim.Adam(getattr(theirs, player).parameters(), lr=adam.lr, betas=adam.betas)
        for player in ("critic", "generator")
    }
    plain = _dcgan if name == "dcgan" else _wgan_gp
    recipe = Recipe(
        name=f"bench.{name}",
        model=Same(copy.deepcopy(model)),
        data=noise,
        task=task,
        optim=Players(adam, adam),
        schedule=Schedule("constant"),
        batch_size=BATCH,
        channels_last=True,
    )
    step = engine_step(recipe, batch)
    return Contest(
        name="gan",
        what=what,
        amount=BATCH,
        unit="images/s",
        ours=clock(step),
        peer=clock(lambda: plain(theirs, batch, players)),
        peer_name="PyTorch eager fp32",
        peer_version=torch.__version__,
        target=target,
        operations=operations_of(step),  # the peer computes more than it needs
    )


def as_usually_written(model: Any) -> Any:
    """A copy whose critic has torch's own convolutions, in place of those that differentiate twice by our rule."""
    theirs = copy.deepcopy(model)
    for place, ours in enumerate(theirs.critic):
        if isinstance(ours, twice.Conv2d):
            how = {"stride": ours.stride, "padding": ours.padding, "bias": ours.bias is not None}
            plain = nn.Conv2d(ours.in_channels, ours.out_channels, ours.weight.shape[2], **how).to(ours.weight.device)
            plain.load_state_dict(ours.state_dict())
            theirs.critic[place] = plain
    return theirs


def _dcgan(model: Any, batch: Batch, players: Mapping[str, torch.optim.Optimizer]) -> float:
    """A step as pytorch/examples takes it."""
    ones, zeros = torch.ones(BATCH, device=batch["image"].device), torch.zeros(BATCH, device=batch["image"].device)
    players["critic"].zero_grad()
    loss = F.binary_cross_entropy_with_logits(model.critic(batch["image"]), ones)
    loss.backward()
    made = model.generator(batch["noise"][:, : model.latent])
    other = F.binary_cross_entropy_with_logits(model.critic(made.detach()), zeros)
    other.backward()
    players["critic"].step()
    players["generator"].zero_grad()
    F.binary_cross_entropy_with_logits(model.critic(made), ones).backward()
    players["generator"].step()
    return loss.item() + other.item()


def _penalty(critic: Any, real: Tensor, made: Tensor) -> Tensor:
    """As it is usually written: (|grad f| - 1)^2 between real and made samples."""
    epsilon = torch.rand(len(real), 1, 1, 1, device=real.device)
    mixed = (epsilon * real + (1 - epsilon) * made).requires_grad_(True)
    scores = critic(mixed)
    gradients = torch.autograd.grad(scores, mixed, torch.ones_like(scores), create_graph=True, retain_graph=True)[0]
    return ((gradients.view(len(real), -1).norm(2, dim=1) - 1) ** 2).mean()


def _wgan_gp(model: Any, batch: Batch, players: Mapping[str, torch.optim.Optimizer]) -> float:
    """One step of the critic, one of the generator."""
    players["critic"].zero_grad()
    made = model.generator(batch["noise"][:, : model.latent]).detach()
    loss = model.critic(made).mean() - model.critic(batch["image"]).mean()
    loss = loss + 10 * _penalty(model.critic, batch["image"], made)
    loss.backward()
    players["critic"].step()
    players["generator"].zero_grad()
    made = model.generator(batch["noise"][:, model.latent : 2 * model.latent])
    (-model.critic(made).mean()).backward()
    players["generator"].step()
    return loss.item()
