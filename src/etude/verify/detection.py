"""The detector on its golden file's weights, and boxes on their golden file's."""

from collections.abc import Iterator

import numpy as np
import torch

from etude import catalog
from etude.nn.inference import prepare_for_inference
from etude.verify import golden
from etude.vision.boxes import batched_nms, complete_iou, generalized_iou, nms
from etude.weights import load_weights

GOLDEN = {"yolov5n": "YOLOv5 7.0", "boxes": "torchvision 0.29.1"}
"""size or block: reference."""
FILES = ("yolov5n", "nms")
BF16_BOUND = 0.05
"""On the decoded boxes of rough weights: bf16 has 8 bits."""


@torch.no_grad()
def errors(size: str) -> Iterator[tuple[str, float, float]]:
    """(quantity, error, bound) of each comparison."""
    yield from {"yolov5n": _yolo, "boxes": _boxes}[size]()


def _yolo() -> Iterator[tuple[str, float, float]]:
    expected = golden.load("yolov5n")
    model = catalog.model("yolov5n")
    anchors = {"model.24.anchors": model.get_buffer("head.anchors").clone()}  # these keep their own values
    load_weights(model, expected.weights | anchors, source="yolov5").eval()
    shape, drawn = expected.meta["inputs"]["input"], golden.generator(expected.meta["seed"], "input")
    image = torch.from_numpy(drawn.uniform(0, 1, shape).astype(np.float32))
    decoded, maps = model(image)
    for name, output in zip(("decoded", "p3", "p4", "p5"), (decoded, *maps)):
        for quantity, error in expected.errors(name, output).items():
            yield quantity, error, golden.BOUND
    exact = model(image)[0]
    for name, dtype, bound in (("fp32", None, golden.BOUND), ("bf16", torch.bfloat16, BF16_BOUND)):
        found = prepare_for_inference(model, dtype=dtype, channels_last=True)(image)[0]
        yield f"prepared for inference, {name}", float((found - exact).norm() / exact.norm()), bound


def _boxes() -> Iterator[tuple[str, float, float]]:
    expected = golden.load("nms")
    drawn = golden.generator(expected.meta["seed"], "boxes")
    corner, sides = drawn.uniform(0, 100, (200, 2)), drawn.uniform(5, 60, (200, 2))
    scores, classes = torch.from_numpy(drawn.uniform(0, 1, 200)).float(), torch.from_numpy(drawn.integers(0, 5, 200))
    boxes = torch.from_numpy(np.concatenate([corner, corner + sides], 1)).float()
    outputs = {
        "keep": nms(boxes, scores, 0.45),
        "batched_keep": batched_nms(boxes, scores, classes, 0.45),
        "giou": generalized_iou(boxes[:20], boxes[20:40]),
        "ciou": complete_iou(boxes[:20], boxes[20:40]),
    }
    for name, output in outputs.items():
        for quantity, error in expected.errors(name, output).items():
            yield quantity, error, 0.0 if "keep" in name else golden.BOUND
