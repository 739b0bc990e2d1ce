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


@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 45), width=st.integers(1, 45), tile=st.integers(4, 20), blend=st.sampled_from([0, 1]))
def test_equals_the_whole_where_the_context_suffices(height, width, tile, blend):
    """Two 3x3 convolutions see 2 pixels around, here in a net that enlarges twice."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 12, 3, padding=1), nn.PixelShuffle(2))
    image = torch.randn(1, 2, height, width)
    with torch.no_grad():
        whole = net(image)
        found = tiled(net, image, tile=tile, context=2 + blend, scale=2, blend=blend)
        torch.testing.assert_close(found, whole)
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


def test_pieces_that_differ_fade_into_each_other():
    """Each window answers with a number of its own: beside a seam the step is a ramp."""
    answers = iter([0.0, 1.0])
    image = torch.zeros(1, 1, 8, 32)
    found = tiled(lambda x: torch.full_like(x, next(answers)), image, tile=16, context=4, blend=4)[0, 0]
    assert torch.equal(found, found[:1].expand(8, -1))
    assert found[0].diff().max() < 0.126 and found[0, :12].eq(0).all() and found[0, 20:].eq(1).all()


@pytest.mark.parametrize("sizes", [{"tile": 0}, {"context": -1}, {"blend": 2}, {"tile": 4, "context": 9, "blend": 2}])
def test_pieces_that_cannot_be(sizes):
    given = {"tile": 16, "context": 1, "blend": 0} | sizes
    with pytest.raises(UsageError, match="a tile has 1 or more pixels"):
        tiled(nn.Identity(), torch.zeros(1, 1, 4, 4), **given)
