"""Recipes of the Transformer: translation out of English."""

from etude.data.pairs import Pairs
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.language import transformer
from etude.recipes.transformer_depth import depth as depth
from etude.tasks.translate import Translate


def en_de() -> Recipe:
    """TODO"""
    return Recipe(
        name="transformer.en_de",
        model=transformer.Config(vocab_size=8000, width=256, depth=3, num_heads=4, ffn=1024, dropout=0.1, norm="pre"),
        data=Pairs(source="en-de"),
        task=Translate(),
        optim=Optim("adam", lr=1e-3, betas=(0.9, 0.98), eps=1e-9),
        schedule=Schedule("cosine", warmup=600, final=0.02),
        steps=6000,
        batch_size=2048,
        eval_every=1500,
        eval_batch_size=4096,
        clip=1.0,
        log_every=20,
    )
