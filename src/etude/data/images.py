"""`Images`: labelled pictures of any source, augmented as whole batches, normalised, optionally mixed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from etude.data import decode, folder, imagenet, order
from etude.data.augment import Augment
from etude.data.base import Batch, Data, Dataset
from etude.data.sources import ImageArrays, ImageFiles, source
from etude.errors import UsageError


@dataclass(frozen=True)
class Images(Data):
    """Labelled pictures. Small sets are decoded once and kept in memory as uint8; folders are read as needed."""

    source: str = "digits"
    """A name that `etude data list` shows, or "folder" for any ImageFolder."""
    path: str = ""
    """The directory, for sets that etude did not fetch."""
    size: int | None = None
    """Side in pixels of pictures from folders (default: the source's own, or 224)."""
    mean: tuple[float, ...] = (0.5,)
    """Per channel, of pixels scaled to 0..1; its length is the number of channels."""
    std: tuple[float, ...] = (0.5,)
    distort: Augment = field(default_factory=Augment)
    """Of every picture of every split, once and for all, before any augmentation: a harder set of the same pictures. It
    depends on the sample alone, not on the run's seed. `predict` takes pictures as they are."""
    augment: Augment = field(default_factory=Augment)
    """Of training pictures, anew each epoch."""
    mixup: float = 0.0
    """alpha of lambda ~ Beta(alpha, alpha), mixing neighbours in a batch (arXiv 1710.09412); 0 is off."""
    validation: int = 0
    """Training samples held out to choose the best weights and to stop early."""
    subset: int | None = None
    """Train on this many samples only, as evenly over the classes as they allow: always the same, and among those of
    any larger subset. Validation samples are drawn first, from the whole set, so that every subset has the same."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise UsageError(
                f"data.mean and data.std need 1 or 3 channels; they have {len(self.mean)} and {len(self.std)}"
            )
        if min(self.std) <= 0:
            raise UsageError(f"data.std is {self.std}; every entry must be positive")
        if not 0 <= self.mixup < float("inf") or self.validation < 0:
            raise UsageError(f"data.mixup {self.mixup} and data.validation {self.validation} must not be negative")
        if self.subset is not None and self.subset < 1:
            raise UsageError(f"data.subset is {self.subset}; it must be a positive number of samples")
        held = source(self.source)
        if self.size is not None and (self.size < 1 or held.side not in (0, self.size)):
            wanted = held.side or "a positive number of"
            raise UsageError(f"data.size is {self.size}; pictures of {self.source} have {wanted} pixels a side")

    @property
    def side(self) -> int:
        """Side of the pictures in pixels."""
        return self.size or source(self.source).side or 224

    def open(self) -> "ImageDataset":
        """Read or find all splits."""
        return ImageDataset(self)

    def reopen(self, facts: dict[str, Any]) -> "ImageDataset":
        """With the classes that the run has learned, in their order: a folder may lack some, and one of another name is
        a UsageError. Weights of elsewhere, which have no source, say only how many classes they know."""
        return ImageDataset(self, tuple(facts["classes"]) if "source" in facts else ())

    def prepare(self, raw: Any) -> Tensor:
        """A path, bytes, PIL image, array or tensor -> (C, side, side) uint8, as the test split's pictures are made.

        Pictures of a set with a fixed side are scaled and cropped to it; of folders, as `decode.load` says.
        """
        image = decode.open_image(raw, len(self.mean))
        if source(self.source).side:
            if image.size != (self.side, self.side):
                image = ImageOps.fit(image, (self.side, self.side), Image.Resampling.BILINEAR)
        else:
            image = decode.evaluation_crop(image, self.side)
        return decode.to_tensor(image)

    def read(self, words: Sequence[str]) -> list[tuple[str, Path]]:
        """Files as they are named, folders as the pictures in them; a missing one is an error before anything is
        done."""
        return [(str(path), path) for path in folder.named(words)]

    def collate(self, samples: list[Tensor]) -> Batch:
        """uint8 pictures -> {"image": (B, C, H, W) float32, normalised}."""
        return {"image": self.normalise(torch.stack(samples))}

    def normalise(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float32, (x / 255 - mean) / std."""
        scale, shift = _affine(self.mean, self.std, images.device)
        return torch.addcmul(shift, images, scale)


@lru_cache
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalisation as one multiplication and one addition per channel."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std)], device=device)
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


def _evenly(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows: the first of each class, then the second of each, and so on."""
    by_class = np.argsort(labels[rows], kind="stable")
    sizes = np.bincount(labels[rows])
    turn = np.empty(len(rows), dtype=np.int64)  # how many of its class come before a row
    turn[by_class] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rows[np.argsort(turn, kind="stable")[:count]]


def _counted(held: ImageArrays | ImageFiles, classes: tuple[str, ...], data: Images) -> ImageArrays | ImageFiles:
    """The same pictures, their labels counted by `classes`."""
    labels = {imagenet.wordless(name): label for label, name in enumerate(classes)}
    if unknown := [name for name in held.classes if imagenet.wordless(name) not in labels]:
        known = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise UsageError(
            f"{data.path or data.source} has the class {unknown[0]!r}, which the run has not learned: it knows {known}",
            hint="name the folders after the run's classes" if data.source == "folder" else "",
        )
    places = torch.tensor([labels[imagenet.wordless(name)] for name in held.classes])
    return replace(held, labels=places[held.labels], classes=classes)


class ImageDataset(Dataset):
    """Opened pictures: {"image": (B, C, H, W) uint8 until finished, "label": (B,), "index": (B,)}."""

    def __init__(self, data: Images, learned: tuple[str, ...] = ()):
        """`learned`: the classes by which labels are counted, where they are not the data's own."""
        self.data = data
        train, test = (source(data.source).load(split, data.path) for split in ("train", "test"))
        if learned and train.classes != learned:
            train, test = (_counted(found, learned, data) for found in (train, test))
        self.in_memory = isinstance(train, ImageArrays)
        if isinstance(train, ImageArrays) and train.images.shape[1] != len(data.mean):
            raise UsageError(
                f"pictures of {data.source} have {train.images.shape[1]} channels, data.mean has {len(data.mean)}"
            )
        if data.validation >= len(train):
            raise UsageError(
                f"data.validation is {data.validation}, of only {len(train)} training samples",
                hint="--data.validation 0",
            )
        shuffled = order.permutation(0x5EED, 0, len(train))
        held_out, rows = shuffled[: data.validation], shuffled[data.validation :]
        if data.subset is not None:
            if data.subset > len(rows):
                held = f" that {data.validation} for validation leave" if data.validation else ""
                raise UsageError(f"data.subset is {data.subset}, of only {len(rows)} training samples{held}")
            rows = _evenly(rows, train.labels.numpy(), data.subset)
        held_out, rows = np.sort(held_out), np.sort(rows)
        self._splits = {"train": (train, rows), "test": (test, np.arange(len(test)))}
        if data.validation:
            self._splits["validation"] = (train, held_out)
        self.sizes = {split: len(rows) for split, (_, rows) in self._splits.items()}
        self.facts = {"source": data.source, "classes": list(train.classes), "sizes": self.sizes}

    def fetch(self, split: str, indices: Sequence[int] | np.ndarray, *, epochs=None, seed: int = 0) -> Batch:
        """These pictures as uint8; `epochs` (training) marks them for augmentation and crops those of folders."""
        held, rows = self._splits[split]
        places = np.asarray(indices, dtype=np.int64)
        rows = torch.from_numpy(rows[places])
        if isinstance(held, ImageArrays):
            images = held.images.index_select(0, rows)
        else:
            images = self._decode(held, rows, epochs, places, seed)
        stream = order.DISTORT_TEST if split == "test" else order.DISTORT_TRAIN
        images = self.data.distort(images, seed=0, epochs=0, indices=rows.numpy(), stream=stream)
        batch = {"image": images, "label": held.labels[rows], "index": torch.from_numpy(places)}
        if epochs is not None:
            batch["epoch"] = torch.from_numpy(np.broadcast_to(epochs, places.shape).astype(np.int64))
        return batch

    def _decode(self, files: ImageFiles, rows: Tensor, epochs, places: np.ndarray, seed: int) -> Tensor:
        crops = [None] * len(places)
        if epochs is not None:
            crops = order.uniform(seed, epochs, places, decode.CROP_UNIFORMS, order.CROP)
        side, channels = self.data.side, len(self.data.mean)
        return torch.stack(
            [files.decode(row, side, crop, channels=channels) for row, crop in zip(rows.tolist(), crops)]
        )

    def samples(self, split: str, count: int) -> list[tuple[str, Tensor]]:
        """Pictures as they are before normalisation, named with their true class."""
        count = min(count, self.sizes[split])
        indices = [i * self.sizes[split] // count for i in range(count)]
        batch = self.fetch(split, indices)
        classes = self.facts["classes"]
        names = [f"{split} sample {i}, truly {classes[int(label)]}" for i, label in zip(indices, batch["label"])]
        return list(zip(names, batch["image"]))

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        """Augment (training batches), normalise, mix."""
        batch, images, data = dict(batch), batch["image"], self.data
        epochs = batch.pop("epoch", None)
        if epochs is None:
            return batch | {"image": data.normalise(images)}
        images = data.augment(images, seed=seed, epochs=epochs.numpy(), indices=batch["index"].numpy())
        batch["image"] = data.normalise(images)
        return self._mix(batch, epochs, seed) if data.mixup else batch

    def _mix(self, batch: Batch, epochs: Tensor, seed: int) -> Batch:
        """Neighbours 2k and 2k+1 mix with each other: no pair is ever split over processes or accumulated parts.

        lambda is drawn for the pair's even member and used for both.
        """
        images, labels = batch["image"], batch["label"]
        if len(images) % 2:
            raise UsageError(
                f"mixup pairs samples, and {len(images)} samples a process are odd",
                hint="--batch-size of an even number",
            )
        drawn = order.beta(seed, epochs[::2].numpy(), batch["index"][::2].numpy(), self.data.mixup)
        mix = torch.from_numpy(np.repeat(drawn, 2).astype(np.float32)).to(images.device)
        partner = torch.arange(len(images), device=images.device) ^ 1
        mixed = torch.lerp(images[partner], images, mix.view(-1, 1, 1, 1))
        return batch | {"image": mixed, "partner": labels[partner], "mix": mix}
