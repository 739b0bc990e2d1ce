"""YOLOv5n at 640 pixels, this library's way against the way it is usually written, on the same weights.

Usually: the network in fp32 as it comes, suppression in a loop, torch.optim.SGD as is. Ours: BatchNorm folded,
bf16 where the hardware has it, channels_last, exact suppression by bits; in training a step of the Trainer.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from etude import catalog
from etude.bench import Contest, clock
from etude.bench.convnet import Noise
from etude.bench.nms import usual
from etude.bench.step import Same, engine_step, operations_of
from etude.engine.optim import Schedule
from etude.engine.precision import DTYPES, pick_device, resolve
from etude.engine.recipe import Recipe
from etude.nn.boxes import from_centre
from etude.nn.inference import prepare_for_inference
from etude.recipes.yolo import SGD
from etude.tasks.detect import Detect


def contests(*, compiled: bool = False) -> list[Contest]:
    """Targets: 2.4 times the network, twice the training step; 30 pictures a second from tensor to boxes."""
    device = pick_device()
    torch.manual_seed(0)
    model: Any = catalog.model("yolov5n").to(device)
    _settle(model, device)
    image = torch.rand(1, 3, 640, 640, device=device)
    fast = prepare_for_inference(model, dtype=DTYPES[resolve("auto", device)], channels_last=True, compile=compiled)
    plain, task = copy.deepcopy(model).eval(), Detect()

    def network(which: Any) -> Tensor:
        with torch.inference_mode():
            return which(image)[0]

    def boxes() -> Any:
        with torch.inference_mode():
            return task.found(fast(image)[0][0], 0.25, 0.45, 300)

    def usual_boxes() -> Any:
        with torch.inference_mode():
            found = plain(image)[0][0]
            scores = found[:, 5:] * found[:, 4:5]
            return usual(from_centre(found[:, :4]), scores, confidence=0.25, iou=0.45, multi_label=False)

    close = torch.nn.functional.cosine_similarity(network(fast).flatten(), network(plain).flatten(), dim=0)
    assert close > 0.999, f"the fast network does not answer as the plain one: cosine {close:.5f}"
    shared: dict[str, Any] = {
        "name": "yolo",
        "peer_name": "PyTorch eager fp32",
        "peer_version": torch.__version__,
        "unit": "images/s",
    }
    operations = operations_of(lambda: network(plain))
    label = ", compiled" * compiled
    return [
        Contest(
            what=f"yolov5n 640x640 b1 network{label}", amount=1, target=2.4,
            ours=clock(lambda: network(fast)), peer=clock(lambda: network(plain)), operations=operations, **shared,
        ),
        Contest(
            what=f"yolov5n 640x640 b1 tensor to boxes{label}", amount=1, target=2.0,
            ours=clock(boxes), peer=clock(usual_boxes), operations=operations,
            note="at least 30 images/s are wanted", **shared,
        ),
        Contest(
            what="yolov5n 640x640 b4 training", amount=4, target=2.0,
            **dict(zip(("ours", "peer", "operations"), _training(model, task, device))), **shared,
        ),
    ]  # fmt: skip


def _settle(model: Any, device: torch.device) -> None:
    """Statistics as after training, of noise: fresh ones let the signal die."""
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(2, 3, 320, 320, device=device))
    model.eval()


def _training(model: Any, task: Detect, device: torch.device) -> tuple[Any, Any, Any]:
    corner = torch.rand(4, 8, 2, device=device) * 400
    boxes = torch.cat([corner, corner + 20 + torch.rand(4, 8, 2, device=device) * 200], 2)
    batch = {"image": torch.rand(4, 3, 640, 640, device=device), "boxes": boxes, "index": torch.arange(4),
             "label": torch.randint(0, 80, (4, 8), device=device),
             "crowd": torch.zeros(4, 8, dtype=torch.bool, device=device)}  # fmt: skip
    theirs = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.937, nesterov=True)

    def plain() -> float:
        optimizer.zero_grad()
        loss, _ = task.loss(theirs, batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    recipe = Recipe(
        name="bench.yolo",
        model=Same(copy.deepcopy(model)),
        data=Noise(64, 80),
        task=Bare(),
        optim=SGD,
        schedule=Schedule("constant"),
        batch_size=4,
        channels_last=True,
    )
    return clock(engine_step(recipe, batch)), clock(plain), operations_of(plain)


class Bare(Detect):
    """The task without the questions that it has for real data."""

    def configure(self, model: Any, dataset: Any) -> Any:
        return model

    def check(self, model: Any, dataset: Any) -> None:
        pass
