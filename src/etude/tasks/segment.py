"""Segmentation: a class for every pixel. Cross-entropy, soft Dice, their sum or focal loss; whole volumes, any size."""

import dataclasses
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from etude.data import decode, nifti
from etude.data.base import Batch, Data, Dataset
from etude.data.masks import IGNORED, word
from etude.data.segmentation import Segmentation, SegmentationDataset, to_picture
from etude.errors import UsageError
from etude.nn.tiles import tiled
from etude.tasks import overlay
from etude.tasks.base import Ask, Block, LossLogs, Task, check_channels
from etude.tasks.metrics import Mean, Metric
from etude.tasks.overlap import Cases, Distances, Overlap, counts, hausdorff95

Loss = Literal["cross-entropy", "dice", "both", "focal"]
LOSSES = ("cross-entropy", "dice", "both", "focal")
SHOWN = 256
"""Pixels a side of the pictures in the report."""
EACH = 2
"""Best, median and worst cases there."""
LARGEST = 2048
"""Pixels a side of an overlay picture."""
SLICES = 12
"""Slices in a volume's overlay picture."""


def reach(halvings: int) -> int:
    """Pixels to either side that a U-Net of this depth looks, up to whole pixels of its lowest level: two 3x3
    convolutions a level on both paths see 14 2^(depth - 1) - 5."""
    unit = 1 << halvings
    return -(-(14 * unit // 2 - 5) // unit) * unit


@dataclass(frozen=True)
class Tiles(Ask):
    """How a large picture is cut up; what is left out is as the recipe's task says."""

    tile: int | None = None
    """Pictures of more than 2 tile^2 pixels go through the network in tiles of at most this side."""
    context: int | None = None
    """Pixels that a tile sees around itself."""

    def __post_init__(self) -> None:
        _check_tiles(self.tile, self.context, "")


def _check_tiles(tile: int | None, context: int | None, prefix: str) -> None:
    """UsageError for sides that no tile has; `prefix` is what the flags' names begin with."""
    if tile is not None and tile < 16:
        raise UsageError(f"{prefix}tile is {tile}; it must be 16 or more", hint=f"--{prefix}tile 512")
    if context is not None and context < 0:
        raise UsageError(f"{prefix}context is {context}; it must not be negative", hint=f"--{prefix}context 112")


@dataclass(frozen=True)
class Segment(Task):
    """Batches hold "image" (B, C, H, W), "mask" (B, H, W) and, where borders count, "weight" (B, H, W)."""

    loss_by: Loss = "both"
    gamma: float = 2.0
    """Focal loss: (1 - p)^gamma times the cross-entropy (arXiv 1708.02002, equation 4)."""
    class_weights: tuple[float, ...] = ()
    """Of each class in cross-entropy and focal loss; empty: all alike."""
    tile: int = 512
    """Pictures of more than 2 tile^2 pixels go through the network in tiles of at most this side."""
    context: int | None = None
    """Pixels that a tile sees around itself; by default as many as the network looks to either side, so that tiles
    change nothing."""

    measure: ClassVar[str] = "dice"
    higher_is_better: ClassVar[bool] = True
    ask: ClassVar[type[Ask]] = Tiles
    one_by_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.loss_by not in LOSSES:
            raise UsageError(f"task.loss_by is {self.loss_by!r}; it must be one of {', '.join(LOSSES)}")
        if self.gamma < 0 or any(weight < 0 for weight in self.class_weights):
            raise UsageError(f"task.gamma {self.gamma} and task.class_weights {self.class_weights} are not negative")
        _check_tiles(self.tile, self.context, "task.")

    def configure(self, model: Any, dataset: Dataset) -> Any:
        """As many classes as the data has, where the model leaves them open."""
        if getattr(model, "num_classes", None) == 0:
            return dataclasses.replace(model, num_classes=len(dataset.facts["classes"]))
        return model

    @torch.no_grad()
    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model takes the pictures, and has an output for each class."""
        batch = {n: v[..., :32, :32] if n in ("image", "mask") else v for n, v in dataset.fetch("test", [0]).items()}
        image = dataset.finish(batch)["image"]
        check_channels(model, image.shape[1], readable=decode.MODES)
        try:
            outputs = model.eval()(image).shape[1]
        except RuntimeError as error:
            raise UsageError(f"the model does not take pictures of {image.shape[1]} channels: {error}") from error
        model.train()
        classes = len(dataset.facts["classes"])
        if outputs != classes:
            raise UsageError(
                f"the model has {outputs} outputs, the data {classes} classes", hint=f"--model.num-classes {classes}"
            )
        if self.loss_by == "dice" and getattr(getattr(dataset, "data", None), "borders", 0):
            raise UsageError(
                "data.borders weighs the pixels of a cross-entropy, and task.loss_by dice has none",
                hint="--task.loss-by both",
            )
        if self.class_weights and len(self.class_weights) != classes:
            raise UsageError(f"task.class_weights has {len(self.class_weights)} entries for {classes} classes")

    # ------------------------------------------------------------------ training

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """The chosen loss, and the Dice of the batch."""
        logits = model(batch["image"])
        logits = logits if logits.dtype == torch.float64 else logits.float()  # float64: gradcheck
        loss = self.of(logits, batch["mask"], batch.get("weight"))

        def dice() -> Tensor:
            found = counts(logits.argmax(1), batch["mask"], logits.shape[1])
            measured = Overlap(tuple(range(1, logits.shape[1])))
            measured.add(found)
            return torch.tensor(measured.value() or 0.0)

        return loss, {"loss": loss, "dice": dice}

    def of(self, logits: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, K, H, W), (B, H, W) -> the scalar to descend."""
        if self.loss_by == "dice":
            return dice_loss(logits, mask)
        pixel = pixel_loss(
            logits, mask, weight, self.class_weights, gamma=self.gamma if self.loss_by == "focal" else 0.0
        )
        return pixel + dice_loss(logits, mask) if self.loss_by == "both" else pixel

    # ------------------------------------------------------------------ measuring

    def through(self, call: Callable[[Tensor], Tensor], image: Tensor, *, halvings: int) -> Tensor:
        """(B, C, H, W) -> what `call` makes of it, pixel by pixel; large pictures by tiles, whose corners the network's
        halvings divide."""
        if image.shape[2] * image.shape[3] <= 2 * self.tile**2:
            return call(image)
        context = reach(halvings) if self.context is None else self.context
        rows = (tiled(call, row, tile=self.tile, context=context, multiple=1 << halvings) for row in image.split(1))
        return torch.cat(list(rows))

    def evaluate_on(self, dataset: Dataset, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """Dice, IoU (pooled over the split) and the 95 % Hausdorff distance (mean over cases), of each class but the
        background and their mean; the cross-entropy, without weights."""
        classes = dataset.facts["classes"]
        labels = range(1, len(classes))
        loss, cases = Mean(), Cases()
        overlaps = {"dice": Overlap(tuple(labels)), "iou": Overlap(tuple(labels), union=True)}
        for label in labels:
            overlaps |= {
                f"{kind}_{word(classes[label])}": Overlap((label,), union=kind == "iou") for kind in ("dice", "iou")
            }
        far = {"hd95": Distances()} | {f"hd95_{word(classes[label])}": Distances() for label in labels}
        for batch in batches:
            truth = batch["mask"]
            logits = self.through(lambda x: model(x).float(), batch["image"], halvings=_halvings(model))
            losses = F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="none")
            loss.add(losses[truth != IGNORED])
            predicted = logits.argmax(1)
            for i, index in enumerate(batch["index"].tolist()):
                found = counts(predicted[i], truth[i], len(classes))
                for metric in overlaps.values():
                    metric.add(found)
                drawn, true = (part[i].cpu().numpy().astype(np.uint8) for part in (predicted, truth))
                drawn = np.where(true == IGNORED, IGNORED, drawn)
                spacing = tuple(batch["spacing"][i].tolist()) if "spacing" in batch else (1.0, 1.0)
                for label in labels:
                    apart = hausdorff95(drawn == label, true == label, spacing)
                    if apart is not None:
                        far["hd95"].found.append(apart)
                        far[f"hd95_{word(classes[label])}"].found.append(apart)
                own = Overlap(tuple(labels))
                own.add(found)
                score = own.value()
                if score is not None:
                    small = np.asarray(overlay.shrunk(Image.fromarray(drawn), SHOWN, nearest=True))
                    cases.rows.append((score, index, small.shape, zlib.compress(small.tobytes())))
        return {**overlaps, "loss": loss, **far, "cases": cases}

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """A table of the classes; the best, the median and the worst case beside the truth."""
        assert isinstance(dataset, SegmentationDataset)
        classes = dataset.facts["classes"]
        rows = []
        for name, key in [("mean", ""), *((name, f"_{word(name)}") for name in classes[1:])]:
            values = [measured[f"{kind}{key}"].value() for kind in ("dice", "iou", "hd95")]
            rows.append([name, *("" if value is None else f"{value:.4g}" for value in values)])
        blocks: list[Block] = [
            {
                "kind": "table",
                "title": f"Classes of {split}: Dice and IoU of all pixels, 95 % Hausdorff distance a case",
                "columns": ["class", "Dice", "IoU", "HD95"],
                "rows": rows,
            }
        ]
        ranked = measured["cases"].value()
        each = min(EACH, max(1, len(ranked) // 3))
        middle = max(each, (len(ranked) - each) // 2)
        chosen = {"best": ranked[-each:], "median": ranked[middle:-each][:each], "worst": ranked[:-each][:each]}
        items = []
        for kind, those in chosen.items():
            for score, index, shape, packed in reversed(those):
                batch = dataset.fetch(split, [index])
                size = (shape[1], shape[0])
                picture = to_picture(batch["image"][0]).resize(size, Image.Resampling.BILINEAR)
                truth = Image.fromarray(batch["mask"][0].numpy()).resize(size, Image.Resampling.NEAREST)
                drawn = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape)
                triple = [
                    picture,
                    *(
                        overlay.overlay(picture, np.where(mask == IGNORED, 0, mask))
                        for mask in (np.asarray(truth), drawn)
                    ),
                ]
                items.append(
                    {
                        "png": overlay.png(overlay.legend(overlay.beside(triple), classes)),
                        "caption": f"{kind}: Dice {score:.3f} (picture, truth, prediction)",
                        "detail": f"{split} sample {index}: {dataset.named(split, index)}",
                    }
                )
        if items:
            title = f"The best, median and worst of {len(ranked)} cases"
            blocks.append({"kind": "images", "title": title, "items": items})
        return blocks

    # ------------------------------------------------------------------ answers

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> list["Mask | VolumeMask"]:
        """Each picture's or volume's classes."""
        assert isinstance(data, Segmentation)
        given = dataclasses.asdict(ask or Tiles())
        cut = dataclasses.replace(self, **{name: value for name, value in given.items() if value is not None})
        return [cut._answer(model, raw, data, facts) for raw in inputs]

    def _answer(self, model: nn.Module, raw: Any, data: Segmentation, facts: dict[str, Any]) -> "Mask | VolumeMask":
        classes, values = tuple(facts["classes"]), tuple(facts["values"])
        if isinstance(raw, str | Path) and nifti.is_nifti(raw):
            volume = nifti.load(raw, data.axis)
            levels = data.levels(volume.slices())
            found = np.empty((len(levels), *levels.shape[-2:]), dtype=np.uint8)
            step = max(1, self.tile**2 // (levels.shape[-1] * levels.shape[-2]))
            for first in range(0, len(levels), step):
                found[first : first + step] = self._classes(model, levels[first : first + step], data)
            return VolumeMask(found, classes, values, levels, str(raw), volume)
        image = data.prepare(raw)
        source = str(raw) if isinstance(raw, str | Path) else type(raw).__name__
        return Mask(self._classes(model, image[None], data)[0], classes, values, image, source)

    def _classes(self, model: nn.Module, levels: Tensor, data: Segmentation) -> NDArray[np.uint8]:
        """(B, C, H, W) uint8 -> (B, H, W) classes. What is between exists for a tile at a time alone."""
        device = next(model.parameters()).device

        def call(x: Tensor) -> Tensor:
            return model(data.normalise(x.to(device))).argmax(1, keepdim=True).to(torch.uint8).cpu()

        return self.through(call, levels, halvings=_halvings(model))[:, 0].numpy()


def _halvings(model: nn.Module) -> int:
    """How often a network like `UNet` halves a picture."""
    return getattr(getattr(model, "config", None), "depth", 0)


def pixel_loss(
    logits: Tensor,
    mask: Tensor,
    weight: Tensor | None = None,
    class_weights: tuple[float, ...] = (),
    *,
    gamma: float = 0.0,
) -> Tensor:
    """The mean over pixels of weight (1 - p)^gamma (-log p), p the probability of a pixel's own class.

    (B, K, H, W), (B, H, W), (B, H, W). With class weights the mean is over their sum, as torch has it; the borders'
    weights (arXiv 1505.04597, equation 1) change the sum alone. Ignored pixels count nowhere.
    """
    nats = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="none")
    known = (mask != IGNORED).to(nats.dtype)
    losses = nats * (-torch.expm1(-nats)).clamp(min=1e-7) ** gamma if gamma else nats  # a power of 0 has no slope
    if class_weights:
        known = known * logits.new_tensor(class_weights)[mask.clamp(max=len(class_weights) - 1)]
    losses = losses * known
    if weight is not None:
        losses = losses * weight
    return losses.sum() / known.sum().clamp(min=1e-12)


def dice_loss(logits: Tensor, mask: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - the mean over all classes but the background of (2 sum p g + s) / (sum p + sum g + s), sums over the batch.

    p are softmax probabilities, g the mask as 0 and 1 (after Milletari et al., 2016, arXiv 1606.04797, section 3, with
    plain sums below). Ignored pixels count nowhere.
    """
    classes = logits.shape[1]
    known = (mask != IGNORED)[:, None]
    p = logits.softmax(1)[:, 1:] * known
    g = F.one_hot(mask.where(mask != IGNORED, 0), classes).movedim(-1, 1)[:, 1:] * known
    both, sizes = (p * g).sum((0, 2, 3)), p.sum((0, 2, 3)) + g.sum((0, 2, 3))
    return 1 - ((2 * both + smooth) / (sizes + smooth)).mean()


def _ending(path: str | Path, *endings: str) -> Path:
    """A path that ends in one of these, or UsageError."""
    if not str(path).lower().endswith(endings):
        kind = "a picture's mask is saved as PNG" if endings == (".png",) else "a volume's mask is saved as NIfTI"
        raise UsageError(
            f"{path}: {kind}, and the name must end in {' or '.join(endings)}",
            hint=str(Path(path).with_suffix(endings[-1])),
        )
    return Path(path)


@dataclass(frozen=True, eq=False)
class Mask:
    """The classes of a picture's pixels."""

    mask: NDArray[np.uint8] = field(repr=False)
    """(H, W), places in `classes`."""
    classes: tuple[str, ...]
    values: tuple[int, ...]
    """What stands for each class in the files of masks."""
    image: Tensor = field(repr=False)
    """(C, H, W) uint8"""
    source: str

    suffix: ClassVar[str] = ".png"

    @property
    def shares(self) -> dict[str, float]:
        """The part of all pixels that each class has."""
        count = np.bincount(self.mask.reshape(-1), minlength=len(self.classes))
        return {name: float(n) / self.mask.size for name, n in zip(self.classes, count)}

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {"shape": list(self.mask.shape), "shares": self.shares}

    def row(self) -> list[str]:
        """As cells of a table."""
        return [", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())]

    def plot(self) -> Image.Image:
        """The mask over the picture, which is made smaller where it is very large."""
        picture = overlay.shrunk(to_picture(self.image), LARGEST)
        mask = np.asarray(overlay.shrunk(Image.fromarray(self.mask), LARGEST, nearest=True))
        return overlay.legend(overlay.overlay(picture, mask), self.classes)

    def save(self, path: str | Path) -> None:
        """The mask with the values of the training masks, as PNG, and beside it NAME-overlay.png. UsageError where the
        name ends otherwise."""
        path = _ending(path, ".png")
        kind = np.uint8 if max(self.values) < 256 else np.uint16
        Image.fromarray(np.array(self.values, dtype=kind)[self.mask]).save(path, "PNG")
        self.plot().save(path.with_name(f"{path.stem}-overlay.png"))


@dataclass(frozen=True, eq=False)
class VolumeMask(Mask):
    """The classes of a volume's voxels: `mask` is (N, H, W), `image` (N, C, H, W)."""

    volume: nifti.Volume = field(repr=False)

    suffix: ClassVar[str] = ".nii.gz"

    def json(self) -> dict[str, Any]:
        """As plain values, with each class's volume in millilitres."""
        shape = [int(n) for n in self.volume.image.shape[:3]]
        return {"shape": shape, "shares": self.shares, "millilitres": self.millilitres}

    @property
    def millilitres(self) -> dict[str, float]:
        """The volume of each class but the background, the file's unit taken for millimetres."""
        whole = self.mask.size * self.volume.voxel / 1000
        return {name: share * whole for name, share in list(self.shares.items())[1:]}

    def row(self) -> list[str]:
        """As cells of a table."""
        return [", ".join(f"{name} {amount:,.1f} ml" for name, amount in self.millilitres.items())]

    def plot(self) -> Image.Image:
        """Some slices of those in which anything was found, evenly spread, with the mask over them."""
        found = np.flatnonzero((self.mask > 0).any((1, 2)))
        found = found if len(found) else np.arange(len(self.mask))
        chosen = found[np.linspace(0, len(found) - 1, min(SLICES, len(found))).round().astype(int)]
        drawn = [overlay.shrunk(overlay.overlay(to_picture(self.image[i]), self.mask[i]), SHOWN) for i in chosen]
        return overlay.legend(overlay.beside(drawn, columns=4), self.classes)

    def save(self, path: str | Path) -> None:
        """The mask as NIfTI on the volume's own grid, with the values of the training masks, and NAME-overlay.png.
        UsageError where the name ends otherwise."""
        path = _ending(path, *nifti.ENDINGS)
        self.volume.write(np.array(self.values, dtype=np.uint16)[self.mask], path)
        self.plot().save(path.with_name(f"{nifti.stem(path)}-overlay.png"))
