"""Deformed windows: what is off changes nothing, masks follow pictures, numbers follow from (seed, epoch, index)."""

import math

import numpy as np
import pytest
import torch

from etude.data.elastic import PLAIN, Deform
from etude.errors import UsageError

ALL = Deform(degrees=20, scale=(0.8, 1.2), mirror=True, elastic=3, brightness=0.1, contrast=0.3, gamma=0.2)


def cut(side: int, count: int = 3, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures, and a mask that is where they are bright."""
    along = torch.arange(side) / side
    waves = torch.stack([torch.sin(7 * along + i)[:, None] * torch.cos(5 * along - i) for i in range(count)])
    image = (127 + 100 * waves).round().to(torch.uint8)
    return image[:, None].expand(-1, channels, -1, -1).contiguous(), (image > 127).to(torch.uint8)


def test_off_is_the_window_itself():
    image, mask = cut(20, channels=3)
    found, classes, weight = Deform()(image, mask, mask.float(), side=20, seed=0, epochs=0, indices=np.arange(3))
    torch.testing.assert_close(found, image.float(), rtol=0, atol=1e-3)
    assert torch.equal(classes, mask)
    assert weight is not None
    torch.testing.assert_close(weight, mask.float(), rtol=0, atol=1e-4)
    assert Deform().margin(20) == 0


def test_inner_window_is_the_middle():
    image, mask = cut(30)
    found, classes, _ = Deform()(image, mask, None, side=20, seed=0, epochs=0, indices=np.arange(3))
    torch.testing.assert_close(found, image[..., 5:25, 5:25].float(), rtol=0, atol=1e-3)
    assert torch.equal(classes, mask[:, 5:25, 5:25])


def test_a_quarter_turn_and_mirrors():
    """Numbers set by hand: an angle of 90 degrees, left and right exchanged."""
    image, _ = cut(21)
    augment = Deform(degrees=90, mirror=True)
    numbers = torch.zeros(3, PLAIN + 18)
    numbers[:, 0], numbers[:, 2], numbers[:, 3] = 1.0, 0.9, 0.9  # +90, not mirrored
    grid = augment.positions(numbers, 21) * (2 / 21)
    turned = torch.nn.functional.grid_sample(image.float(), grid, "nearest", align_corners=False)
    assert torch.equal(turned, torch.rot90(image.float(), 1, (2, 3)))
    numbers[:, 0], numbers[:, 2] = 0.5, 0.1
    grid = augment.positions(numbers, 21) * (2 / 21)
    assert torch.equal(
        torch.nn.functional.grid_sample(image.float(), grid, "nearest", align_corners=False), image.float().flip(3)
    )


def test_scale_enlarges():
    numbers = torch.full((1, PLAIN + 18), 0.5)
    at = Deform(scale=(2.0, 2.0)).positions(numbers, 9)
    torch.testing.assert_close(at[0, 0, 0], torch.tensor([-2.0, -2.0]))


def test_displacements_are_the_papers():
    """At the corners and the middle of the window the grid's own Gaussian numbers stand, times sigma."""
    augment = Deform(elastic=10)
    numbers = augment.numbers(seed=3, epochs=1, indices=np.arange(2000))
    normal = numbers[:, PLAIN:]
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02
    assert abs(float(np.corrcoef(normal.numpy().T)[0, 1:].max())) < 0.1
    moved = augment.positions(numbers[:2], 33) - Deform().positions(numbers[:2], 33)
    expected = 10 * normal[:2].view(2, 2, 3, 3)
    torch.testing.assert_close(moved[:, ::16, ::16].permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-3)


def test_masks_follow_pictures():
    """After the same map, bright is still where the mask is, but for pixels at its edge."""
    side = 64
    image, mask = cut(side + 2 * ALL.margin(side))
    augment = Deform(degrees=20, scale=(0.8, 1.2), mirror=True, elastic=3)
    found, classes, _ = augment(image, mask, None, side=side, seed=1, epochs=2, indices=np.arange(3))
    assert ((found[:, 0] > 127) == (classes > 0)).float().mean() > 0.97


def test_a_sample_does_not_depend_on_its_batch():
    side = 24
    image, mask = cut(side + 2 * ALL.margin(side), count=4)
    settings = {"side": side, "seed": 5}
    whole, masks, _ = ALL(image, mask, None, epochs=np.array([0, 1, 2, 3]), indices=np.array([7, 8, 9, 3]), **settings)
    alone, one, _ = ALL(image[2:3], mask[2:3], None, epochs=np.array([2]), indices=np.array([9]), **settings)
    torch.testing.assert_close(whole[2:3], alone, rtol=0, atol=1e-4)
    assert torch.equal(masks[2:3], one)
    other, _, _ = ALL(image[2:3], mask[2:3], None, epochs=np.array([3]), indices=np.array([9]), **settings)
    assert not torch.allclose(alone, other, atol=5)


def test_shades_stay_levels():
    image, mask = cut(16)
    found, _, _ = Deform(brightness=1, contrast=1, gamma=1)(
        image, mask, None, side=16, seed=0, epochs=0, indices=np.arange(3)
    )
    assert found.min() >= 0 and found.max() <= 255
    numbers = torch.full((3, PLAIN + 18), 0.5)
    torch.testing.assert_close(
        Deform(brightness=0.5, contrast=0.5, gamma=1).shade(numbers, image.float()), image.float()
    )
    numbers[:, 6] = 1.0
    gamma = Deform(gamma=0.7).shade(numbers, image.float())
    torch.testing.assert_close(gamma, 255 * (image / 255) ** math.exp(0.7))


@pytest.mark.parametrize(
    "settings", [{"degrees": 181}, {"scale": (1.2, 0.8)}, {"elastic": -1}, {"grid": 1}, {"contrast": 2}, {"gamma": -1}]
)
def test_out_of_range(settings):
    with pytest.raises(UsageError, match=f"data.augment.{next(iter(settings))} is"):
        Deform(**settings)
