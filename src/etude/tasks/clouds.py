"""How close what a model makes is to what is real, measured between two clouds of features.

- Fréchet distance (Heusel et al. 2017, arXiv 1706.08500) between Gaussians fitted to each:
      |m_r - m_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))
- Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): the share of made samples within the distance of
  some real sample to its k-th nearest real one, k = 3; and the same with the clouds exchanged.
- Density (Naeem et al. 2020, arXiv 2002.09797), k = 5: how many such balls of real samples a made one lies in, over k;
  1 in expectation where the clouds have one distribution.

Features of pictures come from a classifier of 94,730 weights that this project trained on Fashion-MNIST (recipe
`cnn.fashion_features`, 92.11 % right on the official test split), whose weights are in the package: its 96 last hidden
units. So this is not Inception's FID, and is not to be compared with published ones. Of pictures of other things,
"thumbnails" (averages over 8x8 fields, all channels) are an honest though blind choice; of points, their own numbers.

No measure stands alone: pictures that are all alike can lie within the real ones (precision 1), at a recall of 0.

Shapes: B batch, N and M samples, D features, C channels, S side.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from etude.tasks.metrics import Metric

Features = Literal["fashion", "thumbnails", "points"]
CHUNK = 1000
"""Rows of a matrix of distances computed at once."""


@lru_cache(maxsize=2)
def _classifier(device: torch.device) -> dict[str, Tensor]:
    weights = load_file(Path(__file__).with_name("fashion_features.safetensors"))
    return {name: value.to(device) for name, value in weights.items()}


def fashion_features(images: Tensor) -> Tensor:
    """(B, C, S, S) in -1..1 -> (B, 96): the last hidden units of the classifier, in fp32. Colours become grey; 32x32,
    its native 28x28 with a border of 2, is cut, any other size scaled to 28x28."""
    x = images.float().mean(1, keepdim=True)
    side = x.shape[-1]
    if side == 32:
        x = x[..., 2:30, 2:30]
    elif side != 28:
        x = F.interpolate(x, size=(28, 28), mode="bilinear", antialias=side > 28, align_corners=False)
    w = _classifier(images.device)
    with torch.autocast(images.device.type, enabled=False):
        x = ((x + 1) / 2 - 0.286) / 0.353
        for block in ("blocks.0", "blocks.1", "blocks.2"):
            x = F.max_pool2d(F.relu(F.conv2d(x, w[f"{block}.conv.weight"], w[f"{block}.conv.bias"], padding=1)), 2)
        return F.relu(F.linear(x.flatten(1), w["hidden.0.weight"], w["hidden.0.bias"]))


def thumbnails(images: Tensor) -> Tensor:
    """(B, C, S, S) -> (B, 64 C): averages over 8x8 fields."""
    return F.adaptive_avg_pool2d(images.float(), min(8, images.shape[-1])).flatten(1)


def points(samples: Tensor) -> Tensor:
    """(B, D) -> (B, D)"""
    return samples.float()


EMBED: dict[Features, Callable[[Tensor], Tensor]] = {
    "fashion": fashion_features,
    "thumbnails": thumbnails,
    "points": points,
}


def moments(cloud: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) -> mean (D,) and covariance (D, D), in float64; unbiased, as numpy's."""
    cloud = cloud.double()
    return cloud.mean(0), torch.cov(cloud.T).reshape(cloud.shape[1], -1)


def frechet(real: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor]) -> float:
    """The Fréchet distance between two Gaussians, each a mean (D,) and a covariance (D, D).

    The eigenvalues of S_r S_f are those of the symmetric S_r^(1/2) S_f S_r^(1/2), all real and not negative, so no root
    of an unsymmetric matrix is needed, also where a covariance is singular.
    """
    (m_r, s_r), (m_f, s_f) = ((m.double(), s.double()) for m, s in (real, made))
    values, vectors = torch.linalg.eigh(s_r)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ s_f @ root).clamp_min(0).sqrt().sum()
    return max(0.0, float((m_r - m_f).square().sum() + s_r.trace() + s_f.trace() - 2 * mixed))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (N, M) of rows, in float64."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)).clamp_min(0)


def _radii(cloud: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """Squared distance of each row to its k-th nearest other, for each k."""
    most = max(ks) + 1
    found = []
    for at, rows in enumerate(cloud.split(CHUNK)):
        squared = _distances(rows, cloud)
        squared[torch.arange(len(rows)), torch.arange(len(rows)) + at * CHUNK] = -1.0  # itself is nearest
        found.append(squared.topk(most, largest=False).values)
    near = torch.cat(found)
    return [near[:, k] for k in ks]


def manifold(real: Tensor, made: Tensor) -> dict[str, float]:
    """Precision, recall and density of made samples (M, D) against real ones (N, D), six or more of each."""
    centre = real.double().mean(0)
    real, made = real.double() - centre, made.double() - centre  # what cancels in distances is small then
    radius3, radius5 = _radii(real, (3, 5))
    (made_radius3,) = _radii(made, (3,))
    precise, recalled, inside = 0, torch.zeros(len(real), dtype=torch.bool, device=real.device), 0
    for at, rows in enumerate(made.split(CHUNK)):
        squared = _distances(rows, real)
        precise += int((squared <= radius3).any(1).sum())
        inside += int((squared <= radius5).sum())
        recalled |= (squared <= made_radius3[at * CHUNK : at * CHUNK + len(rows), None]).any(0)
    count = len(made)
    return {"precision": precise / count, "recall": float(recalled.double().mean()), "density": inside / (5 * count)}


@dataclass
class Clouds:
    """The features of real and made samples, kept by the index of each batch's first sample. So merging the same part
    twice changes nothing, and the measures do not depend on how the samples were spread over processes."""

    parts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _measured: dict[int, dict[str, float]] = field(default_factory=dict)

    def add(self, index: Tensor, real: Tensor, made: Tensor) -> None:
        """(B,) indices and (B, D) features of each."""
        self.parts[int(index[0])] = real.cpu(), made.cpu()

    def measures(self) -> dict[str, float]:
        """All measures; computed once."""
        if len(self.parts) not in self._measured:
            real, made = (torch.cat([self.parts[at][i] for at in sorted(self.parts)]) for i in (0, 1))
            distance = frechet(moments(real), moments(made))
            self._measured = {len(self.parts): {"frechet": distance} | manifold(real, made)}
        return self._measured[len(self.parts)]


@dataclass
class Fidelity(Metric):
    """One measure of the clouds, which several share."""

    clouds: Clouds
    name: Literal["frechet", "precision", "recall", "density"]

    def merge(self, other: "Fidelity") -> None:
        self.clouds.parts |= other.clouds.parts

    def value(self) -> float:
        return self.clouds.measures()[self.name]
