"""The study of depth, shrunk: every norm trains, from its own first step on."""

from functools import partial
from pathlib import Path

from etude.engine.study import train
from etude.recipes import find_study
from etude.tasks import translate

WORDS = "the old man sailed a small boat far out to sea and saw no fish".split()  # noqa: SIM905


def write_pairs(path: Path) -> None:
    """Sentences of few words, and the same words backwards."""
    rows = []
    for i in range(400):
        words = [WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(3 + i % 4)]
        rows.append(f"page{i % 40}\t{' '.join(words)}\t{' '.join(word[::-1] for word in words)}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_depth_is_studied(tmp_path, monkeypatch):
    monkeypatch.setattr(translate, "Search", partial(translate.Search, max_length=12))  # untrained, they find no end
    write_pairs(tmp_path / "pairs.tsv")
    found = find_study("transformer.depth")
    assert [v.label for v in found.variants] == ["post", "pre", "dlcl", "deepnorm", "post-6"]
    changes = {"data.path": str(tmp_path / "pairs.tsv"), "data.vocab_size": 280, "model.vocab_size": 280}
    changes |= {"data.test": 0.1, "data.validation": 0.1, "batch_size": 128}
    changes |= {"model.width": 16, "model.ffn": 16, "model.depth": 2}
    base = found.base.with_(**changes, steps=2, eval_every=2, log_every=1)
    done = train(found.with_base(base), run=tmp_path / "study", quiet=True)
    assert all(outcome["state"] == "done" for outcome in done.result["variants"].values())
    losses = {label: run.metrics[0]["loss"] for label, run in done.runs.items()}
    assert len(set(losses.values())) == 5
    assert all(0 < loss < 20 for loss in losses.values())
