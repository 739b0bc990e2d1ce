"""Run in one process and in two by test_parallel.py: train toy recipes and leave what rank 0 has in a directory."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from toys import Blobs, Net, everything, game

from etude.data import order
from etude.engine.optim import Optim
from etude.engine.parallel import join, leave
from etude.engine.trainer import Trainer
from etude.errors import NumericError, UsageError

PLAIN = Net(dropout=0.0)  # dropout masks are drawn per process
RECIPES = {
    "batchnorm": everything(model=PLAIN, precision="fp32", steps=20, accumulate=1),
    "accumulated": everything(model=Net(dropout=0.0, batchnorm=False), precision="fp32", steps=20),
    "sgd": everything(model=PLAIN, precision="fp32", steps=20, accumulate=1, optim=Optim("sgd", lr=0.1)),
    "held-out": everything(
        model=PLAIN, precision="fp32", steps=40, accumulate=1, patience=2, eval_every=5, **{"data.validation": 53}
    ),
}
SHARDED = everything(model=Net(dropout=0.0, batchnorm=False), precision="fp32", steps=20, shard=2)


def main(directory: Path) -> None:
    world = join("cpu")
    recipes = RECIPES | ({"sharded": SHARDED} if world.size > 1 else {"sharded": SHARDED.with_(shard=1)})
    for name, recipe in recipes.items():
        out = directory / name
        if world.rank == 0:
            out.mkdir(parents=True)
        world.gather(None)
        place = join("cpu", shard=recipe.shard)
        trainer = Trainer(recipe, out, world=place, quiet=True)
        result = trainer.fit()
        tensors = trainer.tensors()
        if world.rank == 0:
            flat = {f"{g}/{n}": t.contiguous().clone() for g, group in tensors.items() for n, t in group.items()}
            save_file(flat, out / "all.safetensors")
            (out / "result.json").write_text(json.dumps(result))
    pair = Trainer(game(steps=5), None, world=world, quiet=True)
    pair.fit()
    equal = world.gather([p.tolist() for p in pair.model.parameters()])
    assert all(other == equal[0] for other in equal)
    if world.size > 1:
        try:
            Trainer(game(steps=3, shard=2), None, world=join("cpu", shard=2), quiet=True)
        except UsageError as error:
            assert "several players" in str(error)
        else:
            raise AssertionError("sharded players were taken")
    # a NaN that only one process sees stops all of them, and is named
    try:
        Trainer(everything(accumulate=1, **{"data.poison": 77}), None, world=world, quiet=True).fit()
    except NumericError as error:
        assert "sample 77" in str(error), error
    else:
        raise AssertionError("a NaN went unseen")
    # what one process wrote, any number can go on with
    resumed = Trainer(RECIPES["sgd"], directory / "sgd", world=world, quiet=True)
    resumed.resume()
    resumed.log.close()
    assert resumed.step == 20
    dataset = Blobs().open()
    share = dataset.batch(seed=1, step=2, batch_size=12, rank=world.rank, world=world.size)["index"].tolist()
    whole = dataset.batch(seed=1, step=2, batch_size=12)["index"].tolist()
    assert [index for part in world.gather(share) for index in part] == whole
    assert order.rank_slice(2, 12, world.rank, world.size)[1] * world.size == 12
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
