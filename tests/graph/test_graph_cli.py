"""The verbs graph and gradcheck as a person uses them, and what is drawn."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from etude.cli import main
from etude.engine.replay import seed_step
from etude.graph import draw, drawing
from etude.graph.subject import Subject, project, subject

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run that the tests share and leave as it is."""
    directory = tmp_path_factory.mktemp("graph") / "run"
    assert main(["train", "mlp.digits", "--steps", "60", "--run", str(directory), "--quiet"]) == 0
    return directory


def says(capsys, arguments, code: int) -> tuple[str, str]:
    """Run; the exit code must be `code`, and an error one line without a traceback."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    out, err = capsys.readouterr()
    if code:
        assert "Traceback" not in err and err.count("\n") <= 1 and len(err) < 500
    return out, err


def of(model: nn.Module, *inputs: Tensor) -> Subject:
    named = {f"x{i}" if i else "x": x for i, x in enumerate(inputs)}
    return Subject("m", "x", model, named, lambda m, i: m(*i.values()), project, "output", lambda: None)


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter(f"{SVG}text")]


def test_draws_a_size(capsys, tmp_path):
    out, _ = says(capsys, ["graph", "resnet18", "--out", tmp_path / "new" / "g.svg"], 0)
    assert "11,689,512" in out and f"{2 * 1_814_073_344:,}" in out
    drawn = texts((tmp_path / "new" / "g.svg").read_text())
    assert "conv1Conv2d" in drawn and "1×64×112×112" in drawn and "9.41k params · 236 MFLOPs" in drawn
    assert not any("bn2" in text for text in drawn)


def test_unfolds_by_depth_by_name_and_by_class(capsys, tmp_path):
    def boxes(*flags) -> int:
        svg = tmp_path / "g.svg"
        says(capsys, ["graph", "resnet18", "--out", svg, *flags], 0)
        return len([e for e in ET.parse(svg).iter(f"{SVG}g") if "box" in (e.get("class") or "").split()])

    # input, conv, bn, relu, pool, 4 stages, mean, dropout of p = 0 (nothing in eval mode), fc, output
    assert boxes() == boxes("--depth", 1) == 12
    assert boxes("--depth", 2) == 16
    assert boxes("--unfold", "layer1") == 13
    assert boxes("--unfold", "layer1.0") == 13 - 1 + 7
    assert boxes("--unfold", "BasicBlock") == boxes("--depth", 3) == 16 - 8 + 5 * 7 + 3 * 8
    assert boxes("--depth", 99) == boxes("--depth", 4) == boxes("--depth", 3) + 3


def test_a_run_is_drawn_with_its_loss_and_real_gradients(capsys, run, tmp_path):
    import etude

    out, _ = says(capsys, ["graph", run, "--backward", "--json", "--out", tmp_path / "g.svg"], 0)
    document = json.loads(out)
    assert document["what"] == "mlp.digits" and document["out"] == str(tmp_path / "g.svg")
    loss = next(node for node in document["nodes"] if node["kind"] == "output")
    into = {edge["to"]: edge for edge in document["edges"]}
    assert loss["name"].startswith("loss ") and into[loss["id"]]["gradient"] == pytest.approx(1)

    opened = etude.open(run)
    recipe, dataset = opened.recipe, opened.recipe.data.open()
    batch = dataset.batch(seed=recipe.seed, step=recipe.steps, batch_size=min(recipe.batch_size, 32))
    model = opened.model("cpu").train()
    seed_step(recipe.seed, recipe.steps, 0, 1, torch.device("cpu"))  # the dropout masks of that step
    value, _ = recipe.task.loss(model, dataset.finish(batch, seed=recipe.seed))
    value.backward()
    assert document["scalar"] == pytest.approx(value.item(), rel=1e-5)
    head = next(node for node in document["nodes"] if node["path"] == "head")
    norms = [p.grad.double().norm() ** 2 for p in model.get_submodule("head").parameters() if p.grad is not None]
    assert head["gradient"] == pytest.approx(float(sum(norms)) ** 0.5, rel=1e-4)
    assert "gradient norm" in texts((tmp_path / "g.svg").read_text())


def test_drawing_leaves_the_data_as_it_is(capsys, tmp_path):
    """A graph's tensors are kept from batch to batch; those that gradients go to are others."""
    import etude

    run = tmp_path / "run"
    says(capsys, ["train", "gcn.karate", "--steps", "3", "--run", run, "--quiet"], 0)
    for _ in range(2):
        says(capsys, ["graph", run, "--backward", "--out", tmp_path / "g.svg"], 0)
    dataset = etude.open(run).recipe.data.open()
    batch = dataset.finish(dataset.batch(seed=0, step=0, batch_size=1))
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in batch.values())


def test_a_directory_named_like_a_system(capsys, run, tmp_path, monkeypatch):
    """It is a run where it holds one; a study's is asked for one of its runs."""
    monkeypatch.chdir(tmp_path)
    Path("mlp").mkdir()
    assert subject("mlp").title == "mlp"
    _, err = says(capsys, ["graph", "./mlp"], 3)
    assert "mlp is not a run directory" in err
    Path("mlp/study.json").write_text("{}")
    _, err = says(capsys, ["graph", "mlp"], 2)
    assert "mlp is a study" in err
    shutil.copytree(run, "resnet18")
    assert subject("resnet18").title == "mlp.digits"


def test_json_has_null_for_what_is_not_finite():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt() / 0

    document = drawing.draw(of(Root(), torch.zeros(2, 2)), backward=True).json()
    json.dumps(document, allow_nan=False)
    assert document["scalar"] is None and all(edge["gradient"] is None for edge in document["edges"][:1])


def test_json_edges_join_what_is_seen(capsys):
    for flags in ([], ["--depth", "2"], ["--depth", "9"], ["--unfold", "layer1.1", "layer3"]):
        out, _ = says(capsys, ["graph", "resnet18", "--json", *flags], 0)
        document = json.loads(out)
        assert document["out"] is None and document["parameters"] == 11_689_512
        kinds = {node["id"]: node["kind"] for node in document["nodes"]}
        into, onwards = defaultdict(int), defaultdict(int)
        for edge in document["edges"]:
            onwards[edge["from"]] += 1
            into[edge["to"]] += 1
        assert all(bool(into[i]) == (kind != "input") for i, kind in kinds.items())
        assert all(bool(onwards[i]) == (kind != "output") for i, kind in kinds.items())
        assert sum(node["flops"] for node in document["nodes"]) == document["flops"]
        assert sum(node["parameters"] for node in document["nodes"]) == document["parameters"]


def test_the_page_holds_everything_and_asks_for_nothing(capsys, tmp_path):
    says(capsys, ["graph", "resnet50", "--out", tmp_path / "g.html"], 0)
    page = (tmp_path / "g.html").read_text()
    assert "default-src 'none'" in page and "<svg" in page
    assert set(re.findall(r"https?://[^\s\"'<)`]+", page)) == {"http://www.w3.org/2000/svg"}
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert "layer4.2.conv3" in json.dumps(data["sheet"])


def test_names_cannot_break_out_of_the_drawing():
    model = nn.Sequential()
    model.add_module("</script><script>alert(1)</script>", nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    drawn = drawing.draw(of(model, torch.randn(1, 2)))
    assert "<script>alert" not in drawn.svg() and "<script>alert" not in drawn.page()
    assert any("alert(1)" in text for text in texts(drawn.svg()))


@pytest.mark.parametrize("backward", [False, True])
def test_transformers_are_drawn_at_every_depth(backward):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    for depth in (1, 2, 3):
        drawn = drawing.draw(of(nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 16)), backward=backward, depth=depth)
        said = texts(drawn.svg())
        assert any("scaled_dot_product_attention" in text for text in said) == (depth == 3)
        assert ("gradient norm" in said) == backward


def test_boxes_and_labels_do_not_overlap():
    """All rectangles of boxes and all labels of an unfolded network, by their own coordinates."""
    layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.TransformerDecoder(layer, 2)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return self.decoder(x, memory)

    drawn = drawing.draw(of(Model(), torch.randn(1, 4, 16), torch.randn(1, 3, 16)), backward=True, depth=9)
    places = []
    for element in ET.fromstring(drawn.svg()).iter():
        number = lambda key, element=element: float(element.get(key) or 0)  # noqa: E731
        if element.tag == f"{SVG}g" and (element.get("class") or "").startswith("box"):
            rect = next(r for r in element.iter(f"{SVG}rect") if r.get("class") is None)
            x, y, w, h = (float(rect.get(key) or 0) for key in ("x", "y", "width", "height"))
            places.append((x, y, x + w, y + h))
        elif element.tag == f"{SVG}text" and element.get("class") == "label":
            half = draw.width(element.text or "", 11) / 2
            places.append((number("x") - half, number("y") - 9, number("x") + half, number("y") + 2))
    assert len(places) > 100
    places.sort(key=lambda p: p[1])
    for i, (left, _, right, bottom) in enumerate(places):
        for other in places[i + 1 :]:
            if other[1] >= bottom:
                break
            assert other[0] >= right or other[2] <= left, (places[i], other)


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (999, "999"), (9408, "9.41k"), (999_600, "1M"), (25_557_032, "25.6M"), (4.1e9, "4.1G")],
)
def test_amounts(number, said):
    assert draw.amount(number) == said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["graph", "resnet81"], "did you mean resnet18?"),
        (["graph", "runs/nothing"], "there is no run directory runs/nothing"),
        (["graph", "mlp", "--out", "g.png"], "ends neither in .svg nor in .html"),
        (["graph", "mlp", "--out", "/proc/none/g.svg"], "cannot write /proc/none/g.svg"),
        (["graph", "resnet18", "--unfold", "layer9"], "did you mean layer"),
        (["graph", "mlp", "--unfold", "x"], "there is no module 'x' to unfold"),
        (["graph", "mlp", "--depth", "0"], "must be at least 1"),
        (["graph", "mlp", "--depth", "2", "--unfold", "hidden"], "not allowed with"),
        (["graph"], "RUN_OR_SYSTEM"),
        (["gradcheck", "mpl"], "did you mean mlp?"),
        (["gradcheck"], "SYSTEM_OR_RUN"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    _, err = says(capsys, arguments, 3 if "runs/nothing" in arguments else 2)
    assert words in err and err.startswith("etude: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["graph", "gradcheck"])
def test_a_run_without_weights(capsys, run, tmp_path, verb):
    empty = tmp_path / "young"
    empty.mkdir()
    for name in ("recipe.json", "env.json"):
        (empty / name).write_bytes((run / name).read_bytes())
    _, err = says(capsys, [verb, empty], 3)
    assert "holds no weights yet" in err


def test_gradcheck_prints_its_table(capsys, run):
    out, _ = says(capsys, ["gradcheck", run], 0)
    assert re.search(r"^head +Linear .* ok$", out, re.M) and "all 4 agree" in out
    out, _ = says(capsys, ["gradcheck", "mlp", "--json"], 0)
    document = json.loads(out)
    assert document["ok"] and [row["layer"] for row in document["layers"]] == [
        "input x",
        "hidden.0",
        "hidden.1",
        "head",
    ]
    assert all(row["error"] < 1e-5 for row in document["layers"]) and document["culprits"] == []


def test_gradcheck_fails_with_a_wrong_backward(capsys, monkeypatch):
    from etude.basics import mlp

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sin()

        @staticmethod
        def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
            return grad / 2

    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Half.apply(x)  # pyright: ignore[reportReturnType]

    monkeypatch.setitem(mlp.ACTIVATIONS, "relu", Sine)
    out, _ = says(capsys, ["gradcheck", "mlp"], 1)
    assert "3 of 4 FAILED; the backward pass of activations.0 (Sine), activations.1 (Sine) is wrong" in out
    out, _ = says(capsys, ["gradcheck", "mlp", "--json"], 1)
    assert [row["layer"] for row in json.loads(out)["culprits"]] == ["activations.0", "activations.1"]
