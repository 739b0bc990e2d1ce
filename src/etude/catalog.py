"""The table of contents: one row a system. Plain data, so that `etude list` answers without importing torch."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from etude.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class System:
    name: str
    title: str
    paper: str
    """arXiv ids, or author and year where there is none."""
    module: str
    sizes: dict[str, int]
    """What `etude.model` takes: the keys of the module's `sizes`, each with the number of its parameters."""
    layouts: tuple[str, ...]
    """What `etude.load_weights(source=)` reads besides etude's own: the keys of the module's `RENAME`."""
    recipes: tuple[str, ...]
    summary: str
    studies: tuple[str, ...] = ()
    """Comparisons of several recipes, trained by one command like a recipe."""

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"sizes": list(self.sizes)}


SYSTEMS = (
    System(
        name="mlp",
        title="Multilayer perceptron",
        paper="Rumelhart et al. 1986",
        module="etude.basics.mlp",
        sizes={"mlp": 269_322},
        layouts=(),
        recipes=("mlp.digits", "mlp.fashion"),
        summary="Fully connected layers, with activations and initialisations by name",
        studies=("mlp.activations", "mlp.initialisation", "mlp.function"),
    ),
    System(
        name="cnn",
        title="Convolutional network",
        paper="LeCun et al. 1998",
        module="etude.vision.cnn",
        sizes={"cnn": 454_922},
        layouts=(),
        recipes=("cnn.fashion", "cnn.fashion_features"),
        summary="Convolution, activation and pooling in turn, then fully connected layers",
    ),
    System(
        name="gcn",
        title="Graph convolutional network",
        paper="1609.02907",
        module="etude.basics.graph",
        sizes={"gcn": 23_063},
        layouts=("pyg",),
        recipes=("gcn.karate", "gcn.packages", "gcn.cora", "gcn.citeseer", "gcn.pubmed"),
        summary="Each node's features averaged with its neighbours', layer by layer",
    ),
    System(
        name="gat",
        title="Graph attention network",
        paper="1710.10903",
        module="etude.basics.graph",
        sizes={"gat": 92_373},
        layouts=("pyg",),
        recipes=("gat.karate", "gat.packages", "gat.cora"),
        summary="Neighbours weighted by attention",
    ),
    System(
        name="resnet",
        title="ResNet",
        paper="1512.03385",
        module="etude.vision.resnet",
        sizes={
            "resnet18": 11_689_512,
            "resnet34": 21_797_672,
            "resnet50": 25_557_032,
            "resnet101": 44_549_160,
            "resnet152": 60_192_808,
        },
        layouts=("torchvision",),
        recipes=("resnet.digits", "resnet.fashion", "resnet.mnist", "resnet.cifar10", "resnet.imagenet"),
        summary="Residual blocks: networks of over a hundred layers that train",
        studies=("resnet.regularisation", "resnet.deformable"),
    ),
    System(
        name="deformable",
        title="Deformable convolution",
        paper="1703.06211, 1811.11168",
        module="etude.vision.deformable",
        sizes={},
        layouts=(),
        recipes=(),
        summary='A block whose taps move: etude.model("resnet18", deformable_from=4), DeformConv2d',
    ),
    System(
        name="mobilenet",
        title="MobileNet V1 and V2",
        paper="1704.04861, 1801.04381",
        module="etude.vision.mobilenet",
        sizes={"mobilenet_v1": 4_231_976, "mobilenet_v2": 3_504_872},
        layouts=("torchvision",),
        recipes=("mobilenet.fashion", "mobilenet.imagenet"),
        summary="Depthwise separable convolutions and inverted residuals, for small devices",
    ),
    System(
        name="unet",
        title="U-Net",
        paper="1505.04597",
        module="etude.vision.unet",
        sizes={"unet": 31_037_698},
        layouts=("milesial",),
        recipes=("unet.brain", "unet.nuclei", "unet.folder"),
        summary="A class for every pixel: medical images and volumes, cells, any folder of masks",
    ),
    System(
        name="esrgan",
        title="ESRGAN",
        paper="1809.00219",
        module="etude.vision.esrgan",
        sizes={"rrdbnet_x4": 16_697_987, "rrdbnet_x2": 16_703_171},
        layouts=("esrgan", "ncnn"),
        recipes=(
            "esrgan.photos",
            "esrgan.photos_gan",
            "esrgan.realesrgan",
            "esrgan.realesrgan_anime",
            "esrgan.folder",
            "esrgan.div2k",
            "esrgan.div2k_gan",
        ),
        summary="Enlarges pictures two or four times: dense blocks, then a discriminator that asks for detail",
    ),
    System(
        name="yolo",
        title="YOLOv5",
        paper="Jocher et al. 2020-2022",
        module="etude.vision.yolo",
        sizes={
            "yolov5n": 1_872_157,
            "yolov5s": 7_235_389,
            "yolov5m": 21_190_557,
            "yolov5l": 46_563_709,
            "yolov5x": 86_749_405,
        },
        layouts=("yolov5",),
        recipes=("yolo.scenes", "yolo.coco", "yolo.folder"),
        summary="Boxes and classes of all objects in one pass, by anchors at three scales",
    ),
    System(
        name="boxes",
        title="Boxes and their suppression",
        paper="1902.09630, 1911.08287",
        module="etude.vision.boxes",
        sizes={},
        layouts=(),
        recipes=(),
        summary="Exact non-maximum suppression, fast: nms, batched_nms; generalized_iou, complete_iou",
    ),
    System(
        name="rnn",
        title="Recurrent network",
        paper="Elman 1990",
        module="etude.basics.rnn",
        sizes={"rnn": 492_800},
        layouts=("torch",),
        recipes=("rnn.bible",),
        summary="A state that each token changes: the simple recurrent language model",
        studies=("rnn.clipping",),
    ),
    System(
        name="lstm",
        title="Long short-term memory",
        paper="Hochreiter & Schmidhuber 1997",
        module="etude.basics.rnn",
        sizes={"lstm": 1_478_912},
        layouts=("torch",),
        recipes=("lstm.bible",),
        summary="Gates that keep, forget and show a cell's memory, so that gradients last",
    ),
    System(
        name="transformer",
        title="Transformer",
        paper="1706.03762",
        module="etude.language.transformer",
        sizes={"transformer-base": 63_082_496, "transformer-big": 214_245_376},
        layouts=("transformers",),
        recipes=("transformer.en_de", "transformer.en_fr", "transformer.en_zh", "transformer.big_en_de"),
        summary="Translation by attention alone: encoder and decoder, of any depth",
        studies=("transformer.depth",),
    ),
    System(
        name="gpt",
        title="GPT-2 and GPT-3",
        paper="2005.14165",
        module="etude.language.gpt",
        sizes={
            "gpt2": 124_439_808,
            "gpt2-medium": 354_823_168,
            "gpt2-large": 774_030_080,
            "gpt2-xl": 1_557_611_200,
            "gpt3-125m": 125_226_240,
            "gpt3-350m": 355_871_744,
            "gpt3-760m": 760_300_032,
            "gpt3-1.3b": 1_315_723_264,
            "gpt3-2.7b": 2_651_553_280,
            "gpt3-6.7b": 6_658_404_352,
            "gpt3-13b": 12_853_386_240,
            "gpt3-175b": 174_604_259_328,
        },
        layouts=("transformers",),
        recipes=(
            "gpt.bible",
            "gpt.small",
            "gpt.gpt3_125m",
            "gpt.gpt3_350m",
            "gpt.gpt3_760m",
            "gpt.gpt3_1_3b",
            "gpt.gpt3_2_7b",
            "gpt.gpt3_6_7b",
            "gpt.gpt3_13b",
            "gpt.gpt3_175b",
        ),
        summary="Predicts the next token, and so writes: a stack of causal attention",
    ),
    System(
        name="bert",
        title="BERT",
        paper="1810.04805",
        module="etude.language.bert",
        sizes={
            "bert-base": 108_310_272,
            "bert-base-uncased": 109_482_240,
            "bert-large": 333_579_264,
            "bert-large-uncased": 335_141_888,
            "bert-minilm": 22_713_216,
            "bert-base-classifier": 108_311_810,
            "bert-large-classifier": 333_581_314,
            "bert-minilm-classifier": 22_713_986,
            "bert-base-masked-lm": 108_340_804,
            "bert-large-masked-lm": 333_610_308,
            "bert-minilm-embedder": 22_565_376,
        },
        layouts=("transformers", "masked-lm"),
        recipes=("bert.reviews", "bert.sst2", "bert.mlm"),
        summary="An encoder that reads from both sides, pre-trained by filling in hidden words",
    ),
    System(
        name="gan",
        title="GAN",
        paper="1406.2661, 1511.06434",
        module="etude.generative.gan",
        sizes={"dcgan": 6_342_272},
        layouts=(),
        recipes=("gan.fashion", "gan.ring"),
        summary="A generator learns from a critic that learns to tell its pictures from real ones",
    ),
    System(
        name="wgan",
        title="Wasserstein GAN",
        paper="1701.07875",
        module="etude.generative.gan",
        sizes={"wgan": 6_342_272},
        layouts=(),
        recipes=("wgan.fashion",),
        summary="The critic measures a distance between made and real pictures, its weights bounded",
    ),
    System(
        name="wgan_gp",
        title="WGAN with gradient penalty",
        paper="1704.00028",
        module="etude.generative.gan",
        sizes={"wgan-gp": 6_571_648},
        layouts=(),
        recipes=("wgan_gp.fashion", "wgan_gp.ring"),
        summary="The critic's slope is held at 1 by a penalty: stable training, no lost modes",
    ),
    System(
        name="progan",
        title="ProGAN",
        paper="1710.10196",
        module="etude.generative.progan",
        sizes={"progan": 46_174_044},
        layouts=(),
        recipes=("progan.fashion", "progan.photos", "progan.faces"),
        summary="Generator and critic grow together, from 4x4 to 1024x1024 pixels",
    ),
)


def recipes() -> list[str]:
    """The names of all recipes."""
    return [recipe for row in SYSTEMS for recipe in row.recipes]


def studies() -> list[str]:
    """The names of all studies."""
    return [study for row in SYSTEMS for study in row.studies]


def system(name: str) -> System:
    """The row of a system, or of one of its sizes."""
    for row in SYSTEMS:
        if name == row.name or name in row.sizes:
            return row
    known = [name for row in SYSTEMS for name in (row.name, *row.sizes)]
    raise UsageError(f"unknown system {name!r}", hint=nearest(name, known) or "etude list")


def model(name: str, **overrides: Any) -> nn.Module:
    """Build the model of this size with fresh weights, e.g. `model("resnet18", num_classes=10, stem="cifar")`.

    `overrides` replace fields of the size's `Config`. UsageError names the nearest size or field where there is none.
    """
    sizes = [size for row in SYSTEMS for size in row.sizes]
    if name not in sizes:
        raise UsageError(f"unknown model {name!r}", hint=nearest(name, sizes) or f"one of {', '.join(sizes)}")
    config = importlib.import_module(system(name).module).sizes[name]
    settings = [field.name for field in fields(config)]
    for setting in overrides:
        if setting not in settings:
            hint = nearest(setting, settings) or f"one of {', '.join(settings)}"
            raise UsageError(f"{name} has no setting {setting!r}", hint=hint)
    try:
        return replace(config, **overrides).build()
    except (TypeError, ValueError, RuntimeError) as error:  # a value that a layer does not take
        raise UsageError(f"{name} cannot be built with {overrides}: {error}") from error


def example(name: str) -> tuple[Tensor, ...]:
    """Inputs that the model of this size takes, drawn from torch's generator: for drawing and counting."""
    module = importlib.import_module(system(name).module)
    return module.example(module.sizes[name])


def count(size: str) -> int:
    """The number of parameters of a size; it is laid out without memory."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model(size).parameters())
