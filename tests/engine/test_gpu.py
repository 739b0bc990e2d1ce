"""The engine on a CUDA device; skipped where there is none."""

import pytest
import torch
from toys import TYPES, everything, game

from etude.engine import fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("recipe", [everything(steps=40), everything(steps=40, precision="fp16"), game(steps=40)])
def test_trains_and_answers(recipe, tmp_path):
    run = fit.train(recipe, run=tmp_path / "run", device="cuda", quiet=True, types=TYPES)
    assert run.env["device"] == torch.cuda.get_device_name()
    assert run.evaluate(device="cuda") == run.result["eval"]


def test_workers_do_not_change_results(tmp_path):
    sha = {
        workers: fit.train(
            everything(steps=10, precision="fp32"), run=tmp_path / str(workers), device="cuda", workers=workers,
            quiet=True, types=TYPES,
        ).result["weights_sha256"]
        for workers in (0, 2)
    }  # fmt: skip
    assert sha[0] == sha[2]
