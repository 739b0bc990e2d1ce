"""GPT-3's recipes against table 2.1 and appendix B of its paper."""

import pytest

from etude.data.corpus import Corpus
from etude.recipes import find_recipe

TABLE = {
    "125m": (6e-4, 0.5e6), "350m": (3e-4, 0.5e6), "760m": (2.5e-4, 0.5e6), "1_3b": (2e-4, 1e6), "2_7b": (1.6e-4, 1e6),
    "6_7b": (1.2e-4, 2e6), "13b": (1e-4, 2e6), "175b": (0.6e-4, 3.2e6),
}  # fmt: skip


@pytest.mark.parametrize("size", TABLE)
def test_gpt3(size: str):
    recipe = find_recipe(f"gpt.gpt3_{size}")
    rate, batch = TABLE[size]
    assert isinstance(recipe.data, Corpus)
    length, optim = recipe.data.length, recipe.optim
    assert (recipe.name, length, recipe.model.context) == (f"gpt.gpt3_{size}", 2048, 2048)
    assert (optim.name, optim.lr, optim.betas, optim.eps) == ("adamw", rate, (0.9, 0.95), 1e-8)
    assert optim.weight_decay == 0.1 and recipe.clip == 1.0
    assert recipe.batch_size * length == pytest.approx(batch, rel=0.05)

    def tokens(step: int) -> int:
        return recipe.samples_before(step) * length

    def factor(step: int) -> float:
        return recipe.schedule.factor(recipe.batches_before(step), recipe.batches_before(recipe.steps))

    def after(count: float) -> int:
        """The first step after so many tokens."""
        low, high = 0, recipe.steps
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if tokens(middle) < count else (low, middle)
        return low

    assert tokens(recipe.steps) == pytest.approx(300e9, rel=1e-4) and recipe.samples_at(0) == 16
    grown = after(12e9 if size == "175b" else 8e9)
    assert recipe.samples_at(grown) == recipe.batch_size and recipe.samples_at(after(3.9e9)) < recipe.batch_size
    assert factor(after(187e6)) == pytest.approx(0.5, abs=0.01) and factor(after(375e6)) == pytest.approx(1, abs=0.01)
    assert factor(after(130e9)) == pytest.approx(0.55, abs=0.01)
    assert factor(after(260e9)) == factor(recipe.steps - 1) == pytest.approx(0.1, abs=1e-4)
