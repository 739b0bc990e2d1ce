"""PSNR and SSIM: by hand, against scikit-image, and exact over parts."""

import math

import numpy as np
import pytest
import torch

from etude.tasks.fidelity import inside, luma, psnr, ssim
from etude.tasks.metrics import Mean


def test_luma_by_hand():
    # MATLAB's rgb2ycbcr: white 235, black 16, red 81.481, green 144.553, blue 40.966
    colours = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).T.reshape(3, 1, 5)
    assert luma(colours)[0].tolist() == pytest.approx([235, 16, 81.481, 144.553, 40.966])
    assert luma(torch.full((3, 1, 1), 0.5001))[0, 0].item() == pytest.approx(16 + 219 * 128 / 255)  # rounded to 8 bits
    assert luma(torch.full((3, 1, 1), 1.5))[0, 0].item() == pytest.approx(235)  # clipped


def test_psnr_by_hand():
    truth = torch.full((3, 20, 20), 100 / 255)
    image = truth.clone()
    image[:, 10, 10] = 110 / 255
    error = (219 * 10 / 255) ** 2  # of one of 16 x 16 pixels, once a border of 2 is cut off
    assert psnr(image, truth, border=2) == pytest.approx(10 * math.log10(255**2 / (error / 256)))
    assert psnr(image, truth, border=0) == pytest.approx(10 * math.log10(255**2 / (error / 400)))
    assert psnr(truth, truth) == math.inf and ssim(truth, truth) == pytest.approx(1)


def test_the_border_is_cut_as_far_as_there_is_any():
    assert inside(torch.zeros(9, 20), 2).shape == (5, 16)
    assert inside(torch.zeros(3, 20), 4).shape == (1, 18)
    assert math.isnan(ssim(torch.rand(3, 12, 30), torch.rand(3, 12, 30), border=1))


@pytest.mark.parametrize("border", [0, 4])
def test_scikit_image_says_the_same(border: int):
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    truth = rng.random((3, 40, 52)).astype(np.float32)
    image = (truth + 0.1 * rng.standard_normal(truth.shape)).clip(0, 1).astype(np.float32)
    x, y = torch.from_numpy(image), torch.from_numpy(truth)
    a, b = (inside(luma(t), border).numpy() for t in (x, y))
    assert psnr(x, y, border=border) == pytest.approx(metrics.peak_signal_noise_ratio(b, a, data_range=255))
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(x, y, border=border) == pytest.approx(metrics.structural_similarity(a, b, **settings), abs=1e-9)


def test_autocast_changes_nothing():
    x, y = torch.rand(3, 32, 32), torch.rand(3, 32, 32)
    outside = psnr(x, y), ssim(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert (psnr(x, y), ssim(x, y)) == outside


def test_means_over_pictures_do_not_depend_on_who_measured_them():
    values = torch.tensor([28.123456789, 31.5, 24.75], dtype=torch.float64)
    whole, first, second = Mean(), Mean(), Mean()
    for metric, part in ((whole, values), (first, values[:1]), (second, values[1:])):
        for value in part:
            metric.add(value[None])
    first.merge(second)
    assert first.value() == whole.value()
