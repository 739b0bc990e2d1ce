from typing import Any

import pytest
import torch
from torch import nn

from etude.data import fetch
from etude.errors import MissingError
from etude.language import gpt
from etude.nn import lowbit
from etude.nn.lowbit import FEW, HalfLinear, Int8Linear, Int8WeightLinear, fast_linears, quantize_rows
from etude.weights import read_tensors


def relative(found, expected) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (2, 5, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_equal_torchs(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 96, bias=bias), torch.randn(shape)
    expected = layer(x).detach()
    with torch.no_grad():
        for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.int8, 3e-2)):
            fast = lowbit.fast_layer(layer.weight, layer.bias, dtype)
            if fast is None:  # torch's own layer is the fastest here
                continue
            found = fast(x)
            assert found.shape == expected.shape and found.dtype == torch.float32
            assert relative(found, expected) < bound
        found = Int8WeightLinear(layer.weight, layer.bias)(x)
    assert found.shape == expected.shape and found.dtype == torch.float32 and relative(found, expected) < 2e-2


fbgemm = pytest.mark.skipif(not lowbit.has_fbgemm(), reason="this torch has no fbgemm")


@fbgemm
def test_int8_products_by_hand():
    """Integers in, integers out: the grid of 255 steps has a place for each input."""
    torch.manual_seed(0)
    largest = 63 if lowbit.overflows() else 127
    weight = torch.randint(-largest, largest + 1, (96, 64)).float()
    weight[:, 0] = largest  # each scale is 1
    fast = Int8Linear(weight, None)
    x = torch.randint(-9, 247, (5, 64)).float()
    x[:, 0], x[:, 1] = -9, 246
    with torch.no_grad():
        assert relative(fast(x), x @ weight.T) < 1e-5


@fbgemm
def test_an_int8_answer_depends_on_its_own_row_alone():
    torch.manual_seed(0)
    fast = Int8Linear(torch.randn(96, 64), torch.randn(96))
    x = torch.randn(7, 64) * torch.tensor([1e-3, 1.0, 50.0, 1.0, 1e4, 0.0, 1.0])[:, None] + 3
    with torch.no_grad():
        together = fast(x)
        alone = torch.cat([fast(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert together[5].isfinite().all()  # a row of one number has no range


@fbgemm
def test_sums_of_largest_products_do_not_overflow():
    fast = Int8Linear(torch.full((32, 256), 0.3), None)
    x = torch.ones(2, 256)
    x[:, ::2] = -1
    x[1] = 1
    with torch.no_grad():
        found = fast(x)
    assert found[0].abs().max() < 1 and torch.allclose(found[1], torch.tensor(0.3 * 256), rtol=1e-2)


@fbgemm
def test_weights_in_16_bits_are_bf16s():
    torch.manual_seed(0)
    weight = torch.randn(96, 64)
    x = torch.randn(3, 64)
    with torch.no_grad():
        found = HalfLinear(weight, None)(x)
    torch.testing.assert_close(found, x @ weight.bfloat16().float().T, rtol=1e-5, atol=1e-5)


def test_where_bf16_products_are_emulated_none_is_computed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("etude.cpu.computes_bf16", lambda: False)
    weight, x = torch.randn(8, 16), torch.randn(9, 16)
    for has_fbgemm in (True, False):
        if has_fbgemm and not lowbit.has_fbgemm():
            continue
        monkeypatch.setattr(lowbit, "has_fbgemm", lambda there=has_fbgemm: there)
        for dtype in (torch.bfloat16, torch.int8):
            fast = lowbit.fast_layer(weight, None, dtype)
            assert fast is None or getattr(fast, "dtype", None) != torch.bfloat16
            with torch.no_grad():
                assert fast is None or relative(fast(x), x @ weight.T) < 3e-2
    assert set(lowbit.kernels()) == {"fp32", "bf16", "int8"}


def test_both_int8_products_give_what_the_stored_numbers_give():
    """One row, a few and many; whole numbers in, so that rounding the inputs to bf16 changes nothing."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 96)
    fast = Int8WeightLinear(layer.weight, layer.bias)
    x = torch.randint(-4, 5, (40, 64)).float()
    expected = (x @ fast.weight.float().T) * fast.scale + layer.bias.detach()
    with torch.no_grad():
        for rows in (1, 2, FEW, FEW + 1, 40):
            assert relative(fast(x[:rows]), expected[:rows]) < 4e-3  # each answer has passed through bf16


@pytest.mark.parametrize("width", [5, 24, 50, 100])
@pytest.mark.parametrize("rows", [1, 4, 9])
def test_int8_weights_of_any_width(width: int, rows: int):
    """torch's product reads past the end of rows of some widths."""
    torch.manual_seed(0)
    layer, x = nn.Linear(width, 16), torch.randn(width, rows).t()
    with torch.no_grad():
        assert relative(Int8WeightLinear(layer.weight, layer.bias)(x), layer(x)) < 2e-2


def test_layers_of_other_classes_and_shared_ones():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    shared = nn.Linear(8, 8)
    none = nn.Linear(8, 2)
    none.weight, none.bias = nn.Parameter(torch.empty(0, 8)), nn.Parameter(torch.empty(0))
    model = nn.Sequential(Doubled(8, 8), shared, nn.ReLU(), shared, none).eval()
    fast: Any = fast_linears(model)
    assert type(fast[0]) is Doubled and fast[1] is fast[3]
    x = torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast[:4](x), model[:4](x))
        assert fast(x).shape == (3, 0)
    assert isinstance(fast_linears(nn.Sequential(nn.ReLU())), nn.Sequential)


def test_rows_as_int8_by_hand():
    weight = torch.tensor([[1.0, -0.5, 0.2], [0.0, 0.0, 0.0], [-2540.0, 20.0, 9.0]])
    stored, scale = quantize_rows(weight)
    assert stored.tolist() == [[127, -64, 25], [0, 0, 0], [-127, 1, 0]]
    assert scale.tolist() == pytest.approx([1 / 127, 0.0, 20.0], abs=1e-9)
    back = stored * scale[:, None]
    assert ((back - weight).abs() <= scale[:, None] / 2 + 1e-6).all()


def test_a_fast_copy_writes_the_same_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = gpt.Config(vocab_size=96, context=48, width=64, depth=2, num_heads=4).build().train()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.randint(0, 96, (2, 9))
    fast = fast_linears(model)
    assert model.training and not fast.training and isinstance(fast, gpt.GPT)
    model.eval()
    assert relative(fast(ids), model(ids).detach()) < 1e-5
    assert torch.equal(fast.generate(ids, 30), model.generate(ids, 30))
    for dtype in (torch.bfloat16, torch.int8):
        low = fast_linears(model, dtype=dtype)
        assert low(ids).dtype == torch.float32 and relative(low(ids), model(ids).detach()) < 0.1
        assert isinstance(low, gpt.GPT) and low.cache(1).keys.dtype == torch.float32
        assert low.generate(ids, 5).shape == (2, 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="float32, bfloat16 or int8, not as float16"):
        fast_linears(nn.Linear(2, 2), dtype=torch.float16)


def test_a_written_text_goes_on_from_its_cache_in_low_bits_too():
    torch.manual_seed(0)
    model = gpt.Config(vocab_size=96, context=48, width=64, depth=2, num_heads=4).build()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    ids = torch.randint(0, 96, (1, 20))
    for dtype in (torch.bfloat16, torch.int8):
        fast: Any = fast_linears(model, dtype=dtype)
        whole, cache = fast(ids), fast.cache(1)
        parts = [fast(part, cache) for part in ids.split([9, 1, 1, 3, 6], 1)]
        assert relative(torch.cat(parts, 1), whole) < (4e-2 if dtype == torch.int8 else 2e-2)


@pytest.mark.parity
def test_real_weights_keep_their_directions():
    """Of MiniLM's matrices, a scale a row keeps more than 0.999 of each output's direction; one for all keeps less."""
    try:
        tensors = read_tensors(fetch.path("minilm") / "model.safetensors")
    except MissingError as error:
        pytest.skip(str(error))
    weights = {n: t for n, t in tensors.items() if n.endswith("weight") and t.ndim == 2 and ".layer." in n}
    assert len(weights) == 36
    torch.manual_seed(0)
    worse = 0
    for weight in weights.values():
        x = torch.randn(64, weight.shape[1])
        stored, scale = quantize_rows(weight)
        expected = x @ weight.T
        by_row = torch.cosine_similarity(x @ (stored * scale[:, None]).T, expected).mean()
        whole = weight.abs().max() / 127
        at_once = torch.cosine_similarity(x @ ((weight / whole).round() * whole).T, expected).mean()
        assert by_row > 0.9995
        worse += int(at_once < by_row)
    assert worse == 36
