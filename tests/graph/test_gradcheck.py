"""What is right passes, kinks are told from errors, and a wrong backward pass is caught and named."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude import catalog
from etude.graph.gradcheck import Outcome, gradcheck
from etude.graph.subject import Subject, project, subject


def check(model: nn.Module, *inputs: Tensor) -> Outcome:
    named = {f"x{i}": x.double() if x.is_floating_point() else x for i, x in enumerate(inputs)}
    return gradcheck(
        Subject(
            "model",
            "inputs",
            model.double().train(),
            named,
            lambda model, inputs: model(*inputs.values()),
            project,
            "output",
            lambda: torch.default_generator.manual_seed(0) and None,
        )
    )


def verdicts(outcome: Outcome) -> dict[str, str]:
    return {row.layer: row.verdict for row in outcome.rows}


class Wrong(torch.autograd.Function):
    """tanh, whose backward is out by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return ctx.factor * grad * (1 - x.tanh() ** 2), None


class WrongTanh(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x, self.factor)  # pyright: ignore[reportReturnType]


class WrongLinear(nn.Linear):
    """Its own weight's gradient is wrong, and nothing else's."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight * 0.9 + self.weight.detach() * 0.1
        return F.linear(input, weight, self.bias)


@pytest.mark.parametrize("factor", [1.001, 0.5, 2.0, -1.0, 0.0])
def test_a_wrong_backward_is_caught_and_named(factor):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 6), WrongTanh(factor), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    outcome = check(layers, torch.randn(4, 5))
    assert verdicts(outcome) == {"input x0": "FAILED", "0": "FAILED", "2": "ok", "4": "ok"}
    assert [(row.layer, row.type) for row in outcome.culprits] == [("1", "WrongTanh")]
    assert "the backward pass of 1 (WrongTanh) is wrong" in outcome.said() and not outcome.ok


def test_a_wrong_gradient_of_one_weight_is_caught_and_named():
    torch.manual_seed(0)
    outcome = check(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), WrongLinear(4, 4)), torch.randn(3, 4))
    assert verdicts(outcome) == {"input x0": "ok", "0": "ok", "2": "FAILED"}
    assert [row.layer for row in outcome.culprits] == ["2"]
    assert outcome.culprits[0].type == "WrongLinear"


def test_a_wrong_backward_among_kinks_is_caught():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), WrongTanh(1.01)]
    outcome = check(nn.Sequential(*body, nn.Flatten(), nn.LazyLinear(4)), torch.randn(8, 3, 12, 12))
    assert [row.layer for row in outcome.culprits] == ["5"]
    assert verdicts(outcome)["7"] == "ok" and verdicts(outcome)["0"] == "FAILED"


def test_a_kink_at_the_point_itself_is_not_an_error():
    class AtZero(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.bias = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.weight * x) + self.bias * x

    found = {row.layer: row for row in check(AtZero(), torch.randn(2, 3)).rows}
    assert found["(model)"].ok
    alone = nn.ParameterList([nn.Parameter(torch.zeros(3, dtype=torch.float64))])

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = alone

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.weights[0] * x).sum() + x.sum()

    assert verdicts(check(Alone(), torch.rand(2, 3)))["weights"] == "kink"


def test_kinks_nearby_are_met_by_a_smaller_step():
    class Bent(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3e-6))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.weight) * x + self.weight

    row = next(row for row in check(Bent(), torch.ones(1)).rows if row.layer == "(model)")
    assert row.verdict == "ok" and row.step < 3e-6


def test_dropout_and_batch_norm_are_one_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
    outcome = check(model, torch.randn(16, 6))
    assert outcome.ok, outcome.rows
    assert verdicts(outcome)["4"] == "ok"  # the bias before BatchNorm has no gradient; with the weight there is one


def test_layers_without_gradient_are_zero():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    assert verdicts(check(Unused(), torch.randn(2, 3)))["unused"] == "zero"


def test_tokens_attention_and_recurrence():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.encoder(self.lstm(self.embedding(tokens))[0])

    torch.manual_seed(0)
    outcome = check(Model(), torch.randint(11, (2, 5)))
    assert outcome.ok and {"embedding", "lstm", "encoder.self_attn", "encoder.norm2"} <= set(verdicts(outcome))


@pytest.mark.parametrize("name", ["mlp", "resnet18"])
def test_the_catalog_passes(name):
    it = subject(name, dtype=torch.float64, small=True)
    if name == "resnet18":  # as deep, and narrow enough for a test
        it.model = catalog.model(name, width=8, num_classes=10).double().train()
    outcome = gradcheck(it)
    assert outcome.ok, [row for row in outcome.rows if not row.ok]
    parameters = sum(p.numel() for p in it.model.parameters())
    assert sum(row.parameters for row in outcome.rows) == parameters
