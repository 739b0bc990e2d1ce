"""`Segmentation`: pictures or volumes and their masks, cut into windows and deformed for training, whole for the rest.

A sample is a picture, or a slice of a volume. Pairs are read and checked once, when the set is opened: a bad one is
left out with a line that says why, and its name stays in the run's facts. 8-bit pictures are taken as they are; of
16-bit ones, of files of floats and of volumes the 0.5th and 99.5th percentile (or `window`) become black and white.

    open:   files -> (C, H, W) uint8, (H, W) uint8 classes, (H, W) weights where borders count
    fetch:  a window with a margin at a place of (seed, epoch, index); in evaluation the whole picture
    finish: deformed to `size`, normalised
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from etude.data import decode, fetch, masks, nifti, order
from etude.data.base import Batch, Data, Dataset
from etude.data.elastic import Deform
from etude.data.folder import SUFFIXES, TEST_SHARE, named
from etude.errors import MissingError, UsageError
from etude.progress import bars

KEPT = 1 << 30
"""Bytes of decoded pictures that are kept; what is beyond is decoded again when it is needed."""
VOXELS = 1 << 31
"""The most voxels of all volumes together, which are kept, two bytes each."""
BLOCKS = 10
"""Blocks of slices that a single volume is cut into; every fifth goes to the test."""
PIXELS = 1 << 20
"""The most pixels of an evaluation batch of several pictures."""
SOURCES = ("folder", "mni152", "nuclei")
TISSUES = ("background", "grey matter", "white matter")
MNI152 = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True)
class Segmentation(Data):
    """Pictures or volumes with a class for every pixel."""

    source: str = "folder"
    """"folder" for your own, "mni152" or "nuclei"."""
    path: str = ""
    """A folder with images/ and masks/ under equal names, in train/ and test/ or split by a hash of the names. Also the
    place of a set that etude did not fetch."""
    channels: int = 3
    """1 (grey) or 3. A volume's one channel is repeated."""
    size: int = 256
    """Side of the windows that training cuts out."""
    mean: float = 0.5
    std: float = 0.25
    """Of levels scaled to 0..1, by which they are normalised."""
    window: tuple[float, float] | None = None
    """What becomes black and white in volumes and in pictures of 16 bits or of floats; None: their own 0.5th and 99.5th
    percentile."""
    axis: nifti.Axis = "axial"
    """Volumes are cut into slices across this axis."""
    guard: int = 2
    """Slices (pixels of a picture) between training and test that are in neither, where both are of one volume."""
    classes: tuple[str, ...] = ()
    """Names, the background first; empty: after the values."""
    values: tuple[int, ...] = ()
    """The masks' value of each class; empty: those that occur in training masks, in order."""
    ignore: int | None = None
    """The value of pixels that are neither learned from nor measured."""
    instances: bool = False
    """Masks number objects of one class; where two touch, they are set apart."""
    borders: float = 0.0
    """w0 of the weights between close objects (the paper: 10); needs `instances`."""
    sigma: float = 5.0
    """Their width in pixels."""
    augment: Deform = field(default_factory=Deform)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UsageError(f"data.source is {self.source!r}; it must be one of {', '.join(SOURCES)}")
        if self.channels not in (1, 3):
            raise UsageError(f"data.channels is {self.channels}; it must be 1 or 3", hint="--data.channels 3")
        if self.size < 16 or self.std <= 0 or self.guard < 0 or self.sigma <= 0 or self.borders < 0:
            raise UsageError(
                f"data.size {self.size} must be 16 or more, data.std {self.std} and data.sigma {self.sigma} positive, "
                f"data.guard {self.guard} and data.borders {self.borders} not negative"
            )
        if self.borders and not self.instances:
            raise UsageError("data.borders weighs what lies between objects", hint="--data.instances")
        if self.axis not in nifti.AXES:
            raise UsageError(f"data.axis is {self.axis!r}; it must be one of {', '.join(nifti.AXES)}")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise UsageError(f"data.window is {self.window}; black must lie below white")
        named = self.values or self.classes
        if self.values and self.classes and len(self.values) != len(self.classes):
            raise UsageError(f"data.values has {len(self.values)} entries, data.classes {len(self.classes)}")
        if named and (len(set(named)) < len(named) or not 2 <= len(named) < masks.IGNORED):
            raise UsageError(f"classes {named} must differ, and be 2 to {masks.IGNORED - 1}")
        words = [masks.word(name) for name in self.classes]
        if twice := next((i for i, word in enumerate(words) if word in words[:i]), 0):
            raise UsageError(
                f"data.classes has {self.classes[words.index(words[twice])]!r} and {self.classes[twice]!r}, but names "
                "must differ in more than case and spaces, or their measures would have one name",
                hint="rename one of them",
            )
        if self.values and not all(0 <= value <= 65535 for value in self.values):
            raise UsageError(f"data.values {self.values} must lie between 0 and 65,535")

    def open(self) -> "SegmentationDataset":
        """Read and check all pairs."""
        return SegmentationDataset(self, self.values)

    def reopen(self, facts: dict[str, Any]) -> "SegmentationDataset":
        """With the classes that the run has learned: another value in a mask is an error, not a class."""
        return SegmentationDataset(self, tuple(facts["values"]), tuple(facts["classes"]))

    def prepare(self, raw: Any) -> Tensor:
        """A path, bytes, PIL image, array or tensor -> (C, H, W) uint8."""
        if isinstance(raw, str | Path) and nifti.is_nifti(raw):
            raise UsageError(f"{raw}: a volume is not one picture", hint="etude predict takes it whole")
        return self.picture(decode.open_values(raw) if isinstance(raw, str | Path | bytes) else raw, raw)

    def picture(self, values: Any, raw: Any) -> Tensor:
        """Stored values of a picture -> (C, H, W) uint8; those of 8 bits, and what is no bare array, as they are. A
        file's floats have no black and white of their own, and get them as a volume's do; an array's are 0 to 1."""
        kinds = "iuf" if isinstance(raw, str | Path | bytes) else "iu"
        if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in kinds and values.itemsize > 1:
            return self.levels(values)
        return decode.to_tensor(decode.open_image(raw, self.channels))

    def levels(self, values: NDArray) -> Tensor:
        """(..., H, W) numbers -> (..., C, H, W) uint8 between black and white."""
        low, high = self.window or _extremes(values)
        found = np.empty(values.shape, dtype=np.uint8)
        pictures = values.reshape(-1, *values.shape[-2:])
        for picture, grey in zip(pictures, found.reshape(pictures.shape)):  # one by one: volumes are large
            scaled = (picture.astype(np.float32) - low) * (255 / max(high - low, 1e-12))
            grey[...] = np.rint(scaled).clip(0, 255)
        levels = torch.from_numpy(found).unsqueeze(-3)
        return levels.expand(*levels.shape[:-3], self.channels, *levels.shape[-2:])

    def read(self, words: Sequence[str]) -> list[tuple[str, Path]]:
        """Files as they are named, folders as the pictures and volumes in them, or in their images/ if they have it."""
        places = [f"{word}/images" if Path(word, "images").is_dir() else word for word in words]
        return [(str(path), path) for path in named(places, endings=ENDINGS, what="pictures or volumes")]

    def collate(self, samples: list[Tensor]) -> Batch:
        """(C, H, W) uint8 of one size -> {"image": (B, C, H, W) float32, normalised}."""
        return {"image": self.normalise(torch.stack(samples))}

    def normalise(self, levels: Tensor) -> Tensor:
        """Levels of 0 to 255 -> float32, (x / 255 - mean) / std."""
        return levels.float() * (1 / (255 * self.std)) - self.mean / self.std


ENDINGS = (*SUFFIXES, *nifti.ENDINGS)


def _extremes(values: NDArray) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile; of many numbers, of some two million of them. Where they are one number, as of a
    few bright pixels on a constant ground, the least and the greatest."""
    flat = values.reshape(-1)
    low, high = np.percentile(flat[:: max(1, flat.size >> 21)], (0.5, 99.5))
    if low == high:
        low, high = flat.min(), flat.max()
    return float(low), float(high)


def _files(folder: Path) -> list[Path]:
    """Pictures and volumes in a folder, sorted, hidden ones left out."""
    return sorted(
        p for p in folder.iterdir() if p.name.lower().endswith(ENDINGS) and not p.name.startswith(".") and p.is_file()
    )


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """The files of each name without its ending."""
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        found.setdefault(nifti.stem(path), []).append(path)
    return found


@dataclass(eq=False)
class Sample:
    """A picture or a slice with its classes. What is not kept is read again by `again`."""

    name: str
    """As it is shown."""
    stem: str
    """Its file's name without the ending, which decides between training and test."""
    shape: tuple[int, int]
    spacing: tuple[float, float]
    """Sides of a pixel, (rows, columns)."""
    image: Tensor | None
    """(C, H, W) uint8"""
    mask: NDArray | None
    """(H, W): as stored while the set is opened, then uint8 classes."""
    weight: NDArray[np.float32] | None = None
    again: Callable[[], tuple[Tensor, NDArray]] | None = None


@dataclass(frozen=True)
class Pair:
    """Where a picture or volume and its mask lie."""

    image: Path
    mask: Path


class SegmentationDataset(Dataset):
    """Opened: {"image" (B, C, H, W), "mask" (B, H, W), "index", and "weight" (B, H, W) where borders count or "spacing"
    (B, 2) in evaluation}."""

    def __init__(self, data: Segmentation, values: tuple[int, ...], classes: tuple[str, ...] = ()):
        self.data = data
        self.left_out: list[str] = []
        self._bytes = 0
        splits = {"mni152": self._mni152, "nuclei": self._nuclei, "folder": self._folder}[data.source]()
        self.values = self._values(splits, values)
        self.classes = classes or data.classes or self._names()
        if len(self.classes) != len(self.values):
            raise UsageError(
                f"data.classes names {len(self.classes)} classes; the masks have the values "
                f"{', '.join(map(str, self.values))}"
            )
        if not values:
            found = ", ".join(f"{name} {value}" for name, value in zip(self.classes, self.values))
            print(f"classes and their values in the masks: {found}", file=sys.stderr)
        self._splits = {split: self._finished(samples) for split, samples in splits.items()}
        for said in self.left_out:
            print(f"left out: {said}", file=sys.stderr)
        for split, samples in self._splits.items():
            if not samples:
                why = f"; {self.left_out[0]}" if self.left_out else ""
                raise UsageError(f"{data.path or data.source}: nothing to {split} with{why}")
        self.in_memory = all(s.image is not None for samples in self._splits.values() for s in samples)
        self.sizes = {split: len(samples) for split, samples in self._splits.items()}
        self.facts = {
            "source": data.source,
            "classes": list(self.classes),
            "values": list(self.values),
            "sizes": self.sizes,
            "left_out": self.left_out,
        }

    # ------------------------------------------------------------------ where samples come from

    def _root(self, name: str) -> Path:
        root = Path(self.data.path).expanduser() if self.data.path else fetch.path(name)
        if not root.is_dir():
            raise MissingError(f"{root}: no such folder", hint="--data.path DIR, with images/ and masks/ in it")
        return root

    def _mni152(self) -> dict[str, list[Sample]]:
        """The template's T1 image; grey or white matter is what has more than half of its probability."""
        root = self._root("mni152")
        t1, grey, white = (nifti.load(root / MNI152.format(kind), self.data.axis) for kind in ("t1", "gm", "wm"))
        labels = np.where(white.slices() > 127, 2, np.where(grey.slices() > 127, 1, 0)).astype(np.uint16)
        samples = self._slices(t1, labels)
        return self._blocks([s for s in samples if s.mask is not None and s.mask.any()])

    def _nuclei(self) -> dict[str, list[Sample]]:
        """The left three quarters of the picture to learn from, the right quarter for the test."""
        root = self._root("nuclei")
        whole = self._read(Pair(root / "img2d.tif", root / "mask2d.tif"))[0]
        assert whole.image is not None and whole.mask is not None
        edge, last = whole.shape[1] * 3 // 4, whole.shape[1]
        parts = {"train": slice(0, edge - self.data.guard), "test": slice(edge, last)}
        return {
            split: [
                Sample(
                    f"{split} part",
                    "img2d",
                    (whole.shape[0], len(range(last)[part])),
                    whole.spacing,
                    whole.image[:, :, part].contiguous(),
                    whole.mask[:, part],
                )
            ]
            for split, part in parts.items()
        }

    def _folder(self) -> dict[str, list[Sample]]:
        root = self._root("masks")
        places = {"train": root, "test": root}
        if apart := (root / "train").is_dir():
            test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
            if test is None:
                raise MissingError(f"{root}: it has a train folder, but neither test nor val", hint=f"make {root}/test")
            places = {"train": root / "train", "test": test}
        pairs = {split: self._pairs(place) for split, place in places.items() if apart or split == "train"}
        total = sum(len(found) for found in pairs.values())
        with bars(transient=True) as show:
            samples: dict[str, list[list[Sample]]] = {split: [] for split in pairs}
            for done, (split, pair) in enumerate((split, pair) for split, found in pairs.items() for pair in found):
                samples[split].append(self._try(pair))
                show("pictures and masks", done + 1, total)
        read = {split: [stack for stack in found if stack] for split, found in samples.items()}
        if not any(read.values()):
            raise UsageError(f"{root}: no pair of picture and mask can be used; {self.left_out[0]}")
        if apart:
            return {split: [s for stack in stacks for s in stack] for split, stacks in read.items()}
        stacks = read["train"]
        if len(stacks) == 1 and len(stacks[0]) > 1:
            return self._blocks(stacks[0])
        if len(stacks) < 2:
            raise UsageError(f"{root}: one picture cannot be split", hint=f"make {root}/train and {root}/test")
        hashes = [_hash(stack[0].stem) for stack in stacks]
        chosen = [h == min(hashes) or (h < TEST_SHARE and h != max(hashes)) for h in hashes]
        return {
            split: [s for stack, test in zip(stacks, chosen) if test == (split == "test") for s in stack]
            for split in ("train", "test")
        }

    def _pairs(self, place: Path) -> list[Pair]:
        """Images and their masks; one without the other is left out."""
        for name in ("images", "masks"):
            if not (place / name).is_dir():
                raise MissingError(f"{place}: it has no folder {name}", hint=f"put them into {place}/{name}/")
        images, labels = _by_stem(place / "images"), _by_stem(place / "masks")
        if not images:
            raise UsageError(f"{place / 'images'}: no pictures there", hint=f"their names end in {', '.join(ENDINGS)}")
        pairs = []
        for stem in images | labels:
            ours, theirs = images.get(stem, []), labels.get(stem, [])
            if not theirs:
                self.left_out += [f"{path}: it has no mask {place / 'masks' / stem}.*" for path in ours]
            elif not ours:
                self.left_out += [f"{path}: a mask without a picture" for path in theirs]
            elif len(ours) + len(theirs) > 2:
                names = ", ".join(str(path.relative_to(place)) for path in ours + theirs)
                self.left_out.append(f"{ours[0]}: {names} share a name, which only one picture and one mask can")
            else:
                pairs.append(Pair(ours[0], theirs[0]))
        return pairs

    def _try(self, pair: Pair) -> list[Sample]:
        try:
            return self._read(pair)
        except UsageError as error:
            self.left_out.append(str(error))
            return []

    def _read(self, pair: Pair) -> list[Sample]:
        """A picture, or the slices of a volume, with the mask as it is stored. UsageError says what is wrong."""
        if nifti.is_nifti(pair.image) != nifti.is_nifti(pair.mask):
            raise UsageError(f"{pair.mask}: a volume and its mask must both be NIfTI, as must neither of a picture")
        if nifti.is_nifti(pair.image):
            volume, labels = nifti.load_pair(pair.image, pair.mask, self.data.axis)
            self._bytes += 2 * int(np.prod(volume.image.shape))
            if self._bytes > 2 * VOXELS:
                raise UsageError(
                    f"{pair.image}: the volumes before it have {VOXELS:,} voxels already, the most that are kept",
                    hint="use fewer, or save their slices as PNG, which are read as needed",
                )
            return self._slices(volume, masks.whole(labels.slices(), str(pair.mask)))

        def again() -> tuple[Tensor, NDArray]:
            image = self.data.picture(decode.open_values(pair.image), pair.image)
            return image, masks.read(pair.mask, (image.shape[1], image.shape[2]))

        image, mask = again()
        sample = Sample(str(pair.image), nifti.stem(pair.image), mask.shape, (1.0, 1.0), image, mask)
        self._bytes += image.nbytes + mask.nbytes
        if self._bytes > KEPT and not self.data.borders:
            sample.image, sample.again = None, again
        return [sample]

    def _slices(self, volume: nifti.Volume, labels: NDArray[np.uint16]) -> list[Sample]:
        levels = self.data.levels(volume.slices())
        small = labels if labels.max(initial=0) > 255 else labels.astype(np.uint8)
        return [
            Sample(f"{volume.path} slice {i}", nifti.stem(volume.path), mask.shape, volume.spacing, image, mask)
            for i, (image, mask) in enumerate(zip(levels, small))
        ]

    def _blocks(self, slices: list[Sample]) -> dict[str, list[Sample]]:
        """One volume's slices in blocks, every fifth for the test: neighbours are much alike, so none is on both sides,
        and those within `guard` of the border are left to the test alone."""
        if len(slices) < BLOCKS:
            raise UsageError(f"{slices[0].name}: {len(slices)} slices are too few to be split into blocks")
        count, guard = len(slices), self.data.guard
        held = np.arange(count) * BLOCKS // count % 5 == 2
        near = np.convolve(held, np.ones(2 * guard + 1), "same") > 0
        return {
            "train": [s for s, out in zip(slices, near) if not out],
            "test": [s for s, test in zip(slices, held) if test],
        }

    # ------------------------------------------------------------------ classes

    def _values(self, splits: dict[str, list[Sample]], given: tuple[int, ...]) -> tuple[int, ...]:
        """The masks' value of each class."""
        if self.data.instances:
            return given or (0, 1)
        if given:
            return given
        each = [set(np.unique(np.asarray(s.mask)).tolist()) for s in splits["train"]]
        found = sorted(set().union(*each) - {self.data.ignore})
        if found == [0, 1, 255] and not any({1, 255} <= values for values in each):
            raise UsageError(
                f"{self.data.path or self.data.source}: some masks hold 0 and 1, others 0 and 255, as if one class had "
                "two values",
                hint="save them alike, or --data.values 0 1 255 if these are three classes",
            )
        if len(found) > masks.MOST_CLASSES:
            raise UsageError(
                f"{self.data.path or self.data.source}: the masks have {len(found):,} different values",
                hint="--data.instances where they number objects",
            )
        if len(found) < 2:
            raise UsageError(
                f"{self.data.path or self.data.source}: the training masks have {len(found)} value where 2 are needed"
            )
        return tuple(found)

    def _names(self) -> tuple[str, ...]:
        if self.data.source == "mni152":
            return TISSUES
        if self.data.instances or len(self.values) == 2:
            return "background", "object"
        return "background", *(f"value {value}" for value in self.values[1:])

    def _objects(self, mask: NDArray) -> NDArray:
        """Numbered objects; what is to be ignored is none of them."""
        return np.where(mask == self.data.ignore, 0, mask)

    def _classified(self, mask: NDArray, name: str) -> NDArray[np.uint8]:
        if self.data.instances:
            return np.where(mask == self.data.ignore, masks.IGNORED, masks.cells(self._objects(mask)))
        return masks.classes_of(mask, self.values, self.data.ignore, name)

    def _finished(self, samples: list[Sample]) -> list[Sample]:
        """Masks as classes; those with a value that is none are left out."""
        kept = []
        for sample in samples:
            assert sample.mask is not None
            try:
                mask = self._classified(sample.mask, sample.name)
            except UsageError as error:
                self.left_out.append(str(error))
                continue
            if self.data.borders:
                objects = self._objects(sample.mask)
                sample.weight = masks.border_weights(objects, w0=self.data.borders, sigma=self.data.sigma)
            sample.mask = None if sample.again else mask
            kept.append(sample)
        return kept

    # ------------------------------------------------------------------ batches

    def _get(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """(C, H, W) and (H, W) uint8."""
        image, mask = sample.image, sample.mask
        if sample.again:
            image, stored = sample.again()
            mask = self._classified(stored, sample.name)
        assert image is not None and mask is not None
        return image, torch.from_numpy(mask)

    def fetch(self, split: str, indices: Sequence[int] | NDArray, *, epochs=None, seed: int = 0) -> Batch:
        """Training (`epochs`): windows with the margin that deforming needs. Else whole pictures, all of one shape."""
        places = np.asarray(indices, dtype=np.int64)
        samples = [self._splits[split][i] for i in places]
        index = torch.from_numpy(places)
        if epochs is None:
            images, classes = zip(*(self._get(sample) for sample in samples))
            spacing = torch.tensor([sample.spacing for sample in samples], dtype=torch.float64)
            return {"image": torch.stack(images), "mask": torch.stack(classes), "spacing": spacing, "index": index}
        epochs = np.broadcast_to(epochs, places.shape).astype(np.int64)
        margin = self.data.augment.margin(self.data.size)
        side = self.data.size + 2 * margin
        drawn = order.uniform(seed, epochs, places, 2, order.PATCH)
        parts: dict[str, list[Tensor]] = {"image": [], "mask": [], "weight": []}
        for sample, at in zip(samples, drawn):
            image, mask = self._get(sample)
            rows, columns = (
                _mirrored(_first(u, n, self.data.size) - margin, side, n) for u, n in zip(at, sample.shape)
            )
            parts["image"].append(image[:, rows][:, :, columns])
            parts["mask"].append(mask[rows][:, columns])
            if sample.weight is not None:
                parts["weight"].append(torch.from_numpy(sample.weight)[rows][:, columns])
        batch = {name: torch.stack(part) for name, part in parts.items() if part}
        return batch | {"index": index, "epoch": torch.from_numpy(epochs)}

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        """Deform (training batches), normalise."""
        batch = dict(batch)
        epochs = batch.pop("epoch", None)
        if epochs is not None:
            image, mask, weight = self.data.augment(
                batch["image"],
                batch["mask"],
                batch.get("weight"),
                side=self.data.size,
                seed=seed,
                epochs=epochs.numpy(),
                indices=batch["index"].numpy(),
            )
            batch |= {"image": image, "mask": mask} | ({} if weight is None else {"weight": weight})
        return batch | {"image": self.data.normalise(batch["image"]), "mask": batch["mask"].long()}

    def spans(self, split: str, *, batch_size: int, rank: int = 0, world: int = 1) -> list[Sequence[int]]:
        """Pictures of one shape together, at most PIXELS of them; shared over ranks, none twice."""
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, sample in enumerate(self._splits[split]):
            by_shape.setdefault(sample.shape, []).append(i)
        found: list[Sequence[int]] = []
        for (height, width), members in by_shape.items():
            count = max(1, min(batch_size, PIXELS // (height * width)))
            found += [members[i : i + count] for i in range(0, len(members), count)]
        return found[rank::world]

    def samples(self, split: str, count: int) -> list[tuple[str, Tensor]]:
        """Pictures as they are before normalisation."""
        count = min(count, self.sizes[split])
        chosen = [self._splits[split][i * self.sizes[split] // count] for i in range(count)]
        return [(sample.name, self._get(sample)[0]) for sample in chosen]

    def named(self, split: str, index: int) -> str:
        """What a sample is called, without its folder."""
        return Path(self._splits[split][index].name).name


def _hash(stem: str) -> float:
    """A number in [0, 1) that a file's own name decides, wherever its folder lies."""
    return int.from_bytes(hashlib.sha256(stem.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _first(uniform: float, length: int, side: int) -> int:
    """Where a window of `side` begins along `length` pixels: anywhere it fits; centred if it does not."""
    return int(uniform * (length - side + 1)) if length > side else (length - side) // 2


def _mirrored(first: int, count: int, length: int) -> Tensor:
    """`count` places from `first` on; what lies outside of 0 ... length - 1 is mirrored at its edge."""
    places = torch.arange(first, first + count) % (2 * length)
    return torch.where(places < length, places, 2 * length - 1 - places)


def to_picture(image: Tensor) -> Image.Image:
    """(C, H, W) uint8 -> an RGB image."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
