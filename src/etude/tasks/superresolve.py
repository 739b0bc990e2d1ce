"""Pictures enlarged: first for the smallest difference, then, against a discriminator, for what looks real.

    stage 1  `SuperResolve`             L1 of the pixels
    stage 2  `SuperResolveAdversarial`  L1 of features + relativistic average GAN + a little L1 of the pixels (ESRGAN,
                                        Wang et al., 2018, arXiv 1809.00219, equation 3)

Shapes: B batch, s the scale, H W of the low resolution.
"""

import base64
import copy
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from etude.data import deep, fetch, remotes
from etude.data.base import Batch, Data, Dataset
from etude.data.resize import imresize, to_bytes
from etude.errors import MissingError, RefusedError, UsageError
from etude.nn.tiles import Progress, tiled
from etude.progress import bars
from etude.tasks.base import Ask, Block, Logs, LossLogs, Task, Update, check_channels
from etude.tasks.fidelity import psnr, ssim
from etude.tasks.metrics import Mean, Metric
from etude.weights import load_weights, read_tensors
from etude.weights.ncnn import is_ncnn

ALPHA = 0.8
TILE, CONTEXT, BLEND = 320, 48, 16
"""Sides, in pixels of low resolution, of a piece that is computed at once, of what it sees around itself, and of the
part of that which fades into its neighbour."""
EQUAL = 100.0
"""Decibels that a picture counts for in the mean where it is equal to the true one, and at most."""
SHOWN, WINDOW = 5, 128
"""Pictures in the report, and the side of what is shown of each."""


@dataclass(frozen=True)
class Enlarge(Ask):
    tile: int = TILE
    """Side, in pixels of low resolution, of the pieces that a picture is computed in: memory grows with its square."""
    context: int = CONTEXT
    """Pixels of low resolution that a piece sees around itself. A network of many layers looks farther, but hardly: by
    Real-ESRGAN's 351 layers, 48 leave a mean error of 0.0013 beside a seam."""
    other: str = ""
    """Weights of another generator of this size, a run's or a file's, to mix with."""
    alpha: float = ALPHA
    """This run's part of the mixture (network interpolation, equation 5)."""

    def __post_init__(self) -> None:
        if self.tile < 1 or self.context < 0:
            raise UsageError(
                f"tile {self.tile} and context {self.context}: a tile has 1 or more pixels, its surroundings 0 or more"
            )
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha is {self.alpha}; the share must lie in [0, 1]", hint="--alpha 0.8")
        if self.alpha != ALPHA and not self.other:
            raise UsageError(f"alpha is {self.alpha}, without others to mix with", hint="--other RUN")


@dataclass(frozen=True)
class SuperResolve(Task):
    """The generator alone. Batches hold "low" (B, 3, H, W) and "high" (B, 3, s H, s W), floats of 0 to 1."""

    measure: ClassVar[str] = "psnr"
    higher_is_better: ClassVar[bool] = True
    ask: ClassVar[type[Ask]] = Enlarge
    one_by_one: ClassVar[bool] = True

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Whether the model enlarges as the data is made smaller."""
        generator = generator_of(model)
        check_channels(generator, 3, player="" if generator is model else "generator")
        scale = generator.scale
        if scale != dataset.facts["scale"]:
            raise UsageError(
                f"the model enlarges by {scale}, the data is made smaller by {dataset.facts['scale']}",
                hint=f"--data.scale {scale}",
            )

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """The mean absolute difference."""
        loss = F.l1_loss(model(batch["low"]), batch["high"])
        return loss, {"loss": loss}

    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Metric]:
        """PSNR and SSIM as `fidelity` defines them, of whole pictures, and what bicubic enlarging reaches on them."""
        generator = generator_of(model)
        means = {name: Mean() for name in ("psnr", "ssim", "psnr_bicubic", "ssim_bicubic")}
        crops = Crops()
        for batch in batches:
            low, high = batch["low"].cpu().float(), batch["high"].cpu()
            answers = {"": enlarged(generator, low)[0], "_bicubic": imresize(low, generator.scale)[0].clamp(0, 1)}
            for name, answer in answers.items():
                for measure in (psnr, ssim):
                    value = measure(answer, high[0], border=generator.scale)
                    if not math.isnan(value):
                        means[f"{measure.__name__}{name}"].add(torch.tensor([min(value, EQUAL)], dtype=torch.float64))
            crops.add(int(batch["index"]), low[0], answers["_bicubic"], answers[""], high[0])
        return {**means, "crops": crops}

    def notes(self, measured: dict[str, Metric]) -> dict[str, str]:
        """How PSNR and SSIM are defined."""
        return {"psnr": "luma of 8-bit pictures, a border of the scale cut off, MATLAB's bicubic; mean over pictures"}

    def described(self, measured: dict[str, Metric]) -> str:
        """What the report says beside the figures."""
        return f"PSNR and SSIM: {self.notes(measured)['psnr']}."

    def figures(self, measured: dict[str, Metric], dataset: Dataset, split: str) -> list[Block]:
        """Where each picture has most detail: low, bicubic, enlarged, true."""
        names = dataset.facts["pictures"][split]
        items = [
            {"png": picture, "caption": f"{names[index]}: low, bicubic, enlarged, true"}
            for index, picture in measured["crops"].value()
        ]
        said = {"kind": "text", "title": f"What is measured ({split})", "text": self.described(measured)}
        return [said, {"kind": "images", "title": f"Enlarged ({split})", "items": items, "study": True}]

    @torch.no_grad()
    def predict(
        self, model: nn.Module, inputs: list[Any], data: Data, facts: dict[str, Any], ask: Any = None
    ) -> list["Enlarged"]:
        """Each picture enlarged, of the depth and channels that it has: grey stays grey, and transparency is enlarged
        by the same network. Inputs: paths, bytes, PIL images, arrays, tensors (channels first)."""
        ask = ask or Enlarge()
        generator = generator_of(model)
        if ask.other:
            generator = mixed(generator, ask.other, ask.alpha)
        results = []
        for raw in inputs:
            picture = data.prepare(raw)
            colour, alpha = deep.split_alpha(picture)
            name = raw.name if isinstance(raw, Path) else type(raw).__name__
            with bars(transient=True) as show:
                draw = partial(enlarged, generator, tile=ask.tile, context=ask.context, progress=partial(show, name))
                answer = draw(colour.expand(3, -1, -1)[None])[0]
                if len(colour) == 1:
                    answer = answer.mean(0, keepdim=True)
                if alpha is not None:
                    even = bool((alpha == alpha[0, 0, 0]).all())
                    sides = answer.shape[-2:]
                    alpha = (
                        alpha[:, :1, :1].expand(1, *sides) if even else draw(alpha.expand(3, -1, -1)[None])[0].mean(0)
                    )
                    answer = torch.cat((answer, alpha.view(1, *sides)))
            source = str(raw) if isinstance(raw, str | Path) else name
            icc = deep.profile(raw, len(picture))
            results.append(Enlarged(picture, deep.quantise(answer, picture.dtype), source=source, icc=icc))
        return results


@dataclass(frozen=True)
class SuperResolveAdversarial(SuperResolve):
    """Both players: "generator" and "discriminator" are child modules of the model."""

    exported: ClassVar[str] = "generator"
    features: Any = None
    """A configuration of `vision.perceptual`: the network whose features are compared; None compares none."""
    features_weights: str = ""
    """Its weights: a file, or the name of a set that `etude data get` gets."""
    pixel_weight: float = 1e-2
    """eta of equation 3."""
    adversarial_weight: float = 5e-3
    """lambda of equation 3."""

    def described(self, measured: dict[str, Metric]) -> str:
        return (
            f"{super().described(measured)}\nStage 2 gives up decibels for texture; what stage 1 reached, and its "
            "pictures, stand in the report of its own run."
        )

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """As above; and whether the discriminator judges patches of the data's size, and the features can be had."""
        super().check(model, dataset)
        discriminator: Any = model.get_submodule("discriminator")
        check_channels(discriminator, 3, player="discriminator")
        side = discriminator.config.side
        train = "train" in dataset.sizes  # of another folder, all is measured on
        if train and side != (size := dataset.finish(dataset.fetch("train", [0]))["high"].shape[-1]):
            raise UsageError(
                f"the discriminator judges {side} x {side} pixels, the patches have {size} x {size}",
                hint=f"--data.size {side}",
            )
        if self.features is not None and model.training:  # measuring compares none
            _features(self.features, self.features_weights, next(model.parameters()).device)

    def step(self, model: nn.Module, batch: Batch, update: Update) -> Logs:
        """The generator against the discriminator as it is; then the discriminator on the pictures that were made."""
        made: list[Tensor] = []
        logs = update(partial(self.generator_loss, made=made), batch, "generator")
        return logs | update(self.discriminator_loss, batch | {"made": torch.cat(made)}, "discriminator")

    def generator_loss(self, model: nn.Module, batch: Batch, made: list[Tensor]) -> tuple[Tensor, LossLogs]:
        """L_percep + lambda L_Ra + eta L_1 (equation 3); what is made goes to `made`."""
        high, fake = batch["high"], model.get_submodule("generator")(batch["low"])
        made.append(fake.detach())
        discriminator = model.get_submodule("discriminator")
        with torch.no_grad():
            real_score = discriminator(high)
        adversarial = relativistic(discriminator(fake), real_score)
        pixel = F.l1_loss(fake, high)
        perceptual = self.perceptual(fake, high)
        loss = perceptual + self.adversarial_weight * adversarial + self.pixel_weight * pixel
        return loss, {"loss": loss, "perceptual": perceptual, "adversarial": adversarial, "pixel": pixel}

    def perceptual(self, fake: Tensor, real: Tensor) -> Tensor:
        """The mean absolute difference of features before their activation (section 3.3)."""
        if self.features is None:
            return fake.new_zeros(())
        features = _features(self.features, self.features_weights, fake.device)
        with torch.no_grad():
            wanted = features(real)
        return F.l1_loss(features(fake), wanted)

    def discriminator_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, LossLogs]:
        """Real pictures more real than those that were made."""
        discriminator = model.get_submodule("discriminator")
        real, fake = discriminator(batch["high"]).float(), discriminator(batch["made"]).float()
        loss = relativistic(real, fake)
        return loss, {"loss": loss, "real": real.mean(), "fake": fake.mean()}


def relativistic(higher: Tensor, lower: Tensor) -> Tensor:
    """The relativistic average loss of scores (B, 1): `higher` ones should exceed the mean of `lower` ones, and these
    fall short of the mean of those. With (real, fake) it is the discriminator's, with (fake, real) the generator's:
    half of equations 1 and 2, as in the authors' code. The means are over the part of the batch at hand."""
    higher, lower = higher.float(), lower.float()
    return 0.5 * (F.softplus(lower.mean() - higher).mean() + F.softplus(lower - higher.mean()).mean())


def generator_of(model: nn.Module) -> Any:
    """What enlarges: the player of that name, or the whole model."""
    return getattr(model, "generator", model)


def enlarged(
    generator: Any, low: Tensor, *, tile: int = TILE, context: int = CONTEXT, progress: Progress | None = None
) -> Tensor:
    """(1, 3, H, W) of 0 to 1 -> (1, 3, s H, s W) on the CPU, clipped; piece by piece, whose seams are not seen."""
    device = next(generator.parameters()).device
    call = lambda x: generator(x.to(device)).float().clamp(0, 1).cpu()  # noqa: E731
    blend = min(BLEND, context // 3, tile // 4)
    sizes = {"tile": tile, "context": context + blend, "blend": blend}  # what fades has `context` around it too
    return tiled(call, low, **sizes, scale=generator.scale, multiple=2, progress=progress)


def mixed(generator: nn.Module, other: str, alpha: float) -> nn.Module:
    """Network interpolation: a copy whose weights are `alpha` of the generator's and 1 - alpha of the other's."""
    generator = copy.deepcopy(generator)
    theirs = _filled(generator.config, other, _stamp(other))
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter.copy_(torch.lerp(theirs[name].to(parameter.device), parameter.float(), alpha))
    return generator


def _file(other: str) -> Path:
    path = Path(other).expanduser()
    return path / "weights.safetensors" if path.is_dir() else path


def _stamp(other: str) -> int:
    path = _file(other)
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=1)
def _filled(config: Any, other: str, stamp: int) -> dict[str, Tensor]:
    """Parameters of a generator with the weights of a run or a file, under any published names; read once for all the
    pictures, and again when the file is another (`stamp`)."""
    path = _file(other)
    tensors = read_tensors(path)
    if any(name.startswith("generator.") for name in tensors):
        tensors = {n.removeprefix("generator."): v for n, v in tensors.items() if n.startswith("generator.")}
    layout = "ncnn" if is_ncnn(path) else "esrgan"
    try:
        network = load_weights(config.build(), tensors, source=layout)
    except RefusedError as error:
        raise UsageError(f"{other} holds another network than this run's, which cannot be mixed: {error}") from error
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


@lru_cache(maxsize=2)
def _features(config: Any, weights: str, device: torch.device) -> nn.Module:
    """The network of features in evaluation mode, its weights fixed; read once a process."""
    path = Path(weights).expanduser()
    if not path.is_file() and weights in remotes.REMOTES:
        path = next(iter(sorted(fetch.path(weights).glob("*.pth"))), path)
    if not path.is_file():
        raise MissingError(
            f"task.features_weights: there is neither a file {weights!r} nor a set of this name",
            hint="--task.features-weights FILE, as torchvision publishes it",
        )
    network = load_weights(config.build(), path, source="published")
    return network.eval().requires_grad_(False).to(device)


@dataclass
class Crops(Metric):
    """For the pictures of the smallest indices, what the report shows of them: PNG, in base64."""

    shown: dict[int, str] = field(default_factory=dict)

    def add(self, index: int, low: Tensor, *pictures: Tensor) -> None:
        """(3, H, W), and pictures (3, s H, s W) of which the last is the true one."""
        if index >= SHOWN:
            return
        truth, scale = pictures[-1], pictures[-1].shape[-1] // low.shape[-1]
        side = min(WINDOW, *truth.shape[1:]) // scale * scale
        top, left = busiest(truth, side, scale)
        place = (slice(top // scale, (top + side) // scale), slice(left // scale, (left + side) // scale))
        panels = [F.interpolate(low[None, :, *place], scale_factor=scale)[0]]
        panels += [picture[:, top : top + side, left : left + side] for picture in pictures]
        self.shown[index] = base64.b64encode(png(torch.cat(panels, 2))).decode()

    def merge(self, other: "Crops") -> None:
        self.shown |= other.shown

    def value(self) -> list[tuple[int, str]]:
        return sorted(self.shown.items())


def busiest(image: Tensor, side: int, scale: int) -> tuple[int, int]:
    """Top and left, multiples of `scale`, of the square with the most gradient energy."""
    grey = image.mean(0)
    energy = (grey[1:, 1:] - grey[:-1, 1:]).square() + (grey[1:, 1:] - grey[1:, :-1]).square()
    step = max(scale, side // 8 // scale * scale)
    pooled = F.avg_pool2d(F.pad(energy, (0, 1, 0, 1))[None, None], side, stride=step)[0, 0]
    row, column = divmod(int(pooled.argmax()), pooled.shape[1])
    return row * step, column * step


def png(image: Tensor) -> bytes:
    """(3, H, W) of 0 to 1 -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image).permute(1, 2, 0).numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class Enlarged:
    """A picture and what was made of it."""

    low: Tensor = field(repr=False)
    """(C, H, W) uint8 or uint16."""
    high: Tensor = field(repr=False)
    """(C, s H, s W), of the same type."""
    source: str = ""
    icc: bytes | None = field(default=None, repr=False)
    """The input's colour profile."""

    suffix: ClassVar[str] = ".png"

    def json(self) -> dict[str, Any]:
        """Sizes in pixels, channels and bits."""
        (channels, height, width), bits = self.high.shape, torch.iinfo(self.high.dtype).bits
        return {
            "width": width,
            "height": height,
            "channels": channels,
            "bits": bits,
            "from": list(self.low.shape[:0:-1]),
        }

    def row(self) -> list[str]:
        (height, width), (channels, h, w) = self.low.shape[1:], self.high.shape
        kind = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}[channels]
        return [f"{width}x{height} -> {w}x{h}", f"{torch.iinfo(self.high.dtype).bits}-bit {kind}"]

    def save(self, path: Any) -> None:
        """As PNG, of the same depth, channels and colour profile as the input."""
        deep.save_png(self.high, path, icc=self.icc)

    def plot(self) -> Image.Image:
        """What has most detail, before (bicubic) and after."""
        colour = deep.split_alpha(self.high)[0].expand(3, -1, -1)
        low = deep.split_alpha(self.low)[0].expand(3, -1, -1)
        scale = colour.shape[-1] // low.shape[-1]
        side = min(320, *colour.shape[1:]) // scale * scale
        top, left = busiest(colour, side, scale)
        before = imresize(low, scale).clamp(0, 1)
        sheet = torch.cat([x[:, top : top + side, left : left + side] for x in (before, colour)], 2)
        picture = Image.fromarray(to_bytes(sheet).permute(1, 2, 0).numpy())
        draw = ImageDraw.Draw(picture)
        for i, word in enumerate(("bicubic", "enlarged")):
            draw.text((i * side + 4, 4), word, fill="white", stroke_width=1, stroke_fill="black")
        return picture
