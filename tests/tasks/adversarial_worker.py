"""Run in one process and in two by test_adversarial.py: train the small games and leave what rank 0 has."""

import json
import sys
from pathlib import Path

import torch
from games import RECIPES
from safetensors.torch import save_file

from etude.engine.parallel import join, leave
from etude.engine.trainer import Trainer


def main(directory: Path) -> None:
    world = join("cpu")
    for name, recipe in RECIPES.items():
        trainer = Trainer(recipe, None, world=world, quiet=True)
        result = trainer.fit()
        if world.rank == 0:
            groups = trainer.tensors()
            flat = {f"{g}/{n}": t.contiguous().clone() for g, group in groups.items() for n, t in group.items()}
            save_file(flat, directory / f"{name}.safetensors")
            (directory / f"{name}.json").write_text(json.dumps(result))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
