"""The order of samples and their random numbers: known answers, purity, and the right distributions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.data import order


def test_philox_known_answers():
    """The vectors published with Random123 for philox4x32-10."""

    def words(counter, key):
        return [int(w) for w in order.philox(np.array(counter, dtype=np.uint64)[:, None], key)[:, 0]]

    assert words([0] * 4, (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    assert words(pi, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 2**31), count=st.integers(1, 13), data=st.data())
def test_a_row_depends_on_its_own_sample_alone(seed, epoch, count, data):
    indices = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9))
    whole = order.uniform(seed, epoch, indices, count)
    assert whole.shape == (len(indices), count) and whole.min() >= 0 and whole.max() < 1
    for row, index in zip(whole, indices):
        assert np.array_equal(row, order.uniform(seed, epoch, [index], count)[0])
    assert np.array_equal(whole, order.uniform(seed, epoch, indices, count + 3)[:, :count])


def test_uniform_is_uniform_and_streams_differ():
    values = order.uniform(5, 2, np.arange(50_000), 4)
    assert abs(values.mean() - 0.5) < 0.005 and abs(values.var() - 1 / 12) < 0.002
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.02
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.02
    others = [order.uniform(6, 2, [7], 4), order.uniform(5, 3, [7], 4), order.uniform(5, 2, [7], 4, order.MIX)]
    assert not any(np.array_equal(values[7:8], other) for other in others)


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 1000), size=st.integers(1, 300))
def test_every_epoch_is_a_permutation(seed, epoch, size):
    assert sorted(order.permutation(seed, epoch, size)) == list(range(size))


def test_permutations_differ_and_are_fair():
    first = [order.permutation(seed, 0, 10)[0] for seed in range(4000)]
    assert np.abs(np.bincount(first, minlength=10) - 400).max() < 100
    assert not np.array_equal(order.permutation(1, 0, 50), order.permutation(1, 1, 50))


@given(size=st.integers(1, 40), batch=st.integers(1, 60), steps=st.integers(1, 8))
def test_batches_follow_each_other_without_gaps(size, batch, steps):
    epochs, indices = order.take(3, size, 0, batch * steps)
    for step in range(steps):
        e, i = order.take(3, size, step * batch, batch)
        assert np.array_equal(e, epochs[step * batch : (step + 1) * batch])
        assert np.array_equal(i, indices[step * batch : (step + 1) * batch])


def test_beta_has_its_moments():
    draws = order.beta(1, 0, np.arange(20_000), 0.4)
    assert abs(draws.mean() - 0.5) < 0.01 and abs(draws.var() - 0.25 / 1.8) < 0.005
    assert np.array_equal(draws[5:6], order.beta(1, 0, np.array([5]), 0.4))


def test_ranks_share_a_batch():
    assert [order.rank_slice(3, 12, rank, 3) for rank in range(3)] == [(36, 4), (40, 4), (44, 4)]
    with pytest.raises(ValueError, match="does not divide"):
        order.rank_slice(0, 10, 0, 3)
