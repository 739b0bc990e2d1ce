"""Batched augmentation against kornia, which works on batches too, and torchvision in a DataLoader with 2 workers.

The same changes everywhere: mirror images, jitter of brightness, contrast, saturation (0.4) and hue (0.1), and an
affine map (15 degrees, shifts of 0.1, scales 0.9 to 1.1). Each peer runs at its defaults and ours beside it does what
they are: bilinear without a fade at the border for kornia, nearest for torchvision. Ours goes from uint8 to uint8, as
torchvision does; kornia gets float32 images in [0, 1], which is what it takes.

torchvision's wheels link CUDA. Beside a CPU build of torch their compiled operators do not load, and importing the
package fails on two of them, which none of these transforms uses: their signatures are declared here, so that the rest,
plain Python on torch, can be measured.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from etude.bench import Contest, clock
from etude.data.augment import Augment

SIZES = {32: 1024, 224: 64}
"""Side of the images -> how many in a batch."""
BATCH = {32: 128, 224: 32}
"""Side of the images -> how many torchvision's workers put together."""
TARGETS = {("kornia", 32): 2.0, ("torchvision", 32): 10.0, ("torchvision", 224): 1.6}
Peer = Callable[[], float]
"""Changes as many images as it was given, and returns the seconds."""
INSTALL = {
    "kornia": "pip install kornia",
    "torchvision": "pip install --no-deps torchvision, the release that belongs to this torch",
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
    """`length` images in memory, each changed when it is asked for: how torchvision's transforms are used."""

    def __init__(self, images: Tensor, transform: Callable[[Tensor], Tensor], length: int):
        self.images, self.transform, self.length = images, transform, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index % len(self.images)])


def contests(*, compiled: bool = False) -> list[Contest]:
    """Images/s at each size beside each peer. Targets: 2 times kornia and 10 times torchvision at 32x32,
    1.6 times torchvision at 224x224.

    `compiled` changes nothing here. A peer that is not installed has a row with the reason.
    """
    pairs = []
    for side, count in SIZES.items():
        images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)
        pairs.append(_contest(images, "kornia", _kornia, replace(OURS, interpolation="bilinear", fill=None)))
        pairs.append(_contest(images, "torchvision", _torchvision, OURS))
    return pairs


def _contest(images: Tensor, name: str, peer: Callable[[Tensor], tuple[Peer, str]], ours: Augment) -> Contest:
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
        peer=theirs,
        peer_name=name,
        peer_version=version,
        target=TARGETS.get((name, side)),
        note=note,
        rounds=15,
    )


def _kornia(images: Tensor) -> tuple[Peer, str]:
    import kornia  # pyright: ignore[reportMissingImports]
    from kornia import augmentation  # pyright: ignore[reportMissingImports]

    chain = torch.nn.Sequential(
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0),
        augmentation.RandomAffine(15.0, (0.1, 0.1), (0.9, 1.1), p=1.0),
    )
    floats = images / 255
    return clock(lambda: chain(floats)), kornia.__version__


def _torchvision(images: Tensor) -> tuple[Peer, str]:
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # pyright: ignore[reportMissingImports]
    from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

    chain = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1)),
        ]
    )
    # eight batches for each of the two workers: what starting a pass costs is shared by many images
    batch = BATCH[images.shape[-1]]
    changed = Changed(images, chain, 16 * batch)
    loader = DataLoader(changed, batch_size=batch, num_workers=2, persistent_workers=True)
    timed = clock(lambda: [None for _ in loader])
    return lambda: timed() * len(images) / len(changed), torchvision.__version__
