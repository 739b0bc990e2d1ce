"""Exact distances against scipy's transform, which the library itself does not need."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

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


def test_nothing_is_infinitely_far():
    assert np.isinf(distance(np.zeros((4, 5), bool))).all()
    assert np.isinf(distance(np.zeros((4, 5, 2), bool), at=np.array([[1, 2, 0]]))).all()


@pytest.mark.parametrize("shape", [(12,), (9, 11), (5, 6, 7)])
def test_surface_is_what_erosion_takes(shape):
    inside = np.random.default_rng(0).random(shape) < 0.8
    np.testing.assert_array_equal(surface(inside), inside & ~ndimage.binary_erosion(inside))
