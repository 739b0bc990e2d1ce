"""Recipes of YOLOv5: synthetic scenes that train in minutes, COCO, and any data set with boxes."""

import dataclasses

from etude.data.detection import Detection
from etude.data.mosaic import BoxAugment
from etude.data.scenes import Scenes
from etude.engine.optim import Optim, Schedule
from etude.engine.recipe import Recipe
from etude.tasks.detect import Detect
from etude.vision import yolo

PUBLISHED = BoxAugment(mosaic=1.0, translate=0.1, scale=0.5, hue=0.015, saturation=0.7, value=0.4, flip=0.5)
SGD = Optim("sgd", lr=0.01, momentum=0.937, nesterov=True, weight_decay=5e-4, decay_vectors=False)


def scenes() -> Recipe:
    """Clothes of Fashion-MNIST pasted on photographs, new scenes in every epoch: mAP@.5 0.902, mAP@.5:.95 0.631 on
    scenes of other clothes and photographs (seed 0), in 17 min 6 s on one core of an AMD EPYC with avx512_bf16 that had
    other work to do."""
    return Recipe(
        name="yolo.scenes",
        model=dataclasses.replace(yolo.sizes["yolov5n"], num_classes=0),
        data=Scenes(),
        task=Detect(),
        optim=Optim("adamw", lr=2e-3, weight_decay=0.05, decay_vectors=False),
        schedule=Schedule("cosine", warmup=100, final=0.01),
        steps=9_000,
        batch_size=16,
        ema=0.999,
        channels_last=True,
        eval_every=1_500,
        eval_batch_size=50,
        log_every=20,
    )


def coco() -> Recipe:
    """COCO 2017, official files, YOLOv5s at 640 pixels with the published settings: 300 epochs of batches of 64, the
    rate falling linearly from 0.01 to 0.0001, three epochs of warm-up. Not run here; the published weights of this
    setting have mAP@.5:.95 37.4 (n 28.0, m 45.4, l 49.0, x 50.7). In the warm-up all rates rise together; v7.0's lets
    those of biases fall from 0.1, and momentum rise from 0.8."""
    return Recipe(
        name="yolo.coco",
        model=yolo.sizes["yolov5s"],
        data=Detection(source="coco", path="coco", augment=PUBLISHED),
        task=Detect(),
        optim=SGD,
        schedule=Schedule("linear", warmup=5_550, final=0.01),
        steps=554_500,
        batch_size=64,
        ema=0.9999,
        channels_last=True,
        eval_every=18_480,
        eval_batch_size=16,
    )


def folder() -> Recipe:
    """Any data set with boxes, in YOLO's, COCO's or VOC's format: etude train yolo.folder --data.path DIR
    [--data.source voc]. From published weights you have: --start.weights yolov5n.pt --start.layout yolov5 with as many
    classes. Not run here on a data set of size."""
    return dataclasses.replace(
        coco(),
        name="yolo.folder",
        model=dataclasses.replace(yolo.sizes["yolov5n"], num_classes=0),
        data=Detection(source="yolo", augment=PUBLISHED),
        schedule=Schedule("linear", warmup=300, final=0.01),
        steps=6_000,
        batch_size=16,
        ema=0.999,
        eval_every=1_000,
    )
