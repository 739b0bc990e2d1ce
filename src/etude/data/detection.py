"""Pictures with boxes: from any COCO, YOLO or VOC data set, letterboxed, put together to mosaics, augmented.

    files -> Sample (picture, boxes) -> compose or letterbox -> uint8 batch -> colours, mirror images -> floats 0..1
              `Boxed` data sets'         fetch: a worker's        finish: where the model runs

Batches hold "image" (B, 3, S, S), "boxes" (B, M, 4) as x1 y1 x2 y2 in the pixels of the input, "label" (B, M), which is
-1 where a picture has fewer than M boxes, "crowd" (B, M), and "place" (B, 5): scale, left and top of the picture in
the input, its own width and height.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from etude.data import coco, decode, frames, mosaic, order, voc, yolo_txt
from etude.data.annotations import Annotated
from etude.data.base import Batch, Data, Dataset
from etude.data.folder import SUFFIXES, named
from etude.data.mosaic import BoxAugment, Sample
from etude.errors import MissingError, UsageError

STEP = 32
"""The network's coarsest stride: sides are multiples of it."""
READERS = {"coco": coco.read, "yolo": yolo_txt.read, "voc": voc.read}


@dataclass(frozen=True)
class Boxed(Data):
    """What all data with boxes have in common: the input's size, augmentation, and how a picture is asked about."""

    size: int = 640
    """Side of the network's input in pixels."""
    augment: BoxAugment = field(default_factory=BoxAugment)
    """Of training pictures, anew each epoch."""
    multi_scale: float = 0.0
    """Each training batch is scaled by a factor uniform in [1 - multi_scale, 1 + multi_scale], to a multiple of 32."""

    def __post_init__(self) -> None:
        if self.size < STEP or self.size % STEP:
            raise UsageError(
                f"data.size is {self.size}; it must be a multiple of {STEP}",
                hint=f"--data.size {max(1, round(self.size / STEP)) * STEP}",
            )
        if not 0 <= self.multi_scale < 1:
            raise UsageError(f"data.multi_scale is {self.multi_scale}; it must lie from 0 to below 1")

    def reopen(self, facts: dict[str, Any]) -> "Dataset":
        """With the classes that the run has learned, in their order; weights of elsewhere say only how many."""
        dataset, learned = self.open(), list(facts["classes"])
        if learned != _numbers(len(learned)) and (found := dataset.facts["classes"]) != learned:
            said = ", ".join(found)[:200], ", ".join(learned)[:200]
            raise UsageError(f"the data has the classes {said[0]}; the run has learned {said[1]}")
        return dataset

    def picture(self, raw: Any) -> Image.Image:
        """A path, bytes, PIL image, array, tensor or frame of a video, as RGB."""
        return raw.image() if isinstance(raw, frames.Frame) else decode.open_image(raw, 3)

    def prepare(self, raw: Any) -> Tensor:
        """(3, h, w) uint8: the picture, its longer side scaled to `size`, padded to multiples of 32."""
        return self.placed(self.picture(raw))[0]

    def placed(self, image: Image.Image) -> tuple[Tensor, tuple[float, int, int]]:
        """`prepare`, with scale, left and top of the picture in what the network sees."""
        scale = self.size / max(image.size)
        inner = mosaic.resized(np.asarray(image), scale)
        h, w = inner.shape[:2]
        high, wide = (-(-side // STEP) * STEP for side in (h, w))
        left, top = (wide - w) // 2, (high - h) // 2
        canvas = np.full((high, wide, 3), mosaic.GREY, np.uint8)
        canvas[top : top + h, left : left + w] = inner
        return torch.from_numpy(canvas.transpose(2, 0, 1).copy()), (scale, left, top)

    def read(self, words: Sequence[str]) -> list[tuple[str, Any]]:
        """Files as they are named, folders as the pictures and videos in them, videos and animations as their
        frames."""
        found: list[tuple[str, Any]] = []
        for file in named(words, endings=(*SUFFIXES, *frames.VIDEOS)):
            found += [(str(one), one) for one in frames.frames(file)] or [(str(file), file)]
        return found

    def named(self, classes: Sequence[str]) -> tuple[str, ...]:
        """The classes' names, where a model says only their numbers."""
        return tuple(classes)

    def collate(self, samples: list[Tensor]) -> Batch:
        """uint8 pictures of one size -> {"image": (B, 3, h, w) float32 in 0..1}."""
        return {"image": torch.stack(samples).float() / 255}


@dataclass(frozen=True)
class Detection(Boxed):
    """A data set on disk, in one of three formats."""

    source: Literal["coco", "yolo", "voc"] = "coco"
    """The format: see `data/coco.py`, `data/yolo_txt.py`, `data/voc.py`."""
    path: str = ""
    """Its folder."""

    def open(self) -> "DetectionDataset":
        """Read and check all annotations; pictures are decoded when their turn comes."""
        return DetectionDataset(self)

    def reopen(self, facts: dict[str, Any]) -> "Dataset":
        """VOC's files name no class that does not occur: there the run's classes are those."""
        learned = list(facts["classes"])
        if self.source == "voc" and learned != _numbers(len(learned)):
            return DetectionDataset(self, learned)
        return super().reopen(facts)

    def named(self, classes: Sequence[str]) -> tuple[str, ...]:
        """COCO's own, of weights that were trained on it and are asked without it."""
        known = self.source == "coco" and list(classes) == _numbers(len(coco.CLASSES))
        return coco.CLASSES if known else tuple(classes)


def _numbers(count: int) -> list[str]:
    """How weights of elsewhere name their classes."""
    return [str(number) for number in range(count)]


class BoxDataset(Dataset):
    """Opened pictures with boxes. Subclasses say how a sample is read, and set `data`, `sizes` and `facts`."""

    data: Boxed
    in_memory = False

    @abstractmethod
    def load(self, split: str, index: int, *, seed: int = 0, epoch: int | None = None) -> Sample:
        """A sample as it is, before any augmentation. `epoch` and `seed`, of training samples, matter where these are
        made rather than read."""

    @abstractmethod
    def sides(self) -> NDArray[np.float64]:
        """(n, 2): widths and heights of training boxes at the input's size, for anchors to be fitted to."""

    def fetch(self, split: str, indices: Sequence[int] | NDArray[np.int64], *, epochs=None, seed: int = 0) -> Batch:
        """These samples at the input's size, uint8; training samples (those with `epochs`) with a new geometry."""
        size, places = self.data.size, np.asarray(indices, dtype=np.int64)
        if epochs is None:
            return self._stack([self.load(split, int(i)) for i in places], places, size)
        epochs = np.broadcast_to(epochs, places.shape).astype(np.int64)
        drawn = order.uniform(seed, epochs, places, mosaic.UNIFORMS, order.MOSAIC)
        samples = []
        for epoch, index, uniforms in zip(epochs.tolist(), places.tolist(), drawn):
            load = partial(self.load, split, seed=seed, epoch=epoch)
            samples.append(mosaic.compose(load, self.data.augment, uniforms, index, self.sizes[split], size))
        return self._stack(samples, places, size) | {"epoch": torch.from_numpy(epochs)}

    def _stack(self, samples: list[Sample], indices: NDArray[np.int64], size: int) -> Batch:
        inputs = [mosaic.letterbox(sample, size) for sample in samples]
        most = max(1, *(len(sample.labels) for sample in inputs))
        boxes = torch.zeros(len(inputs), most, 4)
        label = torch.full((len(inputs), most), -1)
        crowd = torch.zeros(len(inputs), most, dtype=torch.bool)
        place = torch.zeros(len(inputs), 5)
        for i, (sample, original) in enumerate(zip(inputs, samples)):
            n, (height, width) = len(sample.labels), original.picture.shape[:2]
            boxes[i, :n] = torch.from_numpy(sample.boxes)
            label[i, :n] = torch.from_numpy(sample.labels)
            crowd[i, :n] = torch.from_numpy(sample.crowd)
            place[i] = torch.tensor((*mosaic.letterboxed(width, height, size), width, height))
        images = torch.from_numpy(np.stack([sample.picture for sample in inputs]).transpose(0, 3, 1, 2).copy())
        index = torch.from_numpy(indices)
        return {"image": images, "boxes": boxes, "label": label, "crowd": crowd, "place": place, "index": index}

    def stretch(self, *, seed: int, start: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """As of every data set; the side that a batch is scaled to is the same on all processes."""
        batch = super().stretch(seed=seed, start=start, batch_size=batch_size, rank=rank, world=world)
        if by := self.data.multi_scale:
            drawn = order.uniform(seed, start >> 32, [start & 0xFFFFFFFF], 1, order.CROP)[0, 0]
            side = max(1, round(self.data.size * (1 - by + 2 * by * drawn) / STEP)) * STEP
            batch["side"] = torch.full((len(batch["index"]),), side)
        return batch

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        """Colours and mirror images (training batches), 0..1, another scale."""
        batch, images, boxes = dict(batch), batch["image"], batch["boxes"]
        epochs, side = batch.pop("epoch", None), batch.pop("side", None)
        if epochs is not None:
            indices = batch["index"].numpy()
            images, boxes = self.data.augment.finish(images, boxes, seed=seed, epochs=epochs.numpy(), indices=indices)
        images = images.float().div_(255)
        if side is not None and int(side[0]) != images.shape[3]:
            boxes = boxes * (int(side[0]) / images.shape[3])
            images = F.interpolate(images, size=(int(side[0]), int(side[0])), mode="bilinear", antialias=True)
        return batch | {"image": images, "boxes": boxes}

    def samples(self, split: str, count: int) -> list[tuple[str, Any]]:
        """Pictures as they are, named with what is in them."""
        count, classes = min(count, self.sizes[split]), self.facts["classes"]
        found = []
        for index in (i * self.sizes[split] // count for i in range(count)):
            sample = self.load(split, index)
            names = ", ".join(classes[label].replace("/", " or ") for label in sample.labels)  # a name may be a file's
            found.append((f"{split} sample {index}, truly {names or 'nothing'}", Image.fromarray(sample.picture)))
        return found


class DetectionDataset(BoxDataset):
    """Files: see the module."""

    def __init__(self, data: Detection, classes: Sequence[str] = ()):
        """`classes`: a run's, of data in VOC's format."""
        self.data = data
        if not data.path:
            raise MissingError(f"{data.source}: no folder is given", hint="--data.path DIR")
        root = Path(data.path).expanduser()
        if not root.is_dir():
            raise MissingError(f"{root}: no such folder", hint="--data.path DIR")
        read = partial(voc.read, classes=classes) if data.source == "voc" else READERS[data.source]
        self._splits: dict[str, Annotated] = {split: read(root, split) for split in ("train", "test")}
        train, test = self._splits.values()
        if train.classes != test.classes:
            raise UsageError(f"{root}: the splits have different classes: {train.classes} and {test.classes}")
        if all(crowd.all() for crowd in train.crowd):
            raise UsageError(f"{root}: the train split has no box: there is nothing to learn")
        self.sizes = {split: len(found) for split, found in self._splits.items()}
        self.facts = {"source": data.path, "classes": list(train.classes), "sizes": self.sizes}

    def load(self, split: str, index: int, *, seed: int = 0, epoch: int | None = None) -> Sample:
        """Decodes the picture. UsageError names it where it cannot be read or is not as its annotation says."""
        held = self._splits[split]
        picture = np.asarray(decode.open_image(held.paths[index], 3))
        height, width = picture.shape[:2]
        said = held.sizes[index]
        if said is not None and said != (width, height):
            raise UsageError(
                f"{held.paths[index]}: {width} x {height} pixels, where its annotation says {said[0]} x {said[1]}"
            )
        boxes = held.boxes[index] * (np.array([width, height] * 2) if held.relative else 1.0)
        return Sample(picture, boxes, held.labels[index], held.crowd[index])

    def sides(self) -> NDArray[np.float64]:
        """Of all objects but crowds. Where annotations do not say the pictures' sides, their headers are read."""
        held, found = self._splits["train"], []
        for path, boxes, crowd, size in zip(held.paths, held.boxes, held.crowd, held.sizes):
            if len(boxes):
                size = size or _size(path)
                shares = np.array(size if held.relative else (1, 1)) * self.data.size / max(size)
                found.append((boxes[:, 2:] - boxes[:, :2])[~crowd] * shares)
        return np.concatenate(found)


def _size(path: str) -> tuple[int, int]:
    """Width and height of an upright picture, from its header."""
    with decode.header(path) as image:
        width, height = image.size
        return (width, height) if decode.orientation(image) < 5 else (height, width)
