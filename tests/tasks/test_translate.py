"""Translation: the losses by hand, evaluation and search on a model that learned something, bad input in one line."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.cli import main
from etude.data.base import Dataset
from etude.data.pairs import Pairs, encode
from etude.engine import fit
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.errors import RefusedError, UsageError
from etude.language import transformer
from etude.nn import lowbit
from etude.tasks.translate import Search, Smoothing, Translate, _scored, smoothed

WORDS = "file window open close menu click print table".split()  # noqa: SIM905


def write(folder):
    """Every word has one translation, and order is kept: a small model learns it."""
    lines = [f"{a} {b} {c} {d}" for a in WORDS for b in WORDS for c in WORDS[:3] for d in WORDS[3:5]]
    rows = (f"doc{i}\t{line}\t{' '.join(w.upper() for w in line.split())}" for i, line in enumerate(lines))
    (folder / "own.tsv").write_text("\n".join(rows) + "\n")
    return str(folder / "own.tsv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translate")
    recipe = Recipe(
        name="toy",
        model=transformer.Config(vocab_size=320, width=64, depth=1, num_heads=2, ffn=96, dropout=0.0, norm="pre"),
        data=Pairs(path=write(folder), vocab_size=320, validation=0.1, test=0.1, translated=8),
        task=Translate(beam=2, compounds=True),
        optim=Optim("adam", lr=4e-3, betas=(0.9, 0.98)),
        schedule=Schedule("cosine", warmup=20),
        steps=300,
        batch_size=240,
        eval_every=150,
        precision="fp32",
    )
    return fit.train(recipe, run=folder / "run", quiet=True)


def batch_of(data: Dataset, size=120):
    return data.batch(seed=0, step=0, batch_size=size)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.floats(0, 0.45), st.integers(0, 1000))
def test_both_smoothings_by_hand(size, epsilon, seed):
    torch.manual_seed(seed)
    logits, labels = torch.randn(5, size, dtype=torch.float64), torch.randint(size, (5,))
    log_p = logits.log_softmax(1)
    cases: tuple[tuple[Smoothing, float, float], ...] = (
        ("torch", epsilon / size, 1 - epsilon + epsilon / size),
        ("fairseq", epsilon / (size - 1), 1 - epsilon),
    )
    for by, wrong, right in cases:
        target = torch.full_like(logits, wrong).scatter(1, labels[:, None], right)
        torch.testing.assert_close(target.sum(1), torch.ones(5, dtype=torch.float64))
        expected = -(target * log_p).sum(1)
        torch.testing.assert_close(smoothed(logits, labels, epsilon, by), expected, rtol=1e-12, atol=1e-12)


def test_loss_is_the_mean_over_tokens_of_the_unpacked_model(trained):
    """No logits of padding are computed, and none count: the same as over the padded batch, masked by hand."""
    data, model = trained.recipe.data.open(), trained.model().train()
    batch = batch_of(data)
    loss, logs = trained.recipe.task.loss(model, batch)
    source, target = batch["source"], batch["target"]
    masks = [
        torch.arange(x.shape[1]) < batch[f"{n}_length"][:, None] for n, x in (("source", source), ("target", target))
    ]
    read = torch.cat([torch.ones(len(target), 1, dtype=torch.int64), target[:, :-1]], 1)
    logits = model(source, read, *masks)
    rows, labels = logits[masks[1]], target[masks[1]]
    log_p = rows.log_softmax(1)
    expected = -(0.9 * log_p.gather(1, labels[:, None])[:, 0] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    plain = logs["nll"]
    assert callable(plain)
    torch.testing.assert_close(plain(), F.cross_entropy(rows, labels).detach(), rtol=1e-5, atol=0)
    model.eval()


def test_two_processes_have_the_gradient_of_one(trained):
    data, model = trained.recipe.data.open(), trained.model()
    task = trained.recipe.task
    wholes = torch.autograd.grad(task.loss(model, batch_of(data))[0], list(model.parameters()))
    parts = [data.batch(seed=0, step=0, batch_size=120, rank=rank, world=2) for rank in range(2)]
    halves = [torch.autograd.grad(task.loss(model, part)[0], list(model.parameters())) for part in parts]
    for whole, a, b in zip(wholes, *halves):
        torch.testing.assert_close((a + b) / 2, whole, rtol=1e-4, atol=1e-6)


def test_what_training_reports(trained):
    result = trained.result["eval"]
    assert result["bleu"] > 50 and result["chrf"] > 50 and result["bleu_compound_split"] == result["bleu"]
    assert math.log(result["perplexity"]) == pytest.approx(result["loss"], rel=1e-6)
    blocks = json.loads((trained.path / "figures.json").read_text())
    assert [block["kind"] for block in blocks] == ["text", "table", "images"]
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0" in blocks[0]["text"]
    report = trained.report().read_text(encoding="utf-8")
    assert "Where the decoder looks" in report and "Translations of test" in report
    again = trained.evaluate()
    assert again == pytest.approx(result, rel=1e-6)
    measured = trained.measure()
    assert trained.recipe.task.notes(measured)["search"] == "beam 2, gnmt penalty 0.6"


def test_predict(trained, tmp_path):
    answer = trained.predict("open  file window open")
    said = answer.text
    assert said.startswith("OPEN") and answer.json()["translation"] == said and answer.row() == [said]
    assert answer.source == "open file window open"
    many = trained.predict("click table open", "print", "open file window open", beam=2, penalty="gnmt")
    assert many[0].text.startswith("CLICK") and many[2].text == said
    assert len(trained.predict("open file window open", max_length=2).text) < len(said)
    alignment = answer.alignment
    assert alignment.weights.shape == (len(alignment.target), len(alignment.source))
    assert torch.allclose(torch.from_numpy(alignment.weights).sum(1), torch.ones(len(alignment.target)), atol=1e-5)
    answer.save(tmp_path / "look.png")
    answer.save(tmp_path / "said.txt")
    assert (tmp_path / "look.png").stat().st_size > 500
    assert (tmp_path / "said.txt").read_text() == f"{said}\n"
    (tmp_path / "in.txt").write_text("open file window open\n\nclick table open\n")
    document = trained.predict(tmp_path / "in.txt")
    assert document.row()[0] == f"{said}\n\n{many[0].text}"
    document.save(tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == document.row()[0] + "\n"


def test_predict_has_fast_linear_layers(trained):
    plain = trained.predict("open file window open").text
    for weights in lowbit.WEIGHTS:
        assert trained.predict("open file window open", weights=weights).text == plain
        layers = [type(module) for module in trained._answering[1].modules()]
        assert nn.Linear not in layers or not lowbit.has_onednn(torch.float32)
    with pytest.raises(UsageError, match="weights is 'int4'; it can be fp32, bf16, int8"):
        trained.predict("open", weights="int4")


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "the text is empty"), (" \n", "the text is empty"), ("x" * 10_000_000, "10,000,000 characters"),
     ("ab " * 3000, "tokens, where 2,000"), (7, "a sentence is wanted")],
)  # fmt: skip
def test_bad_sentences(trained, text, said):
    with pytest.raises(UsageError, match=said) as caught:
        trained.predict(text)
    assert "\n" not in str(caught.value)


def test_bad_files_and_questions(trained, tmp_path):
    for content, said in ((b"", "is empty"), (b"a\nb\xff\n", "not UTF-8"), (b"x" * 10_000_000, "line 1")):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(UsageError, match=said):
            trained.predict(tmp_path / "bad.txt")
    for wrong in ({"beam": 0}, {"penalty": "none"}, {"max_length": 0}, {"length_penalty": math.nan}):
        with pytest.raises(UsageError):
            trained.predict("open", **wrong)
    with pytest.raises(UsageError, match="no 'length'"):
        trained.predict("open", length=3)


def test_a_vocabulary_of_another_model(trained):
    data, task = trained.recipe.data.open(), trained.recipe.task
    for changes, said in (
        ({"vocab_size": 500}, "500 tokens in its vocabulary, the data 320"),
        ({"end": 5}, "end token"),
    ):
        config = replace(transformer.Config(width=8, depth=1, num_heads=1, ffn=8, vocab_size=320), **changes)
        with pytest.raises(UsageError, match=said):
            task.check(config.build(), data)
        with pytest.raises(RefusedError, match="of another model"):
            task.predict(config.build(), ["open"], trained.recipe.data, data.facts | {"files": data.files}, Search())


def test_other_pairs_are_measured_in_the_runs_own_tokens(trained, tmp_path):
    """All of them, as the test part: nothing was learned from them."""
    (tmp_path / "few.tsv").write_text("open file window open\tOPEN FILE WINDOW OPEN\nxyz\tXYZ\n")
    measured = trained.measure(data_path=str(tmp_path / "few.tsv"), changes={"task.beam": 1})
    assert [row[1] for row in measured["samples"].value()] == ["open file window open", "xyz"]
    for name, line in (("test.en", "click table open"), ("test.de", "CLICK TABLE OPEN")):
        (tmp_path / name).write_text(f"{line}\n")
    assert len(trained.measure(data_path=str(tmp_path))["samples"].value()) == 1


def test_bfloat16_logits_are_scored_in_float32(trained):
    batch = batch_of(trained.recipe.data.open())
    with torch.autocast("cpu", torch.bfloat16):
        logits, labels, sequence = _scored(trained.model(), batch)
    assert logits.dtype == torch.float32 and len(logits) == len(labels) == len(sequence) == batch["target_length"].sum()


def test_words_for_special_tokens_are_text(trained):
    """A tag in a sentence is its characters, not its end."""
    text = "use <s> and </s> or <pad> here"
    dataset = trained.recipe.data.open()
    ids, end = encode(dataset.tokenizer, [text])
    assert (ids[0][:-1] > 2).all() and ids[0][-1] == end
    assert dataset.tokenizer.decode(ids[0].tolist()) == text


def test_the_runs_own_pairs_are_known_by_any_name(trained, tmp_path, monkeypatch):
    path = Path(trained.recipe.data.path)
    monkeypatch.chdir(path.parent)
    assert trained.evaluate(data_path=path.name)["loss"] == trained.evaluate()["loss"]


def test_what_cannot_be_translated_is_told(trained, tmp_path, capsys):
    for words, said in (
        (["file\udcff"], "the text is not UTF-8"),
        (["file", "--beam", "500"], "beam is 500"),
        (["flie.txt"], "there is no file flie.txt"),
    ):
        assert main(["predict", str(trained.path), *words]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "long.txt").write_text("file\n" * 40 + "file " * 3000 + "\nfile\n")
    out = tmp_path / "long.out"
    assert main(["predict", str(trained.path), str(tmp_path / "long.txt"), "--save", str(out)]) == 2
    assert "long.txt, line 41: a sentence has" in capsys.readouterr().err
    (tmp_path / "long.txt").write_text("file\n" * 42)
    assert main(["predict", str(trained.path), str(tmp_path / "long.txt"), "--save", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 42
    folder = f"{tmp_path}/answers/"
    assert main(["predict", str(trained.path), str(tmp_path / "long.txt"), "--save", folder]) == 0
    assert [path.name for path in Path(folder).iterdir()] == ["long.txt"]
