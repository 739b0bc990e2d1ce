"""Exact distances against scipy's transform, which the library itself does not need."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from etude.data import distance as module
from etude.data.distance import distance, surface

SHAPES = st.one_of(
    st.tuples(st.integers(1, 30)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8)),
)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 1000), share=st.sampled_from([0.02, 0.3, 0.9]))
def test_equals_scipy(shape, seed, share):
    rng = np.random.default_rng(seed)
    inside = rng.random(shape) < share
    inside.flat[rng.integers(inside.size)] = True
    spacing = tuple(rng.uniform(0.3, 4, len(shape)))
    expected: Any = ndimage.distance_transform_edt(~inside, sampling=spacing)
    np.testing.assert_allclose(distance(inside, spacing=spacing), expected, rtol=1e-12, atol=1e-12)
    at = np.stack([rng.integers(0, size, 17) for size in shape], 1)
    np.testing.assert_allclose(distance(inside, spacing=spacing, at=at), expected[tuple(at.T)], rtol=1e-12, atol=1e-12)


def formula(squares: np.ndarray, spacing: float) -> np.ndarray:
    """min over q of (p - q)^2 + f(q) along the first axis, all pairs of a line at once."""
    ways = (np.subtract.outer(np.arange(len(squares)), np.arange(len(squares))) * spacing) ** 2
    return (ways[..., None] + squares[None]).min(1)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 40),
    lines=st.integers(1, 9),
    seed=st.integers(0, 1000),
    empty=st.sampled_from([0.0, 0.5, 0.95]),
    scale=st.sampled_from([1, 30, 2000]),
)
def test_the_lower_envelope_is_the_formula(size, lines, seed, empty, scale):
    """Whole numbers: bit for bit, with many ties; any numbers: but for rounding."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, scale + 1, (size, lines)).astype(np.float64)
    whole[rng.random(whole.shape) < empty] = np.inf
    whole[:, 0] = np.inf  # nothing of the set along it
    np.testing.assert_array_equal(module._lowest(whole, 1.0), formula(whole, 1.0))
    real, spacing = whole * rng.random(whole.shape), rng.uniform(0.3, 4)
    np.testing.assert_allclose(module._lowest(real, spacing), formula(real, spacing), rtol=1e-12)


@pytest.mark.parametrize("shape", [(150, 130), (7, 130, 9), (3, 5, 140)])
def test_long_lines_in_parts(monkeypatch, shape):
    """All that chooses between two ways of computing leaves the distances the same, bit for bit."""
    rng = np.random.default_rng(0)
    inside = rng.random(shape) < 0.03
    at = np.stack(np.nonzero(rng.random(shape) < 0.5), 1)
    expected: Any = ndimage.distance_transform_edt(~inside)
    for few, short, chunk in ((0, 100, 1 << 22), (0, 100, 300), (0, 100, 1), (1 << 30, 100, 300), (0, 1 << 30, 300)):
        for name, value in (("FEW", few), ("SHORT", short), ("CHUNK", chunk)):
            monkeypatch.setattr(module, name, value)
        np.testing.assert_array_equal(distance(inside), expected)
        np.testing.assert_array_equal(distance(inside, at=at), expected[tuple(at.T)])


def test_time_grows_with_the_line_not_with_its_square(monkeypatch):
    """Each place is compared with those that it hides and one more, so that noise takes some two rounds a place."""
    rounds, floor = [0], np.floor
    monkeypatch.setattr(module.np, "floor", lambda x: (rounds.__setitem__(0, rounds[0] + len(x)), floor(x))[1])
    noise = np.random.default_rng(0).integers(0, 9, (400, 30)).astype(np.float64)
    module._lowest(noise, 1.0)
    assert rounds[0] <= 2 * noise.size


def test_nothing_is_infinitely_far():
    assert np.isinf(distance(np.zeros((4, 5), bool))).all()
    assert np.isinf(distance(np.zeros((4, 5, 2), bool), at=np.array([[1, 2, 0]]))).all()


@pytest.mark.parametrize("shape", [(12,), (9, 11), (5, 6, 7)])
def test_surface_is_what_erosion_takes(shape):
    inside = np.random.default_rng(0).random(shape) < 0.8
    np.testing.assert_array_equal(surface(inside), inside & ~ndimage.binary_erosion(inside))
