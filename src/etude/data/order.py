"""Which sample comes when, and every random number a sample needs, as functions of (seed, epoch, index).

Nothing here has state: a run that stops at step 1,234 needs only that integer to go on with the same
samples, flips and crops, and any number of workers or ranks produces the same ones.

Philox4x32-10 is the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011); its published known answers are tested.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

ORDER, AUGMENT, MIX, CROP, DISTORT_TRAIN, DISTORT_TEST, NEIGHBOURS, ELASTIC, MOSAIC, PATCH, SCENE = range(11)
NOISE, LINE = 11, 12
"""Streams: one a purpose, so that adding an augmentation never changes the order of samples."""


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10: (4, n) words below 2^32 and a key of two such words -> (4, n) random words below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1 = (p1 >> _32) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _32) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def _words(seed: int, epochs, indices, count: int, stream: int) -> NDArray[np.uint64]:
    """(n, count) random words below 2^32 for n samples, each a function of (seed, epoch, index, stream)."""
    indices = np.asarray(indices, dtype=np.uint64)
    epochs = np.broadcast_to(np.asarray(epochs, dtype=np.uint64), indices.shape)
    blocks = -(-count // 4)
    counter = np.empty((4, len(indices), blocks), dtype=np.uint64)
    counter[0] = indices[:, None]
    counter[1] = epochs[:, None]
    counter[2] = np.arange(blocks, dtype=np.uint64)
    counter[3] = stream
    words = philox(counter.reshape(4, -1), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return words.reshape(4, len(indices), blocks).transpose(1, 2, 0).reshape(len(indices), -1)[:, :count]


def uniform(seed: int, epochs, indices, count: int, stream: int = AUGMENT) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each sample: (n,) indices, (n,) or one epoch -> (n, count) float64.

    Row i depends on (seed, epochs[i], indices[i], stream) alone, not on the other rows.
    """
    return _words(seed, epochs, indices, count, stream) * np.float64(2.0**-32)


def normal(seed: int, epochs, indices, count: int, stream: int = NOISE) -> NDArray[np.float64]:
    """`count` draws of N(0, 1) for each sample, by Box and Muller (1958) from `uniform`: (n,) -> (n, count) float64.

    Number j of a sample is the same whatever the count.
    """
    drawn = uniform(seed, epochs, indices, count + count % 2, stream)
    radius, angle = np.sqrt(-2 * np.log1p(-drawn[:, ::2])), 2 * np.pi * drawn[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return pairs.reshape(len(drawn), -1)[:, :count]


def beta(seed: int, epochs, indices, alpha: float) -> NDArray[np.float64]:
    """One draw of Beta(alpha, alpha) for each sample, a function of (seed, epoch, index): (n,), in [0, 1]."""
    keys = zip(np.broadcast_to(epochs, np.shape(indices)).tolist(), np.asarray(indices).tolist())
    streams = (np.random.Philox(counter=MIX, key=[seed, (epoch << 32) + index]) for epoch, index in keys)
    return np.array([np.random.Generator(stream).beta(alpha, alpha) for stream in streams])


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of range(size), by sorting 64-bit random keys (read-only)."""
    words = _words(seed, epoch, np.arange(-(-size // 2)), 4, ORDER).reshape(-1, 2)[:size]
    order = np.argsort((words[:, 0] << _32) | words[:, 1], kind="stable")
    order.flags.writeable = False
    return order


def take(seed: int, size: int, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions start ... start+count-1 of the endless stream of shuffled epochs: (epochs (count,), indices (count,)).

    Every epoch holds each of the `size` samples once; a batch may straddle two epochs, so none is dropped.
    """
    epoch, place = divmod(start, size)
    if place + count <= size:
        return np.full(count, epoch), permutation(seed, epoch, size)[place : place + count].copy()
    epochs, places = np.divmod(np.arange(start, start + count), size)
    indices = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        indices[mine] = permutation(seed, int(epoch), size)[places[mine]]
    return epochs, indices


def rank_slice(step: int, batch_size: int, rank: int, world: int) -> tuple[int, int]:
    """(start, count) of what `rank` of `world` takes of the global batch of `step`, in the endless stream."""
    if batch_size % world:
        raise ValueError(f"batch size {batch_size} does not divide over {world} processes")
    share = batch_size // world
    return step * batch_size + rank * share, share
