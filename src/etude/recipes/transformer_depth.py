"""A study of the Transformer's norms in a deep network."""

from etude.data.pairs import Pairs
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.engine.study import Study, variant
from etude.language import transformer
from etude.tasks.translate import Translate


def depth() -> Study:
    """24 + 24 layers of width 64 by each norm, and post-LN with 6 + 6, on 11,000 short pairs.

    Perplexity on the test pairs after 1,200 steps (seed 0): post-LN 414, which is what the frequency of words gives;
    it had not moved since step 300. Pre-LN 97, DLCL 96, DeepNorm 81; post-LN with 6 layers 202. 19 min in all on one
    core of an AMD EPYC that had other work to do. BLEU is below 2 everywhere: so few steps show what trains, not what
    translates.
    """
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
            data=Pairs(source="en-de", vocab_size=1000, longest=32, limit=20000, translated=8, test=0.01),
            task=Translate(beam=1),
            optim=Optim("adam", lr=1e-3, betas=(0.9, 0.98), eps=1e-9),
            schedule=Schedule("linear", warmup=300),
            steps=1200,
            batch_size=512,
            eval_every=300,
            eval_batch_size=2048,
            clip=1.0,
            log_every=10,
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
