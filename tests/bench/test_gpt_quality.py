"""What the benchmark of GPT says of low-bit weights, on a run of any place."""

import pytest

from etude.bench.gpt import quality
from etude.data.corpus import Corpus
from etude.engine import fit
from etude.engine.optim import Optim
from etude.engine.recipe import Recipe
from etude.language.gpt import Config
from etude.tasks.language_model import CorpusModel


def test_low_bits_cost_a_trained_model_less_than_a_hundredth(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    text = tmp_path / "x.txt"
    text.write_text("".join(f"{i} and {i} are {2 * i}; " for i in range(400)), encoding="utf-8")
    recipe = Recipe(
        name="gpt.sums",
        model=Config(vocab_size=0, context=32, width=32, depth=2, num_heads=2, dropout=0.0),
        data=Corpus(path=str(text), vocab_size=265, length=32, context=16, validation=0.1, test=0.1),
        task=CorpusModel(),
        optim=Optim("adamw", lr=0.01),
        steps=60,
        batch_size=16,
        clip=1.0,
        precision="fp32",
    )
    run = fit.train(recipe, run=tmp_path / "run", device="cpu", quiet=True)
    bits = quality(str(run.path))
    assert bits["fp32"] == pytest.approx(run.result["best"]["bits_per_byte"], rel=1e-5)
    assert bits["fp32"] < 3
    for kind in ("bf16", "int8"):
        assert bits[kind] == pytest.approx(bits["fp32"], rel=0.01) and bits[kind] != bits["fp32"]
