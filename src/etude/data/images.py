"""`Images`: labelled pictures of any source, augmented as whole batches, normalised, optionally mixed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data import order
from etude.data.augment import Augment
from etude.data.base import Batch, Data, Dataset
from etude.data.decode import open_image
from etude.data.sources import SOURCES, ImageArrays, ImageFiles
from etude.errors import UsageError


@dataclass(frozen=True)
class Images(Data):
    """Labelled pictures. Small sets are decoded once and kept in memory as uint8; folders are read as they are needed."""

    source: str = "digits"
    """A name that `etude data list` shows, or "folder" for any ImageFolder."""
    path: str = ""
    """The directory, for sources that have no place of their own."""
    size: int | None = None
    """Side in pixels for folders and predictions (default: the source's own)."""
    mean: tuple[float, ...] = (0.5,)
    """Per channel, of pixels scaled to 0..1; its length is the number of channels."""
    std: tuple[float, ...] = (0.5,)
    augment: Augment = field(default_factory=Augment)
    mixup: float = 0.0
    """alpha of lambda ~ Beta(alpha, alpha), mixing neighbours in a batch (arXiv 1710.09412); 0 is off."""
    validation: int = 0
    """Training samples held out to choose the best weights and to stop early."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            names = ", ".join(SOURCES)
            raise UsageError(f"unknown data source {self.source!r}; there are {names}", hint="etude data list")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise UsageError(f"data.mean and data.std need 1 or 3 channels each; they have {len(self.mean)}, {len(self.std)}")
        if self.mixup < 0 or self.validation < 0:
            raise UsageError(f"data.mixup {self.mixup} and data.validation {self.validation} must not be negative")

    @property
    def side(self) -> int:
        """Side of the pictures in pixels."""
        return self.size or SOURCES[self.source].size

    def open(self) -> "ImageDataset":
        """Read or find all splits."""
        return ImageDataset(self)

    def prepare(self, raw: Any) -> Tensor:
        """A path, bytes, PIL image, array or tensor -> (C, side, side) uint8: shorter side resized, centre cropped."""
        return open_image(raw, channels=len(self.mean), size=self.side)

    def collate(self, samples: list[Tensor]) -> Batch:
        """uint8 pictures -> {"image": (B, C, H, W) float32, normalised}."""
        return {"image": self.normalise(torch.stack(samples))}

    def normalise(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float32, (x / 255 - mean) / std."""
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=images.device).view(1, -1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std)], device=images.device).view(1, -1, 1, 1)
        return torch.addcmul(shift, images, scale)


class ImageDataset(Dataset):
    """Opened pictures: {"image": (B, C, H, W) uint8 until finished, "label": (B,), "index": (B,)}."""

    def __init__(self, data: Images):
        self.data = data
        source = SOURCES[data.source]
        train, test = source.load("train", data.path), source.load("test", data.path)
        self.in_memory = isinstance(train, ImageArrays)
        self._splits: dict[str, tuple[ImageArrays | ImageFiles, np.ndarray]] = {
            "train": (train, np.arange(len(train.labels))),
            "test": (test, np.arange(len(test.labels))),
        }
        if data.validation:
            if data.validation >= len(train.labels):
                raise UsageError(f"data.validation is {data.validation} of only {len(train.labels)} training samples")
            shuffled = order.permutation(0x5EED, 0, len(train.labels))
            self._splits["validation"] = (train, np.sort(shuffled[: data.validation]))
            self._splits["train"] = (train, np.sort(shuffled[data.validation :]))
        self.sizes = {split: len(rows) for split, (_, rows) in self._splits.items()}
        self.facts = {"source": data.source, "classes": list(train.classes), "sizes": self.sizes}
        channels = train.images.shape[1] if isinstance(train, ImageArrays) else 3
        if isinstance(train, ImageArrays) and channels != len(data.mean):
            raise UsageError(f"{data.source} has {channels} channels, data.mean {len(data.mean)}")

    def fetch(self, split: str, indices: Sequence[int] | np.ndarray, *, epochs=None, seed: int = 0) -> Batch:
        """These pictures as uint8; `epochs` (training) marks them for augmentation and, in folders, crops them at random."""
        held, rows = self._splits[split]
        places = np.asarray(indices)
        rows = torch.from_numpy(rows[places])
        if isinstance(held, ImageArrays):
            images = held.images[rows]
        else:
            images = self._decode(held, rows.numpy(), epochs, places, seed)
        batch = {"image": images, "label": held.labels[rows], "index": torch.from_numpy(places.astype(np.int64))}
        if epochs is not None:
            batch["epoch"] = torch.from_numpy(np.broadcast_to(epochs, places.shape).astype(np.int64))
        return batch

    def _decode(self, files: ImageFiles, rows: np.ndarray, epochs, places: np.ndarray, seed: int) -> Tensor:
        size = self.data.side
        crops = None if epochs is None else order.uniform(seed, epochs, places, files.CROP_UNIFORMS, order.CROP)
        pictures = [files.decode(int(row), size, None if crops is None else crops[i]) for i, row in enumerate(rows)]
        return torch.stack(pictures)

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        """Augment (training batches), normalise, mix."""
        batch, images, data = dict(batch), batch["image"], self.data
        epochs = batch.pop("epoch", None)
        if epochs is not None:
            images = data.augment(images, seed=seed, epochs=epochs.numpy(), indices=batch["index"].numpy())
        images = data.normalise(images)
        if epochs is not None and data.mixup:
            images, batch = self._mix(images, batch, epochs, seed)
        return batch | {"image": images}

    def _mix(self, images: Tensor, batch: Batch, epochs: Tensor, seed: int) -> tuple[Tensor, Batch]:
        """Neighbours 2k and 2k+1 mix with each other, so that a pair is never split over processes or accumulated parts.

        lambda is drawn for the pair's even member and used for both.
        """
        if len(images) % 2:
            raise UsageError(f"mixup pairs samples: {len(images)} samples a process and part is odd; take an even batch")
        first = batch["index"][::2].numpy()
        drawn = order.beta(seed, epochs[::2].numpy(), first, self.data.mixup)
        mix = torch.from_numpy(np.repeat(drawn, 2).astype(np.float32)).to(images.device)
        partner = torch.arange(len(images), device=images.device) ^ 1
        weight = mix.view(-1, *[1] * (images.ndim - 1))
        mixed = torch.lerp(images[partner], images, weight)
        return mixed, batch | {"partner": batch["label"][partner], "mix": mix}
