"""Rows of benchmarks in one file: newer ones take the place of older, and machines are not mixed."""

import json

import pytest

from etude.bench import kept
from etude.errors import UsageError

MACHINE = {"cpu": "one", "threads": 2, "device": "cpu", "torch": "2.13.0"}


def row(name: str, ratio: float) -> dict:
    return {"name": name, "what": "training", "peer_name": "plain", "ratio": ratio}


def test_rows_of_other_comparisons_stay(tmp_path):
    path = tmp_path / "rows.json"
    assert kept({"machine": MACHINE, "rows": [row("a", 1.0)]}, path)["rows"] == [row("a", 1.0)]
    path.write_text(json.dumps({"machine": MACHINE | {"date": "then"}, "rows": [row("a", 1.0), row("b", 2.0)]}))
    whole = kept({"machine": MACHINE | {"date": "now"}, "rows": [row("b", 3.0), row("c", 4.0)]}, path)
    assert whole == {"machine": MACHINE | {"date": "now"}, "rows": [row("a", 1.0), row("b", 3.0), row("c", 4.0)]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps({"machine": MACHINE | {"cpu": "two"}, "rows": []}), "holds rows of cpu two, these are of one"),
        ("{}", "does not hold rows of etude bench"),
        ("not JSON", "does not hold rows of etude bench"),
    ],
)
def test_rows_of_another_machine_or_other_files_are_refused(tmp_path, content, said):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(UsageError, match=said):
        kept({"machine": MACHINE, "rows": []}, tmp_path / "rows.json")
