"""Bicubic resizing: by hand, against Pillow, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from etude.data.resize import contributions, cubic, imresize, to_bytes


def test_the_kernel_by_hand():
    # Keys 1981, a = -1/2: at 1/2, 1.5 / 8 - 2.5 / 4 + 1; at 3/2, -0.5 * 3.375 + 2.5 * 2.25 - 4 * 1.5 + 2
    x = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, -0.5])
    torch.testing.assert_close(cubic(x), torch.tensor([1.0, 0.5625, 0.0, -0.0625, 0.0, 0.0, 0.5625]))


def test_halving_a_row_by_hand():
    # output 1 of 4 lies at input 2.5; the stretched kernel sees 8 pixels at distances 0.25, 0.75, 1.25, 1.75 of it
    row = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    near, mid, far, last = (cubic(torch.tensor(d, dtype=torch.float64)).item() for d in (0.25, 0.75, 1.25, 1.75))
    total = 2 * (near + mid + far + last)
    # the first output lies at 0.5: pixel 2 is 1.5 away, and mirrored pixel -3 (of 2) is 3.5 away
    expected = [(mid + last) / total, near / total, (far + 0) / total, 0.0]
    found = imresize(row.expand(8, 8), 0.5)[0]
    torch.testing.assert_close(found[:3], torch.tensor(expected[:3], dtype=torch.float64))


@pytest.mark.parametrize("factor", [0.25, 0.5, 1 / 3, 2, 4])
def test_equals_pillow_inside(factor: float):
    picture = np.random.default_rng(0).random((96, 120)).astype(np.float32)
    mine = imresize(torch.from_numpy(picture), factor).numpy()
    height, width = mine.shape
    theirs = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    border = max(3, round(3 * factor))
    inside = (slice(border, -border), slice(border, -border))
    assert np.abs(mine - theirs)[inside].max() < 2e-6
    assert np.abs(mine - theirs).max() > 1e-3  # Pillow has another border


def test_the_border_is_mirrored():
    picture = torch.rand(3, 24, 32, dtype=torch.float64)
    wide = torch.cat((picture.flip(-1), picture, picture.flip(-1)), -1)
    wide = torch.cat((wide.flip(-2), wide, wide.flip(-2)), -2)
    for factor in (0.25, 4):
        whole = imresize(wide, factor)
        h, w = (round(side * factor) for side in picture.shape[-2:])
        torch.testing.assert_close(imresize(picture, factor), whole[:, h : 2 * h, w : 2 * w])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([0.25, 0.5, 1 / 3, 1, 2, 3, 4]))
def test_a_constant_stays_and_every_size_works(height: int, width: int, factor: float):
    answer = imresize(torch.full((1, height, width), 0.7, dtype=torch.float64), factor)
    assert answer.shape == (1, -(-height * round(12 * factor) // 12), -(-width * round(12 * factor) // 12))
    torch.testing.assert_close(answer, torch.full_like(answer, 0.7))


def test_weights_sum_to_one_and_places_exist():
    places, weights = contributions(5, 20, 4.0)
    assert places.min() >= 0 and places.max() < 5 and weights.shape == (20, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(20, dtype=torch.float64))


def test_bytes_are_rounded_and_clipped():
    assert to_bytes(torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.2])).tolist() == [0, 0, 0, 1, 255, 255]
