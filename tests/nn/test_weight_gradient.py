"""The gradients of convolutions on channels-last pictures equal torch's own."""

import pytest
import torch
from torch import nn

from etude.nn import weight_gradient
from etude.nn.inference import prepare_for_inference

CASES = [  # channels in, channels out, kernel, padding, dilation, pixels
    (64, 64, 3, 1, 1, 64),  # copied: large pictures
    (128, 130, 3, 1, 1, 5),  # copied: many channels
    (24, 8, 3, 1, 1, 9),  # exchanged
    (24, 8, 5, 2, 1, 9),  # exchanged
    (24, 8, 3, 0, 1, 9),  # the output is smaller: as it is
    (24, 8, 3, 2, 2, 9),  # dilated: as it is
    (8, 24, 3, 1, 1, 9),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_equal_torchs(case: tuple[int, ...], bias: bool):
    inputs, outputs, kernel, padding, dilation, pixels = case
    torch.manual_seed(0)
    plain = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=bias).double()
    plain.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    fast = nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=bias).double())
    fast.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    fast[0].load_state_dict(plain.state_dict())
    weight_gradient.speed_up(fast)
    assert type(fast[0]) is weight_gradient.Conv2d
    x = torch.randn(2, inputs, pixels, pixels + 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = fast(ours), plain(theirs)
    torch.testing.assert_close(y, z)
    upstream = torch.randn(2, 2 * outputs, *y.shape[2:], dtype=torch.float64)[:, :outputs]  # as a concatenation's share
    y.backward(upstream)
    z.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)
    for mine, other in zip(fast.parameters(), plain.parameters()):
        torch.testing.assert_close(mine.grad, other.grad)


def test_only_what_gains_is_changed():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv1d(8, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1),
    )
    before = model.state_dict()
    weight_gradient.speed_up(model)
    assert [type(module) is weight_gradient.Conv2d for module in model] == [False] * 6 + [True]
    assert model.state_dict().keys() == before.keys()


def test_a_model_in_training_is_prepared_as_another():
    """What is measured while a run trains is what `etude eval` measures afterwards."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU()).eval()
    kinds = [type(module) for module in prepare_for_inference(model).modules()]
    weight_gradient.speed_up(model)
    assert [type(module) for module in prepare_for_inference(model).modules()] == kinds
    assert type(model[0]) is weight_gradient.Conv2d


def test_autocast_is_torchs_own():
    conv = nn.Sequential(nn.Conv2d(16, 4, 3))
    weight_gradient.speed_up(conv)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(torch.randn(1, 16, 5, 5))
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and conv[0].weight.grad is not None


def test_frozen_parameters_and_inputs_get_no_gradient():
    conv = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1))
    weight_gradient.speed_up(conv)
    x = torch.randn(1, 8, 6, 6)
    conv(x).sum().backward()
    assert x.grad is None and conv[0].weight.grad is not None
    conv.zero_grad()
    conv[0].weight.requires_grad_(False)
    conv(x.requires_grad_()).sum().backward()
    assert x.grad is not None and conv[0].weight.grad is None
    with torch.no_grad():
        assert conv(x).grad_fn is None


def test_whether_it_pays_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    seconds = {"direct": 2.0, "copied": 1.0}
    monkeypatch.setattr("etude.cpu.kept", lambda what, names, measure: seconds)
    assert weight_gradient.pays()
    seconds["copied"] = 1.9
    assert not weight_gradient.pays()
