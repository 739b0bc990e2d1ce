"""The sets of labelled pictures: what each is, who made it, and how it is read from its official files.

`SOURCES[name].load(split)` gives `ImageArrays`, decoded and in memory, or `ImageFiles`, decoded one by one.
Splits are "train" and "test"; ImageNet's "test" is its official validation set, whose labels are public.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from etude.data import cifar, decode, digits, fetch, folder, idx, imagenet, remotes
from etude.errors import MissingError, UsageError

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Pictures in memory: `images` uint8 (N, C, H, W), `labels` int64 (N,), `classes` the name of each label."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Pictures on disk: `paths` (N), `labels` int64 (N,), `classes` the name of each label."""

    paths: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def decode(
        self, index: int, size: int, crop_uniforms: Sequence[float] | np.ndarray | None = None, *, channels: int = 3
    ) -> Tensor:
        """Picture `index` as uint8 (channels, size, size): the centre, or the training crop of `crop_uniforms`.

        `crop_uniforms` are `decode.CROP_UNIFORMS` numbers in [0, 1): see `decode.load`.
        """
        return decode.load(self.paths[index], size, crop_uniforms, channels=channels)


Arrays = tuple[np.ndarray, np.ndarray]
Files = tuple[list[str], list[int], tuple[str, ...]]


@dataclass(frozen=True)
class Source:
    """One data set. `splits` and `classes` are empty, `side` 0, where the user's files decide."""

    name: str
    title: str
    channels: int
    licence: str
    attribution: str
    splits: dict[str, int] = field(default_factory=dict)
    """Samples a split in the official set."""
    classes: tuple[str, ...] = ()
    side: int = 0
    """Height and width in pixels."""
    read_arrays: Callable[[Path, str], Arrays] | None = None
    read_files: Callable[[Path, str], Files] | None = None

    @property
    def remote(self) -> remotes.Remote | None:
        """Official addresses, checksums and mirror package; None for what the package carries."""
        return remotes.REMOTES.get(self.name)

    def load(self, split: str, path: str = "") -> ImageArrays | ImageFiles:
        """Reads "train" or "test" from the folder `path`, or from where `etude data get` put it.

        Raises MissingError if it is not there, RefusedError if a file is damaged, UsageError for a wrong layout.
        """
        if split not in SPLITS:
            raise UsageError(f"{self.name} has no split {split!r}", hint=f"one of {', '.join(SPLITS)}")
        if path and self.name in remotes.SHIPPED:
            raise UsageError(f"{self.name} comes with the package and takes no path", hint="leave --data.path out")
        root = Path(path).expanduser() if path else fetch.path(self.name)
        if not root.exists():
            raise MissingError(f"{root}: no such folder", hint=f"give the folder of {self.name}: --data.path DIR")
        if self.read_arrays:
            images, labels = self.read_arrays(root, split)
            return ImageArrays(torch.from_numpy(images), torch.from_numpy(labels), self.classes)
        assert self.read_files is not None
        paths, labels, classes = self.read_files(root, split)
        return ImageFiles(tuple(paths), torch.tensor(labels, dtype=torch.int64), classes)


DIGITS = tuple("0123456789")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="digits",
            title="UCI handwritten digits",
            splits={"train": 1_437, "test": 360},
            classes=DIGITS,
            channels=1,
            side=8,
            licence="CC BY 4.0",
            attribution="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
            "Repository, 1998, https://doi.org/10.24432/C50P49; as in scikit-learn's load_digits",
            read_arrays=lambda root, split: digits.read(split),
        ),
        Source(
            name="fashion-mnist",
            title="Fashion-MNIST, clothes",
            splits={"train": 60_000, "test": 10_000},
            classes=FASHION,
            channels=1,
            side=28,
            licence="MIT",
            attribution="H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017, https://arxiv.org/abs/1708.07747; "
            "copyright Zalando SE",
            read_arrays=idx.read,
        ),
        Source(
            name="mnist",
            title="MNIST handwritten digits",
            splits={"train": 60_000, "test": 10_000},
            classes=DIGITS,
            channels=1,
            side=28,
            licence="CC BY-SA 3.0",
            attribution="Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits",
            read_arrays=idx.read,
        ),
        Source(
            name="cifar10",
            title="CIFAR-10 photographs",
            splits={"train": 50_000, "test": 10_000},
            classes=CIFAR10,
            channels=3,
            side=32,
            licence="none stated; cite the report",
            attribution="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            read_arrays=partial(cifar.read, classes=10),
        ),
        Source(
            name="cifar100",
            title="CIFAR-100 photographs, fine labels",
            splits={"train": 50_000, "test": 10_000},
            classes=CIFAR100,
            channels=3,
            side=32,
            licence="none stated; cite the report",
            attribution="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            read_arrays=partial(cifar.read, classes=100),
        ),
        Source(
            name="imagenet",
            title="ImageNet, ILSVRC2012, 1,000 classes",
            splits={"train": 1_281_167, "test": 50_000},
            channels=3,
            licence="research and education only, after registration",
            attribution="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
            read_files=imagenet.read,
        ),
        Source(
            name="folder",
            title="your own pictures, a folder a class",
            channels=3,
            licence="yours",
            attribution="",
            read_files=folder.read,
        ),
    )
}


def source(name: str) -> Source:
    """The source of that name; UsageError with the nearest one if there is none."""
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES, 1)
        names = ", ".join(SOURCES)
        raise UsageError(
            f"there is no data set {name!r}", hint=f"did you mean {near[0]}?" if near else f"one of {names}"
        )
    return SOURCES[name]
