"""Distillation: the loss by hand, a student of a real teacher, and teachers that do not fit."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from etude import cli
from etude.compress import distill as module
from etude.compress.distill import Distill, distill, soft_loss
from etude.engine import checkpoint, fit
from etude.engine.recipe import Recipe
from etude.engine.run import Run
from etude.errors import RefusedError, UsageError
from etude.recipes import find_recipe, find_study


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A perceptron of the digits, trained for a moment."""
    place = tmp_path_factory.mktemp("teacher") / "run"
    fit.train(find_recipe("mlp.digits").with_(steps=200), run=place, quiet=True)
    return place


def test_the_loss_by_hand(monkeypatch):
    """alpha CE(y, s) + (1 - alpha) T^2 sum_k p_k log(p_k / q_k), p and q the softmax at temperature T."""
    student, taught, label, T, alpha = [0.5, -1.0, 2.0], [1.0, 0.0, 3.0], 1, 3.0, 0.3

    def softmax(z, t):
        e = [math.exp(x / t) for x in z]
        return [x / sum(e) for x in e]

    p, q = softmax(taught, T), softmax(student, T)
    soft = T**2 * sum(a * math.log(a / b) for a, b in zip(p, q))
    hard = -math.log(softmax(student, 1)[label])
    z_s, z_t = (torch.tensor([z], dtype=torch.float64) for z in (student, taught))
    assert soft_loss(z_s, z_t, T).item() == pytest.approx(soft, rel=1e-12)

    monkeypatch.setattr(module, "_network", lambda *_: lambda image: z_t)
    batch = {"image": z_s, "label": torch.tensor([label])}
    loss, said = Distill(alpha=alpha, temperature=T).loss(nn.Identity(), batch)
    assert loss.item() == pytest.approx(alpha * hard + (1 - alpha) * soft, rel=1e-6)
    assert {"hard_loss", "soft_loss", "accuracy"} <= said.keys()


def test_the_gradient_keeps_its_size_at_high_temperature():
    """Section 2.1: for T large and logits of mean zero, T^2 KL has the gradient (z_s - z_t) / K, and no T in it."""
    student = torch.tensor([[1.0, -2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    taught = torch.tensor([[2.0, 1.0, -3.0]], dtype=torch.float64)
    soft_loss(student, taught, 1e4).backward()
    torch.testing.assert_close(student.grad, (student.detach() - taught) / 3, rtol=1e-3, atol=1e-3)


def test_a_student_learns_from_the_teacher_alone(teacher, tmp_path):
    """With alpha 0 no label is seen, and the student still comes to answer as the teacher does."""
    recipe = distill(find_recipe("mlp.digits"), teacher).with_(
        steps=300, **{"task.alpha": 0.0, "model.hidden": (32,), "model.dropout": 0.0}
    )
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    run = fit.train(recipe, run=tmp_path / "student", quiet=True)
    assert run.result["eval"]["accuracy"] > 0.93
    pictures = torch.stack([raw for _, raw in recipe.data.open().samples("test", 100)])
    answers = [[a.label for a in r.predict(*pictures)] for r in (run, Run(teacher))]
    assert sum(a == b for a, b in zip(*answers)) >= 93
    assert "soft_loss" in run.metrics[0] and run.evaluate() == run.result["eval"]


def test_an_alpha_of_one_is_plain_training(teacher, tmp_path):
    plain = find_recipe("mlp.digits").with_(steps=20)
    runs = [
        fit.train(recipe, run=tmp_path / str(i), quiet=True)
        for i, recipe in enumerate((plain, distill(plain, teacher).with_(**{"task.alpha": 1.0})))
    ]
    assert runs[0].result["weights_sha256"] == runs[1].result["weights_sha256"]


def test_what_does_not_fit_is_refused(teacher, tmp_path):
    with pytest.raises(UsageError, match=r"trained with data\.mean"):
        distill(find_recipe("mlp.fashion"), teacher)
    with pytest.raises(UsageError, match="does not classify"):
        distill(distill(find_recipe("mlp.digits"), teacher), teacher)
    with pytest.raises(UsageError, match=r"task\.alpha"):
        Distill(alpha=2)
    regression = fit.train(find_study("mlp.function").base.with_(steps=2), run=tmp_path / "line", quiet=True)
    with pytest.raises(UsageError, match="is no classifier"):
        distill(find_recipe("mlp.digits"), regression.path)


def test_another_teacher_is_noticed(teacher, tmp_path):
    """Its weights themselves are looked at, not what its result says of them."""
    moved = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    recipe = distill(find_recipe("mlp.digits"), moved)
    fit.dry_run(recipe)
    weights = {name: torch.zeros_like(value) for name, value in Run(moved).model().state_dict().items()}
    checkpoint.save_weights(moved / "weights.safetensors", weights)
    module._network.cache_clear()  # as in a new process
    with pytest.raises(RefusedError, match="has changed"):
        fit.dry_run(recipe)


def test_the_command_line(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "30", "--quiet", "--json", "--task.temperature", "2"]
    assert cli.main(["train", "mlp.digits", "--teacher", str(teacher), *flags]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "soft_loss" in said["train"]
    assert Run(said["run"]).recipe.task == Distill(
        0.05, str(teacher), json.loads((teacher / "result.json").read_text())["weights_sha256"], 0.5, 2.0
    )
    assert cli.main(["train", "mlp.digits", "--teacher", "runs/none"]) == 3
    assert cli.main(["train", "mlp.function", "--teacher", str(teacher)]) == 2
    assert "does not classify" in capsys.readouterr().err
