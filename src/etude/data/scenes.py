"""`Scenes`: synthetic scenes of real objects, pieces of clothing from Fashion-MNIST pasted on photographs.

Made on the fly, and exactly annotated: a box is the smallest that holds an object's mask. A scene is a function of
(seed, epoch, index); those of the test split do not depend on the run's seed. Train and test share neither objects
(Fashion-MNIST's own splits) nor photographs.
"""

from dataclasses import dataclass
from itertools import permutations
from math import cos, pi
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from etude.data import decode, order, photos
from etude.data.detection import BoxDataset, Boxed
from etude.data.mosaic import Sample
from etude.data.sources import ImageArrays, source
from etude.errors import UsageError, nearest

SPLITS = {"train": ("train", "validation"), "test": ("test",)}
"""Of the photographs, for scenes of each split."""
SHORT = 320
"""The shorter side in pixels to which photographs are shrunk."""
TRIES = 4
"""Places tried for an object before it is left out."""
COVERED = 0.25
"""The largest part of a box that a later object's may cover."""
MASK = 24
"""The level in 255 above which a pixel of an object is opaque; Fashion-MNIST's ground is 0."""
GROUND = 11
"""Random numbers of a ground."""
DECOYS = 3
"""Most pieces of photographs that are pasted on a training scene: things that are no objects."""
PER_DECOY = GROUND + 5
FRAME = 2 * GROUND + 2 + DECOYS * PER_DECOY
"""Random numbers of a scene's grounds and decoys, of how many of each there are, and of each object."""
ORDERS = tuple(permutations(range(3)))
PER_OBJECT = 9 + 2 * TRIES


@dataclass(frozen=True)
class Scenes(Boxed):
    """One to `most` objects a scene, on a part of a photograph."""

    size: int = 128
    kinds: tuple[str, ...] = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Sandal", "Sneaker", "Bag", "Ankle boot")
    """The classes: eight of Fashion-MNIST's ten. Coat and Shirt are left out, which look much like
    Pullover and T-shirt at 28 x 28 pixels: here things are to be found, not told apart."""
    path: str = ""
    """The folder of photographs, if etude did not fetch them."""
    clothes: str = ""
    """The folder of Fashion-MNIST, likewise."""
    train: int = 10_000
    """Scenes an epoch, new in each."""
    test: int = 500
    most: int = 5
    smallest: float = 0.25
    """Range of an object's frame, 28 x 28 pixels in Fashion-MNIST, as a share of the scene's side."""
    largest: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train < 1 or self.test < 1 or self.most < 1:
            raise UsageError(
                f"data.train {self.train}, data.test {self.test} and data.most {self.most} must be positive"
            )
        known = source("fashion-mnist").classes
        for kind in self.kinds:
            if kind not in known:
                raise UsageError(f"data.kinds: there is no {kind!r}", hint=nearest(kind, known) or ", ".join(known))
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UsageError(f"data.kinds must name one or more, each once; they are {', '.join(self.kinds)}")
        if not 0 < self.smallest <= self.largest <= 1:
            raise UsageError(
                f"data.smallest {self.smallest} and data.largest {self.largest} must be shares of the side"
            )

    def open(self) -> "SceneDataset":
        """Read the photographs and the objects."""
        return SceneDataset(self)


class SceneDataset(BoxDataset):
    """Photographs and objects in memory, and how they are put together."""

    def __init__(self, data: Scenes):
        self.data, self.scenes = data, data
        self.photos = {
            split: [_photo(path) for part in parts for path in photos.files(part, data.path).values()]
            for split, parts in SPLITS.items()
        }
        self.items: dict[str, tuple[NDArray[np.uint8], list[NDArray[np.int64]]]] = {}
        for split in SPLITS:
            held = source("fashion-mnist").load(split, data.clothes)
            assert isinstance(held, ImageArrays)
            labels = held.labels.numpy()
            by_class = [np.flatnonzero(labels == held.classes.index(kind)) for kind in data.kinds]
            self.items[split] = (held.images[:, 0].numpy(), by_class)
        self.sizes = {"train": data.train, "test": data.test}
        about = "scenes of Fashion-MNIST on photographs"
        self.facts = {"source": about, "classes": list(data.kinds), "sizes": self.sizes}

    def load(self, split: str, index: int, *, seed: int = 0, epoch: int | None = None) -> Sample:
        """A scene of `size` x `size`."""
        # the test split is drawn from a seed of its own, and so is no part of any run's epochs
        seed, epoch = (0x5CE7E, 0) if epoch is None else (seed, epoch)
        scenes, size = self.scenes, self.scenes.size
        (u,) = order.uniform(seed, epoch, [index], FRAME + scenes.most * PER_OBJECT, order.SCENE)
        canvas = _ground(self.photos[split], u[:GROUND], size, recoloured=split == "train")
        if split == "train":
            canvas = _estranged(canvas, self.photos[split], u[GROUND:FRAME])
        boxes: list[tuple[int, int, int, int]] = []
        labels = []
        items, by_class = self.items[split]
        for k in range(1 + int(u[5] * scenes.most)):
            v = u[FRAME + k * PER_OBJECT :][:PER_OBJECT]
            label = int(v[0] * len(by_class))
            item = items[by_class[label][int(v[1] * len(by_class[label]))]]
            grow = scenes.smallest * (scenes.largest / scenes.smallest) ** v[2]
            side = max(8, round(size * grow))
            grey, mask = _object(item, side, mirrored=v[3] < 0.5, degrees=(2 * v[4] - 1) * 15)
            rows, columns = np.flatnonzero(mask.max(1) > 127), np.flatnonzero(mask.max(0) > 127)
            if not len(rows):
                continue
            inner = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            grey, mask = grey[inner], mask[inner]
            h, w = mask.shape
            if h > size or w > size:
                continue
            for x_u, y_u in zip(v[9::2], v[10::2]):
                left, top = int(x_u * (size - w + 1)), int(y_u * (size - h + 1))
                box = (left, top, left + w, top + h)
                if all(_covered(before, box) <= COVERED and _covered(box, before) <= COVERED for before in boxes):
                    break
            else:
                continue
            _paste(canvas[top : top + h, left : left + w], grey, mask, _tint(*v[5:9]))
            boxes.append(box)
            labels.append(label)
        found = np.array(boxes, np.float64).reshape(-1, 4)
        return Sample(canvas, found, np.array(labels, np.int64), np.zeros(len(labels), bool))

    def sides(self) -> NDArray[np.float64]:
        """Of the first scenes of epoch 0."""
        scenes = [self.load("train", index, epoch=0) for index in range(min(1000, self.scenes.train))]
        return np.concatenate([scene.boxes[:, 2:] - scene.boxes[:, :2] for scene in scenes])


def _photo(path: Path) -> Image.Image:
    """A photograph, shrunk."""
    image = decode.open_image(path, 3)
    scale = SHORT / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _ground(grounds: list[Image.Image], u: NDArray[np.float64], size: int, *, recoloured: bool) -> NDArray[np.uint8]:
    """A random part of a photograph, maybe mirrored, lighter or darker: (size, size, 3). Training photographs are few,
    so that their colours change places and strengths too."""
    photo = grounds[int(u[0] * len(grounds))]
    short = min(photo.size)
    side = size + u[1] * (short - size) if size < short else short
    left, top = u[2] * (photo.width - side), u[3] * (photo.height - side)
    part = photo.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(ImageOps.mirror(part) if u[4] < 0.5 else part)
    light = np.full(3, 0.6 + 0.4 * u[6])
    if recoloured:
        pixels = pixels[:, :, ORDERS[int(u[7] * len(ORDERS))]]
        light = light * (0.6 + 0.4 * u[8:11])
    return (pixels * light).astype(np.uint8)


def _estranged(canvas: NDArray[np.uint8], grounds: list[Image.Image], u: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A training ground, with another shining through it and up to DECOYS pieces of others on it. Photographs are few:
    without, a network learns these by heart and takes shapes in others for objects."""
    size, u, counts = canvas.shape[0], u[2:], u[:2]
    if counts[0] < 0.5:
        other = _ground(grounds, u[:GROUND], size, recoloured=True)
        canvas = np.rint(canvas + (other.astype(np.float64) - canvas) * counts[0]).astype(np.uint8)
    y, x = np.mgrid[:size, :size]
    for k in range(int(counts[1] * (DECOYS + 1))):
        v = u[GROUND + k * PER_DECOY :][:PER_DECOY]
        centre_x, centre_y, width, height = size * np.array([v[0], v[1], 0.05 + 0.25 * v[2], 0.05 + 0.25 * v[3]])
        far = np.abs(x - centre_x) / width, np.abs(y - centre_y) / height
        inside = np.maximum(*far) < 1 if v[4] < 0.5 else far[0] ** 2 + far[1] ** 2 < 1
        canvas[inside] = _ground(grounds, v[5:], size, recoloured=True)[inside]
    return canvas


def _object(item: NDArray[np.uint8], side: int, *, mirrored: bool, degrees: float) -> tuple[NDArray, NDArray]:
    """Levels and mask (side, side) of a piece of clothing, turned and scaled."""
    layers = np.stack([item, np.where(item > MASK, 255, 0).astype(np.uint8)], -1)
    picture = Image.fromarray(layers[:, ::-1].copy() if mirrored else layers, "LA")
    turned = picture.rotate(degrees, Image.Resampling.BILINEAR).resize((side, side), Image.Resampling.BILINEAR)
    layers = np.asarray(turned)
    return layers[..., 0], layers[..., 1]


def _tint(hue: float, colour: float, light: float, contrast: float) -> tuple[NDArray[np.float64], float]:
    """(3,) the colour of a white pixel, and the level of a black one."""
    wheel = np.array([0.5 + 0.5 * cos(2 * pi * (hue - third / 3)) for third in range(3)])
    return (1 - 0.7 * colour * (1 - wheel)) * (0.6 + 0.4 * light), 0.25 * contrast


def _paste(
    canvas: NDArray[np.uint8], grey: NDArray[np.uint8], mask: NDArray[np.uint8], tint: tuple[NDArray[np.float64], float]
) -> None:
    """Blend a tinted object into the part of the scene that it covers, in place."""
    colour, black = tint
    lit = (black + (1 - black) * grey[..., None] / 255) * colour * 255
    alpha = mask[..., None] / 255
    canvas[:] = np.rint(canvas + (lit - canvas) * alpha).astype(np.uint8)


def _covered(box: tuple[int, int, int, int], by: tuple[int, int, int, int]) -> float:
    """The part of a box that lies in another."""
    w, h = min(box[2], by[2]) - max(box[0], by[0]), min(box[3], by[3]) - max(box[1], by[1])
    return max(0, w) * max(0, h) / ((box[2] - box[0]) * (box[3] - box[1]))
