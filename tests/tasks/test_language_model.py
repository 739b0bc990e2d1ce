"""Language modelling: the measures against their formulas, the sampling, the answers."""

import io
import json
import math
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from etude.basics.rnn import Config
from etude.cli import main
from etude.data import order
from etude.data.corpus import Corpus, Tokens
from etude.data.images import Images
from etude.data.text import Text, TextDataset, Vocabulary
from etude.engine import fit
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.errors import UsageError
from etude.language.gpt import Config as GPTConfig
from etude.tasks.language_model import (
    Continuation,
    Continue,
    CorpusModel,
    First,
    LanguageModel,
    coloured,
    until,
    write,
    written,
)  # fmt: skip

PATTERN = "the cat sat on the mat; " * 60


class Bigram(nn.Module):
    """Logits that depend on the last token alone, and a state that counts the tokens read."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = nn.Parameter(table)
        self.calls: list[int] = []

    def forward(self, ids: Tensor, state: int | None = None) -> tuple[Tensor, int]:
        self.calls.append(ids.shape[1])
        return self.table[ids], (state or 0) + ids.shape[1]

    read = forward


def bigram(size: int) -> Bigram:
    return Bigram(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def dataset(tmp_path: Path) -> TextDataset:
    return small_text(tmp_path)


def small_text(folder: Path, tokens: Any = "characters", text: str = PATTERN) -> TextDataset:
    path = folder / "x.txt"
    path.write_text(text, encoding="utf-8")
    return Text(path=str(path), tokens=tokens, length=16, context=8, validation=0.1, test=0.1).open()


@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_bits_per_character_is_its_formula(tmp_path, tokens):
    """-log2 p summed over the tokens of the split, once each, over its characters; the same for any sharing."""
    data = small_text(tmp_path, tokens, PATTERN.replace("cat", "kät"))
    vocabulary = data.vocabulary
    model = bigram(len(vocabulary))
    part = PATTERN.replace("cat", "kät")
    start = round(len(part) * 0.9)
    ids = vocabulary.encode(part[start:])
    before = int(vocabulary.encode(part[start - 1])[-1])
    table = model.table.detach().double().log_softmax(1)
    nats = -sum(table[a, b].item() for a, b in zip([before, *ids], ids))
    task = LanguageModel()
    for world, batch_size in ((1, 2), (3, 1)):
        measured: dict[str, Any] = {}
        for rank in range(world):
            spans = data.spans("test", batch_size=batch_size, rank=rank, world=world)
            with torch.no_grad():
                mine = task.evaluate(model, (data.fetch("test", span) for span in spans))
            for name, metric in mine.items():
                measured[name].merge(metric) if name in measured else measured.update({name: metric})
        expected = nats / math.log(2) / len(part[start:])
        assert measured["bits_per_character"].value() == pytest.approx(expected, rel=1e-6)
        assert measured["loss"].value() == pytest.approx(nats / len(ids), rel=1e-6)
        _, read, bits = measured["read"].value()
        assert read == ids[: len(read)].tolist() and len(bits) == len(read) == 24
        assert bits[3] == pytest.approx(-table[read[2], read[3]].item() / math.log(2), rel=1e-5)
    assert not LanguageModel.higher_is_better


def test_bits_per_byte_is_its_formula(tmp_path):
    """Every token's bits, those of the ends of documents too, over the bytes of the part's text."""
    text = PATTERN.replace("cat", "kät")
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    data = Corpus(path=str(tmp_path / "x.txt"), vocab_size=265, length=16, context=8, validation=0.1, test=0.1).open()
    model = bigram(265)
    table = model.table.detach().double().log_softmax(1)
    pairs = [(int(a), int(b)) for a, b in pairwise(data.ids["test"])]
    nats = -sum(table[a, b].item() for a, b in pairs)
    with torch.no_grad():
        spans = data.spans("test", batch_size=3)
        measured = CorpusModel().evaluate(model, (data.fetch("test", span) for span in spans))
    part = text[round(0.9 * len(text)) :]
    values = {name: metric.value() for name, metric in measured.items()}
    assert values["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(part.encode()), rel=1e-6)
    assert values["bits_per_character"] == pytest.approx(nats / math.log(2) / len(part), rel=1e-6)
    assert values["perplexity"] == pytest.approx(math.exp(nats / len(pairs)), rel=1e-6)
    right = sum(int(table[a].argmax()) == b for a, b in pairs)
    assert values["accuracy"] == pytest.approx(right / len(pairs))
    assert CorpusModel.measure == "bits_per_byte"


def test_the_first_part_that_holds_any_stays():
    parts = [First(), First([1], [2, 3], [0.5, 1.5]), First([4], [5], [2.0])]
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert parts[0].value() == ([1], [2, 3], [0.5, 1.5])


def test_loss_is_the_mean_over_next_tokens(dataset):
    model = bigram(len(dataset.vocabulary))
    batch = dataset.batch(seed=0, step=0, batch_size=3)
    loss, logs = LanguageModel().loss(model, batch)
    table, tokens = model.table.detach().log_softmax(1), batch["tokens"]
    expected = -np.mean([table[a, b].item() for row in tokens for a, b in pairwise(row)])
    assert loss.item() == pytest.approx(expected, rel=1e-5) and logs["loss"] is loss


def test_what_does_not_fit_is_told(dataset, tmp_path):
    model = Config(vocab_size=5, width=4, embedding=4).build()
    with pytest.raises(UsageError, match="has 5 tokens in its vocabulary, the text 11") as caught:
        LanguageModel().check(model, dataset)
    assert caught.value.hint == "--model.vocab-size 11"
    (tmp_path / "c.txt").write_text(PATTERN, encoding="utf-8")
    corpus = Corpus(path=str(tmp_path / "c.txt"), vocab_size=280, length=16, context=8).open()
    with pytest.raises(UsageError, match="has 5 tokens in its vocabulary, the text 269") as caught:
        LanguageModel().check(model, corpus)
    assert caught.value.hint == "--model.vocab-size 269, or --data.vocab-size 5"
    with pytest.raises(UsageError, match="not from ImageDataset"):
        LanguageModel().check(model, Images().open())


# --- sampling


@given(st.lists(st.text(alphabet="ab", max_size=3), max_size=8), st.text(alphabet="ab", max_size=4))
def test_stopping_cuts_before_the_stop(tokens: list[str], stop: str):
    whole, taken = "".join(tokens), []

    def source():
        for token in tokens:
            taken.append(token)
            yield token, 1.0

    found = "".join(text for text, _ in until(source(), stop))
    assert found == (whole.split(stop)[0] if stop else whole)
    assert stop not in "".join(taken[:-1]) or not stop  # nothing is written after it


def test_what_cannot_become_the_stop_is_not_held_back():
    source = iter([("a", 1.0), ("b", 1.0), ("x", 1.0), ("y", 1.0)])
    pieces = until(source, "xyz")
    assert [next(pieces)[0], next(pieces)[0]] == ["a", "b"] and next(source)[0] == "x"


def test_writing_is_over_where_the_text_ends():
    """Of each text by itself; the others go on."""
    model, asked = gpt(vocab_size=257), Continue(length=60, temperature=1.5, seed=7)
    vocabulary = Tokens(None)
    whole = [step[0] for step in written(model, [[1]], asked)]
    tokens = [one[0] for one in whole if one]
    at = next(n for n, token in enumerate(tokens) if n > 4 and tokens.index(token) == n)
    vocabulary.end = tokens[at]
    cut = [step[0] for step in written(model, [[1]], asked, vocabulary)]
    assert cut == [*whole[:at], None]
    both = list(written(model, [[1], [9]], asked, vocabulary))
    assert [step[0][0] for step in both if step[0]] == tokens[:at] and any(step[1] for step in both[at + 1 :])


def gpt(**changes: Any) -> Any:
    torch.manual_seed(0)
    given = {"vocab_size": 11, "context": 16, "width": 16, "depth": 2, "num_heads": 2}
    model = GPTConfig(**(given | changes)).build().eval()
    nn.init.normal_(model.embedding.weight, std=0.5)  # so that what was read matters
    return model


@pytest.mark.parametrize("asked", [Continue(length=40, temperature=1.0), Continue(length=9, repetition_penalty=1.5)])
def test_texts_written_together_are_those_written_alone(asked):
    """Whatever their lengths are, and where the context is full too."""
    model, prompts, vocabulary = gpt(), [[1, 2, 3], [4], [5, 6, 7, 8, 9]], Vocabulary("abcdefghijk")
    together = list(written(model, prompts, asked, vocabulary))
    for i, prompt in enumerate(prompts):
        alone = [one[0] for step in written(model, [prompt], asked, vocabulary) if (one := step[0])]
        here = [one[0] for step in together if (one := step[i])]
        assert len(alone) == asked.length and here == alone


def test_a_full_context_goes_on_from_its_last_half():
    model = gpt()
    made = [step[0] for step in written(model, [[1, 2, 3]], Continue(length=40, temperature=0.0))]
    text = [1, 2, 3, *(one[0] for one in made if one)]
    assert len(text) == 43
    for at in range(3, 43):
        read = text[:at] if at <= 16 else text[at - (8 + (at - 17) % 9) : at]
        assert model(torch.tensor([read]))[0, -1].argmax() == text[at]


def test_what_a_context_does_not_hold_is_told(dataset):
    model = gpt()
    with pytest.raises(UsageError, match="a window has 24 tokens, and the model reads 16 at most") as caught:
        LanguageModel().check(model, dataset)
    assert caught.value.hint == "--data.length 8 --data.context 8"
    with pytest.raises(UsageError, match="the prompt has 17 tokens, and the model reads 16 at most"):
        LanguageModel().predict(model, ["a" * 17], dataset.data, dataset.facts)
    answers = LanguageModel().predict(model, ["a" * 16, "the"], dataset.data, dataset.facts, Continue(length=20))
    assert [len(answer.text) for answer in answers] == [20, 20]


def test_weights_kept_otherwise_write_on(dataset):
    """The likeliest tokens of wide logits are the same, whatever the weights' type; answers stream alike."""
    model, task = gpt(), LanguageModel()
    nn.init.normal_(model.embedding.weight, std=4.0)
    asked = Continue(length=12, temperature=0.0)
    (plain,) = task.predict(model, ["the c"], dataset.data, dataset.facts, asked)
    for kind in ("fp32", "bf16", "int8"):
        kept = replace(asked, weights=kind)
        (answer,) = task.predict(model, ["the c"], dataset.data, dataset.facts, kept)
        assert answer.text == plain.text
        assert "".join(task.stream(model, "the c", dataset.data, dataset.facts, kept)) == "the c" + plain.text


def test_writing_streams_the_state_and_draws_by_inversion():
    """The prompt is read at once and each token alone; token n is where the cumulated probabilities pass number n."""
    model = bigram(6)
    ids, bits = write(model, [1, 4, 2], Continue(length=50, temperature=1.3, seed=7))
    assert model.calls == [3] + [1] * 49
    numbers, before = order.uniform(7, 0, np.arange(50), 1)[:, 0], 2
    for chosen, cost, number in zip(ids, bits, numbers):
        p = (model.table[before].double() / 1.3).softmax(0)
        cumulated = p.cumsum(0).tolist()
        assert (cumulated[chosen - 1] if chosen else 0) <= number < cumulated[chosen]
        assert cost == pytest.approx(-math.log2(p[chosen].item()))
        before = chosen
    assert write(bigram(6), [1, 4, 2], Continue(length=50, temperature=1.3, seed=7))[0] == ids
    assert write(bigram(6), [1, 4, 2], Continue(length=50, temperature=1.3, seed=8))[0] != ids


def test_temperature_zero_takes_the_likeliest():
    model, ask = bigram(6), Continue(length=9, temperature=0.0)
    ids, bits = write(model, [0], ask)
    assert ids == [model.table[before].argmax().item() for before in [0, *ids[:-1]]] and bits == [0] * 9


WRONG = [{"length": 0}, {"temperature": -1.0}, {"top_k": -1}, {"seed": -1}, {"top_p": 0.0}, {"top_p": 1.1},
         {"repetition_penalty": 0.0}, {"weights": "int4"}]  # fmt: skip


@pytest.mark.parametrize("changes", WRONG)
def test_wrong_wishes(changes):
    with pytest.raises(UsageError):
        Continue(**changes)


# --- a trained run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "x.txt").write_text(PATTERN, encoding="utf-8")
    recipe = Recipe(
        name="lstm.cat",
        model=Config(cell="lstm", vocab_size=0, embedding=16, width=48),
        data=Text(path=str(folder / "x.txt"), length=32, context=32, validation=0.1, test=0.1),
        task=LanguageModel(),
        optim=Optim("adamw", lr=0.02),
        schedule=Schedule("cosine"),
        steps=150,
        batch_size=16,
        clip=1.0,
        precision="fp32",
    )
    return fit.train(recipe, run=folder / "run", device="cpu", quiet=True)


def test_the_vocabulary_follows_the_text(run):
    assert run.recipe.model.vocab_size == 11
    with pytest.raises(ValueError, match="vocab_size is 0; it must be set"):
        Config(vocab_size=0).build()


def test_a_text_is_learned_and_continued(run, tmp_path):
    assert run.result["eval"]["bits_per_character"] < 0.2
    answer = run.predict("the cat", length=24, temperature=0.0)
    assert answer.prompt == "the cat" and answer.text == " sat on the mat; the cat"
    assert run.predict("the cat", length=24, temperature=0.9, seed=3) == run.predict(
        "the cat", length=24, temperature=0.9, seed=3
    )
    (tmp_path / "prompt.txt").write_text("the cat", encoding="utf-8")
    assert run.predict(tmp_path / "prompt.txt", length=24, temperature=0.0).text == answer.text
    assert json.loads(json.dumps(answer.json()))["text"] == answer.text and answer.row() == [answer.text]
    answer.save(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "the cat sat on the mat; the cat"
    answer.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 880


def test_an_answer_is_streamed(run, capsys, monkeypatch):
    """The pieces are the prompt and the answer of predict; the command line shows them as they come."""
    pieces = list(run.stream("the cat", length=24, temperature=0.0))
    assert len(pieces) == 25 and "".join(pieces) == "the cat sat on the mat; the cat"
    assert "".join(run.stream("the cat", length=24, temperature=0, stop="mat")) == "the cat sat on the "
    assert run.predict("the cat", length=24, temperature=0, stop="mat").text == " sat on the "
    asked = ["predict", str(run.path), "--length", "24", "--temperature", "0"]
    assert main([*asked, "--stream", "the cat", "on the"]) == 0
    assert capsys.readouterr().out == (
        "== the cat\nthe cat sat on the mat; the cat\n== on the\non the mat; the cat sat on the\n"
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([*asked, "the cat"]) == 0
    assert capsys.readouterr().out == "the cat sat on the mat; the cat\n"
    assert main([*asked, "--stream", "--json", "the cat"]) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat")))
    assert main([*asked, "-"]) == 0
    assert capsys.readouterr().out == "the cat sat on the mat; the cat\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the \xff")))
    assert main([*asked, "-"]) == 2
    assert "stdin is not UTF-8 text: byte 4 is 0xff" in capsys.readouterr().err


@pytest.fixture(scope="module")
def corpus_run(tmp_path_factory):
    """An LSTM of byte pairs."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "x.txt").write_text(PATTERN, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETUDE_HOME", str(folder / "home"))
        recipe = Recipe(
            name="lstm.pairs",
            model=Config(cell="lstm", vocab_size=0, embedding=16, width=48),
            data=Corpus(path=str(folder / "x.txt"), vocab_size=265, length=32, context=16, validation=0.1, test=0.1),
            task=CorpusModel(),
            optim=Optim("adamw", lr=0.02),
            steps=200,
            batch_size=16,
            clip=1.0,
            precision="fp32",
        )
        return fit.train(recipe, run=folder / "run", device="cpu", quiet=True)


def test_a_corpus_is_learned_and_continued(corpus_run, tmp_path, capsys):
    assert (corpus_run.path / "tokenizer.json").is_file() and corpus_run.recipe.model.vocab_size == 265
    assert corpus_run.result["best"]["bits_per_byte"] < 0.8
    answer = corpus_run.predict("the cat", length=12, temperature=0.0)
    assert (answer.prompt + answer.text).startswith("the cat sat on the mat;")
    assert "".join(corpus_run.stream("the cat", length=12, temperature=0.0)) == answer.prompt + answer.text
    assert corpus_run.evaluate("test") == pytest.approx(corpus_run.result["eval"], rel=1e-5)
    longer = corpus_run.evaluate("test", changes={"data.context": 24, "data.length": 40})
    assert longer["bits_per_byte"] == pytest.approx(corpus_run.result["eval"]["bits_per_byte"], abs=0.2)
    # another text is read in the run's own pairs, and all of it is measured
    (tmp_path / "other.txt").write_text("on the mat sat the cat; naïve " * 9, encoding="utf-8")
    command = ["eval", str(corpus_run.path), "--data-path", str(tmp_path / "other.txt"), "--json"]
    assert main([*command, "--data.context", "0", "--eval-batch-size=3"]) == 0
    other = json.loads(capsys.readouterr().out)["eval"]
    assert other["bits_per_byte"] > 1 and other != corpus_run.result["eval"]
    assert main([*command, "--data.contxt", "0"]) == 2
    assert "did you mean --data.context" in capsys.readouterr().err
    assert main([*command, "--data.context", "32"]) == 2
    assert "data.context 32 must be less than data.length 32" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_data_only(corpus_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(corpus_run.path, folder)
    (folder / "result.json").unlink()
    (tmp_path / "y.txt").write_text("something else altogether, " * 60, encoding="utf-8")
    with pytest.raises(UsageError, match=r"is not what .* began with"):
        fit.resume(folder, device="cpu", quiet=True, data_path=str(tmp_path / "y.txt"))
    (tmp_path / "z.txt").write_text(PATTERN, encoding="utf-8")
    again = fit.resume(folder, device="cpu", quiet=True, data_path=str(tmp_path / "z.txt"))
    assert again.result["weights_sha256"] == corpus_run.result["weights_sha256"]


def test_prompts_that_cannot_be_continued(run):
    with pytest.raises(UsageError, match="holds 'é', which the training text does not"):
        run.predict("the caté")
    with pytest.raises(UsageError, match="the prompt is empty"):
        run.predict("")
    with pytest.raises(UsageError, match="has no 'lenght'") as caught:
        run.predict("the", lenght=3)
    assert caught.value.hint == "did you mean length?"


def test_the_report_shows_text(run):
    page = (run.path / "report.html").read_text()
    assert "What was hard to foresee in test" in page and "Written by the model" in page
    blocks = json.loads((run.path / "figures.json").read_text())
    assert [block["kind"] for block in blocks] == ["images", "text"]
    labels = [f"validation, after {step} steps" for step in range(15, 151, 15)]
    assert [one["label"] for one in blocks[1]["earlier"]] == labels and blocks[1]["label"] == "test, after 150 steps"
    assert all(f"<summary>{label}</summary>" in page for label in labels)
    assert run.evaluate("test") == pytest.approx(run.result["eval"], rel=1e-5)


def test_lines_are_broken_between_words():
    """No character leaves the picture, and a newline begins a line."""
    wide = coloured(list("word " * 60 + "\n" + "x" * 300), [1.0] * 601)
    pixels = np.asarray(wide.convert("RGB"))
    assert wide.width == 880 and (pixels[:, -10:] == 255).all() and wide.height > 100
    assert coloured(["a", "\n", "b"], [0, 0, 0]).height == coloured(["a"], [0]).height + 24


def test_characters_that_the_font_lacks_are_drawn_as_their_like():
    pixels = [np.asarray(coloured(list(text), [1.0] * len(text))) for text in ("caf\u00e9 \u2014 a", "cafe - a")]
    assert np.array_equal(pixels[0], pixels[1])


def test_continuations_are_plain():
    answer = Continuation("a", "b\u2014", (("b", 1.0), ("\u2014", 2.5)))
    assert answer.json() == {"prompt": "a", "text": "b\u2014", "tokens": 2, "bits": 3.5}
    assert answer.plot().mode == "RGB"


def test_wordpiece_is_learned_and_compared_by_bytes(tmp_path):
    """It loses case and space; each token counts as its split's mean number of bytes."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat, " * 200, encoding="utf-8")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    data = Corpus(
        source="cats",
        path=str(tmp_path / "text.txt"),
        tokens="wordpiece",
        vocabulary=str(tmp_path / "vocab.txt"),
        length=16,
        context=8,
    )
    recipe = Recipe(
        name="gpt.cats",
        model=GPTConfig(vocab_size=11, context=16, width=16, depth=1, num_heads=2),
        data=data,
        task=CorpusModel(),
        optim=Optim("adamw", lr=1e-2),
        steps=60,
        batch_size=8,
        precision="fp32",
    )
    run = fit.train(recipe, run=tmp_path / "run", device="cpu", quiet=True)
    measured = run.measure()
    bits = measured["loss"].value() / math.log(2) * 7 / 24  # a sentence is 7 tokens and 24 bytes
    assert measured["bits_per_byte"].value() == pytest.approx(bits, rel=0.02) and bits < 0.3
    assert run.predict("the cat", length=3, temperature=0.0).text.split() == ["sat", "on", "the"]
