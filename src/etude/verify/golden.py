"""Golden files: what a reference implementation answered on weights and inputs that anyone can make again.

No weights are stored. A tensor is a function of a seed, its name in the reference, and its shape; so the model under
test is given the same weights, through the importer for the reference's layout, and its outputs are compared with a
digest of the reference's: at most 2,048 values, evenly spaced, and the 2-norm of the whole.
"""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
BOUND = 1e-5
"""On the relative error in fp32. Other orders of summation (threads, memory formats) were seen to cost 6e-7."""
DIGEST = 2048


@dataclass(frozen=True)
class Golden:
    """One golden file. `meta` says what was run: seed, inputs {name: shape}, shapes of the weights, outputs."""

    meta: dict[str, Any]
    digests: dict[str, np.ndarray]
    norms: dict[str, float]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The reference's parameters and buffers, by its own names; integer counters are left out."""
        return {
            name: torch.from_numpy(weight(self.meta["seed"], name, tuple(shape)))
            for name, shape in self.meta["shapes"].items()
            if not name.endswith("num_batches_tracked")
        }

    @property
    def image(self) -> Tensor:
        """The input named "input": standard normal, or uniform in 0 to 1."""
        inputs, drawn = self.meta["inputs"], generator(self.meta["seed"], "input")
        shape = inputs["input"]
        uniform = inputs.get("range") == "uniform(0,1)"
        return torch.from_numpy((drawn.random(shape) if uniform else drawn.standard_normal(shape)).astype(np.float32))

    def errors(self, name: str, output: Tensor) -> dict[str, float]:
        """Relative errors of an output's digest and norm."""
        flat = output.detach().double().flatten().numpy()
        if list(output.shape) != self.meta["outputs"][name]:
            return {f"{name} digest": math.inf, f"{name} norm": math.inf}
        where = np.linspace(0, flat.size - 1, min(DIGEST, flat.size)).astype(np.int64)
        digest, norm = self.digests[name].astype(np.float64), self.norms[name]
        return {
            f"{name} digest": float(np.linalg.norm(flat[where] - digest) / np.linalg.norm(digest)),
            f"{name} norm": abs(float(np.linalg.norm(flat)) - norm) / norm,
        }


def load(name: str) -> Golden:
    """The golden file of this name."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        meta = json.loads(file["meta"].tobytes())
        outputs = list(meta["outputs"])
        digests = {output: file[f"digest/{output}"] for output in outputs}
        norms = {output: float(file[f"norm/{output}"]) for output in outputs}
    return Golden(meta, digests, norms)


def generator(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The deterministic weight of this name and shape, float32."""
    g = generator(seed, name)
    if name.endswith("running_var"):
        values = g.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        values = g.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    elif name.endswith(("weight", "scale", "gamma")):
        values = g.uniform(0.5, 1.5, shape)
    else:
        values = 0.1 * g.standard_normal(shape)
    return np.asarray(values, dtype=np.float32)
