"""The formulas of the Transformer by hand, its properties, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.language import transformer as tf
from etude.nn.packing import PackedAttention, Packing

SMALL = {"vocab_size": 50, "width": 16, "depth": 2, "num_heads": 2, "ffn": 32, "dropout": 0.0}


def small(**changes) -> tf.Transformer:
    torch.manual_seed(0)
    return tf.Config(**SMALL | changes).build().double().eval()


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", ["paper", "marian", "tensor2tensor", "fairseq"])
def test_positions_by_hand(layout):
    width, pairs = 8, 4
    found = tf.sinusoids(torch.tensor([0, 1, 7]), width, layout)
    for row, position in zip(found, (0, 1, 7)):
        for i in range(pairs):
            exponent = i / (pairs - 1) if layout in ("tensor2tensor", "fairseq") else 2 * i / width
            angle = position / 10_000**exponent
            sine, cosine = (2 * i, 2 * i + 1) if layout == "paper" else (i, pairs + i)
            assert row[sine].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert row[cosine].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_fairseq_counts_positions_from_after_its_padding():
    there, zero = torch.tensor([5]), torch.tensor([0])
    fairseq, t2t = small(positions="fairseq", padding=1), small(positions="tensor2tensor")
    torch.testing.assert_close(fairseq.embed(there, zero), t2t.embed(there, zero + 2))


def test_one_layer_by_hand():
    """Section 3.1's encoder layer, from equations 1 and 2."""
    model = small(depth=1)
    src = ids(1, 5)
    layer, p = model.encoder.layers[0], dict(model.encoder.layers[0].named_parameters())
    assert isinstance(layer, tf.EncoderLayer)
    x = model.embedding.weight[src[0]] * 4 + tf.sinusoids(torch.arange(5), 16, "paper").double()

    def linear(name, y):
        return y @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(y):
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()

    q, k, v = (linear(f"attention.{name}", x).view(5, 2, 8) for name in ("query", "key", "value"))
    weights = (torch.einsum("thd,shd->hts", q, k) / math.sqrt(8)).softmax(-1)
    x = norm(x + linear("attention.out", torch.einsum("hts,shd->thd", weights, v).reshape(5, 16)))
    x = norm(x + linear("feed_forward.outer", linear("feed_forward.inner", x).relu()))
    torch.testing.assert_close(model.encode(src)[0], x)


def test_the_drawn_attention_is_what_the_decoder_computes():
    model, src, tgt = small(depth=1), ids(6), ids(4, seed=2)
    weights = model.attention(src, tgt)
    assert weights.shape == (1, 2, 4, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 4))
    memory, _ = model.encode(src[None])
    cross = model.decoder.get_submodule("layers.0.cross_attention")
    assert isinstance(cross, tf.Attention)
    inputs = []
    handle = cross.register_forward_hook(lambda module, args, out: inputs.append((args[0], out)))
    model.packed(src[None], tgt[None])
    handle.remove()
    value = cross.heads(cross.value(memory))
    mixed = torch.einsum("hts,shd->thd", weights[0].double(), value).flatten(1)
    torch.testing.assert_close(cross.out(mixed), inputs[0][1], atol=1e-6, rtol=1e-6)


def test_deepnorm_with_alpha_and_beta_one_is_post_norm_to_the_bit(monkeypatch):
    monkeypatch.setattr(tf, "deepnorm", lambda depths: ((1.0, 1.0), (1.0, 1.0)))
    src, tgt = ids(2, 6), ids(2, 5, seed=2)
    deep, post = small(norm="deepnorm"), small(norm="post")
    post.load_state_dict(deep.state_dict())
    assert torch.equal(deep(src, tgt), post(src, tgt))


def test_deepnorm_constants_of_the_paper():
    """Figure 2 of arXiv 2203.00555, for 18 and 6 layers."""
    (alpha, beta), (decoder_alpha, decoder_beta) = tf.deepnorm((18, 6))
    assert alpha == pytest.approx(0.81 * (18**4 * 6) ** 0.0625)
    assert beta == pytest.approx(0.87 * (18**4 * 6) ** -0.0625)
    assert decoder_alpha == pytest.approx(18**0.25) and decoder_beta == pytest.approx(72**-0.25)
    model = tf.Config(**SMALL | {"width": 256, "norm": "deepnorm"}).build()
    layer = model.encoder.get_submodule("layers.0.attention")
    assert isinstance(layer, tf.Attention)
    beta = tf.deepnorm((2, 2))[0][1]
    assert layer.value.weight.std().item() == pytest.approx(beta * layer.query.weight.std().item(), rel=0.03)


def test_dlcl_is_a_learned_sum_of_all_earlier_layers():
    """arXiv 1906.01787, equation 6, with weights that are no averages."""
    model = small(norm="dlcl", depth=3)
    stack = model.encoder
    assert isinstance(stack, tf.LinearCombinationStack)
    assert torch.equal(stack.mix[2], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0], dtype=torch.float64).float().double())
    torch.nn.init.normal_(stack.mix)
    norms, layers = list(stack.norms), list(stack.layers)
    src = ids(1, 4)
    attend = PackedAttention(Packing([4]))
    y = [model.embed(src[0], torch.arange(4))]
    for layer in range(3):
        x = sum(stack.mix[layer, k] * norms[k](y[k]) for k in range(layer + 1))
        y.append(layers[layer](x, attend))
    expected = sum(stack.mix[3, k] * norms[k](y[k]) for k in range(4))
    torch.testing.assert_close(model.encode(src)[0], expected)


@pytest.mark.parametrize("norm", list(tf.STYLES))
def test_padding_changes_nothing(norm):
    model = small(norm=norm)
    src, tgt = ids(3, 6), ids(3, 5, seed=2)
    src_mask = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    tgt_mask = torch.arange(5) < torch.tensor([1, 5, 3])[:, None]
    batch = model(src, tgt, src_mask, tgt_mask)
    packed, packing = model.packed(src, tgt, src_mask, tgt_mask)
    assert packed.shape == (9, 50) and torch.equal(packing.pack(batch), packed)
    for i, (s, t) in enumerate([(6, 1), (2, 5), (4, 3)]):
        torch.testing.assert_close(batch[i, :t], model(src[i : i + 1, :s], tgt[i : i + 1, :t])[0])
        assert not batch[i, t:].any()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 6), st.sampled_from(list(tf.STYLES)))
def test_the_decoder_sees_no_later_token(place, norm):
    model, src, tgt = small(norm=norm), ids(1, 5), ids(1, 7, seed=2)
    changed = tgt.clone()
    changed[0, place] = (changed[0, place] + 1) % 50
    before, after = model(src, tgt), model(src, changed)
    torch.testing.assert_close(before[:, :place], after[:, :place], atol=0, rtol=0)
    assert not torch.allclose(before[:, place], after[:, place])


def test_every_weight_learns():
    for norm in tf.STYLES:
        model = small(norm=norm, output_bias=True)
        model(ids(2, 6), ids(2, 5, seed=2)).square().sum().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name


def test_sizes():
    with torch.device("meta"):
        base, big = (sum(p.numel() for p in tf.sizes[s].build().parameters()) for s in tf.sizes)
    # 4 D^2 + 2 D F and biases a layer, once more 4 D^2 in the decoder; LN; the embedding once
    for count, d, f in ((base, 512, 2048), (big, 1024, 4096)):
        attention, ffn, norm = 4 * (d * d + d), 2 * d * f + f + d, 2 * d
        assert count == 6 * (attention + ffn + 2 * norm) + 6 * (2 * attention + ffn + 3 * norm) + 37_000 * d
    assert big == pytest.approx(213e6, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 18}, "width 18 must be a multiple of twice num_heads 2"),
        ({"depth": 0}, "depth is 0"),
        ({"decoder_depth": 0}, "decoder_depth is 0"),
        ({"end": 50}, "end is 50, which is no id below 50"),
    ],
)
def test_configurations_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        tf.Config(**SMALL | changes)


def test_ids_of_another_vocabulary_are_named_and_answers_are_without_dropout():
    torch.manual_seed(0)
    model = tf.Config(vocab_size=40, width=16, depth=1, num_heads=2, ffn=32, dropout=0.5, norm="pre").build()
    for source, target in ((41, 1), (1, 41)):
        with pytest.raises(ValueError, match="there is no token 41: the vocabulary has 40"):
            model(torch.tensor([[source]]), torch.tensor([[target]]))
    x = torch.tensor([[5, 6, 7]])
    first, second = (model.train().generate(x, beam=2, max_length=9) for _ in range(2))
    assert first == second == model.eval().generate(x, beam=2, max_length=9)
