"""Augmentation of whole batches of uint8 images, with parameters of their own for every sample.

`Augment` says which changes are made and how far they go, in torchvision's words and ranges: RandomCrop at the same
size, RandomHorizontalFlip, ColorJitter, RandomAffine, then cutout (DeVries and Taylor, arXiv 1708.04552), in this
order. Every random number is a function of (seed, epoch, index), so what becomes of a sample does not depend on the
batch it comes in, on chunking or on the number of workers, and a resumed run goes on with the same images.

On given parameters the functions below equal `torchvision.transforms.functional` on uint8 tensors (0.29.1), which
goes back to whole levels after each operation. Over 10 million values of smooth, noisy and grey images:

- `hflip`, `crop`, `cutout`, `adjust_brightness`, `adjust_contrast`, `adjust_saturation`: exactly.
- `adjust_hue`: one level off on 1 value in 90,000, where float32 decides on which side of a level it falls.
- `affine`: coordinates differ in the last bits of float32. Bilinear: one level off on 1 value in 13,000; nearest:
  another neighbour for 1 pixel in 250,000.

`transforms.v2` computes the blends with a fused multiply-add where the vector unit gets to it, and so lies one level
from both on 1 value in 4,500.

All but `affine` round alike on every device; `affine` is `grid_sample`, whose last bits are the device's own.

Shapes: B samples, C channels (1 or 3), H rows, W columns.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from etude.data.order import AUGMENT, uniform
from etude.errors import UsageError

Images = UInt8[Tensor, "B C H W"]
Factors = Float[Tensor, " B"]
Levels = Float[Tensor, "B C H W"]
"""Whole levels, 0 to 255, as float32: the working form between the operations."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The operations of the colour jitter, by torchvision's numbers."""

_NEUTRAL = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
_ORDERS = torch.tensor(list(itertools.permutations(range(4))))
_DIGITS = torch.tensor([64, 16, 4, 1])  # an order as one number
# A red, green or blue channel is at one end of its range at this hue, in sixths of the circle: red at its least,
# green and blue at their most.
_PEAKS = (3.0, 2.0, 4.0)


@dataclass(frozen=True)
class Parameters:
    """What happens to each of B samples. All on the CPU: a few numbers a sample, the same for every device."""

    flip: Bool[Tensor, " B"]
    crop: Int[Tensor, "B 2"]
    """Top and left of the window in the padded image."""
    order: Int[Tensor, "B 4"]
    """The operations of the colour jitter, first to last."""
    factors: Float[Tensor, "B 4"]
    """Of brightness, contrast, saturation (1 changes nothing) and hue (0 changes nothing, 1 is the full circle)."""
    matrix: Float[Tensor, "B 2 3"]
    """Where a pixel comes from: output (x, y, 1) -> input (x, y), both counted in pixels from the image's centre."""
    cutout: Int[Tensor, "B 3"]
    """Top, left and side of the square; it may lie partly outside, and a side of 0 is none."""

    def __getitem__(self, rows: Tensor) -> "Parameters":
        return Parameters(
            self.flip[rows], self.crop[rows], self.order[rows], self.factors[rows], self.matrix[rows], self.cutout[rows]
        )


@dataclass(frozen=True)
class Augment:
    """Which changes a batch of images goes through; all are off by default.

    Raises UsageError for a value out of its range.
    """

    crop: int = 0
    """Pixels of padding around the image, of which a window of the image's own size is cut at random."""
    crop_mode: Literal["constant", "reflect"] = "constant"
    """What the padding holds: `fill`, or the image mirrored at its outermost pixels."""
    flip: float = 0.0
    """Probability of a mirror image, left to right."""
    brightness: float = 0.0
    """The factor is uniform in [max(0, 1 - brightness), 1 + brightness]; so for the next two."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """The shift is uniform in [-hue, hue], at most 0.5, where 1 is the full circle."""
    degrees: float = 0.0
    """The angle is uniform in [-degrees, degrees], clockwise as seen."""
    translate: tuple[float, float] = (0.0, 0.0)
    """Largest shift to either side, as fractions of the width and the height; rounded to whole pixels."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the enlargement."""
    shear: float = 0.0
    """The shear parallel to the x axis is uniform in [-shear, shear] degrees."""
    interpolation: Literal["nearest", "bilinear"] = "nearest"
    """Of the affine map."""
    cutout: int = 0
    """Side in pixels of a square set to `fill`, its centre uniform over the image."""
    cutout_probability: float = 1.0
    fill: int | None = 0
    """Level of what lies outside the image and of the cutout. None is 0 without torchvision's second fade to the
    fill at a bilinear border: see `affine`."""

    def __post_init__(self) -> None:
        limits = {
            "crop": (self.crop >= 0, "0 or more pixels"),
            "crop_mode": (self.crop_mode in ("constant", "reflect"), "'constant' or 'reflect'"),
            "flip": (0 <= self.flip <= 1, "a probability from 0 to 1"),
            "brightness": (self.brightness >= 0, "0 or more"),
            "contrast": (self.contrast >= 0, "0 or more"),
            "saturation": (self.saturation >= 0, "0 or more"),
            "hue": (0 <= self.hue <= 0.5, "from 0 to 0.5"),
            "degrees": (self.degrees >= 0, "0 or more degrees"),
            "translate": (all(0 <= t <= 1 for t in self.translate), "two fractions from 0 to 1"),
            "scale": (0 < self.scale[0] <= self.scale[1], "a range above 0, the smaller number first"),
            "shear": (0 <= self.shear < 90, "from 0 to below 90 degrees"),
            "interpolation": (self.interpolation in ("nearest", "bilinear"), "'nearest' or 'bilinear'"),
            "cutout": (self.cutout >= 0, "0 or more pixels"),
            "cutout_probability": (0 <= self.cutout_probability <= 1, "a probability from 0 to 1"),
            "fill": (self.fill is None or 0 <= self.fill <= 255, "None or a level from 0 to 255"),
        }
        for name, (fits, wanted) in limits.items():
            if not fits:
                raise UsageError(f"augmentation: {name} is {getattr(self, name)!r}, must be {wanted}")

    @property
    def _jitters(self) -> bool:
        return bool(self.brightness or self.contrast or self.saturation or self.hue)

    @property
    def _warps(self) -> bool:
        return bool(self.degrees or any(self.translate) or self.scale != (1, 1) or self.shear)

    def __call__(self, images: Images, *, seed: int, epochs, indices, stream: int = AUGMENT) -> Images:
        """The images of these (epochs, indices) as the run of `seed` sees them; themselves where all is off."""
        if not (self.crop or self.flip or self._jitters or self._warps or self.cutout):
            return images
        height, width = images.shape[2:]
        drawn = self.parameters(seed=seed, epochs=epochs, indices=indices, height=height, width=width, stream=stream)
        return self.apply(images, drawn)

    def parameters(self, *, seed: int, epochs, indices, height: int, width: int, stream: int = AUGMENT) -> Parameters:
        """What happens to samples `indices` (B,) in `epochs` ((B,) or one); row i is a function of its own numbers."""
        shift_x, shift_y = self.translate[0] * width, self.translate[1] * height
        ranges = (
            (0, 1),  # flip
            (0, 2 * self.crop + 1),  # top
            (0, 2 * self.crop + 1),  # left
            (0, len(_ORDERS)),
            (max(0, 1 - self.brightness), 1 + self.brightness),
            (max(0, 1 - self.contrast), 1 + self.contrast),
            (max(0, 1 - self.saturation), 1 + self.saturation),
            (-self.hue, self.hue),
            (-self.degrees, self.degrees),
            (-shift_x, shift_x),
            (-shift_y, shift_y),
            self.scale,
            (-self.shear, self.shear),
            (0, 1),  # cutout
            (0, height),
            (0, width),
        )
        low, high = np.array(ranges, dtype=np.float64).T
        drawn = torch.from_numpy(uniform(seed, epochs, indices, len(ranges), stream) * (high - low) + low)
        whole = drawn.long()
        side = torch.where(drawn[:, 13] < self.cutout_probability, self.cutout, 0)
        return Parameters(
            flip=drawn[:, 0] < self.flip,
            crop=whole[:, 1:3],
            order=_ORDERS[whole[:, 3]],
            factors=drawn[:, 4:8],
            matrix=inverse_affine_matrix(
                drawn[:, 8], drawn[:, 9:11].round(), drawn[:, 11], F.pad(drawn[:, 12:13], (0, 1))
            ),
            cutout=torch.stack([whole[:, 14] - side // 2, whole[:, 15] - side // 2, side], 1),
        )

    def apply(self, images: Images, parameters: Parameters, *, chunk: int | None = None) -> Images:
        """These changes with given parameters; the result has the images' memory format.

        `chunk`: pixels at a time. The default lets a processor's cache hold the working planes, and bounds the
        memory of a GPU at about 1 GB. It does not change the result.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise UsageError(f"augmentation takes uint8 images (B, C, H, W), not {images.dtype} {tuple(images.shape)}")
        assert len(parameters.flip) == len(images)
        if images.device.type == "cpu":
            # glibc gives large blocks back to the kernel and has every page of the next one faulted in anew, which
            # here costs as much as the arithmetic. Freeing a block of up to 32 MiB once raises its limit to that size.
            torch.empty(31 << 20, dtype=torch.uint8)
        chunk = chunk or (1 << 18 if images.device.type == "cpu" else 1 << 24)
        step = max(1, chunk // (images.shape[2] * images.shape[3]))
        if len(images) <= step:
            return torch.empty_like(images).copy_(self._chunk(images, parameters))
        # Samples of like orders keep together, those that change hue at the same place first of all: the slices of
        # `_jitter` are few and long, and those that only change brightness need no grey.
        order = parameters.order
        rank = ((order == HUE).int().argmax(1) * 256 + order @ _DIGITS).argsort(stable=True)
        parts = [
            self._chunk(images.index_select(0, rows.to(images.device)), parameters[rows]) for rows in rank.split(step)
        ]
        back = rank.argsort().to(images.device)
        return torch.empty_like(images).copy_(torch.cat(parts).index_select(0, back))

    def _chunk(self, x: Images, p: Parameters) -> Images:
        if self.crop:
            x = crop(x, p.crop, self.crop, mode=self.crop_mode, fill=self.fill or 0)
        if self.flip:
            x = hflip(x, p.flip)
        if self._jitters or self._warps:
            levels = _float(x)
            if self._jitters:
                levels = _jitter(levels, p.order, p.factors)
            if self._warps:
                levels = _warp(levels, p.matrix, interpolation=self.interpolation, fill=self.fill)
            x = _byte(levels)
        if self.cutout:
            x = cutout(x, p.cutout, fill=self.fill or 0)
        return x


def hflip(images: Images, flip: Bool[Tensor, " B"]) -> Images:
    """Mirror, left to right, the images that `flip` marks."""
    n = len(images)
    chosen = torch.arange(n) + n * flip
    return torch.cat([images, images.flip(-1)]).index_select(0, chosen.to(images.device))


def crop(
    images: Images,
    corner: Int[Tensor, "B 2"],
    padding: int,
    *,
    mode: Literal["constant", "reflect"] = "constant",
    fill: int = 0,
) -> Images:
    """Pad every side by `padding` and cut the window of the images' own size whose top left is `corner`."""
    b, c, h, w = images.shape
    if mode == "constant":
        padded = F.pad(images, [padding] * 4, value=fill)
    elif padding < min(h, w):
        rows, columns = (
            (size - 1 - (size - 1 - torch.arange(-padding, size + padding).abs()).abs()).to(images.device)
            for size in (h, w)
        )
        padded = images.index_select(2, rows).index_select(3, columns)
    else:
        raise UsageError(
            f"images of {h} x {w} cannot be padded by {padding} of their own pixels: at most {min(h, w) - 1}"
        )
    top, left = corner.to(images.device).view(b, 2, 1).unbind(1)
    rows, columns = top + torch.arange(h, device=images.device), left + torch.arange(w, device=images.device)
    places = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(b, 1, h * w)
    return padded.flatten(2).gather(2, places.expand(b, c, h * w)).view(b, c, h, w)


def adjust_brightness(images: Images, factors: Factors) -> Images:
    """Levels times the sample's factor: 0 is black, 1 the image itself."""
    return _adjust(images, BRIGHTNESS, factors)


def adjust_contrast(images: Images, factors: Factors) -> Images:
    """From the mean grey (factor 0) through the image itself (1) and beyond."""
    return _adjust(images, CONTRAST, factors)


def adjust_saturation(images: Images, factors: Factors) -> Images:
    """From the pixel's own grey (factor 0) through the image itself (1) and beyond. Grey images stay as they are."""
    return _adjust(images, SATURATION, factors)


def adjust_hue(images: Images, factors: Factors) -> Images:
    """Turn the colours by a part of the full circle, -0.5 to 0.5. Grey images stay as they are."""
    return _adjust(images, HUE, factors)


def _adjust(images: Images, operation: int, factors: Factors) -> Images:
    table = _NEUTRAL.repeat(len(images), 1)
    table[:, operation] = factors
    return color_jitter(images, _ORDERS[:1].expand(len(images), 4), table)


def color_jitter(images: Images, order: Int[Tensor, "B 4"], factors: Float[Tensor, "B 4"]) -> Images:
    """Brightness, contrast, saturation and hue by each sample's factors in each sample's order.

    The first three are one formula, a blend towards black, towards the mean or towards grey, so that samples in
    different orders share one pass. Only the change of hue differs. Samples are sorted by how many blends come before
    it; those blends, then hue for all, then the rest act on contiguous slices.
    """
    return _byte(_jitter(_float(images), order, factors))


def _jitter(x: Levels, order: Int[Tensor, "B 4"], factors: Float[Tensor, "B 4"]) -> Levels:
    """`color_jitter` of whole levels, which may be overwritten."""
    b, c = x.shape[:2]
    if c not in (1, 3):
        raise UsageError(f"colour jitter takes images of 1 or 3 channels, not {c}")
    active = (factors != _NEUTRAL).any(0)
    if c == 1:
        active[[SATURATION, HUE]] = False
    turns = bool(active[HUE])
    active[HUE] = False
    blends = int(active.sum())
    wanted = active[order]
    after = (order == HUE).cumsum(1).bool() if turns else torch.ones_like(wanted)
    before = (wanted & ~after).sum(1)
    ends = torch.bincount(before, minlength=blends).cumsum(0).tolist()
    rank = before.argsort(stable=True)
    moved = bool((before.diff() < 0).any())  # not within `Augment.apply`, which has sorted them
    if moved:
        x, order, factors, wanted = x.index_select(0, rank.to(x.device)), order[rank], factors[rank], wanted[rank]

    operation = order[wanted].view(b, blends)
    ratio = factors.gather(1, operation)
    rest = 1 - ratio
    plan = torch.stack([ratio, rest * (operation == CONTRAST), rest * (operation == SATURATION)])
    plan = _per_sample(plan.movedim(0, -1), x)
    kinds = operation.T.tolist()
    if turns:
        for k in range(blends):
            if ends[k] < b:
                _blend_(x[ends[k] :], plan[ends[k] :, k], set(kinds[k][ends[k] :]))
        _turn_(x, _per_sample(6 * factors[:, HUE], x))
    for k in range(blends):
        if ends[k]:
            _blend_(x[: ends[k]], plan[: ends[k], k], set(kinds[k][: ends[k]]))
    return x.index_select(0, rank.argsort().to(x.device)) if moved else x


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, torch.float32)[..., None, None, None]


def _float(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.contiguous_format)


def _byte(x: Tensor) -> Tensor:
    return x.to(torch.int16).to(torch.uint8)  # each step has a vector instruction; from float32 at once there is none


def _blend_(x: Levels, plan: Float[Tensor, "B 3 1 1 1"], kinds: set[int]) -> None:
    """x <- ratio x + to_mean mean(grey) + to_grey grey, in whole levels, for operations of these kinds.

    The products are rounded one by one, as torchvision does it: no fused multiply-add.
    """
    ratio, to_mean, to_grey = plan.unbind(1)
    if kinds == {BRIGHTNESS}:
        x.mul_(ratio).clamp_(0, 255).floor_()
        return
    if x.shape[1] == 3:
        r, g, b = x.split(1, 1)
        grey = (r * 0.2989).add_(g * 0.587).add_(b * 0.114).floor_()
    else:
        grey = x
    if CONTRAST in kinds:
        # whole levels below 2^24 in sum: exact in float32, whatever the order of the addition
        exact = torch.float32 if x.shape[2] * x.shape[3] < 1 << 16 else torch.float64
        other = grey.mean((2, 3), keepdim=True, dtype=exact).to(x.dtype) * to_mean
        if SATURATION in kinds:
            other = (grey * to_grey).add_(other)
    else:
        other = grey * to_grey
    x.mul_(ratio).add_(other).clamp_(0, 255).floor_()


def _turn_(x: Levels, sixths: Float[Tensor, "B 1 1 1"]) -> None:
    """Turn the hue of x by `sixths` of the circle, in whole levels, keeping each pixel's largest and least channel.

    The hue of a pixel lies `max - r + g + b - 2 min` from red, in units of (max - min) a sixth of the circle, on the
    side of green where g >= b: the six cases of the usual formula in one, without a mask.
    """
    r, g, b = x.split(1, 1)
    top = torch.maximum(r, g)
    torch.maximum(top, b, out=top)
    low = torch.minimum(r, g)
    torch.minimum(low, b, out=low)
    chroma = top - low
    hue = (top - r).add_(g).add_(b).sub_(low, alpha=2).copysign_(g - b)
    hue.div_(chroma.clamp(min=1)).add_(sixths)
    hue.sub_((hue * (1 / 6)).floor_(), alpha=6)  # into [0, 6)
    # a channel stays at its end for one sixth on either side of its peak and crosses over within the next
    peaks = torch.tensor(_PEAKS, device=x.device).view(3, 1, 1)
    y = (hue - peaks).abs_().sub_(2).clamp_(-1, 0).mul_(chroma)
    torch.add(top, y[:, :1], out=x[:, :1])
    torch.sub(low, y[:, 1:], out=x[:, 1:])
    x.mul_(255.999 / 255).floor_()  # how torchvision goes from [0, 1] to levels


def inverse_affine_matrix(
    angle: Float[Tensor, " B"],
    translate: Float[Tensor, "B 2"],
    scale: Float[Tensor, " B"],
    shear: Float[Tensor, "B 2"],
) -> Float[Tensor, "B 2 3"]:
    """The inverse of translate x rotate x scale x shear about the image's centre (torchvision's definition), float64.

    `angle` and `shear` (x, y) in degrees, `translate` (x, y) in pixels, all on the CPU.
    """
    turn = np.deg2rad(angle.numpy())
    shear_x, shear_y = np.deg2rad(shear.numpy()).T
    tx, ty = translate.numpy().T
    a, c = np.cos(turn - shear_y) / np.cos(shear_y), np.sin(turn - shear_y) / np.cos(shear_y)
    b, d = -a * np.tan(shear_x) - np.sin(turn), np.cos(turn) - c * np.tan(shear_x)
    # [a b; c d] has determinant 1
    matrix = np.array([[d, -b, b * ty - d * tx], [-c, a, c * tx - a * ty]]) / scale.numpy()
    return torch.from_numpy(matrix).permute(2, 0, 1)


def affine(
    images: Images,
    matrix: Float[Tensor, "B 2 3"],
    *,
    interpolation: Literal["nearest", "bilinear"] = "nearest",
    fill: int | None = None,
) -> Images:
    """Every image under its own map; `matrix` as in `Parameters`.

    What lies outside counts as `fill`. In bilinear mode torchvision takes outside as 0 and fades the result to the
    fill by the share of the weights that fell inside, which for fill 0 darkens the border twice: a number here does
    the same, None leaves the fading out (their functions' default; RandomAffine's is 0).
    """
    return _byte(_warp(_float(images), matrix, interpolation=interpolation, fill=fill))


def _warp(x: Levels, matrix: Float[Tensor, "B 2 3"], *, interpolation: str, fill: int | None) -> Levels:
    """`affine` of whole levels, which may be overwritten."""
    h, w = x.shape[2:]
    columns, rows = (torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2 for size in (w, h))
    halves = torch.tensor([[w / 2], [h / 2]], dtype=torch.float64)
    by_x, by_y, offset = (matrix / halves).to(x.device, x.dtype)[..., None, None].unbind(2)
    grid = (by_y * rows[:, None]).add_(offset) + by_x * columns  # (B, 2, H, W): x and y, -1 to 1 over the image
    if interpolation == "nearest":
        if fill:
            x.sub_(fill)
        y = F.grid_sample(x, grid.permute(0, 2, 3, 1), "nearest", "zeros", align_corners=False)
        return y.add_(fill) if fill else y
    y = F.grid_sample(x, grid.permute(0, 2, 3, 1), "bilinear", "zeros", align_corners=False)
    if fill is not None:
        halves = halves.to(x.device, x.dtype).view(2, 1, 1)
        inside_x, inside_y = grid.abs_().mul_(-halves).add_(halves + 0.5).clamp_(0, 1).split(1, 1)
        y.sub_(fill).mul_(inside_x.mul_(inside_y)).add_(fill)
    return y.round_()


def cutout(images: Images, square: Int[Tensor, "B 3"], *, fill: int = 0) -> Images:
    """Set each image's square (top, left, side) to `fill`, as far as it lies inside."""
    b, _, h, w = images.shape
    top, left, side = square.to(images.device).view(b, 3, 1).unbind(1)
    rows, columns = torch.arange(h, device=images.device) - top, torch.arange(w, device=images.device) - left
    rows, columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], fill)
