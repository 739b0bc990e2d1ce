"""Studies: variants, a kill in the middle, a variant that fails, the page."""

import json
import signal
from pathlib import Path

import pytest
from toys import TYPES, Blobs, everything

from etude import cli
from etude.engine import fit, study
from etude.engine.run import Run
from etude.engine.study import Study, StudyRun, Variant, variant, vary
from etude.errors import Interrupted, MissingError, RefusedError, UsageError
from etude.recipes import find_study
from etude.report import write


def rates(**changes) -> Study:
    base = everything(steps=12, eval_every=6, ema=None, **changes)
    return Study(name="toy.rates", question="Which rate?", base=base, variants=vary("optim.lr", (0.001, 0.01, 0.1)))


def test_variants_differ_in_the_named_fields_only():
    recipes = rates().recipes()
    assert list(recipes) == ["0.001", "0.01", "0.1"]
    base = rates().base
    for label, recipe in recipes.items():
        assert recipe.optim.lr == float(label) and recipe.name == f"toy.rates/{label}"
        assert recipe.with_(**{"optim.lr": base.optim.lr, "name": base.name}) == base


def test_a_study_trains_its_variants_and_tells_them_apart(tmp_path):
    done = study.train(rates(), run=tmp_path / "s", quiet=True, types=TYPES)
    assert done.finished and list(done.runs) == ["0.001", "0.01", "0.1"]
    for label, outcome in done.result["variants"].items():
        run = done.runs[label]
        assert outcome["state"] == "done" and outcome["steps"] == 12
        assert outcome["test"] == run.result["eval"]
        assert outcome["train"] == run.evaluate("train")
    assert len({json.dumps(o["test"]) for o in done.outcomes.values()}) == 3
    again = StudyRun(tmp_path / "s", types=TYPES)
    assert again.result == done.result
    page = done.report().read_text()
    assert page == done.report().read_text(), "a function of the files"
    for said in ("Which rate?", "3 of 3 done", "Measures against optim.lr", "0.001/report.html"):
        assert said in page


def test_an_interrupted_study_goes_on_where_it_was(tmp_path, monkeypatch):
    """Stopped inside the second variant: the first is not trained again, and the end is the uninterrupted study's."""
    whole = study.train(rates(), run=tmp_path / "whole", quiet=True, types=TYPES)
    real, begun = fit.Trainer, []

    class Stopping(real):
        def fit(self):
            begun.append(self.recipe.name)
            if len(begun) == 2:
                record = self._record

                def stop(logs):
                    record(logs)
                    if self.step == 5:
                        self._stop = signal.SIGTERM

                self._record = stop
            return super().fit()

    monkeypatch.setattr(fit, "Trainer", Stopping)
    with pytest.raises(Interrupted) as stopped:
        study.train(rates(), run=tmp_path / "cut", quiet=True, types=TYPES)
    assert stopped.value.code == 75 and stopped.value.hint == f"etude resume {tmp_path / 'cut'}"
    half = StudyRun(tmp_path / "cut", types=TYPES)
    assert list(half.outcomes) == ["0.001"] and not half.finished
    assert "1 of 3 done" in half.report().read_text()
    begun.append("between")
    half.train(quiet=True)
    assert begun[3:] == ["toy.rates/0.01", "toy.rates/0.1"]
    for label, run in half.runs.items():
        assert run.result["weights_sha256"] == whole.runs[label].result["weights_sha256"]
        assert (run.path / "metrics.jsonl").read_bytes() == (whole.runs[label].path / "metrics.jsonl").read_bytes()


def test_a_signal_after_a_variants_last_step_stops_the_study(tmp_path, monkeypatch):
    """It comes while the variant is measured: that one is finished, and the next is not begun."""
    real = fit.Trainer

    class Signalled(real):
        def measure(self, split):
            if self.step == self.recipe.steps:
                signal.raise_signal(signal.SIGTERM)
            return super().measure(split)

    monkeypatch.setattr(fit, "Trainer", Signalled)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        study.train(rates(), run=tmp_path / "s", quiet=True, types=TYPES)
    assert stopped.value.code == 75 and signal.getsignal(signal.SIGTERM) == handler
    assert list(StudyRun(tmp_path / "s", types=TYPES).outcomes) == ["0.001"]


def test_the_second_signal_is_not_held_back():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
    try:
        with study._listening() as heard:
            signal.raise_signal(signal.SIGTERM)
            assert heard == [signal.SIGTERM] and not calls
            signal.raise_signal(signal.SIGTERM)
        assert calls == [signal.SIGTERM] and len(heard) == 1
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_does_not_fit_shows_before_a_directory_exists(tmp_path):
    base = everything()
    variants = (variant("plain"), variant("early", patience=2))
    wrong = Study(name="a.b", question="?", base=base, variants=variants)
    with pytest.raises(UsageError, match="patience needs held-out samples"):
        study.train(wrong, run=tmp_path / "s", quiet=True, types=TYPES)
    assert not (tmp_path / "s").exists()


def test_a_variant_that_ends_in_nan_is_a_result(tmp_path):
    base = everything(steps=6)
    sick = Study(
        name="toy.sick",
        question="?",
        base=base,
        variants=(variant("well"), variant("sick", data=Blobs(poison=3)), variant("calm", clip=0.1)),
    )
    done = study.train(sick, run=tmp_path / "s", quiet=True, types=TYPES)
    states = {label: outcome["state"] for label, outcome in done.outcomes.items()}
    assert states == {"well": "done", "sick": "failed", "calm": "done"}
    assert "sample 3" in done.outcomes["sick"]["error"]
    assert "sample 3" in done.report().read_text()
    assert done.train(quiet=True).outcomes == done.outcomes, "nothing is left to do"


def test_what_cannot_be_a_study_is_refused(tmp_path):
    base = everything()
    with pytest.raises(UsageError, match="two or more variants"):
        Study(name="a.b", question="", base=base, variants=vary("steps", (3,)))
    with pytest.raises(UsageError, match="two or more variants"):
        Study(name="a.b", question="", base=base, variants=vary("steps", (3, 3)))
    with pytest.raises(UsageError, match="unknown field"):
        Study(name="a.b", question="", base=base, variants=vary("optim.lt", (3.0, 4.0)))
    for label in ("../escape", "study.json", "report.html", ""):
        with pytest.raises(UsageError, match="cannot name a directory"):
            Variant(label)
    with pytest.raises(UsageError, match=r"varies optim\.lr itself"):
        rates().with_base(base.with_(**{"optim.lr": 3.0}))
    assert rates().with_base(base.with_(seed=9)).recipes()["0.1"].seed == 9
    with pytest.raises(MissingError, match="is not a study"):
        StudyRun(tmp_path)
    (tmp_path / "study.json").write_text('{"study": "x"}')
    with pytest.raises(RefusedError, match="damaged"):
        StudyRun(tmp_path)
    elsewhere = {"study": "x", "outcomes": {}, "recipes": {"../../out": base.to_json()}}
    (tmp_path / "study.json").write_text(json.dumps(elsewhere))
    with pytest.raises(RefusedError, match="not what a study writes"):
        StudyRun(tmp_path, types=TYPES)
    assert "../../out" not in write(tmp_path).read_text()
    with pytest.raises(UsageError, match="is a study"):
        Run(tmp_path)
    with pytest.raises(UsageError, match="holds a run already"):
        study.train(rates(), run=tmp_path, quiet=True)


def test_a_damaged_variant_leaves_a_page(tmp_path):
    done = study.train(rates(), run=tmp_path / "s", quiet=True, types=TYPES)
    (tmp_path / "s" / "0.01" / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": "x"}\nnonsense\n{"st')
    (tmp_path / "s" / "0.1" / "figures.json").write_text("[1, {")
    assert "figures.json is damaged" in done.report().read_text()


@pytest.mark.parametrize("name", ["mlp.activations", "mlp.initialisation", "mlp.function"])
def test_the_command_line_trains_resumes_and_reports(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--steps", "4", "--schedule.warmup", "0", "--eval-every", "2"]
    assert cli.main(["train", name, *flags, "--quiet", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    labels = [v.label for v in find_study(name).variants]
    assert list(said["variants"]) == labels
    place = said["run"]
    assert cli.main(["resume", place]) == 0
    table = capsys.readouterr().out
    assert all(f"\n{label} " in table for label in labels) and "report" in table
    assert cli.main(["report", place]) == 0
    assert capsys.readouterr().out.strip() == f"{place}/report.html"
    assert cli.main(["eval", f"{place}/{labels[0]}"]) == 0
    assert cli.main(["eval", place]) == 2
    assert "is a study; ask one of its runs" in capsys.readouterr().err
    assert Path(place, labels[-1], "report.html").is_file()


def test_the_command_line_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "mlp.activations", "--model.activation", "relu", "--find-lr"]) == 2
    assert cli.main(["train", "mlp.function", "--model.hidden", "7"]) == 2
    assert "varies model.hidden itself" in capsys.readouterr().err
    assert cli.main(["train", "mlp.initialisation", "--dry-run", "--steps", "1"]) == 0
    assert not (tmp_path / "runs").exists()
    assert "all 4 variants went through" in capsys.readouterr().out
    assert cli.main(["train", "mlp.initialisation", "--dry-run", "--steps", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["variants"]) == 4
    assert cli.main(["info", "mlp.function"]) == 0
    assert json.loads(capsys.readouterr().out)["variants"]["4"] == {"model.hidden": "(4,)"}
