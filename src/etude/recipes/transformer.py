"""Recipes of the Transformer: translation out of English."""

from etude.data.pairs import Pairs
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.engine.study import Study, variant
from etude.language import transformer
from etude.tasks.translate import Translate


def en_de() -> Recipe:
    """TODO"""
    return Recipe(
        name="transformer.en_de",
        model=transformer.Config(
            vocab_size=8000, width=256, depth=3, num_heads=4, ffn=1024, dropout=0.1, norm="pre"
        ),
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


def depth() -> Study:
    """24 + 24 layers, a quarter of a million weights in each stack's norms and products apiece, on short sentences."""
    return Study(
        name="transformer.depth",
        question="Which norm lets 24 encoder and 24 decoder layers train? With a norm after each sum, as in the paper, "
        "what reaches the first layers of the decoder fades exponentially with depth (arXiv 1911.03179); a norm before "
        "each sublayer, a learned sum of all earlier layers, or DeepNorm's scaling keep it.",
        base=Recipe(
            name="transformer.depth",
            model=transformer.Config(
                vocab_size=1000, width=64, depth=24, num_heads=4, ffn=128, dropout=0.0, norm="post"
            ),
            data=Pairs(source="en-de", vocab_size=1000, longest=32, limit=6000, translated=0, test=0.01),
            task=Translate(beam=1),
            optim=Optim("adam", lr=2e-3, betas=(0.9, 0.98), eps=1e-9),
            schedule=Schedule("linear", warmup=50),
            steps=250,
            batch_size=512,
            eval_every=125,
            eval_batch_size=2048,
            clip=1.0,
            log_every=5,
            precision="fp32",
        ),
        variants=(
            variant("post", **{"model.norm": "post"}),
            variant("pre", **{"model.norm": "pre"}),
            variant("dlcl", **{"model.norm": "dlcl"}),
            variant("deepnorm", **{"model.norm": "deepnorm"}),
            variant("post-6", **{"model.norm": "post", "model.depth": 6}),
        ),
    )
