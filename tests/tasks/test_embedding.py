"""Points drawn in a plane, against scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

from etude.tasks.embedding import _affinities, plane, tsne


def test_the_plane_is_that_of_principal_components():
    points = np.random.default_rng(0).standard_normal((40, 5)) * [3, 2, 1, 0.5, 0.1]
    flat, shares = plane(points)
    peer = PCA(2).fit(points)
    np.testing.assert_allclose(np.abs(flat), np.abs(peer.transform(points)), rtol=1e-8)
    np.testing.assert_allclose(shares, peer.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(plane(-points)[0], -flat)
    assert plane(points[:, :1])[0].shape == (40, 2) and not plane(points[:, :1])[0][:, 1].any()
    assert not plane(np.ones((3, 2)))[0].any()


def test_affinities_have_the_perplexity():
    """By hand: the entropy of each row of conditional probabilities is log 12, where it can be told from their sum."""
    points = np.random.default_rng(0).standard_normal((60, 3))
    p = _affinities(points, 12.0)
    assert p.sum() == pytest.approx(1, abs=1e-8) and np.array_equal(p, p.T)
    squares = ((points[:, None] - points[None]) ** 2).sum(2)
    conditional = np.zeros_like(p)
    for i in range(60):
        low, high, row = 1e-4, 50.0, squares[i]
        for _ in range(200):
            beta = (low * high) ** 0.5
            row = np.exp(-beta * squares[i])
            row[i] = 0
            row /= row.sum()
            entropy = -(row[row > 0] * np.log(row[row > 0])).sum()
            low, high = (beta, high) if entropy > np.log(12) else (low, beta)
        conditional[i] = row
    np.testing.assert_allclose(p, np.maximum((conditional + conditional.T) / 120, 1e-12), rtol=1e-6, atol=1e-12)


def test_neighbours_stay_neighbours():
    """As well as scikit-learn's, which takes more steps; far better than principal components."""
    points = np.asarray(load_digits(return_X_y=True)[0])[:300].astype(np.float64)
    drawn = tsne(points)
    ours = trustworthiness(points, drawn)
    peer = trustworthiness(points, TSNE(2, init="pca", random_state=0, method="exact").fit_transform(points))
    assert ours > peer - 0.02 and ours > trustworthiness(points, plane(points)[0]) + 0.05
    assert np.array_equal(drawn, tsne(points))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_few_or_equal_points(count):
    points = np.random.default_rng(0).standard_normal((count, 3))
    assert tsne(points).shape == (count, 2) and np.isfinite(tsne(points)).all()
    assert np.isfinite(tsne(np.ones((count, 3)))).all()
