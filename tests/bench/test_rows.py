"""Rows of benchmarks in one file: newer ones take the place of older, and machines are not mixed."""

import json

import pytest

from etude import cpu
from etude.bench import kept, machine, out_file
from etude.errors import UsageError

MACHINE = {"cpu": "one", "threads": 2, "device": "cpu", "torch": "2.13.0"}


def row(name: str, ratio: float) -> dict:
    return {"name": name, "what": "training", "peer_name": "plain", "ours": 5.0, "ratio": ratio}


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


def test_what_has_no_figures_takes_no_row_from_what_has(tmp_path):
    path = tmp_path / "rows.json"
    failed = {"comparison": "a", "name": "a", "what": "training", "peer_name": "plain", "error": "of memory"}
    whole = {"comparison": "a", "name": "a", "what": "a", "error": "not counted"}
    path.write_text(json.dumps({"machine": MACHINE, "rows": [row("a", 1.0)]}))
    found = kept({"machine": MACHINE, "rows": [failed, whole]}, path)["rows"]
    assert found == [row("a", 1.0), whole]
    path.write_text(json.dumps({"machine": MACHINE, "rows": [whole, failed]}))
    again = row("a", 2.0) | {"comparison": "a"}
    assert kept({"machine": MACHINE, "rows": [again]}, path)["rows"] == [again]  # no failure of an earlier time stays


def test_features_and_limits_make_another_machine(tmp_path):
    path, new = tmp_path / "rows.json", MACHINE | {"features": ["avx2", "avx512f"]}
    limited = MACHINE | {"features": ["avx2"], "limits": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
    path.write_text(json.dumps({"machine": new, "rows": []}))
    assert kept({"machine": new, "rows": []}, path)
    with pytest.raises(UsageError, match="holds rows of features"):
        kept({"machine": limited, "rows": []}, path)
    with pytest.raises(UsageError, match=r"holds rows of limits \{\}"):
        kept({"machine": limited | {"features": new["features"]}, "rows": []}, path)
    path.write_text(json.dumps({"machine": MACHINE, "rows": []}))  # written before features were
    assert kept({"machine": new, "rows": []}, path)["machine"] == new


def test_a_folder_has_a_file_for_each_kind_of_cpu(tmp_path, monkeypatch):
    for variable in cpu.LIMITS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cpu, "name", lambda: "AMD EPYC 9R14 (Zen)")
    monkeypatch.setattr(cpu, "features", lambda: ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16"])
    assert out_file(str(tmp_path)) == tmp_path / "amd-epyc-9r14-zen-avx512_bf16.json"
    assert out_file(f"{tmp_path}/new/") == tmp_path / "new" / "amd-epyc-9r14-zen-avx512_bf16.json"
    assert out_file(str(tmp_path / "own.json")) == tmp_path / "own.json"
    assert "limits" not in machine(2)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert out_file(str(tmp_path)).name == "amd-epyc-9r14-zen-avx2.json"
    assert machine(2)["features"] == ["avx2", "fma"] and machine(2)["limits"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    monkeypatch.setattr(cpu, "name", lambda: "aarch64")
    monkeypatch.setattr(cpu, "features", list)
    assert out_file(str(tmp_path)).name == "aarch64.json"
