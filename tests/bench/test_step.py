"""What the rows' shares of the peak rest on: operations counted, and formats that this CPU has."""

import pytest
import torch
from torch import nn

from etude import cpu
from etude.bench import Contest, Skipped, step


def test_operations_of_layers_forward_and_backward():
    x, picture = torch.randn(5, 8), torch.randn(2, 6, 10, 10, requires_grad=True)
    linear, depthwise = nn.Linear(8, 3), nn.Conv2d(6, 6, 3, groups=6, bias=False)
    product, convolution = 2 * 5 * 8 * 3, 2 * 2 * 6 * 9 * 8 * 8
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert step.operations_of(lambda: linear(x))() == product
            assert step.operations_of(lambda: depthwise(picture))() == convolution
    # the input has no gradient: one product more. The picture has one: the convolution's gradients take two
    assert step.operations_of(lambda: linear(x).sum().backward())() == 2 * product
    assert step.operations_of(lambda: depthwise(picture).sum().backward())() == 3 * convolution


def test_operations_of_attention_and_lstm_backward():
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    attention = 2 * 2 * (2 * 4 * 4 * 8)
    counted = step.operations_of(lambda: nn.functional.scaled_dot_product_attention(q, q, q).sum().backward())
    assert counted() == attention + 2.5 * attention  # backward computes the scores again
    lstm, x = nn.LSTM(3, 5), torch.randn(4, 2, 3, requires_grad=True)
    each = 2 * 4 * 2 * (4 * 5 * 3 + 4 * 5 * 5)
    assert step.operations_of(lambda: lstm(x)[0].sum().backward())() == 3 * each


def test_contests_in_bf16_say_where_there_is_none(monkeypatch):
    contest = Contest("a", "A", 1, "runs/s", lambda: 1.0, None, "usual", None, None)
    monkeypatch.setattr(step, "computes_bf16", lambda device: True)
    assert step.where_bf16("a", "A", lambda: contest) is contest
    monkeypatch.setattr(step, "computes_bf16", lambda device: False)
    monkeypatch.setattr(step, "pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(cpu, "slowdown", lambda precision: 83.21)
    said = "not on this CPU: bf16 products take 83.2 times as long as fp32's"
    assert step.where_bf16("a", "A", lambda: pytest.fail("made")) == Skipped("a", "A", said)
