"""Recipes of the Transformer: translation out of English."""

from dataclasses import replace

from etude.data.pairs import Pairs
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.language import transformer
from etude.recipes.transformer_depth import depth as depth
from etude.tasks.translate import Translate


def en_de() -> Recipe:
    """English to German on what Debian translates, LibreOffice's help and the descriptions of packages: 66,000 pairs.

    BLEU 23.97 and chrF 52.8 on 1,064 held-out pairs (beam 4, GNMT's penalty 0.6; sacreBLEU's 13a), perplexity 10.2;
    seed 0, in 1 h 6 min on one core of an AMD EPYC with avx512_bf16 that had other work to do.
    """
    return Recipe(
        name="transformer.en_de",
        model=transformer.Config(vocab_size=8000, width=256, depth=3, num_heads=4, ffn=1024, dropout=0.1, norm="pre"),
        data=Pairs(source="en-de"),
        task=Translate(),
        optim=Optim("adam", lr=1e-3, betas=(0.9, 0.98), eps=1e-9),
        schedule=Schedule("cosine", warmup=600, final=0.02),
        steps=4500,
        batch_size=2048,
        eval_every=1500,
        eval_batch_size=4096,
        clip=1.0,
        log_every=20,
    )


def en_fr() -> Recipe:
    """English to French on what Debian translates, as `en_de`. Not run."""
    return replace(en_de(), name="transformer.en_fr", data=Pairs(source="en-fr"))


def en_zh() -> Recipe:
    """English to Chinese on what Debian translates, as `en_de`; BLEU on Chinese characters. Not run."""
    return replace(en_de(), name="transformer.en_zh", data=Pairs(source="en-zh"), task=Translate(tokens="zh"))


def big_en_de() -> Recipe:
    """The paper's big model on WMT14 English-German, 4.5 million pairs: 28.4 BLEU there, of compound-split tokens. Not
    run here.

    `--data.path` names a folder with the official files as train.en, train.de, validation.en, validation.de
    (newstest2013), test.en and test.de (newstest2014). Settings of section 5: 25,000 tokens a side, dropout 0.3, label
    smoothing 0.1, 300,000 steps, the mean of the last 20 checkpoints, beam 4 with GNMT's penalty and alpha 0.6.
    """
    return Recipe(
        name="transformer.big_en_de",
        model=transformer.Config(vocab_size=37_000, width=1024, num_heads=16, ffn=4096, dropout=0.3),
        data=Pairs(source="en-de", path="wmt14_en_de", vocab_size=37_000, longest=256, multiple=16),
        task=Translate(compounds=True),
        optim=Optim("adam", lr=1.0, betas=(0.9, 0.98), eps=1e-9),
        schedule=Schedule("noam", warmup=4000, width=1024),
        steps=300_000,
        batch_size=25_000,
        eval_every=5000,
        eval_batch_size=8192,
        log_every=50,
        save_every=1500,
        keep=20,
        average=20,
    )
