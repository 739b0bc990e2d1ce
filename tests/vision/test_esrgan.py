"""RRDBNet and its discriminator: the reference's answer, formulas by hand, the published layouts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import etude
from etude.errors import RefusedError, UsageError
from etude.vision import esrgan, perceptual
from etude.vision.esrgan import AdversarialConfig, Config, DenseBlock, DiscriminatorConfig
from etude.weights import load_weights

TINY = Config(width=8, depth=2, growth=4)


def old_names(name: str) -> str:
    """Ours -> the authors' first files'."""
    parts = name.split(".")
    if parts[0] == "body":
        return f"model.1.sub.{parts[1]}.RDB{parts[2][-1]}.conv{parts[3][-1]}.0.{parts[4]}"
    places = {
        "conv_first": "0",
        "conv_body": "1.sub.2",
        "conv_up1": "3",
        "conv_up2": "6",
        "conv_hr": "8",
        "conv_last": "10",
    }
    return f"model.{places[parts[0]]}.{parts[1]}"


def new_names(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "body":
        return f"RRDB_trunk.{parts[1]}.RDB{parts[2][-1]}.{parts[3]}.{parts[4]}"
    theirs = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2", "conv_hr": "HRconv"}
    return f"{theirs.get(parts[0], parts[0])}.{parts[1]}"


@pytest.mark.parametrize("rename", [old_names, new_names, str])
def test_every_published_layout_is_read_whole(rename):
    model, other = TINY.build(), TINY.build()
    theirs = {rename(name): tensor for name, tensor in model.state_dict().items()}
    load_weights(other, theirs, source="esrgan")
    x = torch.rand(1, 3, 6, 5)
    assert torch.equal(model(x), other(x))
    theirs.pop(rename("conv_hr.bias"))
    with pytest.raises(RefusedError, match=r"1 missing: conv_hr\.bias"):
        load_weights(other, theirs, source="esrgan")


def test_a_dense_block_by_hand():
    block = DenseBlock(4, 2)
    x = torch.randn(2, 4, 5, 6)
    seen = [x]
    for conv in (block.conv1, block.conv2, block.conv3, block.conv4):
        seen.append(F.leaky_relu(F.conv2d(torch.cat(seen, 1), conv.weight, conv.bias, padding=1), 0.2))
    last = F.conv2d(torch.cat(seen, 1), block.conv5.weight, block.conv5.bias, padding=1)
    torch.testing.assert_close(block(x), x + 0.2 * last)


def test_the_trunk_by_hand():
    model = TINY.build()
    x = torch.rand(1, 3, 4, 6)
    first = model.conv_first(x)
    trunk = first
    for rrdb in model.body:
        assert isinstance(rrdb, esrgan.RRDB)
        inner = rrdb.rdb3(rrdb.rdb2(rrdb.rdb1(trunk)))
        trunk = trunk + 0.2 * inner
    y = first + model.conv_body(trunk)
    for conv in (model.conv_up1, model.conv_up2):
        y = F.leaky_relu(conv(y.repeat_interleave(2, -1).repeat_interleave(2, -2)), 0.2)
    y = model.conv_last(F.leaky_relu(model.conv_hr(y), 0.2))
    torch.testing.assert_close(model(x), y)


def test_x2_unshuffles_first():
    model = Config(scale=2, width=8, depth=1, growth=4).build()
    assert model.conv_first.weight.shape == (8, 12, 3, 3)
    seen = []
    model.conv_first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 3, 4, 6)
    assert model(x).shape == (1, 3, 8, 12)
    # channel 4 c + 2 i + j of the answer is channel c at row 2 y + i and column 2 x + j
    assert torch.equal(seen[0][0, 7], x[0, 1, 1::2, 1::2])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 8), (6, 7), (9, 11)])
@pytest.mark.parametrize("scale", [2, 4])
def test_every_size_is_enlarged(scale: int, height: int, width: int):
    model = Config(scale=scale, width=4, depth=1, growth=2).build()  # pyright: ignore[reportArgumentType]
    assert model(torch.rand(2, 3, height, width)).shape == (2, 3, scale * height, scale * width)


def test_dense_blocks_begin_small():
    torch.manual_seed(0)
    weight = Config(width=64, depth=1, growth=32).build().get_parameter("body.0.rdb1.conv1.weight")
    assert weight.std().item() == pytest.approx(0.1 * math.sqrt(2 / (64 * 9)), rel=0.03)


def test_the_last_convolution_is_exact_in_low_precision():
    model = TINY.build().eval()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answer = model(x)
    assert answer.dtype == torch.float32
    assert not torch.equal(answer, answer.bfloat16().float())  # more than 8 bits


def test_discriminator_of_128_is_the_papers():
    model = DiscriminatorConfig().build()
    convs = [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
        for m in model.features
        if isinstance(m, nn.Conv2d)
    ]
    widths = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)] + 2 * [
        (512, 512)
    ]
    assert convs == [(a, b, *((3, 1) if i % 2 == 0 else (4, 2))) for i, (a, b) in enumerate(widths)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.features) == 9
    assert (model.hidden.in_features, model.hidden.out_features) == (512 * 16, 100)
    small = DiscriminatorConfig(side=32, width=4).build()
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 1)
    with pytest.raises(ValueError, match="32 x 32 pixels, not"):
        small(torch.rand(2, 3, 16, 16))


def test_settings_that_cannot_be():
    with pytest.raises(UsageError, match="scale"):
        etude.model("rrdbnet_x4", scale=3)
    with pytest.raises(ValueError, match="a power of 2"):
        DiscriminatorConfig(side=96)
    with pytest.raises(ValueError, match="at least 1"):
        Config(depth=0)


def test_two_players():
    model = AdversarialConfig(TINY, DiscriminatorConfig(side=32, width=4)).build()
    assert [name for name, _ in model.named_children()] == ["generator", "discriminator"]
    assert model.discriminator(model.generator(torch.rand(2, 3, 8, 8))).shape == (2, 1)


def test_the_examples_fit():
    for config in (TINY, Config(scale=2, width=4, depth=1, growth=2)):
        assert config.build()(*esrgan.example(config)).shape[-1] == 32 * config.scale


def test_vgg19_has_torchvisions_names_and_ends_before_the_activation():
    with torch.device("meta"):
        model = perceptual.VGG19()
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    places = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)  # of torchvision's vgg19
    assert list(convs) == [f"features.{i}" for i in places]
    assert isinstance(model.features[-1], nn.Conv2d) and model.features[-1].out_channels == 512
    assert sum(p.numel() for p in model.parameters()) == 20_024_384  # of 143,667,240, the rest is its classifier


def test_features_leave_the_published_classifier_aside():
    model = perceptual.EfficientNetLite0()
    theirs = dict(model.state_dict()) | {"_fc.weight": torch.zeros(9, 9), "_blocks.5._bn1.bias": torch.zeros(3)}
    theirs |= {"_blocks.15._bn1.bias": torch.zeros(3), "_conv_head.weight": torch.zeros(3), "_bn1.bias": torch.zeros(1)}
    load_weights(model, theirs, source="published")
    with pytest.raises(RefusedError, match="unused"):
        load_weights(model, theirs | {"_blocks.4.other": torch.zeros(1)}, source="published")
    assert model.eval()(torch.rand(1, 3, 32, 48)).shape == (1, 40, 4, 6)


def test_padding_is_tensorflows():
    # TensorFlow's SAME for even sides: all in all max(0, k - s) with stride 2, the larger part after
    assert perceptual.same(3, 2) == (0, 1, 0, 1) and perceptual.same(5, 2) == (1, 2, 1, 2)
    assert perceptual.same(3, 1) == (1, 1, 1, 1) and perceptual.same(5, 1) == (2, 2, 2, 2)


def test_interpolation_is_of_scale_four():
    with pytest.raises(ValueError, match="scale 4 only"):
        Config(scale=2, interpolates=True)
