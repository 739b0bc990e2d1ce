"""Models made faster answer the same."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from etude import catalog
from etude.engine.parallel import SyncBatchNorm
from etude.nn.exact import ExactConv2d
from etude.nn.inference import BATCH_NORMS, FusedConv2d, conv_bn_pairs, has_fused, prepare_for_inference
from etude.vision import mobilenet, resnet

CONFIGS = {
    "resnet": resnet.Config(depths=(1, 2), width=8, stem="cifar"),
    "bottleneck": resnet.Config(depths=(2, 1), width=8, bottleneck=True),
    "mobilenet_v1": mobilenet.ConfigV1(width_multiplier=0.25),
    "mobilenet_v2": mobilenet.ConfigV2(width_multiplier=0.25),
}


def randomise(model: nn.Module) -> nn.Module:
    """As if trained: statistics and scales that folding must get right."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BATCH_NORMS) and layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.normal_(std=0.2, generator=generator)
                layer.running_var.uniform_(0.5, 1.5, generator=generator)
                layer.weight.uniform_(0.5, 1.5, generator=generator)
                layer.bias.normal_(generator=generator)
    return model


def batch_norms(model: nn.Module) -> int:
    return sum(isinstance(layer, BATCH_NORMS) for layer in model.modules())


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_folded_equals(name, channels_last):
    """Every BatchNorm of these networks follows a convolution: none is left, and the answers agree to 1e-5."""
    torch.manual_seed(0)
    model = randomise(CONFIGS[name].build())
    before = copy.deepcopy(model.state_dict())
    fast = prepare_for_inference(model, channels_last=channels_last)
    assert batch_norms(model) > 5 and batch_norms(fast) == 0
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert model.training and not fast.training
        assert relative_error(fast(x), model.eval()(x)) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_bf16_answers_in_float32():
    torch.manual_seed(0)
    model = randomise(CONFIGS["resnet"].build()).eval()
    fast = prepare_for_inference(model, dtype=torch.bfloat16, channels_last=True)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert fast(x).dtype == torch.float32
        assert 1e-4 < relative_error(fast(x), model(x)) < 0.05


def test_norms_shared_by_processes_stay_float32():
    """They are classes of their own, whose statistics are buffers."""
    torch.manual_seed(0)
    shared = SyncBatchNorm(4)
    shared.load_state_dict(randomise(nn.BatchNorm2d(4)).state_dict())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    fast, x = prepare_for_inference(model, dtype=torch.bfloat16), torch.randn(2, 3, 8, 8)
    assert fast.get_parameter("1.weight").dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert relative_error(fast(x), model.float()(x).float()) < 0.05


def test_what_reads_and_writes_pictures_stays_float32():
    torch.manual_seed(0)
    model = nn.Sequential(ExactConv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU(), ExactConv2d(8, 3, 3)).eval()
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    fast, x = prepare_for_inference(model, dtype=torch.bfloat16), torch.rand(1, 3, 12, 12)
    assert [p.dtype for p in fast.parameters()][::2] == [torch.float32, torch.bfloat16, torch.float32]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = fast(x)
        assert seen[-1] == (torch.float32, torch.float32) and y.dtype == torch.float32
        assert (y.bfloat16().float() != y).any()  # more levels than 8 bits have
    assert model.double()(x.double()).dtype == torch.float64


class TwoUsers(nn.Module):
    """A convolution whose raw output is also used: folding it would change that use."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class CalledTwice(nn.Module):
    """One convolution, two BatchNorms."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn2(self.conv(self.bn1(self.conv(x))))


class NormFirst(nn.Module):
    """BatchNorm before the convolution, and one without running statistics after it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.batch_statistics = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        return self.batch_statistics(self.conv(self.bn(x)))


class DependsOnValues(nn.Module):
    """Cannot be traced: what it does depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(x)) if x.sum() > 0 else self.bn(x)


@pytest.mark.parametrize("kind", [TwoUsers, CalledTwice, NormFirst, DependsOnValues])
def test_left_alone_where_folding_would_be_wrong(kind):
    torch.manual_seed(0)
    model = randomise(kind()).eval()
    fast = prepare_for_inference(model)
    assert conv_bn_pairs(model) == [] and batch_norms(fast) == batch_norms(model)
    with torch.no_grad():
        for x in (torch.rand(2, 3, 4, 4), -torch.rand(2, 3, 4, 4)):
            torch.testing.assert_close(fast(x), model(x), rtol=0, atol=0)


def test_convolution_with_bias_and_norm_without_scale():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, affine=False), nn.Conv1d(4, 2, 1), nn.BatchNorm1d(2))
    for layer in (model[1], model[3]):
        assert isinstance(layer, nn.BatchNorm1d) and layer.running_mean is not None
        layer.running_mean.normal_()
    x = torch.randn(2, 3, 9)
    fast = prepare_for_inference(model)
    assert batch_norms(fast) == 0
    assert relative_error(fast(x), model.eval()(x)) < 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own use of it
def test_compiled_has_its_weights_built_in():
    """Frozen: after compilation, changing a weight changes nothing. And the setting does not outlive the call."""
    from torch._inductor import config

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    fast = prepare_for_inference(model, channels_last=True, compile=True)
    x = torch.randn(2, 3, 8, 8)
    first = fast(x)
    assert relative_error(first, model(x)) < 1e-5
    for parameter in fast.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(fast(x), first)
    assert not config.freezing


def test_compiling_falls_back(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler here")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile(function, backend=broken))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    fast = prepare_for_inference(model, compile=True)
    x = torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"not compiled, running without: .*no C\+\+ compiler here"):
        first = fast(x)
    torch.testing.assert_close(first, fast(x))
    torch.testing.assert_close(first, model(x), rtol=1e-5, atol=1e-5)


fused = pytest.mark.skipif(not has_fused(torch.float32), reason="this torch has no fused convolutions")


@fused
@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.2), nn.SiLU()])
def test_activations_are_fused(activation: nn.Module):
    torch.manual_seed(0)
    convs = [nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)]
    model = nn.Sequential(convs[0], nn.BatchNorm2d(8), activation, convs[1], activation, nn.Conv2d(8, 4, 1)).eval()
    fast: Any = prepare_for_inference(model, channels_last=True)
    assert [type(module) for module in fast] == [
        FusedConv2d, nn.Identity, nn.Identity, FusedConv2d, nn.Identity, nn.Conv2d
    ]  # fmt: skip
    for shape in ((2, 6, 9, 7), (1, 6, 20, 20), (2, 6, 9, 7)):  # the weights' order follows the inputs' shape
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.SiLU(), nn.Hardtanh()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_not_hidden(activation: nn.Module, dtype: torch.dtype):
    """oneDNN's own ReLU makes it 0."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3), activation).eval()
    nn.init.constant_(model[0].get_parameter("weight"), torch.nan)
    with torch.no_grad():
        assert prepare_for_inference(model, dtype=dtype, channels_last=True)(torch.ones(1, 4, 5, 5)).isnan().all()


def test_a_picture_without_a_batch():
    model, x = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU()).eval(), torch.randn(4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(prepare_for_inference(model)(x), model(x))


@fused
def test_what_is_hooked_is_not_fused():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU()).eval()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(True))
    prepare_for_inference(model)(torch.ones(1, 4, 5, 5))
    assert seen


@fused
def test_an_activation_with_another_use_stays():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.SiLU()
            self.act = nn.LeakyReLU(0.1)

        def forward(self, x):
            y = self.act(self.conv(x))
            z = self.other(y)  # goes to two places
            return self.act(x + y) + self.last(z) + z

    model = Residual().eval()
    fast: Any = prepare_for_inference(model)
    assert type(fast.conv) is nn.Conv2d and type(fast.other) is nn.Conv2d
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


@fused
@pytest.mark.parametrize(("size", "most"), [("yolov5n", 3), ("rrdbnet_x4", 72)])
def test_how_many_convolutions_of_real_networks_stay(size: str, most: int):
    """Those without an activation, or of a subclass; of the residual blocks' last ones."""
    model: Any = prepare_for_inference(catalog.model(size))
    kinds = [type(module) for module in model.modules()]
    assert FusedConv2d in kinds and kinds.count(nn.Conv2d) <= most
