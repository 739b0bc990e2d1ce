"""What environment variables hide of a CPU."""

import pytest

from etude import cpu

EPYC = ["avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16"]
WIDE = ["avx512f", "avx512_vnni", "avx512_bf16"]


@pytest.mark.parametrize(
    ("variable", "value", "hidden"),
    [
        ("ATEN_CPU_CAPABILITY", "avx2", ["avx512f"]),
        ("ATEN_CPU_CAPABILITY", "default", ["avx2", "fma", "avx512f"]),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", WIDE),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE", ["avx512_vnni", "avx512_bf16"]),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", []),
        ("ONEDNN_MAX_CPU_ISA", "DEFAULT", []),
        ("DNNL_MAX_CPU_ISA", "SSE41", EPYC),
        ("MKL_ENABLE_INSTRUCTIONS", "AVX2", ["avx512f"]),
        ("FBGEMM_ENABLE_INSTRUCTIONS", "AVX2", ["avx512f", "avx512_vnni"]),
        ("ATEN_CPU_CAPABILITY", "avx1024", []),
    ],
)
def test_hidden_features(monkeypatch, variable, value, hidden):
    for other in cpu.LIMITS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(cpu, "features", lambda: EPYC)
    assert cpu.hidden() == {} and cpu.used() == EPYC
    monkeypatch.setenv(variable, value)
    assert cpu.hidden() == {variable: hidden}
    assert cpu.used() == [feature for feature in EPYC if feature not in hidden]


def test_features_are_in_the_order_in_which_onednn_gains_them():
    assert [cpu.ONEDNN[value][0] for value in ("avx", "avx2", "avx2_vnni", "avx512_core", "avx512_core_vnni")] == [
        "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"
    ]  # fmt: skip
    assert cpu.ONEDNN["avx512_core_bf16"][0] == "avx512_fp16" and cpu.ONEDNN["avx512_core_fp16"][0] == "amx_bf16"
