"""YOLOv5: boxes and classes of all objects in one pass, by anchors at three scales.

Version 7.0 has no paper; this is written from its published description: a backbone of cross-stage partial blocks
(CSPNet, arXiv 1911.11929), pooling at growing windows (SPP, arXiv 1406.4729, in its serial form), a path aggregation
neck (PANet, arXiv 1803.01534) and YOLOv3's heads (arXiv 1804.02767) with bounded decoding. The outputs equal v7.0's
`yolov5n` to 1e-5 relative in fp32 (`etude verify yolov5n`); of s, m, l and x the number of parameters is compared.

Shapes: B batch, H W height and width (multiples of 32), s stride of a level (8, 16, 32), A = 3 anchors a cell,
K classes, N = A (HW/64 + HW/256 + HW/1024) predictions. A prediction is (x, y, w, h, objectness, K classes).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

STRIDES = (8, 16, 32)
Anchors = tuple[tuple[tuple[float, float], ...], ...]
COCO_ANCHORS: Anchors = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)
"""Widths and heights in pixels, fitted to COCO at 640 pixels, for strides 8, 16 and 32."""


@dataclass(frozen=True)
class Config:
    depth: float = 0.33
    """Multiple of the blocks' depths (3, 6, 9, 3)."""
    width: float = 0.25
    """Multiple of the stages' widths (64 to 1024)."""
    num_classes: int = 80
    """0: as many as the data has, filled in when training begins."""
    anchors: Anchors = COCO_ANCHORS
    """(width, height) in pixels, three a level. Training fits others where these do not suit the data."""

    def __post_init__(self):
        shape = [[len(anchor) for anchor in level] for level in self.anchors]
        if shape != [[2, 2, 2]] * 3 or not all(side > 0 for level in self.anchors for a in level for side in a):
            raise ValueError(f"anchors are {self.anchors}; they must be three (width, height) at each of three levels")
        if self.num_classes < 0 or min(self.depth, self.width) <= 0:
            raise ValueError(
                f"num_classes {self.num_classes} must not be negative, depth {self.depth} and width {self.width} "
                "must be positive"
            )

    def build(self) -> "YOLOv5":
        if not self.num_classes:
            raise ValueError("num_classes is 0: say how many there are, e.g. num_classes=80")
        return YOLOv5(self)


class ConvBNAct(nn.Module):
    """Convolution, BatchNorm (eps 1e-3, momentum 0.03), SiLU. (B, C, H, W) -> (B, C', H/stride, W/stride)"""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        padding = (kernel - 1) // 2  # the stem's 6x6 takes 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()  # in place it would copy its input for the backward pass

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1 and 3x3, with a shortcut in the backbone. (B, C, H, W) -> the same"""

    def __init__(self, channels: int, shortcut: bool):
        super().__init__()
        self.cv1 = ConvBNAct(channels, channels)
        self.cv2 = ConvBNAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Cross-stage partial block: half of the channels go through `depth` bottlenecks, half past them.

    (B, C, H, W) -> (B, C', H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, *, shortcut: bool):
        super().__init__()
        half = out_channels // 2
        self.cv1 = ConvBNAct(in_channels, half)
        self.cv2 = ConvBNAct(in_channels, half)
        self.cv3 = ConvBNAct(2 * half, out_channels)
        self.m = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class SPPF(nn.Module):
    """Maxima over 5x5, 9x9 and 13x13 windows beside the maps themselves: 5x5 pooling once, twice and three times.

    (B, C, H, W) -> the same
    """

    def __init__(self, channels: int):
        super().__init__()
        self.cv1 = ConvBNAct(channels, channels // 2)
        self.cv2 = ConvBNAct(2 * channels, channels)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        once = self.pool(x)
        twice = self.pool(once)
        return self.cv2(torch.cat([x, once, twice, self.pool(twice)], 1))


@fx.wrap
def divisible(x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """The pictures, where the coarsest stride divides their sides."""
    if any(side % STRIDES[-1] for side in x.shape[2:]):
        raise ValueError(
            f"pictures of {x.shape[3]} x {x.shape[2]} pixels: the sides must be multiples of {STRIDES[-1]}"
        )
    return x


@fx.wrap
def decode(maps: list[Tensor], anchors: Float[Tensor, "L A 2"]) -> Float[Tensor, "B N D"]:
    """Raw maps (B, A, h, w, D) of all levels -> predictions in pixels, level by level, anchor by anchor, row by row.
    `anchors` in units of the strides.

    xy = (2 sigmoid - 0.5 + cell) stride, wh = (2 sigmoid)^2 anchor. In fp32, whatever the maps are computed in: at 640
    pixels bf16 would round a corner by up to two.
    """
    counts = [raw.shape[1] * raw.shape[2] * raw.shape[3] for raw in maps]
    out = maps[0].new_empty(len(maps[0]), sum(counts), maps[0].shape[-1], dtype=torch.float32)
    places, sides, steps = [], [], []
    for i, (raw, level, stride) in enumerate(zip(maps, anchors.float(), STRIDES)):
        out.narrow(1, sum(counts[:i]), counts[i]).view_as(raw).copy_(raw.float().sigmoid())
        h, w = raw.shape[2:4]
        columns, rows = (torch.arange(size, device=raw.device, dtype=torch.float32) - 0.5 for size in (w, h))
        cells = torch.stack(torch.broadcast_tensors(columns, rows[:, None]), -1).flatten(0, 1)
        places.append(cells.repeat(len(level), 1))
        sides.append((level * stride).repeat_interleave(h * w, 0))
        steps.append(torch.full((len(level) * h * w, 1), float(stride), device=raw.device))
    out[..., :2].mul_(2).add_(torch.cat(places)).mul_(torch.cat(steps))
    out[..., 2:4] = (2 * out[..., 2:4]).square() * torch.cat(sides)
    return out


class Head(nn.Module):
    """A 1x1 convolution a level. [(B, C_l, h, w)] -> [(B, A, h, w, 5 + K)]"""

    anchors: Tensor

    def __init__(self, widths: tuple[int, ...], config: Config):
        super().__init__()
        self.outputs = 5 + config.num_classes
        levels = zip(config.anchors, STRIDES)
        # in units of the stride, as published weights carry them
        self.register_buffer("anchors", torch.stack([torch.tensor(a, dtype=torch.float32) / s for a, s in levels]))
        self.m = nn.ModuleList(nn.Conv2d(width, 3 * self.outputs, 1) for width in widths)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [
            conv(x).unflatten(1, (3, self.outputs)).permute(0, 1, 3, 4, 2) for conv, x in zip(self.m, maps, strict=True)
        ]


class YOLOv5(nn.Module):
    """(B, 3, H, W) in 0..1 -> three raw maps (B, 3, H/s, W/s, 5 + K); in eval mode (decoded (B, N, 5 + K), raw maps),
    boxes as centre, width and height in pixels, the rest as probabilities."""

    ASIDE = {"yolov5": r"head\.anchor_grid$"}
    """What versions before 6.0 kept beside the anchors: the same in pixels."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        w = [math.ceil(width * config.width / 8) * 8 for width in (64, 128, 256, 512, 1024)]
        d = [max(1, round(depth * config.depth)) for depth in (3, 6, 9, 3)]
        self.stem = ConvBNAct(3, w[0], 6, 2)
        self.down1, self.stage1 = ConvBNAct(w[0], w[1], 3, 2), C3(w[1], w[1], d[0], shortcut=True)
        self.down2, self.stage2 = ConvBNAct(w[1], w[2], 3, 2), C3(w[2], w[2], d[1], shortcut=True)
        self.down3, self.stage3 = ConvBNAct(w[2], w[3], 3, 2), C3(w[3], w[3], d[2], shortcut=True)
        self.down4, self.stage4 = ConvBNAct(w[3], w[4], 3, 2), C3(w[4], w[4], d[3], shortcut=True)
        self.sppf = SPPF(w[4])
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral5, self.top_down4 = ConvBNAct(w[4], w[3]), C3(2 * w[3], w[3], d[0], shortcut=False)
        self.lateral4, self.top_down3 = ConvBNAct(w[3], w[2]), C3(2 * w[2], w[2], d[0], shortcut=False)
        self.again4, self.bottom_up4 = ConvBNAct(w[2], w[2], 3, 2), C3(2 * w[2], w[3], d[0], shortcut=False)
        self.again5, self.bottom_up5 = ConvBNAct(w[3], w[3], 3, 2), C3(2 * w[3], w[4], d[0], shortcut=False)
        self.head = Head((w[2], w[3], w[4]), config)
        self.reset_parameters(config)

    def reset_parameters(self, config: Config) -> None:
        """torch's own defaults; the heads' biases begin at what is rare (arXiv 1708.02002, section 4.1): 8 objects in a
        picture of 640 pixels, and all classes alike."""
        for conv, stride in zip(self.head.m, STRIDES):
            bias = conv.get_parameter("bias").detach().view(3, -1)
            bias[:, 4] += math.log(8 / (640 / stride) ** 2)
            bias[:, 5:] += math.log(0.6 / max(0.1, config.num_classes - 0.6))

    def anchors(self) -> Float[Tensor, "L A 2"]:
        """Widths and heights in pixels."""
        return self.head.anchors.float() * self.head.anchors.new_tensor(STRIDES, dtype=torch.float32)[:, None, None]

    def set_anchors(self, anchors: Anchors) -> None:
        """Other anchors than the weights': widths and heights in pixels."""
        strides = torch.tensor(STRIDES, dtype=torch.float32)[:, None, None]
        self.head.anchors.copy_(torch.tensor(anchors, dtype=torch.float32) / strides)

    def features(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The neck's maps at strides 8, 16 and 32. ValueError for sides that these do not divide."""
        x = divisible(x)
        c3 = self.stage2(self.down2(self.stage1(self.down1(self.stem(x)))))
        c4 = self.stage3(self.down3(c3))
        c5 = self.sppf(self.stage4(self.down4(c4)))
        lateral5 = self.lateral5(c5)
        lateral4 = self.lateral4(self.top_down4(torch.cat([self.upsample(lateral5), c4], 1)))
        p3 = self.top_down3(torch.cat([self.upsample(lateral4), c3], 1))
        p4 = self.bottom_up4(torch.cat([self.again4(p3), lateral4], 1))
        p5 = self.bottom_up5(torch.cat([self.again5(p4), lateral5], 1))
        return [p3, p4, p5]

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        maps = self.head(self.features(x))
        if self.training:
            return maps
        return decode(maps, self.head.anchors), maps


sizes = {
    "yolov5n": Config(depth=0.33, width=0.25),
    "yolov5s": Config(depth=0.33, width=0.50),
    "yolov5m": Config(depth=0.67, width=0.75),
    "yolov5l": Config(depth=1.0, width=1.0),
    "yolov5x": Config(depth=1.33, width=1.25),
}


def example(config: Config) -> tuple[Tensor, ...]:
    """Inputs that the model takes, for drawing and counting."""
    return (torch.rand(1, 3, 640, 640),)


_PLACES = {
    # v7.0 numbers its modules; those without weights (upsampling, concatenation) count too
    0: "stem",
    1: "down1",
    2: "stage1",
    3: "down2",
    4: "stage2",
    5: "down3",
    6: "stage3",
    7: "down4",
    8: "stage4",
    9: "sppf",
    10: "lateral5",
    13: "top_down4",
    14: "lateral4",
    17: "top_down3",
    18: "again4",
    20: "bottom_up4",
    21: "again5",
    23: "bottom_up5",
    24: "head",
}
RENAME: dict[str, tuple[tuple[str, str], ...]] = {
    "yolov5": tuple((rf"^model\.{number}\.", f"{name}.") for number, name in _PLACES.items())
}
PICKLED = ("yolov5",)
"""Layouts whose published files hold whole models as pickled objects."""
NOTES = {
    "yolov5": "note: Ultralytics, who publish these weights, hold that trained YOLOv5 weights are under the AGPL-3.0, "
    "and so what is served with them; etude ships none"
}
