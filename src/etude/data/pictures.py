"""Pictures without labels, for models that learn to make such: of any set in `sources.py` that is kept in memory, of
any folder, or patches of photographs. In -1..1, with the random numbers that training takes (`latents.py`).

Pictures of a folder may have any sizes and modes: the largest square in their middle is scaled to `side`. Those of at
most 2 GiB together are decoded once, when the folder is opened, and kept, so that a broken one is told before training.
Of more than that only the headers are read beforehand; a file that ends too early is named when its turn comes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from etude.data import decode, folder, order, photos
from etude.data.base import Batch
from etude.data.latents import FIXED, Latents, LatentSet
from etude.data.sources import SOURCES, ImageArrays, source
from etude.errors import MissingError, UsageError, nearest
from etude.progress import bars

KEPT_BYTES = 2 << 30
TEST_SHARE, TEST_LEAST = 0.1, 6
"""Of a folder's pictures, and how many at least."""
SCALES = (2, 4, 8)
"""Photographs are made so many times smaller before patches are cut of them."""
TEST_PATCHES = 2000

Take = Callable[[np.ndarray, int, object], Tensor]
"""(rows, seed, epochs) -> uint8 (B, C, S, S)"""


@dataclass(frozen=True)
class Pictures(Latents):
    """Squares of `side` pixels."""

    source: str = "fashion-mnist"
    """A set that `etude data list` shows, "folder" for your own, or "photos" for patches of photographs."""
    path: str = ""
    """The directory, for sets that etude did not fetch."""
    side: int = 32
    """Height and width. Pictures of a set that are smaller get a black border."""
    channels: int = 1
    """1 for grey, 3 for colours."""
    flip: bool = False
    """Mirror every second training picture, anew each epoch."""
    validation: int = 0
    """Training pictures held out to choose weights by; of photos, patches at other places."""
    patches: int = 20_000
    """Of photos: training patches an epoch, cut elsewhere in each."""

    def __post_init__(self) -> None:
        known = [*(name for name, one in SOURCES.items() if one.read_arrays), "folder", "photos"]
        if self.source not in known:
            hint = nearest(self.source, known) or f"one of {', '.join(known)}"
            raise UsageError(f"there are no pictures {self.source!r}", hint=hint)
        if self.channels not in (1, 3):
            raise UsageError(f"data.channels is {self.channels}; pictures have 1 (grey) or 3 (colours)")
        if min(self.side, self.patches) < 1 or self.noise < 2 or self.validation < 0:
            raise UsageError(
                f"data.side {self.side}, data.patches {self.patches}, data.noise {self.noise} and data.validation "
                f"{self.validation} must be at least 1, 1, 2 and 0"
            )

    def open(self) -> "PictureSet":
        return PictureSet(self)


class PictureSet(LatentSet):
    """{"image": (B, C, S, S) uint8 until finished, then -1..1, "noise": (B, N), "mix": (B,), "index": (B,)}."""

    def __init__(self, data: Pictures):
        self.data, self.noise = data, data.noise
        self.shape = (data.channels, data.side, data.side)
        if data.source == "photos":
            take, begin, splits = _photographs(data), 0, {}
            for name, size in (("train", data.patches), ("validation", data.validation), ("test", TEST_PATCHES)):
                splits[name] = take, np.arange(begin, begin + size)  # each patch of a number of its own
                begin += size
        else:
            splits = self._held(data)
        self._splits = {name: split for name, split in splits.items() if len(split[1])}
        self.sizes = {name: len(rows) for name, (_, rows) in self._splits.items()}
        self.facts = {"source": data.source, "sizes": self.sizes, "side": data.side, "channels": data.channels}

    def _held(self, data: Pictures) -> dict[str, tuple[Take, np.ndarray]]:
        """Sets and folders, some training pictures held out."""
        if data.source == "folder":
            (train, count), (test, test_count) = self._folder(data)
        else:
            (train, count), (test, test_count) = (_kept(_array(data, name)) for name in ("train", "test"))
        if data.validation >= count:
            raise UsageError(
                f"data.validation is {data.validation}, of only {count} training pictures",
                hint=f"--data.validation {count // 10}",
            )
        shuffled = order.permutation(FIXED, 0, count)
        held_out, rows = np.sort(shuffled[: data.validation]), np.sort(shuffled[data.validation :])
        return {"train": (train, rows), "test": (test, np.arange(test_count)), "validation": (train, held_out)}

    def _folder(self, data: Pictures) -> list[tuple[Take, int]]:
        """Training and test pictures of a folder, split by a hash of their names."""
        root = Path(data.path).expanduser()
        if not data.path or not root.is_dir():
            raise MissingError(f"{data.path or 'data.path'}: no such folder", hint="--data.path DIR, of pictures")
        paths = folder.pictures(root)
        if len(paths) < 2:
            raise UsageError(
                f"{root}: {len(paths)} pictures, where 2 are the least",
                hint=f"--data.path DIR, with pictures of {', '.join(folder.SUFFIXES)}",
            )
        hashes = [folder.path_hash(path, root) for path in paths]
        # of few pictures as many for the test as samples can be compared with, and one to learn from
        limit = min(max(TEST_SHARE, sorted(hashes)[min(TEST_LEAST, len(hashes) - 1)]), max(hashes))
        parts = [p for p, h in zip(paths, hashes) if h >= limit], [p for p, h in zip(paths, hashes) if h < limit]
        self.in_memory = len(paths) * data.channels * data.side**2 <= KEPT_BYTES
        kept = torch.empty(len(paths) * self.in_memory, data.channels, data.side, data.side, dtype=torch.uint8)
        broken: list[UsageError] = []
        for place, found in enumerate(_looked_at([*parts[0], *parts[1]], data, decoded=self.in_memory)):
            if isinstance(found, UsageError):
                broken.append(found)
            elif found is not None:
                kept[place] = found
        if broken:
            more = f", nor {len(broken) - 1} others of the {len(paths)} in {root}" if len(broken) > 1 else ""
            raise UsageError(f"{broken[0]}{more}", hint=broken[0].hint)
        if not self.in_memory:
            return [(_files(part, data), len(part)) for part in parts]
        return [_kept(images) for images in kept.split([len(part) for part in parts])]

    def pictures(self, split: str, indices) -> Tensor:
        """These pictures alone, as evaluation shows them: uint8 (B, C, S, S)."""
        take, rows = self._splits[split]
        return take(rows[np.asarray(indices, dtype=np.int64)], FIXED, 0)

    def fetch(self, split: str, indices, *, epochs=None, seed: int = 0) -> Batch:
        places = np.asarray(indices, dtype=np.int64)
        if epochs is None:
            images = self.pictures(split, places)
        else:
            take, rows = self._splits[split]
            images = take(rows[places], seed, epochs)
            if self.data.flip:
                turned = torch.from_numpy(order.uniform(seed, epochs, places, 1)[:, 0] < 0.5)
                images = torch.where(turned.view(-1, 1, 1, 1), images.flip(-1), images)
        return {"image": images, "index": torch.from_numpy(places)} | self.chance(split, places, epochs, seed)

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        """Pictures to -1..1."""
        return batch | {"image": scaled(batch["image"])}


def scaled(images: Tensor) -> Tensor:
    """uint8 -> float32 in -1..1"""
    return images.float() / 127.5 - 1


def levels(images: Tensor) -> Tensor:
    """-1..1, with what lies outside cut off -> uint8"""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def square(path: str | Path, side: int, channels: int) -> Tensor:
    """The largest square in the middle of a picture, scaled to side x side. UsageError where it is smaller."""
    with _hinted():
        image = decode.open_image(path, channels)
    width, height = image.size
    least = _shorter(path, image.size, side)
    left, top = (width - least) // 2, (height - least) // 2
    box = (left, top, left + least, top + least)
    return decode.to_tensor(image.resize((side, side), Image.Resampling.LANCZOS, box=box))


def _shorter(path: str | Path, size: tuple[int, int], side: int) -> int:
    """Of a picture's two sides."""
    if min(size) < side:
        raise UsageError(
            f"{path}: {size[0]} x {size[1]} pixels, less than {side} x {side}",
            hint="a smaller --data.side, or remove it",
        )
    return min(size)


@contextmanager
def _hinted() -> Iterator[None]:
    """Errors of reading a picture say what to do about it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(str(error), hint=error.hint or "remove or mend it") from error


def _looked_at(paths: Sequence[str], data: Pictures, *, decoded: bool) -> Iterator[Tensor | UsageError | None]:
    """Of each picture, in order, its square if it is to be decoded, or why it cannot be used. By several threads: the
    decoders work outside Python's lock."""

    def look(path: str) -> Tensor | UsageError | None:
        try:
            if decoded:
                return square(path, data.side, data.channels)
            with _hinted(), decode.header(path) as image:
                _shorter(path, image.size, data.side)
        except UsageError as error:
            return error

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="etude-data")
    try:
        with bars(transient=True) as show:
            for done, found in enumerate(pool.map(look, paths), 1):
                show("looking at pictures", done, len(paths))
                yield found
    finally:
        pool.shutdown(cancel_futures=True)


def _kept(images: Tensor) -> tuple[Take, int]:
    return (lambda rows, seed, epochs: images[torch.from_numpy(rows)]), len(images)


def _files(paths: list[str], data: Pictures) -> Take:
    """Decoded when they are needed."""
    return lambda rows, seed, epochs: torch.stack([square(paths[row], data.side, data.channels) for row in rows])


def _array(data: Pictures, split: str) -> Tensor:
    """All pictures of a set's split, with a black border where they are smaller."""
    held = source(data.source).load(split, data.path)
    assert isinstance(held, ImageArrays)
    _, channels, side, _ = held.images.shape
    if channels != data.channels:
        raise UsageError(
            f"pictures of {data.source} have {channels} channels, data.channels is {data.channels}",
            hint=f"--data.channels {channels} --model.channels {channels}",
        )
    if not side <= data.side < 2 * side:
        raise UsageError(
            f"pictures of {data.source} have {side} pixels a side; data.side is {data.side}",
            hint=f"--data.side {1 << (side - 1).bit_length()}",
        )
    before = (data.side - side) // 2
    after = data.side - side - before
    return F.pad(held.images, (before, after, before, after))


def _photographs(data: Pictures) -> Take:
    """Patches of photographs, at one of the scales, each place of all photographs alike. The same photographs for all
    splits: what is made is to be like what was learned from, and other photographs show other things (of real patches
    of sixteen and of five others, recall was 0.33)."""
    views: list[list[Tensor]] = [[] for _ in SCALES]
    for path in photos.files("train", data.path).values():
        image = decode.open_image(path, data.channels)
        for view, scale in zip(views, SCALES):
            small = image.reduce(scale)
            if min(small.size) >= data.side:
                view.append(decode.to_tensor(small))
    views = [view for view in views if view]
    if not views:
        raise UsageError(f"no photograph has a patch of {data.side} pixels a side", hint="--data.side 64")
    shares = [np.cumsum([image[0].numel() for image in view], dtype=np.float64) for view in views]

    def take(rows: np.ndarray, seed: int, epochs: object) -> Tensor:
        drawn = order.uniform(seed, epochs, rows, 4, order.PATCH)
        patches = []
        for scale, which, down, right in drawn:
            level = int(scale * len(views))
            among = shares[level]
            image = views[level][int(np.searchsorted(among, which * among[-1], side="right"))]
            top, left = int(down * (image.shape[1] - data.side + 1)), int(right * (image.shape[2] - data.side + 1))
            patches.append(image[:, top : top + data.side, left : left + data.side])
        return torch.stack(patches)

    return take
