"""What each norm does to gradients at initialisation as the Transformer becomes deep: 6, 24 and 48 layers.

The gradient of a layer is that of all its weight matrices, by the norm of the whole.
"""

from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.language import transformer as tf

DEPTHS = (6, 24, 48)


@lru_cache
def gradients(norm: tf.Norm, depth: int) -> dict[str, float]:
    """Of the first and the last layer of encoder and decoder, for random sentences and a width of 64."""
    torch.manual_seed(0)
    config = tf.Config(vocab_size=100, width=64, depth=depth, num_heads=4, ffn=128, dropout=0.0, norm=norm)
    model = config.build()
    src, tgt = torch.randint(3, 100, (2, 8, 12))
    F.cross_entropy(model(src, tgt).flatten(0, 1), tgt.roll(-1, 1).flatten()).backward()

    def size(layer: nn.Module) -> float:
        grads = [p.grad.norm() for p in layer.parameters() if p.ndim > 1 and p.grad is not None]
        return float(torch.stack(grads).norm())

    found = {}
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        assert isinstance(stack, tf.Stack)
        found |= {f"{name} first": size(stack.layers[0]), f"{name} last": size(stack.layers[-1])}
    return found


def test_in_post_norm_the_first_layers_gradient_fades_with_depth():
    """Each LN after a sum divides what passes by it: from the decoder's top to its bottom, exponentially. The encoder
    is read by all decoder layers, the last ones too, so it keeps a gradient while the decoder's first layers starve."""
    first = [gradients("post", depth)["decoder first"] for depth in DEPTHS]
    last = [gradients("post", depth)["decoder last"] for depth in DEPTHS]
    assert first[1] < 1e-2 * first[0] and first[2] < 1e-2 * first[1]
    assert first[2] < 1e-5 * last[2]
    assert 0.5 < last[2] / last[0] < 2


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("norm", ["pre", "dlcl", "deepnorm"])
def test_elsewhere_the_first_layer_learns_as_the_last(norm, side):
    for depth in DEPTHS:
        found = gradients(norm, depth)
        assert 0.9 < found[f"{side} first"] / found[f"{side} last"] < 20


def test_in_pre_norm_the_first_layers_gradient_does_not_depend_on_depth():
    """The identity runs from the first layer to the last (arXiv 2002.04745, theorem 1)."""
    for side in ("encoder", "decoder"):
        first = [gradients("pre", depth)[f"{side} first"] for depth in DEPTHS]
        assert max(first) < 2 * min(first)


def test_in_dlcl_a_layer_counts_as_one_of_many():
    """The last layer has a weight of 1 / (L + 1) in what comes out; the first is in everything that follows."""
    for side in ("encoder", "decoder"):
        shares = [gradients("dlcl", depth)[f"{side} last"] * (depth + 1) for depth in DEPTHS]
        assert max(shares) < 2.5 * min(shares)
        first = [gradients("dlcl", depth)[f"{side} first"] for depth in DEPTHS]
        assert 0.2 * first[0] < first[2] < first[0]


def test_in_deepnorm_all_gradients_shrink_with_depth():
    """So that the change of the whole, a sum over layers, stays bounded (arXiv 2203.00555, section 4.1)."""
    for side in ("encoder", "decoder"):
        for place in ("first", "last"):
            sizes = [gradients("deepnorm", depth)[f"{side} {place}"] for depth in DEPTHS]
            assert sizes[0] > sizes[1] > sizes[2]
            summed = [size * depth for size, depth in zip(sizes, DEPTHS)]
            assert summed[2] < 3 * summed[0]


def test_a_norm_after_the_sum_is_what_fades_it():
    """Without its scaling DeepNorm is post-LN, and fades the same."""
    plain = gradients("post", 24)["decoder first"]
    assert plain < 0.01 * gradients("deepnorm", 24)["decoder first"]
