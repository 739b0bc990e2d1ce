"""The two stages of super-resolution: losses by hand, tiles, depth, transparency, mixing, measures over parts."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from etude.data import deep
from etude.data.patches import Patches
from etude.data.resize import imresize
from etude.errors import MissingError, UsageError
from etude.tasks import superresolve
from etude.tasks.base import Update
from etude.tasks.fidelity import psnr
from etude.tasks.superresolve import Enlarge, SuperResolve, SuperResolveAdversarial, busiest, enlarged, relativistic
from etude.vision import perceptual
from etude.vision.esrgan import AdversarialConfig, Config, DiscriminatorConfig

TINY = Config(width=6, depth=1, growth=3, interpolates=True)
DATA = Patches(source="folder", path="unused", size=32)


def player_update(model: nn.Module, seen: list):
    """What the engine's update does, without an optimiser: losses and gradients."""

    def update(loss_fn, batch, player="model"):
        model.zero_grad()
        loss, logs = loss_fn(model, batch)
        loss.backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        seen.append((player, batch, moved))
        return {f"{player}/{name}": value for name, value in logs.items()}

    return update


def test_the_relativistic_loss_by_hand():
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [0.5]])
    sigmoid = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    # equation 1: -E log D_Ra(real, fake) - E log(1 - D_Ra(fake, real)), here half of it
    means = 1.0, -0.25
    first = -sum(math.log(sigmoid(r - means[1])) for r in (2.0, 0.0)) / 2
    second = -sum(math.log(1 - sigmoid(f - means[0])) for f in (-1.0, 0.5)) / 2
    assert relativistic(real, fake).item() == pytest.approx((first + second) / 2)
    # equation 2 has both pictures' parts turned round
    first = -sum(math.log(1 - sigmoid(r - means[1])) for r in (2.0, 0.0)) / 2
    second = -sum(math.log(sigmoid(f - means[0])) for f in (-1.0, 0.5)) / 2
    assert relativistic(fake, real).item() == pytest.approx((first + second) / 2)
    assert relativistic(real, real).item() >= math.log(2) - 1e-6


def test_a_step_is_the_generators_turn_then_the_discriminators():
    torch.manual_seed(0)
    model = AdversarialConfig(TINY, DiscriminatorConfig(side=32, width=2)).build()
    batch = {"low": torch.rand(4, 3, 8, 8), "high": torch.rand(4, 3, 32, 32)}
    task, seen = SuperResolveAdversarial(), []
    logs = task.step(model, batch, Update(player_update(model, seen)))
    assert [player for player, *_ in seen] == ["generator", "discriminator"]
    assert any(name.startswith("generator.conv_first") for name in seen[0][2])
    assert all(name.startswith("discriminator.") for name in seen[1][2])  # what was made carries no gradient
    made = seen[1][1]["made"]
    torch.testing.assert_close(made, model.generator(batch["low"]))
    wanted = logs["generator/perceptual"] + 5e-3 * logs["generator/adversarial"] + 1e-2 * logs["generator/pixel"]
    torch.testing.assert_close(logs["generator/loss"], wanted)
    torch.testing.assert_close(logs["generator/pixel"], (made - batch["high"]).abs().mean())


def test_features_are_compared_and_stay_as_they_are(tmp_path: Path):
    torch.manual_seed(0)
    network = perceptual.EfficientNetLite0()
    torch.save(network.state_dict(), tmp_path / "features.pth")
    task = SuperResolveAdversarial(
        features=perceptual.Config("efficientnet-lite0"), features_weights=str(tmp_path / "features.pth")
    )
    fake, real = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)
    loss = task.perceptual(fake, real)
    network.eval()
    torch.testing.assert_close(loss, (network(fake) - network(real)).abs().mean())
    loss.backward()
    assert fake.grad is not None and fake.grad.any()
    with pytest.raises(MissingError, match="neither a file"):
        SuperResolveAdversarial(features=perceptual.Config("vgg19"), features_weights="nothing.pth").perceptual(
            fake, real
        )


def test_what_does_not_fit_is_told_before_training(tmp_path: Path):
    for i in range(2):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{i}.png")
    opened = Patches(source="folder", path=str(tmp_path), scale=4, size=32).open()
    with pytest.raises(UsageError, match="enlarges by 2, the data is made smaller by 4"):
        SuperResolve().check(Config(scale=2, width=4, depth=1, growth=2).build(), opened)
    players = AdversarialConfig(TINY, DiscriminatorConfig(side=16, width=2)).build()
    with pytest.raises(UsageError, match="judges 16 x 16 pixels") as caught:
        SuperResolveAdversarial().check(players, opened)
    assert caught.value.hint == "--data.size 16"
    grey = Config(in_channels=1, width=4, depth=1, growth=2).build()
    with pytest.raises(UsageError, match="the model takes pictures of 1 channels, and the data's have 3") as caught:
        SuperResolve().check(grey, opened)
    assert caught.value.hint == "--model.in-channels 3"
    for name, players in (
        ("generator", AdversarialConfig(grey.config, DiscriminatorConfig(side=32, width=2))),
        ("discriminator", AdversarialConfig(TINY, DiscriminatorConfig(side=32, in_channels=1, width=2))),
    ):
        with pytest.raises(UsageError, match=f"the {name} takes pictures of 1 channels") as caught:
            SuperResolveAdversarial().check(players.build(), opened)
        assert caught.value.hint == f"--model.{name}.in-channels 3"
    fits = AdversarialConfig(TINY, DiscriminatorConfig(side=32, width=2)).build()
    task = SuperResolveAdversarial(features=perceptual.Config("vgg19"), features_weights="nothing.pth")
    task.check(fits.eval(), opened)  # to measure, features are not needed
    task.check(fits.eval(), opened.data.reopen(opened.facts | {"folder": "elsewhere", "bytes": {"other": 1}}))
    with pytest.raises(MissingError, match="neither a file"):
        task.check(fits.train(), opened)


@pytest.mark.parametrize("scale", [2, 4])
def test_tiles_leave_no_seams(scale: int):
    """A network of one block looks 20 pixels far at most; so far do tiles look beside themselves."""
    torch.manual_seed(0)
    model = Config(scale=scale, width=6, depth=1, growth=3).build().eval()  # pyright: ignore[reportArgumentType]
    low, seen = torch.rand(1, 3, 75, 90), []
    with torch.no_grad():
        whole = model(low).clamp(0, 1)
        context = 20 * (4 // scale)
        tiles = enlarged(model, low, tile=24, context=context, progress=lambda done, total: seen.append((done, total)))
    torch.testing.assert_close(tiles, whole, atol=1e-6, rtol=0)
    assert seen[-1] == (16, 16)


def predicted(model: nn.Module, picture, **ask):
    (answer,) = SuperResolve().predict(model, [picture], DATA, {}, Enlarge(**ask))
    return answer


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_depth_and_channels_are_kept(tmp_path: Path, channels: int, dtype: torch.dtype):
    if (channels, dtype) == (2, torch.uint16):
        pytest.skip("Pillow reads it as 8-bit RGBA")
    torch.manual_seed(channels)
    model = TINY.build().eval()
    top = torch.iinfo(dtype).max
    picture = torch.randint(top // 4, top, (channels, 9, 11), dtype=torch.int32).to(dtype)
    deep.save_png(picture, tmp_path / "a.png")
    answer = predicted(model, tmp_path / "a.png")
    assert answer.high.dtype == dtype and answer.high.shape == (channels, 36, 44)
    colour, alpha = deep.split_alpha(picture)
    for channel, expected in ((answer.high[: len(colour)], colour), (answer.high[len(colour) :], alpha)):
        if expected is not None:
            with torch.no_grad():
                whole = model(expected.expand(3, -1, -1)[None])[0].clamp(0, 1)
            whole = whole if len(expected) == 3 else whole.mean(0, keepdim=True)
            found, wanted = channel.to(torch.int32), deep.quantise(whole, dtype).to(torch.int32)
            assert (found - wanted).abs().max() <= 1
    answer.save(tmp_path / "b.png")
    back = deep.open_picture(tmp_path / "b.png")
    assert back.dtype == dtype and torch.equal(back.to(torch.int32), answer.high.to(torch.int32))
    assert answer.json() == {
        "width": 44, "height": 36, "channels": channels, "bits": 8 if dtype == torch.uint8 else 16, "from": [11, 9]
    }  # fmt: skip
    assert answer.row()[0] == "11x9 -> 44x36" and answer.plot().size[1] > 0


def test_an_opaque_picture_stays_opaque():
    picture = torch.randint(0, 256, (4, 8, 8), dtype=torch.int32).to(torch.uint8)
    picture[3] = 255
    assert (predicted(TINY.build().eval(), picture).high[3] == 255).all()


def test_networks_are_mixed(tmp_path: Path):
    torch.manual_seed(0)
    ours, theirs = TINY.build().eval(), TINY.build().eval()
    both = AdversarialConfig(TINY, DiscriminatorConfig(side=32, width=2)).build()
    both.generator.load_state_dict(theirs.state_dict())
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    save_file(both.state_dict(), tmp_path / "both.safetensors")
    picture = torch.randint(0, 256, (3, 8, 8), dtype=torch.int32).to(torch.uint8)
    own, other = predicted(ours, picture).high, predicted(theirs, picture).high
    for place in (tmp_path, tmp_path / "both.safetensors"):
        assert torch.equal(predicted(ours, picture, other=str(place), alpha=1.0).high, own)
        assert torch.equal(predicted(ours, picture, other=str(place), alpha=0.0).high, other)
    half = superresolve.mixed(ours, str(tmp_path), 0.25)
    for name, p in half.named_parameters():  # equation 5
        torch.testing.assert_close(p, 0.25 * ours.get_parameter(name) + 0.75 * theirs.get_parameter(name))
    larger = Config(width=8, depth=1, growth=3).build().eval()
    with pytest.raises(UsageError, match=r"another network.*of another shape: .*conv_first"):
        predicted(larger, picture, other=str(tmp_path))
    with pytest.raises(UsageError, match=r"alpha is 1\.5"):
        predicted(ours, picture, alpha=1.5)
    with pytest.raises(UsageError, match="without others"):
        Enlarge(alpha=0.5)
    with pytest.raises(UsageError, match="tile 0"):
        Enlarge(tile=0)
    authors = {name.replace("conv_body", "trunk_conv").replace("conv_hr", "HRconv"): value
               for name, value in theirs.state_dict().items()}  # fmt: skip
    save_file(authors, tmp_path / "authors.safetensors")
    assert torch.equal(predicted(ours, picture, other=str(tmp_path / "authors.safetensors"), alpha=0.0).high, other)


def test_measures_of_parts_make_those_of_the_whole(tmp_path: Path):
    torch.manual_seed(0)
    for i in range(4):
        pixels = torch.randint(0, 256, (48 + 4 * i, 56, 3), dtype=torch.int32).to(torch.uint8)
        Image.fromarray(pixels.numpy()).resize((112, 96), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for i in range(4):
        (tmp_path / f"{i}.png").rename(tmp_path / ("test" if i else "train") / f"{i}.png")
    opened = Patches(source="folder", path=str(tmp_path), size=32).open()
    model, task = TINY.build().eval(), SuperResolve()

    def measured(world: int, rank: int):
        spans = opened.spans("test", batch_size=9, rank=rank, world=world)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
            return task.evaluate(model, (opened.finish(opened.fetch("test", span)) for span in spans))

    whole, first, second = measured(1, 0), measured(2, 0), measured(2, 1)
    for name, metric in first.items():
        metric.merge(second[name])
        same = pytest.approx(whole[name].value(), rel=1e-14) if name != "crops" else whole[name].value()
        assert metric.value() == same
    batch = opened.finish(opened.fetch("test", [0]))
    bicubic = imresize(batch["low"], 4)[0].clamp(0, 1)
    values = [psnr(bicubic, batch["high"][0], border=4)]
    for i in (1, 2):
        batch = opened.finish(opened.fetch("test", [i]))
        values.append(psnr(imresize(batch["low"], 4)[0].clamp(0, 1), batch["high"][0], border=4))
    assert whole["psnr_bicubic"].value() == pytest.approx(sum(values) / 3)
    said, block = task.figures(whole, opened, "test")
    assert said["kind"] == "text" and "luma" in said["text"] and "border" in said["text"]
    assert "own run" in SuperResolveAdversarial().figures(whole, opened, "test")[0]["text"]
    assert block["kind"] == "images" and len(block["items"]) == 3 and block["items"][0]["caption"].startswith("test/1:")


def test_the_busiest_square():
    image = torch.zeros(3, 40, 60)
    image[:, 20:30:2, 44:52] = 1
    top, left = busiest(image, 16, 4)
    assert top <= 20 and top + 16 >= 30 and left <= 44 and left + 16 >= 52 and top % 4 == left % 4 == 0


def test_beginning_as_interpolation():
    """Bilinear but for what the random channels add, which the dense blocks' small weights keep small."""
    torch.manual_seed(0)
    model = Config(width=16, depth=1, growth=4, interpolates=True).build().eval()
    low = F.avg_pool2d(torch.rand(1, 3, 32, 32), 5, 1, 2)
    with torch.no_grad():
        answer = model(low)
    expected = F.interpolate(F.interpolate(low, scale_factor=2, mode="bilinear"), scale_factor=2, mode="bilinear")
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (answer - expected)[inner].abs().mean() < 0.06
    plain = Config(width=16, depth=1, growth=4).build().eval()
    with torch.no_grad():
        assert (plain(low) - expected)[inner].abs().mean() > 0.2


def test_pictures_without_a_finite_measure_do_not_end_a_training():
    """A black picture, which every way of enlarging gets right, and one that SSIM's window does not fit in."""
    batches = [{"low": torch.zeros(1, 3, h, 9), "high": torch.zeros(1, 3, 4 * h, 36), "index": torch.tensor([i])}
               for i, h in enumerate((9, 3))]  # fmt: skip
    with torch.no_grad():
        measured = SuperResolve().evaluate(TINY.build().eval(), batches)
    assert measured["psnr_bicubic"].value() == superresolve.EQUAL
    assert measured["ssim_bicubic"].value() == pytest.approx(1) and math.isfinite(measured["psnr"].value())


def test_blended_pixels_have_the_context_too():
    """A filter that reads exactly as far as the context."""

    class Far(nn.Module):
        scale = 1

        def __init__(self):
            super().__init__()
            weight = torch.zeros(1, 1, 1, 13)
            weight[..., 0] = weight[..., -1] = 0.5
            self.weight = nn.Parameter(weight)

        def forward(self, x):
            return torch.cat([F.conv2d(c, self.weight, padding=(0, 6)) for c in x.split(1, 1)], 1)

    torch.manual_seed(0)
    filtering, low = Far(), torch.rand(1, 3, 20, 70)
    with torch.no_grad():
        torch.testing.assert_close(enlarged(filtering, low, tile=16, context=6), filtering(low), atol=1e-6, rtol=0)
