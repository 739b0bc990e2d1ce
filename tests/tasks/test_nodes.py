"""Nodes classified: the loss by hand, measures against scikit-learn, the embedding's plane, answers to names."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torch import nn

from etude import catalog
from etude.data.graphs import Graph
from etude.engine.parallel import World
from etude.engine.trainer import Trainer
from etude.errors import UsageError
from etude.recipes import find_recipe
from etude.tasks.nodes import ClassifyNodes, NodeClass


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return x


class Fixed(nn.Module):
    """Answers its input: the features hold the logits."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([Layer()])

    def forward(self, x, edges):
        return self.convs[-1](x)


NO_EDGES = torch.zeros(2, 0, dtype=torch.int64)


def test_the_loss_is_over_the_targets_by_hand():
    """-log softmax of the true class, a mean over the targets alone, and lambda / 2 |W0|^2."""
    torch.manual_seed(0)
    model: Any = Fixed().double()
    logits, target, label = torch.randn(6, 3).double(), torch.tensor([4, 1]), torch.tensor([2, 0])
    batch = {"x": logits, "edges": NO_EDGES, "target": target, "label": label}
    loss, logs = ClassifyNodes(first_decay=0.3).loss(model, batch)
    entropy = 0.0
    for node, k in zip(target.tolist(), label.tolist()):
        row = logits[node].tolist()
        entropy += (math.log(sum(math.exp(z) for z in row)) - row[k]) / 2
    decay = 0.3 / 2 * sum(w * w for row in model.convs[0].linear.weight.tolist() for w in row)
    assert loss.item() == pytest.approx(entropy + decay, rel=1e-12)
    said: Any = logs["loss"]
    assert said.item() == pytest.approx(entropy, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(model.convs[0].linear.weight.grad, 0.3 * model.convs[0].linear.weight)


def test_measures_equal_scikit_learn():
    torch.manual_seed(1)
    logits, label = torch.randn(50, 3), torch.randint(3, (50,))
    batches = [
        {"x": logits, "edges": NO_EDGES, "target": torch.arange(a, min(a + 20, 50)), "label": label[a : a + 20],
         "index": torch.arange(a, min(a + 20, 50))}
        for a in range(0, 50, 20)
    ]  # fmt: skip
    model = Fixed()
    metrics = ClassifyNodes().evaluate(model, batches)
    measured = {name: metric.value() for name, metric in metrics.items()}
    p = logits.softmax(1).numpy().astype(np.float64)
    p /= p.sum(1, keepdims=True)
    assert measured["accuracy"] == pytest.approx(accuracy_score(label, p.argmax(1)), rel=1e-12)
    assert measured["loss"] == pytest.approx(log_loss(label, p, labels=range(3)), rel=1e-5)
    assert measured["confusion"] == confusion_matrix(label, p.argmax(1), labels=range(3)).tolist()
    assert not model.convs[-1]._forward_pre_hooks
    rows = sorted((float(k), *map(float, row)) for k, row in zip(label, logits))
    np.testing.assert_allclose(measured["hidden"], rows, rtol=1e-6)


def test_figures_show_the_embedding_and_the_matrix():
    data = Graph()
    dataset = data.open()
    model = catalog.model("gcn", in_features=34, num_classes=2).eval()
    with torch.no_grad():
        measured = ClassifyNodes().evaluate(model, [dataset.finish(dataset.fetch("test", range(32)))])
    scatter, matrix = ClassifyNodes().figures(measured, dataset, "test")
    assert scatter["kind"] == "scatter" and set(scatter["series"]) == set(dataset.facts["classes"])
    assert sum(map(len, scatter["series"].values())) == 32
    assert matrix["kind"] == "matrix" and sum(map(sum, matrix["values"])) == 32


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="1 steps, the model 2 layers") as caught:
        ClassifyNodes().check(catalog.model("gcn", in_features=34, num_classes=2), Graph(fanout=(10,)).open())
    assert caught.value.hint == "--data.fanout 10 10"
    dataset = Graph().open()
    for settings, message, hint in (
        ({"in_features": 33, "num_classes": 2}, "does not take nodes of 34 features", "--model.in-features 34"),
        ({"in_features": 34, "num_classes": 3}, "3 outputs, the data 2 classes", "--model.num-classes 2"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            ClassifyNodes().check(catalog.model("gcn", **settings), dataset)
        assert caught.value.hint == hint
    ClassifyNodes().check(catalog.model("gat", in_features=34, num_classes=2), dataset)
    with pytest.raises(UsageError, match="first_decay is -1"):
        ClassifyNodes(first_decay=-1.0)


def test_batches_are_not_cut():
    """Messages pass between all nodes of a batch: accumulation over parts of it is refused, in words."""
    recipe = find_recipe("gcn.karate").with_(accumulate=2)
    with pytest.raises(UsageError, match=r"a batch of gcn\.karate cannot be computed in parts"):
        Trainer(recipe, None, world=World(torch.device("cpu")), quiet=True)


def test_answers_to_names_and_numbers(tmp_path):
    data, task = Graph(), ClassifyNodes()
    facts = data.open().facts
    model = catalog.model("gcn", in_features=34, num_classes=2).eval()
    answers = task.predict(model, ["0", 33], data, facts)
    with torch.no_grad():
        batch = data.open().finish({"target": torch.tensor([0, 33])})
        p = model(batch["x"], batch["edges"])[[0, 33]].softmax(1)
    torch.testing.assert_close(torch.tensor([a.probabilities for a in answers]), p)
    assert answers[1].json()["input"] == "33" and answers[0].row()[0] in facts["classes"]
    with pytest.raises(UsageError, match="numbered 0 to 33"):
        task.predict(model, ["34"], data, facts)
    with pytest.raises(UsageError, match="no node 'mary'"):
        task.predict(model, ["mary"], data, facts)
    answers[0].save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as saved:
        assert len(set(saved.convert("RGB").get_flattened_data())) > 20


def test_a_result_tells_its_classes():
    result = NodeClass([0.2, 0.7, 0.1], ("net", "text", "web"), source="vim")
    assert (result.label, result.confidence) == ("text", 0.7)
    assert result.row() == ["text", "70.0%", "net 20.0%, web 10.0%"]
    assert result.json()["top"][2] == {"label": "web", "probability": 0.1}
