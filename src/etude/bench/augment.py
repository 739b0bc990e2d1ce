"""Batched augmentation against kornia, which works on batches too, and torchvision in a DataLoader with 2 workers.

The same changes everywhere: mirror images, jitter of brightness, contrast, saturation (0.4) and hue (0.1), and an
affine map (15 degrees, shifts of 0.1, scales 0.9 to 1.1). Each peer runs at its defaults and ours beside it does what
they are: bilinear without a fade at the border for kornia, nearest for torchvision. Ours goes from uint8 to uint8, as
torchvision does; kornia gets float32 images in [0, 1], which is what it takes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from etude.bench import Contest, clock
from etude.data.augment import Augment

SIZES = {32: 1024, 224: 64}
"""Side of the images -> how many in a batch."""
TARGETS = {("kornia", 32): 2.0, ("torchvision", 32): 10.0}
INSTALL = {
    "kornia": "pip install kornia",
    "torchvision": "pip install torchvision, the release that belongs to this torch",
}
OURS = Augment(
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    degrees=15.0,
    translate=(0.1, 0.1),
    scale=(0.9, 1.1),
)


class Changed(Dataset[Tensor]):
    """Images in memory, each changed when it is asked for: how torchvision's transforms are used."""

    def __init__(self, images: Tensor, transform: Callable[[Tensor], Tensor]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


def contests(*, compiled: bool = False) -> list[Contest]:
    """Images/s at each size beside each peer. Targets at 32x32: 2 times kornia, 10 times torchvision.

    `compiled` changes nothing here. A peer that is not installed has a row with the reason.
    """
    pairs = []
    for side, count in SIZES.items():
        images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
        pairs.append(_contest(images, "kornia", _kornia, replace(OURS, interpolation="bilinear", fill=None)))
        pairs.append(_contest(images, "torchvision", _torchvision, OURS))
    return pairs


def _contest(images: Tensor, name: str, peer: Callable, ours: Augment) -> Contest:
    count, side = len(images), images.shape[-1]
    theirs = version = None
    note = ""
    try:
        theirs, version = peer(images)
    except Exception as error:  # torchvision beside a torch of another release fails with errors of many kinds
        note = f"peer not importable here ({type(error).__name__}: {error}); {INSTALL[name]}"
    return Contest(
        name=f"augment.{name}.{side}",
        what=f"flip, jitter, {ours.interpolation} affine, {count} images {side}x{side}",
        amount=count,
        unit="images/s",
        ours=clock(lambda: ours(images, seed=0, epochs=0, indices=range(count))),
        peer=clock(theirs) if theirs else None,
        peer_name=name,
        peer_version=version,
        target=TARGETS.get((name, side)),
        note=note,
        rounds=15,
    )


def _kornia(images: Tensor) -> tuple[Callable[[], Any], str]:
    import kornia  # pyright: ignore[reportMissingImports]
    from kornia import augmentation  # pyright: ignore[reportMissingImports]

    chain = torch.nn.Sequential(
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0),
        augmentation.RandomAffine(15.0, (0.1, 0.1), (0.9, 1.1), p=1.0),
    )
    floats = images / 255
    return lambda: chain(floats), kornia.__version__


def _torchvision(images: Tensor) -> tuple[Callable[[], Any], str]:
    import torchvision  # pyright: ignore[reportMissingImports]
    from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

    chain = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1)),
        ]
    )
    # eight batches a pass, so that both workers have work at every size
    loader = DataLoader(Changed(images, chain), batch_size=len(images) // 8, num_workers=2, persistent_workers=True)
    return lambda: [None for _ in loader], torchvision.__version__
