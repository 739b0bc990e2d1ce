"""Batched augmentation against kornia, which works on batches too, and torchvision in a DataLoader with 2 workers.

The same changes everywhere: mirror images, jitter of brightness, contrast, saturation (0.4) and hue (0.1), and an
affine map (15 degrees, shifts of 0.1, scales 0.9 to 1.1). Each peer runs at its defaults and ours beside it does what
they are: bilinear without a fade at the border for kornia, nearest for torchvision. Ours goes from uint8 to uint8, as
torchvision does; kornia gets float32 images in [0, 1], which is what it takes.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from etude.data.augment import Augment

_SIZES = {32: 1024, 224: 64}
"""Side of the images -> how many in a batch."""
_TARGETS = {32: {"kornia": 2.0, "torchvision": 10.0}, 224: {}}
_OURS = Augment(
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    degrees=15,
    translate=(0.1, 0.1),
    scale=(0.9, 1.1),
)


class _Changed(Dataset[Tensor]):
    """Images in memory, each changed when it is asked for: how torchvision's transforms are used."""

    def __init__(self, images: Tensor, transform: Callable[[Tensor], Tensor]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def run(*, threads: int = 2, seconds: float = 3.0) -> list[dict]:
    """One row a peer and image size, in images/s: medians of passes over a batch, in turns, for `seconds` a row."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = []
        for side, count in _SIZES.items():
            images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
            for peer, ours in ((_kornia, replace(_OURS, interpolation="bilinear", fill=None)), (_torchvision, _OURS)):
                name = peer.__name__.removeprefix("_")
                row = {
                    "name": f"augment-{side}-{name}",
                    "what": f"flip, colour jitter and {ours.interpolation} affine of {count} images of {side} x {side}",
                    "unit": "images/s",
                    "peer_name": name,
                    "target": _TARGETS[side].get(name),
                }
                rows.append(row | _compare(ours, peer, images, seconds))
        return rows
    finally:
        torch.set_num_threads(before)


def _compare(ours: Augment, peer: Callable, images: Tensor, seconds: float) -> dict:
    passes: list[Callable[[], object]] = [lambda: ours(images, seed=0, epochs=0, indices=range(len(images)))]
    version = note = None
    try:
        theirs, version = peer(images)
        passes.append(theirs)
    except Exception as error:  # a broken installation of torchvision fails with errors of every kind
        note = f"peer not importable here ({type(error).__name__}: {error}); {_INSTALL[peer]}"
    speeds = [len(images) / middle for middle in _in_turns(passes, seconds)]
    measured = speeds[1] if len(speeds) == 2 else None
    row = {
        "ours": speeds[0],
        "peer": measured,
        "peer_version": version,
        "ratio": speeds[0] / measured if measured else None,
    }
    return row | ({"note": note} if note else {})


def _in_turns(passes: list[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each, run one after the other so that a busy machine slows all alike."""
    for once in passes:
        once()
    times: list[list[float]] = [[] for _ in passes]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for once, taken in zip(passes, times):
            start = time.perf_counter()
            once()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def _kornia(images: Tensor) -> tuple[Callable[[], object], str]:
    import kornia
    from kornia import augmentation

    chain = torch.nn.Sequential(
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0),
        augmentation.RandomAffine(15.0, (0.1, 0.1), (0.9, 1.1), p=1.0),
    )
    floats = images / 255
    return lambda: chain(floats), kornia.__version__


def _torchvision(images: Tensor) -> tuple[Callable[[], object], str]:
    import torchvision  # pyright: ignore[reportMissingImports]
    from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

    chain = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1)),
        ]
    )
    loader = DataLoader(_Changed(images, chain), batch_size=len(images) // 8, num_workers=2, persistent_workers=True)
    return lambda: [None for _ in loader], torchvision.__version__


_INSTALL = {
    _kornia: "pip install kornia",
    _torchvision: "pip install torchvision, of the release that belongs to this torch",
}
