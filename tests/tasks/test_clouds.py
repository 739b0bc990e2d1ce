"""Measures between clouds of features, against the formulas computed slowly."""

import time

import numpy as np
import pytest
import scipy.linalg
import torch

from etude.data.images import Images
from etude.errors import MissingError
from etude.tasks.clouds import (
    Clouds,
    Fidelity,
    fashion_features,
    frechet,
    manifold,
    moments,
    points,
    thumbnails,
)


def clouds(n: int, m: int, features: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    mix = torch.randn(features, features)
    return torch.randn(n, features) @ mix, torch.randn(m, features) @ (mix + 0.3 * torch.randn_like(mix)) + 0.2


@pytest.mark.parametrize(("n", "features"), [(500, 16), (300, 96), (20, 3)])
def test_frechet_is_that_of_scipys_square_root(n, features):
    real, made = clouds(n, n + 7, features)
    x, y = real.double().numpy(), made.double().numpy()
    s_r, s_f = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(np.asarray(scipy.linalg.sqrtm(s_r @ s_f)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s_r + s_f - 2 * root)
    assert frechet(moments(real), moments(made)) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_singular_covariances_and_of_the_same_cloud():
    real, made = clouds(10, 12, 30)
    assert frechet(moments(real), moments(real)) == pytest.approx(0, abs=1e-4)
    assert frechet(moments(real), moments(made)) == pytest.approx(frechet(moments(made), moments(real)), rel=1e-6)
    shifted = frechet(moments(real), moments(real + 2))
    assert shifted == pytest.approx(30 * 4, rel=1e-4)
    one = torch.ones(5, 1)  # one feature, no variance
    assert frechet(moments(one), moments(3 * one)) == pytest.approx(4)


def slowly(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    def radius(cloud: np.ndarray, i: int, k: int) -> float:
        return sorted(float(np.linalg.norm(cloud[i] - cloud[j])) for j in range(len(cloud)) if j != i)[k - 1]

    r3, r5 = ([radius(real, i, k) for i in range(len(real))] for k in (3, 5))
    f3 = [radius(made, i, 3) for i in range(len(made))]
    near = np.linalg.norm(real[:, None] - made[None], axis=2)
    found = {
        "precision": np.mean([any(near[i, j] <= r3[i] for i in range(len(real))) for j in range(len(made))]),
        "recall": np.mean([any(near[i, j] <= f3[j] for j in range(len(made))) for i in range(len(real))]),
        "density": np.mean([sum(near[i, j] <= r5[i] for i in range(len(real))) / 5 for j in range(len(made))]),
    }
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("features", [2, 7])
def test_manifold_is_that_of_all_pairs(features, monkeypatch):
    monkeypatch.setattr("etude.tasks.clouds.CHUNK", 17)
    real, made = clouds(60, 45, features)
    expected = slowly(real.double().numpy(), made.double().numpy())
    assert manifold(real, made) == pytest.approx(expected)
    assert expected["precision"] > 0 and 0 < expected["recall"] < 1


def test_manifold_of_the_same_and_of_far_clouds():
    real, other = torch.randn(400, 4), torch.randn(400, 4)
    same = manifold(real, other)
    assert same["precision"] > 0.8 and same["recall"] > 0.8 and same["density"] == pytest.approx(1, abs=0.2)
    assert manifold(real, other + 100) == {"precision": 0, "recall": 0, "density": 0}
    collapsed = manifold(real, real[:1].repeat(400, 1))
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.02


def test_measures_do_not_depend_on_how_samples_were_spread():
    real, made = clouds(50, 50, 3)
    whole, first, second = Clouds(), Clouds(), Clouds()
    whole.add(torch.arange(50), real, made)
    first.add(torch.arange(20), real[:20], made[:20])
    second.add(torch.arange(20, 50), real[20:], made[20:])
    both = Fidelity(second, "frechet"), Fidelity(second, "recall")
    for measure in both:
        measure.merge(Fidelity(first, measure.name))  # the clouds are shared, and so are merged twice
    for measure in both:
        assert measure.value() == Fidelity(whole, measure.name).value()


def test_features_are_the_classifiers_last_hidden_units():
    """The functions here and the network that the recipe trains, on the weights of the package."""
    from etude.recipes import find_recipe
    from etude.tasks.clouds import _classifier

    model = find_recipe("cnn.fashion_features").model.build().eval()
    model.load_state_dict(_classifier(torch.device("cpu")))
    levels = torch.randint(0, 256, (6, 1, 28, 28)).float()
    hidden = model.activations[0](model.hidden[0](model.features((levels / 255 - 0.286) / 0.353).flatten(1)))
    images = levels / 127.5 - 1
    torch.testing.assert_close(fashion_features(images), hidden)
    bordered = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    torch.testing.assert_close(fashion_features(bordered), hidden)
    torch.testing.assert_close(fashion_features(images.expand(-1, 3, -1, -1)), hidden, rtol=1e-4, atol=1e-4)
    assert fashion_features(torch.randn(2, 3, 64, 64)).shape == (2, 96)


@pytest.mark.slow
def test_the_classifier_is_as_good_as_is_said():
    from etude.tasks.clouds import _classifier

    try:
        dataset = Images(source="fashion-mnist").open()
    except MissingError:
        pytest.skip("etude data get fashion-mnist")
    w, right = _classifier(torch.device("cpu")), 0
    for start in range(0, 10_000, 2000):
        batch = dataset.fetch("test", range(start, start + 2000))
        logits = fashion_features(batch["image"].float() / 127.5 - 1) @ w["head.weight"].T + w["head.bias"]
        right += int((logits.argmax(1) == batch["label"]).sum())
    assert right / 10_000 == pytest.approx(0.9211, abs=0.001)


def test_other_features():
    assert thumbnails(torch.randn(2, 3, 32, 32)).shape == (2, 192)
    assert thumbnails(torch.ones(1, 1, 4, 4)).shape == (1, 16)
    assert points(torch.ones(4, 2)).shape == (4, 2)


@pytest.mark.slow
def test_ten_thousand_samples_are_judged_in_two_minutes():
    real, made = clouds(10_000, 10_000, 96)
    begun = time.monotonic()
    frechet(moments(real), moments(made))
    manifold(real, made)
    assert time.monotonic() - begun < 120
