"""How like a picture is to the true one: PSNR and SSIM on the luma, as super-resolution's papers measure them.

Both pictures are rounded to 8 bits and turned to luma, Y = 16 + 65.481 R + 128.553 G + 24.966 B with R, G, B of 0 to 1
(ITU-R BT.601, as MATLAB's rgb2ycbcr, without rounding Y); a border as wide as the scale is cut off. PSNR = 10 log10
(255^2 / mean squared difference). SSIM (Wang et al., 2004) has a Gaussian window of 11x11, sigma 1.5, K1 0.01, K2 0.03,
L 255, and is the mean over the places at which the window lies inside. Means over pictures are of each one's value.
"""

import math

import torch
from torch import Tensor

PEAK = 255.0
LUMA = (65.481, 128.553, 24.966)
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
RADIUS, SIGMA = 5, 1.5


def luma(image: Tensor) -> Tensor:
    """(..., 3, H, W) of 0 to 1, rounded to 8 bits and clipped -> (..., H, W) of 16 to 235, float64."""
    red, green, blue = (image.double().mul(255).round().clamp(0, 255) / 255).unbind(-3)
    return 16 + LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def inside(image: Tensor, border: int) -> Tensor:
    """Without `border` pixels at each side; less where a picture has no more."""
    border = min(border, (min(image.shape[-2:]) - 1) // 2)
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def psnr(image: Tensor, truth: Tensor, *, border: int = 0) -> float:
    """In decibels, of (3, H, W) pictures of 0 to 1; infinite for equal ones."""
    difference = inside(luma(image), border) - inside(luma(truth), border)
    error = difference.square().mean().item()
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


def ssim(image: Tensor, truth: Tensor, *, border: int = 0) -> float:
    """Up to 1, of (3, H, W) pictures of 0 to 1; NaN for those that the window of 11x11 does not fit in."""
    x, y = inside(luma(image), border), inside(luma(truth), border)
    if min(x.shape) <= 2 * RADIUS:
        return math.nan
    mean_x, mean_y, xx, yy, xy = blurred(torch.stack((x, y, x * x, y * y, x * y)))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    top = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
    return (top / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))).mean().item()


def blurred(images: Tensor) -> Tensor:
    """Gaussian means at every place where the window lies inside. (N, H, W) -> (N, H - 10, W - 10)"""
    places = torch.arange(-RADIUS, RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-0.5 * (places / SIGMA) ** 2)
    window = window / window.sum()
    for dim in (-2, -1):
        length = images.shape[dim] - 2 * RADIUS
        images = torch.stack([w * images.narrow(dim, i, length) for i, w in enumerate(window)]).sum(0)
    return images
