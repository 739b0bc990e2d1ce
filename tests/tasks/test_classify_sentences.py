"""Classification of sentences: measures by hand, answers, a run from the command line, what does not fit."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import etude
from etude.cli import main
from etude.data import pieces, tokenizers
from etude.data.sentences import SentenceDataset, Sentences
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe, Start
from etude.errors import RefusedError, UsageError
from etude.language import bert
from etude.tasks.sentences import ClassifySentences, embed, fits

WORDS = ("fine", "dull", "film", "the", "a", "is", "was", "quite", "long")
SMALL = {"vocab_size": 14, "width": 32, "depth": 2, "num_heads": 2, "ffn": 64, "positions": 24, "dropout": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("sentences")
    (place / "vocab.txt").write_text("\n".join([*tokenizers.WORDPIECE_SPECIAL, *WORDS]))
    rows = [f"{('bad', 'good')[i % 2]}\tthe {'quite ' * (i % 5)}{('dull', 'fine')[i % 2]} film" for i in range(80)]
    (place / "films.tsv").write_text(
        "\n".join(f"{row} {'long ' * (i // 10)}{'a ' * (i % 10)}" for i, row in enumerate(rows))
    )
    return place


def recipe(folder, **changes) -> Recipe:
    data = Sentences(
        source="films",
        path=str(folder / "films.tsv"),
        vocabulary=str(folder / "vocab.txt"),
        length=20,
        validation=10,
        test=10,
    )
    made = Recipe(
        name="bert.films",
        model=bert.ClassifierConfig(**SMALL),
        data=data,
        task=ClassifySentences(),
        optim=Optim("adamw", lr=3e-3),
        schedule=Schedule("constant"),
        steps=40,
        batch_size=20,
        eval_every=20,
        precision="fp32",
    )
    return made.with_(**changes)


@pytest.fixture(scope="module")
def run(folder):
    return etude.train(recipe(folder), run=folder / "run", quiet=True)


def test_it_learns_and_says_how_well(run, folder):
    assert run.result["eval"]["accuracy"] == 1.0
    assert run.evaluate() == pytest.approx({"accuracy": 1.0, "loss": run.result["eval"]["loss"]}, rel=1e-4)
    page = run.report().read_text(encoding="utf-8")
    assert "Confusion on test" in page and "The sentences of test" in page and "tokenizer" not in run.env["data"]
    assert (run.path / tokenizers.FILE).is_file()


def test_measures_by_hand(folder):
    torch.manual_seed(0)
    dataset = recipe(folder).data.open()
    model = bert.ClassifierConfig(**SMALL).build().eval()
    task = ClassifySentences()
    batches = [dataset.fetch("test", range(6)), dataset.fetch("test", range(6, 10))]
    with torch.no_grad():
        measured = task.evaluate(model, batches)
        whole = dataset.fetch("test", range(10))
        logits = model(whole["ids"], whole["mask"])
    right = logits.argmax(1) == whole["label"]
    assert measured["accuracy"].value() == pytest.approx(right.float().mean().item())
    assert measured["loss"].value() == pytest.approx(F.cross_entropy(logits, whole["label"]).item())
    assert len(measured["worst"].value()) == int((~right).sum())
    assert len(measured["hidden"].value()) == 10 and len(measured["hidden"].value()[0]) == 33
    blocks = task.figures(measured, dataset, "test")
    assert [block["kind"] for block in blocks] == ["matrix", "table", "scatter"]
    assert isinstance(dataset, SentenceDataset) and blocks[1]["rows"][0][0] in dataset.sentences["test"]


def test_label_smoothing(folder):
    dataset = recipe(folder).data.open()
    model = bert.ClassifierConfig(**SMALL).build().eval()
    batch = dataset.fetch("test", range(4))
    loss, _ = ClassifySentences(label_smoothing=0.2).loss(model, batch)
    p = model(batch["ids"], batch["mask"]).log_softmax(1)
    own = p.gather(1, batch["label"][:, None])[:, 0]
    assert loss.item() == pytest.approx(-(0.8 * own + 0.1 * p.sum(1)).mean().item(), rel=1e-5)
    with pytest.raises(UsageError):
        ClassifySentences(label_smoothing=1.0)


def test_answers_do_not_depend_on_their_company(run):
    said = [f"the {'quite ' * i}{word} film" for i in range(9) for word in ("dull", "fine")]
    together = run.predict(*said)
    for sentence, answer in zip(said, together):
        alone = run.predict(sentence)
        assert alone.label == answer.label == ("good" if "fine" in sentence else "bad")
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-5)


def test_results(run, tmp_path):
    answer = run.predict("the fine film")
    assert (
        answer.json()["label"] == "good"
        and answer.json()["sentence"] == "the fine film"
        and "read" not in answer.json()
    )
    assert answer.row()[0] == "good" and len(answer.row()) == 3
    answer.save(tmp_path / "answer.png")
    assert answer.plot().size[0] == 520
    cut = run.predict("the fine film " * 30)
    assert cut.json()["read"] == 20 and "first 20 tokens" in cut.row()[-1]
    assert cut.plot().size[1] > answer.plot().size[1]


def test_command_line(run, folder, capsys, monkeypatch):
    path = folder / "said.txt"
    path.write_text("the dull film\n\nthe fine film\n")
    assert main(["predict", str(run.path), "the fine film", str(path), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(one["input"], one["label"]) for one in results] == [
        ("the fine film", "good"),
        ("1: the dull film", "bad"),
        ("3: the fine film", "good"),
    ]
    assert main(["predict", str(run.path), "", "the fine film", "f\udce9te"]) == 1
    shown = capsys.readouterr()
    assert "good" in shown.out and "the sentence is empty" in shown.err and "not UTF-8" in shown.err
    assert main(["predict", str(run.path), "fine film " * 1_000_000]) == 0
    shown = capsys.readouterr()
    assert len(shown.out) < 300 and "only its first 20 tokens were read" in shown.out
    assert main(["predict", str(run.path), "--samples", "4"]) == 0
    path.write_bytes(b"fine\xff\n")
    assert main(["predict", str(run.path), str(path)]) == 2
    assert "byte 4 is 0xff" in capsys.readouterr().err


def test_another_models_vocabulary(folder, run, tmp_path):
    """Before training, and where someone changed a run's tokenizer."""
    with pytest.raises(UsageError, match="the vocabulary has 14 tokens, the model 15"):
        etude.train(recipe(folder, **{"model.vocab_size": 15}), run=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="reads no tokens"):
        fits(torch.nn.Linear(1, 1), 3)
    kept = run.path / tokenizers.FILE
    content = kept.read_text()
    document = json.loads(content)
    document["model"]["vocab"]["more"] = 14
    try:
        kept.write_text(json.dumps(document))
        with pytest.raises(RefusedError, match=r"tokenizer\.json is not the one that the run was trained with"):
            etude.open(run.path).predict("fine")
    finally:
        kept.write_text(content)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.num_labels": 3}, "3 outputs, the data 2 classes"),
        ({"model.positions": 12}, r"data\.length is 20: 20 tokens are too many: the model has 12 positions"),
    ],
)
def test_what_does_not_fit(folder, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        etude.train(recipe(folder, **changes), run=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_shape(folder, tmp_path):
    other = bert.Config(**SMALL | {"width": 16}).build()
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    start = Start(weights=str(tmp_path / "model.safetensors"), part="bert")
    with pytest.raises(RefusedError, match=r"\(14, 16\) for \(14, 32\)"):
        etude.train(recipe(folder, start=start), run=tmp_path / "run", quiet=True)


def test_training_begins_with_the_encoder(folder, tmp_path):
    other = bert.Config(**SMALL).build()
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    start = Start(weights=str(tmp_path / "model.safetensors"), part="bert")
    done = etude.train(recipe(folder, start=start, steps=1, **{"optim.lr": 1e-12}), run=tmp_path / "run", quiet=True)
    kept = done.model().state_dict()
    assert all(torch.allclose(kept[f"bert.{name}"], tensor) for name, tensor in other.state_dict().items())


def test_embeddings(folder):
    """Sorted by length inside, in the caller's order outside; each of length one and the mean over its tokens."""
    torch.manual_seed(0)
    model = bert.EmbedderConfig(**SMALL).build().eval()
    tokenizer = pieces.find(str(folder / "vocab.txt"))
    said = [f"the {'quite ' * (7 * i % 11)}fine film" for i in range(70)]
    points = embed(model, tokenizer, said)
    for i in (0, 3, 69):
        hidden = model.encoder(torch.tensor([tokenizer.encode(said[i]).ids]))[0]
        assert torch.allclose(points[i], F.normalize(hidden.mean(0), dim=0), atol=1e-5)
    with pytest.raises(UsageError, match="empty"):
        embed(model, tokenizer, ["fine", " "])


def test_other_sentences_are_measured_in_the_runs_own_classes(run, tmp_path):
    """Whatever order their labels come in, all of them, and of one class too."""
    rows = [(label, f"the {word} film") for label, word in (("good", "fine"), ("bad", "dull"))]
    (tmp_path / "two.tsv").write_text("\n".join("\t".join(row) for row in rows * 6))
    (tmp_path / "one.tsv").write_text("\n".join("\t".join(row) for row in rows[:1] * 3))
    (tmp_path / "odd.tsv").write_text("strange\tthe fine film\n")
    for name, count in (("two", 12), ("one", 3)):
        measured = run.measure(data_path=str(tmp_path / f"{name}.tsv"))
        assert measured["accuracy"].value() == 1.0 and measured["accuracy"].count == count
    with pytest.raises(UsageError, match="labels that training has not: strange"):
        run.measure(data_path=str(tmp_path / "odd.tsv"))
    assert run.evaluate()["accuracy"] == pytest.approx(run.result["eval"]["accuracy"])


def test_a_name_of_no_file_is_no_sentence(run, capsys):
    assert main(["predict", str(run.path), "flims.txt"]) == 2
    assert "there is no file flims.txt" in capsys.readouterr().err
