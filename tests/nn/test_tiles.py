"""A picture through a network in pieces equals the picture through it at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.errors import UsageError
from etude.nn.tiles import spans, tiled


@settings(deadline=None, max_examples=50)
@given(
    length=st.integers(1, 200),
    tile=st.integers(1, 64),
    context=st.integers(0, 40),
    multiple=st.sampled_from([1, 2, 16]),
)
def test_spans_cover_each_pixel_once(length, tile, context, multiple):
    found = spans(length, tile=tile, context=context, multiple=multiple)
    assert [pixel for first, end, *_ in found for pixel in range(first, end)] == list(range(length))
    for first, end, seen, seen_end in found:
        assert 1 <= end - first <= tile and seen % multiple == 0
        assert seen <= max(0, first - context) and seen_end == min(length, end + context)
        assert seen_end - seen < tile + 2 * context + multiple


@settings(deadline=None, max_examples=15)
@given(height=st.integers(1, 45), width=st.integers(1, 45), tile=st.integers(3, 20))
def test_equals_the_whole_where_the_context_suffices(height, width, tile):
    """Two 3x3 convolutions see 2 pixels around, here in a net that enlarges twice."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 12, 3, padding=1), nn.PixelShuffle(2))
    image = torch.randn(1, 2, height, width)
    with torch.no_grad():
        whole = net(image)
        torch.testing.assert_close(tiled(net, image, tile=tile, context=2, scale=2), whole)
        if height > tile:  # with less, seams show
            assert not torch.allclose(tiled(net, image, tile=tile, context=0, scale=2), whole, atol=1e-4)


def test_pooling_wants_windows_at_multiples():
    image = torch.randn(1, 1, 40, 24)
    net = nn.Sequential(nn.MaxPool2d(4), nn.Upsample(scale_factor=4))
    assert torch.equal(tiled(net, image, tile=12, context=4, multiple=4), net(image))


def test_answers_may_be_reduced_and_pictures_bytes():
    image = torch.randint(0, 255, (1, 3, 30, 31), dtype=torch.uint8)
    steps = []
    answer = tiled(
        lambda x: (x > 100).any(1, keepdim=True), image, tile=16, context=1, progress=lambda *of: steps.append(of)
    )
    assert answer.dtype == torch.bool and torch.equal(answer, (image > 100).any(1, keepdim=True))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_tiles_without_pixels():
    with pytest.raises(UsageError, match="tile 0"):
        tiled(nn.Identity(), torch.zeros(1, 1, 4, 4), tile=0, context=1)
