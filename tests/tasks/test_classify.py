"""Classification: the losses by hand, the measures against scikit-learn, the answer to a picture."""

import base64
import io
import math
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from torch import nn

from etude.basics import mlp
from etude.data.images import Images
from etude.engine import fit
from etude.engine.optim import Optim
from etude.engine.recipe import Recipe
from etude.errors import UsageError
from etude.tasks.classify import Classification, Classify


class Fixed(nn.Module):
    """Answers its input: the "image" holds the logits."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


def test_label_smoothing_by_hand():
    """-sum_k q_k log p_k with q = (1 - eps) y + eps / K."""
    logits, labels, eps = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2]), 0.2
    loss, _ = Classify(label_smoothing=eps).loss(Fixed(), {"image": logits, "label": labels})
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist()):
        total = math.log(sum(math.exp(z) for z in row))
        q = [(1 - eps) * (k == label) + eps / 4 for k in range(4)]
        expected += -sum(q_k * (z - total) for q_k, z in zip(q, row)) / 5
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_mixup_loss_by_hand():
    """Linear in the two labels: lambda CE(y_i) + (1 - lambda) CE(y_j)."""
    logits = torch.randn(4, 3, dtype=torch.float64)
    label, partner, mix = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0, 0, 2]), torch.tensor([0.3, 0.3, 0.9, 0.9])
    loss, _ = Classify().loss(Fixed(), {"image": logits, "label": label, "partner": partner, "mix": mix})
    log_p = logits.log_softmax(1)
    m = mix.double()
    expected = -(m * log_p[range(4), label] + (1 - m) * log_p[range(4), partner]).mean()
    torch.testing.assert_close(loss, expected)


def test_measures_equal_scikit_learn():
    torch.manual_seed(1)
    logits, labels = torch.randn(97, 12), torch.randint(12, (97,))
    batches = [
        {"image": logits[a : a + 30], "label": labels[a : a + 30], "index": torch.arange(a, min(a + 30, 97))}
        for a in range(0, 97, 30)
    ]
    measured = {name: metric.value() for name, metric in Classify().evaluate(Fixed(), batches).items()}
    p = logits.softmax(1).numpy().astype(np.float64)
    p /= p.sum(1, keepdims=True)
    assert measured["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(1)), rel=1e-12)
    assert measured["accuracy_top5"] == pytest.approx(top_k_accuracy_score(labels, p, k=5), rel=1e-12)
    assert measured["loss"] == pytest.approx(log_loss(labels, p, labels=range(12)), rel=1e-5)
    assert measured["confusion"] == confusion_matrix(labels, p.argmax(1), labels=range(12)).tolist()
    worst = measured["worst"]
    losses = -np.log(p[range(97), labels])
    wrong = p.argmax(1) != labels.numpy()
    assert worst[0][0] == int(np.where(wrong, losses, -1).argmax())


def test_figures_show_the_matrix_and_the_mistakes():
    data = Images(source="digits", mean=(0.3,), std=(0.4,))
    dataset = data.open()
    batch = dataset.finish(dataset.fetch("test", range(40)))
    wrong = nn.functional.one_hot((batch["label"] + 1) % 10, 10).float()
    measured = Classify().evaluate(Fixed(), [batch | {"image": wrong}])
    matrix, images = Classify().figures(measured, dataset, "test")
    assert (
        matrix["kind"] == "matrix" and sum(map(sum, matrix["values"])) == 40 and matrix["labels"] == list("0123456789")
    )
    assert images["kind"] == "images" and len(images["items"]) == 24
    assert "taken for" in images["items"][0]["caption"]


def test_figures_show_where_a_model_looks():
    """A model that says where its units look has it drawn over the first pictures; any other has no such figure."""

    class Looking(Fixed):
        def sampling_positions(self, images):
            positions = torch.zeros(len(images), 4, 4, 9, 2)
            positions[:, 1, 1], positions[:, 2, 2, :, 0], positions[:, 2, 2, :, 1] = 3.0, 5.0, 9.0
            return positions

    class Silent(Fixed):
        def sampling_positions(self, images):
            return None

    dataset = Images(source="digits", mean=(0.3,), std=(0.4,)).open()
    batches = [dataset.fetch("test", span) for span in (range(8), range(8, 20))]
    batches = [b | {"image": nn.functional.one_hot(b["label"], 10).float()} for b in batches]
    figure = Classify().figures(Classify().evaluate(Looking(), batches), dataset, "test")[-1]
    assert figure["study"] and [item["caption"] for item in figure["items"]] == [f"test sample {i}" for i in range(6)]
    with Image.open(io.BytesIO(base64.b64decode(figure["items"][0]["png"]))) as drawn:
        assert drawn.size == (300, 300)  # 8 pixels of 25 each, and a margin of a quarter to all sides
        blue, orange = (drawn.getpixel((50 + 25 * x + 12, 50 + 25 * y + 12)) for x, y in ((3, 3), (9, 5)))
    assert isinstance(blue, tuple) and isinstance(orange, tuple)
    assert blue[2] > blue[0] + 60 and orange[0] > orange[2] + 60
    for model in (Fixed(), Silent()):
        assert "looked" not in Classify().evaluate(model, batches)


def test_a_result_knows_how_to_show_itself(tmp_path):
    image = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    result = Classification([0.2, 0.7, 0.1], ("cat", "dog", "eel"), image, source="x.png")
    assert (result.label, result.confidence) == ("dog", 0.7)
    assert result.json()["top"][1] == {"label": "cat", "probability": 0.2}
    assert result.row() == ["dog", "70.0%", "cat 20.0%, eel 10.0%"]
    result.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as saved:
        assert saved.width > saved.height > 200
        assert len(set(saved.convert("RGB").get_flattened_data())) > 50


def test_prediction_of_many_is_prediction_of_each():
    data = Images(source="digits", mean=(0.3,), std=(0.4,))
    images = list(data.open().fetch("test", range(70))["image"])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head(x.flatten(1))

    net = Net().eval()
    many = Classify().predict(net, images, data, {"classes": list("0123456789")})
    for one, image in zip(many, images):
        (alone,) = Classify().predict(net, [image], data, {"classes": list("0123456789")})
        assert alone.probabilities == pytest.approx(one.probabilities, rel=1e-5)


def test_smoothing_must_be_a_share():
    with pytest.raises(UsageError):
        Classify(label_smoothing=1.0)


def test_other_folders_are_read_by_the_classes_of_the_run(tmp_path):
    rng = np.random.default_rng(0)
    for where, classes in (("own", "ab"), ("ba", "b"), ("cd", "cd")):
        for part, name in product(("train", "test"), classes):
            (tmp_path / where / part / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(
                    tmp_path / where / part / name / f"{i}.png"
                )
    recipe = Recipe(
        name="small.folder",
        model=mlp.Config(in_features=64, hidden=(4,), num_classes=2),
        data=Images(source="folder", path=str(tmp_path / "own"), size=8),
        task=Classify(),
        optim=Optim("sgd", lr=0.1),
        steps=3,
        batch_size=4,
    )
    run = fit.train(recipe, run=tmp_path / "run", device="cpu", quiet=True)
    measured = run.evaluate(data_path=str(tmp_path / "ba"))["accuracy"]
    answers = [run.predict(path).label for path in sorted((tmp_path / "ba" / "test" / "b").iterdir())]
    assert measured == answers.count("b") / 4  # where b comes first, it is still the run's second
    with pytest.raises(UsageError, match="has the class 'c', which the run has not learned: it knows a, b"):
        run.measure(data_path=str(tmp_path / "cd"))
    with pytest.raises(UsageError, match="does not take pictures") as caught:
        run.measure(changes={"data.size": 7})
    assert caught.value.hint == ""  # a trained network is not to be changed
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UsageError, match=r"is not what .* began with"):
        fit.resume(tmp_path / "run", device="cpu", quiet=True, data_path=str(tmp_path / "cd"))
    (tmp_path / "own").rename(tmp_path / "moved")
    again = fit.resume(tmp_path / "run", device="cpu", quiet=True, data_path=str(tmp_path / "moved"))
    assert again.result["weights_sha256"] == run.result["weights_sha256"]
