"""`Patches`: squares of pictures at high resolution and the same at low, for learning to enlarge.

    index -> picture -> a place, where there is much to see -> crop with a margin -> bicubic downscaling -> turn

The low resolution is made of each crop with so much of its surroundings that it equals a part of the whole picture made
smaller (`data.resize`, rounded to 8 bits, as files of low resolution are). Pictures that are measured on stay whole.
Pictures, not patches, are held out; a picture that is reached by two names is taken once.

Shapes: B batch, s the scale, S the side of a patch, h w of the low resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from etude.data import decode, deep, order, photos
from etude.data.base import Batch, Data, Dataset
from etude.data.folder import SUFFIXES, named, path_hash, pictures
from etude.data.resize import imresize, to_bytes
from etude.errors import MissingError, UsageError

MARGIN = 2
"""Pixels of low resolution around a patch that its own downscaling looks at."""
STEP = 8
"""Patches begin at multiples of so many pixels of high resolution."""
FLAT = 1e-5
"""What is added to the mean square of a place's gradients, of 0 to 1, so that places without any are seen too."""
TEST_SHARE = 0.1
"""Of a folder without train and test."""
HELD_IN_MEMORY = 200_000_000
"""Pixels of all pictures up to which they are decoded once and kept."""
DIV2K = {"train": "DIV2K_train_HR", "test": "DIV2K_valid_HR"}


@dataclass(frozen=True)
class Patches(Data):
    """Pairs of low and high resolution."""

    source: Literal["photos", "folder", "div2k"] = "photos"
    """The photographs of `etude data get photos`; any folder of pictures: its folders train and test, or about every
    tenth picture for the test, by a hash of its path in the folder, so that others may be added; or DIV2K's
    folders as they unpack."""
    path: str = ""
    """The folder."""
    scale: int = 4
    size: int = 128
    """Side of a training patch at high resolution."""
    reduce: int = 1
    """By how much every picture is made smaller first, which takes away what JPEG left in it."""
    per_picture: int = 64
    """Patches of each picture in an epoch."""
    validation: bool = True
    """Of photos: hold two back to choose the weights by PSNR. Without, they are learned from, and the last weights are
    kept, as suits a second stage, which begins with the highest PSNR."""

    def __post_init__(self) -> None:
        if min(self.scale, self.reduce, self.per_picture) < 1 or self.size < 1 or self.size % self.scale:
            raise UsageError(
                f"data.size {self.size} must be a multiple of data.scale {self.scale}, and data.reduce {self.reduce} "
                f"and data.per_picture {self.per_picture} at least 1"
            )
        if STEP % self.scale:
            raise UsageError(f"data.scale is {self.scale}; it must be 1, 2, 4 or 8")
        if self.source != "photos" and not self.path:
            raise UsageError(f"pictures of {self.source} need a folder", hint="--data.path DIR")

    def open(self) -> "PatchSet":
        """Find the pictures of all splits. UsageError names one that cannot be read or is smaller than a patch."""
        return PatchSet(self)

    def reopen(self, facts: dict[str, Any]) -> "PatchSet":
        """As opened; UsageError where a run's own folder has by now other pictures to measure on. Another folder's are
        taken as never seen: all of them are the test split, or those in its folder test. A folder that holds the run's
        test pictures, by name and size, is the run's own, moved."""
        root, same = Path(self.path).expanduser(), self.folder == facts.get("folder")
        known = facts.get("bytes") if "source" in facts else {}  # weights of elsewhere know no picture
        if self.source == "folder" and root.is_dir() and not same and known is not None:
            alone = (root / "test").is_dir() and not (root / "train").is_dir()
            found = _named(distinct(pictures(root / "test" if (root / "test").is_dir() else root)), root)
            same = bool(known) and known.items() <= _bytes(found).items()
            if found and (alone or not same):
                return PatchSet(self, {"test": found})
        opened = PatchSet(self)
        if same and opened.facts["pictures"] != facts["pictures"]:
            raise UsageError(
                f"the test pictures of {self.path or self.source} are others than when the run was trained",
                hint="put them back, or measure on another folder: --data-path DIR",
            )
        return opened

    @property
    def folder(self) -> str:
        """The folder, by a name that is the same wherever it is asked from; "" for what etude fetched."""
        return str(Path(self.path).expanduser().resolve()) if self.path else ""

    def files(self) -> dict[str, dict[str, Path]]:
        """Split -> name -> picture."""
        if self.source == "photos":
            found = {split: photos.files(split, self.path) for split in photos.SPLITS}
            held = {} if self.validation else found.pop("validation")
            return found | {"train": found["train"] | held}
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise MissingError(f"{root}: no such folder", hint="--data.path DIR")
        parts = DIV2K if self.source == "div2k" else {"train": "train", "test": "test"}
        if any((root / part).is_dir() for part in parts.values()):
            found = {split: distinct(pictures(root / part)) for split, part in parts.items()}
        elif self.source == "div2k":
            raise MissingError(f"{root} holds no folder {DIV2K['train']}", hint="unpack DIV2K's archives there")
        else:
            found = held_out(distinct(pictures(root)), root)
        if twice := {path.resolve() for path in found["train"]} & {path.resolve() for path in found["test"]}:
            raise UsageError(f"{min(twice)} is in train and in test, by a link", hint="remove the link")
        for split, files in found.items():
            if not files:
                raise UsageError(
                    f"{root} has no pictures for {split}",
                    hint=f"two or more, in it or in train and test, of {', '.join(SUFFIXES)}",
                )
        return {split: _named(files, root) for split, files in found.items()}

    def prepare(self, raw: Any) -> Tensor:
        """A path, bytes, PIL image, array or tensor -> (C, h, w) uint8 or uint16, as `deep.open_picture` reads it: a
        picture of low resolution."""
        return deep.open_picture(raw)

    def read(self, words: Sequence[str]) -> list[tuple[str, Path]]:
        """Files as they are named, folders as the pictures in them; a missing one is an error before anything is
        done."""
        return [(str(path), path) for path in named(words)]

    def collate(self, samples: list[Tensor]) -> Batch:
        """Pictures of one size, of 8 bits and three channels -> {"low": (B, 3, h, w) float32 of 0 to 1}."""
        return {"low": torch.stack(samples).float() / 255}


def held_out(paths: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """About a tenth for the test, by the path below `root`; of two or more at least the lowest hash, never all."""
    hashes = {path: path_hash(str(path), root) for path in paths}
    lowest, highest = min(hashes.values(), default=0), max(hashes.values(), default=0)
    test = [p for p, value in hashes.items() if value == lowest or (value < TEST_SHARE and value != highest)]
    return {"train": [p for p in paths if p not in test], "test": test}


def _named(paths: Sequence[Path], root: Path) -> dict[str, Path]:
    """By their names below `root`, without the ending."""
    return {str(path.relative_to(root).with_suffix("")): path for path in paths}


def _bytes(files: dict[str, Path]) -> dict[str, int]:
    return {name: path.stat().st_size for name, path in files.items()}


def distinct(paths: Sequence[str]) -> list[Path]:
    """Each picture once, under the first of its names, where links give it several."""
    return list({Path(path).resolve(): Path(path) for path in reversed(paths)}.values())[::-1]


class PatchSet(Dataset):
    """Opened pictures. Batches are {"image": uint8, "index"} until finished: in training patches with what surrounds
    them, (B, 3, S + 2 s MARGIN, ...), in measuring one whole picture, (1, 3, H, W). Then they are {"low", "high",
    "index"}, floats of 0 to 1.
    """

    def __init__(self, data: Patches, files: dict[str, dict[str, Path]] | None = None):
        """`files`: split -> name -> picture, where not as the data says."""
        self.data = data
        files = data.files() if files is None else files
        self.pictures = {split: list(named.values()) for split, named in files.items()}
        total = 0
        for split, paths in self.pictures.items():
            for path in paths:
                with decode.header(path) as image:
                    sides = [side // data.reduce for side in image.size]
                total += sides[0] * sides[1]
                least = data.size if split == "train" else data.scale
                if min(sides) < least:
                    small = f" after data.reduce {data.reduce}" if data.reduce > 1 else ""
                    raise UsageError(
                        f"{path}: {sides[0]} x {sides[1]} pixels{small}, smaller than a patch of {least}",
                        hint=f"remove it, or --data.size {max(min(sides) // 8 * 8, data.scale)}",
                    )
        self.in_memory = total <= HELD_IN_MEMORY
        self._load = lru_cache(maxsize=None if self.in_memory else 2)(self._decode)
        self._places = lru_cache(maxsize=None if self.in_memory else 2)(self._weigh)
        self.sizes = {split: len(paths) for split, paths in self.pictures.items()}
        if "train" in files:
            self.sizes["train"] *= data.per_picture
        names = {split: list(named) for split, named in files.items() if split != "train"}
        self.facts = {"source": data.source, "sizes": self.sizes, "scale": data.scale, "pictures": names}
        self.facts |= {"folder": data.folder, "bytes": _bytes(files["test"])}

    def _decode(self, split: str, number: int) -> Tensor:
        """(3, H, W) uint8, made smaller, its sides cut to multiples of the scale."""
        image = decode.to_tensor(decode.open_image(self.pictures[split][number]))
        if self.data.reduce > 1:
            image = to_bytes(imresize(image.float() / 255, 1 / self.data.reduce))
        height, width = (side // self.data.scale * self.data.scale for side in image.shape[1:])
        return image[:, :height, :width].contiguous()

    def _weigh(self, number: int) -> tuple[np.ndarray, int]:
        """How often patches of a training picture begin at each place or before it, row by row, and places a row."""
        size = self.data.size
        grey = self._load("train", number).float().mean(0) / 255
        energy = torch.zeros_like(grey, dtype=torch.float64)
        energy[:, :-1] += (grey[:, 1:] - grey[:, :-1]).square()
        energy[:-1] += (grey[1:] - grey[:-1]).square()
        sums = torch.nn.functional.pad(energy.cumsum(0).cumsum(1), (1, 0, 1, 0))
        inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
        inside = inside[::STEP, ::STEP] / size**2 + FLAT
        return (inside.flatten().cumsum(0) / inside.sum()).numpy(), inside.shape[1]

    def fetch(self, split: str, indices: Sequence[int] | np.ndarray, *, epochs=None, seed: int = 0) -> Batch:
        """These patches, or one whole picture of a split that is measured on."""
        places = np.asarray(indices, dtype=np.int64)
        index = torch.from_numpy(places)
        if split != "train":
            (number,) = places.tolist()
            return {"image": self._load(split, number)[None], "index": index}
        epochs = np.broadcast_to(0 if epochs is None else epochs, places.shape).astype(np.int64)
        drawn = order.uniform(seed, epochs, places, 1, order.PATCH)[:, 0]
        images = torch.stack([self._crop(i // self.data.per_picture, u) for i, u in zip(places.tolist(), drawn)])
        return {"image": images, "index": index, "epoch": torch.from_numpy(epochs)}

    def _crop(self, number: int, drawn: float) -> Tensor:
        """A patch and its surroundings, mirrored where the picture ends."""
        cumulated, across = self._places(number)
        row, column = divmod(int(np.searchsorted(cumulated, drawn, side="right").clip(0, len(cumulated) - 1)), across)
        image, margin = self._load("train", number), MARGIN * self.data.scale
        rows, columns = (
            mirrored(torch.arange(first * STEP - margin, first * STEP + self.data.size + margin), side)
            for first, side in zip((row, column), image.shape[1:])
        )
        return image[:, rows][:, :, columns]

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        """Make the low resolution; turn training patches, each its own way."""
        batch, scale = dict(batch), self.data.scale
        image, epochs = batch.pop("image").float() / 255, batch.pop("epoch", None)
        low = to_bytes(imresize(image, 1 / scale)).float() / 255
        if epochs is not None:
            margin = MARGIN * scale
            image = image[..., margin:-margin, margin:-margin]
            low = low[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
            ways = (order.uniform(seed, epochs.numpy(), batch["index"].numpy(), 1) * 8).astype(int)[:, 0].tolist()
            image, low = (torch.stack([turned(x, way) for x, way in zip(xs, ways)]) for xs in (image, low))
        return batch | {"low": low, "high": image}

    def spans(self, split: str, *, batch_size: int, rank: int = 0, world: int = 1) -> list[Sequence[int]]:
        """Pictures have sizes of their own: one a batch."""
        return super().spans(split, batch_size=1, rank=rank, world=world)

    def samples(self, split: str, count: int) -> list[tuple[str, Tensor]]:
        """Pictures at low resolution."""
        if split == "train":
            raise UsageError("training patches are no whole pictures", hint="etude predict RUN PICTURE...")
        count = min(count, self.sizes[split])
        numbers = [i * self.sizes[split] // count for i in range(count)]
        lows = [to_bytes(self.finish(self.fetch(split, [n]))["low"][0]) for n in numbers]
        return [(self.facts["pictures"][split][n], low) for n, low in zip(numbers, lows)]


def mirrored(places: Tensor, length: int) -> Tensor:
    """Places before 0 or from `length` on -> those that mirror them, the border's pixels counted twice."""
    around = places % (2 * length)
    return torch.where(around < length, around, 2 * length - 1 - around)


def turned(image: Tensor, way: int) -> Tensor:
    """One of the eight ways to turn a square, mirrored or not. (C, S, S) -> (C, S, S)"""
    image = image.flip(-1) if way & 1 else image
    image = image.flip(-2) if way & 2 else image
    return image.transpose(-1, -2) if way & 4 else image
