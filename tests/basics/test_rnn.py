"""The recurrent cells written out as formulas, and compared with the fused kernels: outputs, states, gradients."""

import dataclasses
import itertools
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from etude import catalog
from etude.basics.rnn import Config, example, has_lstm, sizes
from etude.errors import RefusedError
from etude.weights import load_weights

CELLS = ("rnn", "lstm")
SMALL: dict[str, Any] = {"vocab_size": 11, "embedding": 6, "width": 8, "depth": 2}


def elman(x: Tensor, state: tuple[Tensor, ...], w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor):
    """h = tanh(W_x x + b_x + W_h h + b_h)"""
    (h,) = state
    return (torch.tanh(x @ w_x.T + b_x + h @ w_h.T + b_h),)


def lstm(x: Tensor, state: tuple[Tensor, ...], w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor):
    """Each gate by its own rows of the weights."""
    h, c = state
    width = h.shape[1]

    def gate(number: int) -> Tensor:
        rows = slice(number * width, (number + 1) * width)
        return x @ w_x[rows].T + b_x[rows] + h @ w_h[rows].T + b_h[rows]

    i, f, o = 1 / (1 + torch.exp(-gate(0))), 1 / (1 + torch.exp(-gate(1))), 1 / (1 + torch.exp(-gate(3)))
    c = f * c + i * torch.tanh(gate(2))
    return (o * torch.tanh(c), c)


def reference(cell: str, weights: dict[str, Tensor], ids: Tensor, state: list[tuple[Tensor, ...]]):
    """The whole model, token by token and layer by layer: logits (B, T, V) and the layers' states."""
    step = {"rnn": elman, "lstm": lstm}[cell]
    logits = []
    for t in range(ids.shape[1]):
        x = weights["embedding.weight"][ids[:, t]]
        for layer in range(len(state)):
            names = (f"{kind}_l{layer}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            state[layer] = step(x, state[layer], *(weights[f"recurrent.{name}"] for name in names))
            x = state[layer][0]
        logits.append(x @ weights.get("head.weight", weights["embedding.weight"]).T + weights["head.bias"])
    return torch.stack(logits, 1), state


def random_model(cell: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Config(cell=cell, **(SMALL | changes)).build().double()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)
    return model


def parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_cell_written_out(cell, tied):
    """Logits, states and the gradient of every parameter, from a state that is not zero."""
    model = random_model(cell, tied=tied, embedding=8 if tied else 6)
    ids, targets = torch.randint(11, (3, 7)), torch.randint(11, (3, 7))
    count = 2 if cell == "lstm" else 1
    first = [torch.randn(2, 3, 8, dtype=torch.float64) for _ in range(count)]
    logits, state = model(ids, tuple(first) if cell == "lstm" else first[0])
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()

    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected, states = reference(cell, weights, ids, [tuple(part[layer] for part in first) for layer in range(2)])
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()

    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-13)
    for layer, number in itertools.product(range(2), range(count)):
        torch.testing.assert_close(parts(state)[number][layer], states[layer][number], rtol=1e-12, atol=1e-13)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, weights[name].grad, rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 8))
def test_pieces_with_their_state_equal_the_whole(cell, cut):
    model = random_model(cell).eval()
    ids = torch.arange(18).view(2, 9) % 11
    whole, end = model(ids)
    head, state = model(ids[:, :cut])
    tail, state = model(ids[:, cut:], state)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(parts(state), parts(end), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_no_token_sees_those_after_it(cell):
    model = random_model(cell).eval()
    ids = torch.arange(18).view(2, 9) % 11
    other = ids.clone()
    other[:, 5] = (other[:, 5] + 1) % 11
    a, b = model(ids)[0], model(other)[0]
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.equal(a[:, 5:], b[:, 5:])


@pytest.mark.parametrize("cell", CELLS)
def test_initialisation(cell):
    """W_h orthogonal gate by gate, W_x within Xavier's bound, biases zero but the forget gate's."""
    torch.manual_seed(0)
    model: Any = Config(cell=cell, vocab_size=50, embedding=20, width=30, depth=2).build()
    gates = 4 if cell == "lstm" else 1
    for layer, inputs in ((0, 20), (1, 30)):
        w_x, w_h, b_x, b_h = (
            getattr(model.recurrent, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        for gate in w_h.chunk(gates):
            torch.testing.assert_close(gate @ gate.T, torch.eye(30), atol=1e-5, rtol=0)
        bound = (6 / (inputs + 30)) ** 0.5
        assert 0.95 * bound < w_x.abs().max() <= bound
        assert not b_h.any()
        assert b_x.tolist() == ([0.0] * 30 + [1.0] * 30 + [0.0] * 60 if cell == "lstm" else [0.0] * 30)
    assert model.embedding.weight.norm(dim=1).mean().item() == pytest.approx(1, abs=0.1)
    assert not model.head.bias.any()


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_stands_between_layers_never_over_time(cell):
    """With all embeddings, layers and states dropped but the path over time, only the head's bias is left."""
    model: Any = random_model(cell, dropout=1.0).float()
    with torch.no_grad():
        logits, state = model.train()(torch.arange(12).view(2, 6) % 11)
    torch.testing.assert_close(logits, model.head.bias.expand(2, 6, 11))
    assert parts(state)[0][0].any()  # the first layer's state went on from step to step all the same
    a, b = (random_model(cell, dropout=0.5)(torch.arange(12).view(2, 6) % 11)[0] for _ in range(2))
    assert torch.equal(a, b)  # masks follow from the seed


def test_a_layer_alone_has_no_dropout_between():
    assert Config(depth=1, dropout=0.5, width=4, embedding=4).build().recurrent.dropout == 0


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parity
def test_weights_of_torch_s_example_load(cell):
    """PyTorch's word-language example calls its parts encoder, rnn and decoder."""
    torch.manual_seed(1)
    layers = {"rnn": nn.RNN, "lstm": nn.LSTM}[cell](6, 8, 2, batch_first=True)
    theirs = nn.ModuleDict({"encoder": nn.Embedding(11, 6), "rnn": layers, "decoder": nn.Linear(8, 11)})
    model = load_weights(catalog.model(cell, **SMALL), theirs.state_dict(), source="torch")
    ids = torch.arange(12).view(2, 6) % 11
    expected = theirs["decoder"](layers(theirs["encoder"](ids))[0])
    assert torch.equal(model.eval()(ids)[0], expected)
    with pytest.raises(RefusedError, match="decoder"):
        load_weights(catalog.model(cell, **SMALL), {"decoder2.weight": torch.zeros(3)}, source="torch")


@pytest.mark.parametrize("cell", CELLS)
def test_example_is_taken(cell):
    config = dataclasses.replace(sizes[cell], width=16)
    logits, _ = config.build()(*example(config))
    assert logits.shape == (2, 12, config.vocab_size)


@pytest.mark.parametrize("cell", CELLS)
def test_bf16_learns_on_any_cpu(cell):
    """oneDNN has no LSTM in bf16 for a CPU without AVX-512: it is computed in fp32 then, and never refused."""
    torch.manual_seed(0)
    model, ids = Config(cell=cell, **SMALL).build(), torch.randint(11, (3, 7))
    expected, _ = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        logits, state = model(ids)
        again, _ = model(ids, state)
    assert (logits.float() - expected).norm() < 0.02 * expected.norm() and again.isfinite().all()
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("found", [True, False])
def test_autocast_is_left_for_the_lstm_alone_and_only_where_it_must(monkeypatch, found):
    monkeypatch.setattr("etude.basics.rnn.has_lstm", lambda dtype: found)
    model, casting = Config(vocab_size=11, embedding=8, width=8).build(), []

    def layers(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        casting.append(torch.is_autocast_enabled("cpu"))
        return x, (x, x)

    monkeypatch.setattr(model.recurrent, "forward", layers)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(torch.arange(4).view(1, 4))
    assert logits.dtype == torch.bfloat16 and model(torch.arange(4).view(1, 4))[0].dtype == torch.float32
    assert casting == [found, False]


def test_looking_for_a_kernel_draws_no_number():
    has_lstm.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    has_lstm(torch.bfloat16)
    assert torch.equal(torch.rand(3), expected)


def test_mistakes_are_named(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="cell 'gru' is neither 'rnn' nor 'lstm'"):
        Config(cell="gru")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="depth is 0"):
        Config(depth=0)
    with pytest.raises(ValueError, match="embedding 64 to equal width 512"):
        Config(tied=True, embedding=64)
