"""Optimisers, schedules and averages against their formulas, computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from etude.engine.optim import EMA, Optim, Schedule
from etude.errors import UsageError


def walk(optim: Optim, gradients: list[list[float]], start: list[float], shape=(1, 2)) -> list[float]:
    """The weights after steps with given gradients."""
    w = nn.Parameter(torch.tensor(start, dtype=torch.float64).view(shape))
    optimizer = optim.build([w])
    for gradient in gradients:
        w.grad = torch.tensor(gradient, dtype=torch.float64).view(shape)
        optimizer.step()
    return w.detach().flatten().tolist()


GRADIENTS = [[0.5, -1.0], [0.25, 2.0], [-1.0, 0.5]]
START = [1.0, -2.0]


def close(found, expected):
    assert found == pytest.approx(expected, rel=1e-12)


def test_sgd():
    expected = [w - 0.1 * sum(g[i] for g in GRADIENTS) for i, w in enumerate(START)]
    close(walk(Optim("sgd", lr=0.1, momentum=0.0), GRADIENTS, START), expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_with_weight_decay(nesterov):
    """v = m v + (g + wd w); w = w - lr v, or w - lr (g + m v) for Nesterov: torch's form."""
    expected = []
    for i, w in enumerate(START):
        v = 0.0
        for gradient in GRADIENTS:
            g = gradient[i] + 0.01 * w
            v = 0.9 * v + g
            w -= 0.1 * (g + 0.9 * v if nesterov else v)
        expected.append(w)
    close(walk(Optim("sgd", lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01), GRADIENTS, START), expected)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam(name):
    """arXiv 1412.6980, Algorithm 1, with bias correction; adamw decays the weight and not the gradient."""
    lr, (b1, b2), eps, wd = 0.01, (0.9, 0.99), 1e-8, 0.1
    expected = []
    for i, w in enumerate(START):
        m = v = 0.0
        for t, gradient in enumerate(GRADIENTS, 1):
            g = gradient[i]
            if name == "adamw":
                w *= 1 - lr * wd
            else:
                g += wd * w
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            w -= lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
        expected.append(w)
    close(walk(Optim(name, lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd), GRADIENTS, START), expected)


def test_rmsprop():
    """s = 0.99 s + 0.01 g^2; w = w - lr g / (sqrt(s) + eps), without momentum."""
    expected = []
    for i, w in enumerate(START):
        s = 0.0
        for gradient in GRADIENTS:
            g = gradient[i]
            s = 0.99 * s + 0.01 * g * g
            w -= 0.01 * g / (math.sqrt(s) + 1e-8)
        expected.append(w)
    close(walk(Optim("rmsprop", lr=0.01, momentum=0.0), GRADIENTS, START), expected)


def test_lars():
    """arXiv 1708.03888, Algorithm 1: the local rate is trust |w| / (|g| + wd |w|)."""
    w, v = torch.tensor(START, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for gradient in GRADIENTS:
        g = torch.tensor(gradient, dtype=torch.float64)
        local = 0.02 * w.norm() / (g.norm() + 0.1 * w.norm())
        v = 0.9 * v + 0.5 * local * (g + 0.1 * w)
        w = w - v
    close(walk(Optim("lars", lr=0.5, trust=0.02, weight_decay=0.1), GRADIENTS, START), w.tolist())
    vector = walk(Optim("lars", lr=0.5, momentum=0.9, weight_decay=0.1), GRADIENTS, START, shape=(2,))
    close(vector, walk(Optim("sgd", lr=0.5, momentum=0.9), GRADIENTS, START))


def test_vectors_need_not_decay():
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = Optim("sgd", lr=0.1, momentum=0, weight_decay=0.5, decay_vectors=False).build([weight, bias])
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(weight, torch.full((2, 2), 0.95)) and torch.equal(bias, torch.ones(2))


def test_fused_where_torch_has_it():
    assert Optim("adam").build([nn.Parameter(torch.ones(2))]).defaults["fused"]
    assert Optim("sgd").build([nn.Parameter(torch.ones(2))]).defaults["fused"]


def test_schedules():
    assert Schedule("constant").factor(70, 100) == 1
    cosine = Schedule("cosine", warmup=10, final=0.1)
    assert [cosine.factor(s, 110) for s in (0, 4, 9)] == pytest.approx([1 / 11, 5 / 11, 10 / 11])
    assert cosine.factor(10, 110) == 1
    assert cosine.factor(60, 110) == pytest.approx(0.1 + 0.9 * 0.5)
    assert Schedule("linear").factor(25, 100) == pytest.approx(0.75)
    early = Schedule("cosine", warmup=10, final=0.1, fall=0.8)
    assert early.factor(45, 100) == pytest.approx(0.1 + 0.9 * 0.5)
    assert early.factor(80, 100) == early.factor(99, 100) == pytest.approx(0.1)
    assert Schedule("linear", fall=0.5).factor(75, 100) == 0
    with pytest.raises(UsageError, match=r"schedule.fall is 0"):
        Schedule(fall=0.0)
    step = Schedule("step", milestones=(0.5, 0.75))
    assert [step.factor(s, 100) for s in (49, 50, 75)] == pytest.approx([1, 0.1, 0.01])
    noam = Schedule("noam", warmup=4000, width=512)
    assert noam.factor(3999, 10**5) == pytest.approx(512**-0.5 * 4000**-0.5)
    assert noam.factor(99, 10**5) == pytest.approx(512**-0.5 * 100 * 4000**-1.5)
    assert noam.factor(15999, 10**5) == pytest.approx(512**-0.5 * 16000**-0.5)
    with pytest.raises(UsageError):
        Schedule("noam")


def test_ema_by_hand():
    """The average after k updates is that of min(decay, (1 + t) / (10 + t)); counters are copied."""
    model = nn.BatchNorm1d(1)
    assert model.num_batches_tracked is not None
    ema, expected = EMA(model, 0.5), 1.0
    with torch.no_grad():
        for t in range(1, 8):
            model.weight.fill_(t)
            model.num_batches_tracked.fill_(t)
            ema.update()
            decay = min(0.5, (1 + t) / (10 + t))
            expected = decay * expected + (1 - decay) * t
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert ema.average["num_batches_tracked"].item() == 7
    with ema.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 7


def test_ema_of_shared_weights():
    """Two layers with one weight have one average, which is put in and taken out once."""
    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    ema = EMA(model, 0.9)
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    ema.update()
    live, average = model[0].weight.clone(), ema.average["0.weight"].clone()
    assert set(ema.average) == {"0.weight", "1.weight"} and not torch.equal(live, average)
    with ema.applied():
        assert torch.equal(model[1].weight, average)
    assert torch.equal(model[0].weight, live)
    assert torch.equal(ema.average["1.weight"], average)
