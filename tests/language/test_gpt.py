"""GPT: its reference, its sizes, its properties, and what it writes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import etude
from etude import catalog
from etude.language import gpt
from etude.nn.generation import write

SMALL = {"vocab_size": 60, "context": 24, "width": 32, "depth": 3, "num_heads": 4, "dropout": 0.0}


def small(seed: int = 0, **changes) -> gpt.GPT:
    """A small network whose logits differ enough for the likeliest token to be clear."""
    torch.manual_seed(seed)
    model = gpt.Config(**SMALL | changes).build().double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 60, shape, generator=torch.Generator().manual_seed(seed))


def reference(model: gpt.GPT):
    """transformers' network with the same weights, which ours was read from."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=60, n_positions=24, n_embd=32, n_layer=3, n_head=4, bos_token_id=None, eos_token_id=None
    )
    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    etude.load_weights(model, theirs.state_dict(), source="transformers")
    return theirs


@pytest.mark.parity
def test_outputs_and_gradients_equal_transformers():
    ours = small()
    theirs = reference(ours)
    x = ids(2, 20)
    expected, found = theirs(x).logits, ours(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    expected.square().mean().backward()
    found.square().mean().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    renamed = small()
    etude.load_weights(renamed, {n: g for n, g in grads.items() if g is not None}, source="transformers")
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, dict(renamed.named_parameters())[name].detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parity
def test_single_precision_equals_transformers():
    ours = small()
    theirs = reference(ours).float()
    x = ids(2, 20)
    found, expected = ours.float()(x), theirs(x).logits
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(3))
def test_greedy_tokens_equal_transformers(seed):
    ours = small()
    theirs = reference(ours)
    x = ids(3, 8, seed=seed)
    everything = torch.ones_like(x)  # told nothing, it would take the padding token for padding in the prompt too
    options = {"attention_mask": everything, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(x, 12), theirs.generate(x, **options)[:, 8:])
    penalised = theirs.generate(x, repetition_penalty=1.7, **options)
    assert torch.equal(ours.generate(x, 12, repetition_penalty=1.7), penalised[:, 8:])


def test_both_published_layouts_load():
    ours = small()
    theirs = reference(ours).state_dict()
    expected = ours(ids(1, 5))
    hub = {name.removeprefix("transformer."): tensor for name, tensor in theirs.items() if name != "lm_head.weight"}
    hub |= {f"h.{i}.attn.bias": torch.ones(1, 1, 24, 24) for i in range(3)}
    hub |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    other = etude.load_weights(small(seed=3), hub, source="transformers")
    assert torch.equal(other(ids(1, 5)), expected)
    del hub["h.1.mlp.c_fc.weight"]
    with pytest.raises(ValueError, match=r"1 missing: blocks\.1\.feed_forward\.inner\.weight"):
        etude.load_weights(small(), hub, source="transformers")


def test_parameters_of_all_sizes_follow_the_formula():
    """L (12 h^2 + 13 h) + V h + T h + 2 h; 175B is laid out without memory."""
    for name, config in gpt.sizes.items():
        h, depth = config.width, config.depth
        expected = depth * (12 * h * h + 13 * h) + config.vocab_size * h + config.context * h + 2 * h
        assert catalog.count(name) == expected, name
    counts = {name: round(catalog.count(name) / 1e6) for name in gpt.sizes}
    assert counts["gpt2"] == 124 and counts["gpt2-medium"] == 355 and counts["gpt2-large"] == 774
    assert counts["gpt2-xl"] == 1558 and counts["gpt3-175b"] == 174_604


def test_initialisation():
    model = gpt.Config(width=256, depth=8, num_heads=4, vocab_size=500).build()
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for name, p in model.blocks.named_parameters():
        if name.endswith(("out.weight", "outer.weight")):
            assert p.std().item() == pytest.approx(0.02 / 4, rel=0.03)
        elif name.endswith(("qkv.weight", "inner.weight")):
            assert p.std().item() == pytest.approx(0.02, rel=0.03)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 11), st.sampled_from([0, 1, 3, 12]))
def test_no_token_sees_a_later_one(place, window):
    model, x = small(window=window), ids(1, 12)
    changed = x.clone()
    changed[0, place] = (changed[0, place] + 1) % 60
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :place], after[:, :place], rtol=0, atol=0)
    assert not torch.allclose(before[:, place], after[:, place])


def test_a_window_as_long_as_the_text_is_dense_to_the_bit():
    dense, banded, x = small(), small(window=12), ids(2, 12)
    assert torch.equal(dense(x), banded(x))
    assert not torch.allclose(dense(x), small(window=11)(x))


def test_the_band_by_hand():
    """Of two layers the second is banded: token i hears of token j only if a chain of steps leads there."""
    model = small(depth=2, window=2)
    layer = model.blocks[1]
    look = model.masks(torch.arange(5), None)
    assert look[0] is None and look[1] is not None
    expected = [[j <= i and j > i - 2 for j in range(5)] for i in range(5)]
    assert look[1].tolist() == expected
    y = torch.randn(1, 5, 32, dtype=torch.float64)
    far = y.clone()
    far[0, 0] += 1
    same = layer(y, look[1], None, 1)[0, 2:]
    assert torch.equal(layer(far, look[1], None, 1)[0, 2:], same)


@pytest.mark.parametrize("window", [0, 4])
def test_reading_in_pieces_equals_reading_at_once(window):
    model, x = small(window=window), ids(2, 20)
    whole = model(x)
    for cuts in ([1] * 20, [7, 1, 5, 7], [20]):
        state, cache, parts = None, model.cache(2), []
        for part in x.split(cuts, 1):
            last, state = model.read(part, state)
            parts.append(model(part, cache))
            torch.testing.assert_close(last, parts[-1][:, -1:])
        torch.testing.assert_close(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_k": 9}, {"repetition_penalty": 1.5}])
def test_cached_equals_uncached_to_the_token(window, options):
    class Forgetful:
        """Reads all from the beginning each time."""

        def read(self, ids, state=None):
            state = ids if state is None else torch.cat([state, ids], 1)
            return model(state), state

    model, x = small(window=window), ids(2, 8)
    cached = model.generate(x, 14, seed=5, **options)
    numbers = torch.rand(14, generator=torch.Generator().manual_seed(5), dtype=torch.float64)[:, None].expand(-1, 2)
    uncached = torch.stack([chosen for chosen, _ in write(Forgetful(), x, numbers, **options)], 1)
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_left_padded_batches_equal_single_texts(window, penalty):
    model, lengths = small(window=window), torch.tensor([9, 1, 4, 6])
    x = ids(4, 9)
    padded = x * (torch.arange(9) >= 9 - lengths[:, None])
    options: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}]
    for chosen in options:
        batch = model.generate(padded, 12, lengths=lengths, repetition_penalty=penalty, **chosen)
        for row, text, length in zip(batch, x, lengths.tolist()):
            single = model.generate(text[None, 9 - length :], 12, repetition_penalty=penalty, **chosen)
            assert torch.equal(row, single[0])


def test_a_seed_for_each_prompt():
    model, x = small(), ids(1, 5).expand(3, -1)
    made = model.generate(x, 10, temperature=1.0, seed=[4, 5, 4])
    assert torch.equal(made[0], made[2]) and not torch.equal(made[0], made[1])
    assert torch.equal(made[1:2], model.generate(x[:1], 10, temperature=1.0, seed=5))
    with pytest.raises(ValueError, match="2 seeds for 3 prompts"):
        model.generate(x, 10, seed=[1, 2])


def test_answers_are_without_dropout_whatever_the_mode():
    model, x = small(dropout=0.5), ids(1, 5)
    expected = model.eval().generate(x, 8)
    assert torch.equal(model.train().generate(x, 8), expected) and model.training


def test_ids_of_another_vocabulary_are_named():
    model = small()
    with pytest.raises(ValueError, match=f"there is no token {model.config.vocab_size}: the vocabulary has"):
        model(torch.tensor([[0, model.config.vocab_size]]))


def test_texts_that_have_ended_stay_so():
    model, x = small(), ids(3, 6)
    free = model.generate(x, 10)
    end = int(free[0, 2])
    made = model.generate(x, 10, end=end)
    for row, unbounded in zip(made.tolist(), free.tolist()):
        n = unbounded.index(end) + 1 if end in unbounded else len(unbounded)
        assert row[:n] == unbounded[:n][: len(row)] and set(row[n:]) <= {end}
    assert model.generate(x[:1], 10, end=end).shape[1] == free[0].tolist().index(end) + 1
    assert model.generate(x, 0).shape == (3, 0)


def test_streaming_is_the_same_tokens_one_by_one():
    model, x = small(), ids(2, 6)
    stream = iter(model.stream(x, 8, temperature=1.0, top_p=0.9, seed=3))
    first = next(stream)
    assert first.shape == (2,)
    whole = model.generate(x, 8, temperature=1.0, top_p=0.9, seed=3)
    assert torch.equal(torch.stack([first, *stream], 1), whole)
    assert not torch.equal(model.generate(x, 8, temperature=1.0, top_p=0.9, seed=4), whole)


def test_a_sampled_batch_in_half_precision_keeps_its_cache_in_it():
    model = small().float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, cache = model.read(ids(1, 4))
    assert cache.keys.dtype == torch.bfloat16 and cache.length == 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model(ids(1, 25)), "25 tokens do not fit into 24 places"),
        (lambda model: model.generate(ids(1, 20), 5), "20 tokens and 5 new ones exceed the context of 24"),
        (lambda model: model.generate(ids(1, 0), 5), "the prompt is empty"),
        (lambda model: model(ids(1, 3), model.cache(1, 2)), "3 tokens do not fit into 2 places"),
        (lambda model: model(ids(1, 0)), "there are no tokens to read"),
        (lambda model: model.generate(ids(2, 4), -1), "max_new_tokens is -1"),
        (lambda model: model.generate(ids(2, 4) + 60, 2), r"there is no token \d+: the vocabulary has 60"),
        (lambda model: model.generate(ids(2, 4) - 60, 2), r"there is no token -\d+: the vocabulary has 60"),
        (lambda model: model.generate(ids(2, 4), 2, lengths=torch.tensor([0, 4])), "lengths is .0, 4.; each of 2"),
        (lambda model: model.generate(ids(2, 4), 2, lengths=torch.tensor([5, 4])), "has 1 to 4 tokens"),
        (lambda model: model.generate(ids(2, 4), 2, temperature=-1.0), "temperature is -1"),
        (lambda model: model.generate(ids(2, 4), 2, top_p=0.0), "top_p is 0"),
        (lambda model: model.stream(ids(1, 20), 5), "exceed the context"),  # said at once, not at the first token
        (lambda model: gpt.Config(width=30, num_heads=4), "width 30 must be a multiple of num_heads 4"),
        (lambda model: gpt.Config(window=-1), "window is -1"),
        (lambda model: gpt.Config(vocab_size=0).build(), "vocab_size is 0"),
    ],
)
def test_what_cannot_be_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call(small())
