import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.nn.packing import PackedAttention, Packing

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def by_hand(q, k, v, *, causal=False):
    """One sequence: (t, H, D), (s, H, D), (s, H, D) -> (t, H, D)"""
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v)


@given(LENGTHS)
def test_unpack_is_the_inverse_of_pack(lengths):
    packing = Packing(lengths)
    mask = torch.arange(packing.longest) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), packing.longest, 3) * mask[..., None]
    packed = packing.pack(x)
    assert packed.shape == (sum(lengths), 3)
    assert torch.equal(packing.unpack(packed), x)
    assert torch.equal(Packing.of(mask).pack(x), packed)
    assert packing.unpack(packed, longest=packing.longest + 2).shape[1] == packing.longest + 2


@settings(deadline=None)
@given(LENGTHS, st.booleans())
def test_self_attention_equals_each_sequence_alone(lengths, causal):
    torch.manual_seed(len(lengths))
    packing = Packing(lengths)
    q, k, v = torch.randn(3, packing.tokens, 2, 4, dtype=torch.float64).requires_grad_()
    answer = PackedAttention(packing, causal=causal)(q, k, v)
    for start, count in zip(packing.start, lengths):
        rows = slice(start, start + count)
        torch.testing.assert_close(answer[rows], by_hand(q[rows], k[rows], v[rows], causal=causal))
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(answer.sum(), (q, k, v)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8))
def test_cross_attention_equals_each_pair_alone(pairs):
    torch.manual_seed(len(pairs))
    queries, keys = Packing([t for t, _ in pairs]), Packing([s for _, s in pairs])
    q = torch.randn(queries.tokens, 2, 4, dtype=torch.float64)
    k, v = torch.randn(2, keys.tokens, 2, 4, dtype=torch.float64)
    answer = PackedAttention(queries, keys)(q, k, v)
    for i, (t, s) in enumerate(pairs):
        own, others = slice(queries.start[i], queries.start[i] + t), slice(keys.start[i], keys.start[i] + s)
        torch.testing.assert_close(answer[own], by_hand(q[own], k[others], v[others]))


def test_one_length_needs_neither_masks_nor_copies():
    groups = PackedAttention(Packing([5, 5, 5]))._groups
    assert len(groups) == 1 and groups[0].mask is None and isinstance(groups[0].queries, slice)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Packing([3, 0])
    with pytest.raises(ValueError, match="holes"):
        Packing.of(torch.tensor([[False, True]]))
    with pytest.raises(ValueError, match="themselves"):
        PackedAttention(Packing([2]), Packing([3]), causal=True)
