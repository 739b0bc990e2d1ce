import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, JpegImagePlugin
from torch.nn import functional as F

from etude.data import decode
from etude.data.decode import CROP_UNIFORMS, convert, evaluation_crop, open_image, random_crop_box, to_tensor
from etude.errors import UsageError

RNG = np.random.default_rng(0)


def scene(width: int, height: int) -> Image.Image:
    """Smooth colours, so that JPEG and resizing change little, and no symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    rgb = np.stack([x, y * (0.5 + 0.5 * x), 0.5 + 0.5 * np.sin(5 * x + 3 * y)], axis=-1)
    return Image.fromarray((255 * rgb).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A valid PNG that claims a size and holds one row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = zlib.compress(bytes(3 * width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


# --- what comes in


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_every_format_from_path_and_bytes(tmp_path: Path, kind: str):
    raw = encoded(scene(40, 30), kind)
    (tmp_path / "x").write_bytes(raw)
    direct = pixels(Image.open(io.BytesIO(raw)).convert("RGB"))
    for source in (tmp_path / "x", str(tmp_path / "x"), raw):
        assert np.array_equal(pixels(open_image(source)), direct)


def test_arrays_and_tensors_are_the_same_picture():
    image = scene(6, 5)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
    for source in (image, array, tensor, array / 255, tensor / 255, tensor.double() / 255):
        assert np.array_equal(pixels(open_image(source)), array)
    grey = RNG.integers(0, 256, (5, 6), dtype=np.uint8)
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], grey / 255):
        assert np.array_equal(pixels(open_image(source, 1)), grey)
        assert np.array_equal(pixels(open_image(source, 3)), np.stack([grey] * 3, axis=-1))
    with_alpha = np.dstack([array, np.full((5, 6), 255, np.uint8)])
    assert np.array_equal(pixels(open_image(with_alpha)), array)


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((4, 4), np.int32),
        np.full((4, 4), 1.5),
        np.full((4, 4), -0.1),
        np.full((4, 4), np.nan),
        torch.zeros(5, 4, 3, dtype=torch.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_arrays_that_are_no_pictures(source):
    with pytest.raises(UsageError):
        open_image(source)


def test_other_types_and_channel_counts_are_refused():
    with pytest.raises(UsageError, match="the given int: not a picture"):
        open_image(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="2 channels"):
        open_image(scene(4, 4), 2)


# --- what is dangerous


def test_a_huge_png_is_refused_by_its_header(tmp_path: Path):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(40_000, 40_000))
    with pytest.raises(UsageError, match=r"huge\.png: 40,000 x 40,000 pixels, more than the limit of 50,000,000") as e:
        open_image(path)
    assert "\n" not in str(e.value) and "ETUDE_MAX_PIXELS" in e.value.hint
    with pytest.raises(UsageError, match="more than the limit"):
        decode.load(path, 32)


def test_sizes_where_pillow_itself_would_warn(tmp_path: Path):
    (tmp_path / "big.png").write_bytes(png_header(10_000, 10_000))
    with pytest.raises(UsageError, match="more than the limit"):
        open_image(tmp_path / "big.png")


def test_the_limit_can_be_set(monkeypatch: pytest.MonkeyPatch):
    raw = encoded(scene(40, 30), "PNG")
    monkeypatch.setenv("ETUDE_MAX_PIXELS", "1199")
    for source in (raw, scene(40, 30), np.zeros((30, 40), np.uint8)):
        with pytest.raises(UsageError, match="limit of 1,199"):
            open_image(source)
    monkeypatch.setenv("ETUDE_MAX_PIXELS", "1200")
    assert open_image(raw).size == (40, 30)
    monkeypatch.setenv("ETUDE_MAX_PIXELS", "lots")
    with pytest.raises(UsageError, match="ETUDE_MAX_PIXELS='lots' is not a whole number"):
        open_image(raw)


def test_files_that_are_no_pictures(tmp_path: Path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a shopping list, not a picture")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("empty.png", "empty file"),
        ("text.png", "not a picture"),
        ("drawing.eps", "not a picture"),  # Pillow would start Ghostscript for it
        ("folder", "a folder"),
        ("missing.png", "no such file"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            open_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_truncated_files_are_named(tmp_path: Path, kind: str):
    raw = encoded(Image.fromarray(RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)), kind)
    path = tmp_path / "cut"
    for length in (1, 4, 20, len(raw) // 3, len(raw) // 2, len(raw) * 3 // 4):
        path.write_bytes(raw[:length])
        with pytest.raises(UsageError, match=str(path)) as caught:
            open_image(path)
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match=str(path)):
            decode.load(path, 8, [0.5] * CROP_UNIFORMS)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]), data=st.data())
def test_damaged_files_are_decoded_or_refused_never_anything_else(kind: str, data: st.DataObject):
    options = {} if kind in ("GIF", "BMP", "PPM") else {"exif": orientation(6)}
    raw = bytearray(encoded(scene(12, 9), kind, **options))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UsageError):
        assert open_image(bytes(raw)).mode == "RGB"


# --- modes and orientation


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation(tmp_path: Path, value: int):
    raw = encoded(scene(64, 48), "JPEG", exif=orientation(value), quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
    assert np.array_equal(pixels(open_image(raw)), pixels(upright))
    assert np.array_equal(pixels(open_image(open_image(raw))), pixels(upright))  # not turned twice
    (tmp_path / "x.jpg").write_bytes(raw)
    assert torch.equal(decode.load(tmp_path / "x.jpg", 28), to_tensor(evaluation_crop(upright, 28)))
    png = encoded(scene(64, 48), "PNG", exif=orientation(value))
    assert np.array_equal(pixels(open_image(png)), pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(png)))))


def test_nonsense_orientation_is_upright():
    assert open_image(encoded(scene(8, 6), "JPEG", exif=orientation(99))).size == (8, 6)


def test_transparency_lies_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 128, 255  # black, from invisible to opaque
    got = pixels(open_image(encoded(Image.fromarray(rgba), "PNG")))
    assert got[0, :, 0].tolist() == [255, 127, 0]
    grey = pixels(open_image(encoded(Image.fromarray(rgba).convert("LA"), "PNG"), 1))
    assert grey[0].tolist() == [255, 127, 0]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(open_image(encoded(palette, "PNG"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(open_image(encoded(palette, "PNG", transparency=0)))[0].tolist() == [[255] * 3, [40, 50, 60]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str):
    wide = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    raw = encoded(Image.fromarray(wide), kind)
    assert pixels(open_image(raw, 1)).tolist() == [[0, 1, 128, 255]]
    assert pixels(open_image(raw, 3))[0, 2].tolist() == [128] * 3


def test_other_modes_become_grey_or_rgb():
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    assert pixels(open_image(encoded(cmyk, "TIFF")))[0, 0].tolist() == [255, 0, 0]
    red, green, blue = pixels(open_image(encoded(cmyk, "JPEG")))[0, 0]
    assert red > 240 and green < 15 and blue < 15
    assert pixels(convert(Image.new("1", (1, 1), 1), 1)).tolist() == [[255]]
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B
    assert pixels(convert(Image.new("RGB", (1, 1), (255, 0, 0)), 1)).tolist() == [[76]]
    for mode in ("F", "LAB"):
        with pytest.raises(UsageError, match=f"pixels of the kind {mode} cannot be read"):
            open_image(encoded(Image.new(mode, (2, 2)), "TIFF"))


# --- crops


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (1000, 260), (224, 224), (50, 40)])
def test_evaluation_crop_equals_antialiased_bilinear_resizing(size: tuple[int, int]):
    image = Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    got = to_tensor(evaluation_crop(image, 224))
    assert got.shape == (3, 224, 224)
    width, height = size
    shape = (256 * height // width, 256) if width <= height else (256, 256 * width // height)
    resized = F.interpolate(to_tensor(image)[None].double(), shape, mode="bilinear", antialias=True)[0]
    top, left = round((shape[0] - 224) / 2), round((shape[1] - 224) / 2)
    wanted = resized[:, top : top + 224, left : left + 224]
    assert (got - wanted).abs().max() <= 1.01  # Pillow rounds to whole levels between the two directions


def test_first_try_of_the_training_crop_by_hand():
    uniforms = np.full(CROP_UNIFORMS, 0.999)
    # area 0.08 + 0.25 * 0.92 = 0.31 of 500 * 400 = 62,000; aspect exp(log(3/4)) = 3/4
    uniforms[:2] = 0.25, 0.0
    uniforms[-2:] = 0.5, 0.25
    # w = round(sqrt(62000 * 0.75)) = 216, h = round(sqrt(62000 / 0.75)) = 288
    # top = floor(0.5 * (400 - 288 + 1)) = 56, left = floor(0.25 * (500 - 216 + 1)) = 71
    assert random_crop_box(500, 400, uniforms) == (71, 56, 71 + 216, 56 + 288)


def test_a_try_that_does_not_fit_is_followed_by_the_next():
    uniforms = np.zeros(CROP_UNIFORMS)
    uniforms[0:4] = 0.999, 0.999, 0.25, 0.0  # nearly all of the area at 4:3 does not fit into 500 x 400
    assert random_crop_box(500, 400, uniforms) == (0, 0, 216, 288)


def test_fallback_when_nothing_fits():
    uniforms = np.full(CROP_UNIFORMS, 0.999)
    assert random_crop_box(1000, 100, uniforms) == (433, 0, 433 + 133, 100)  # 4:3
    assert random_crop_box(100, 1000, uniforms) == (0, 433, 100, 433 + 133)  # 3:4
    assert random_crop_box(100, 99, uniforms) == (0, 0, 100, 99)  # within the ratios: all of it


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=CROP_UNIFORMS, max_size=CROP_UNIFORMS),
)
def test_training_crops_lie_inside(width: int, height: int, uniforms: list[float]):
    left, top, right, bottom = random_crop_box(width, height, uniforms)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_every_place_of_the_training_crop_is_as_likely():
    """Areas: uniform on 0.08 to 1 given that they fit. Places: corners are reached on all four sides."""
    boxes = np.array([random_crop_box(64, 64, row) for row in RNG.random((20_000, CROP_UNIFORMS))])
    assert boxes.min(axis=0).tolist() == [0, 0, 15, 15] or boxes[:, :2].min() == 0
    assert boxes[:, 2:].max() == 64
    centre = (boxes[:, :2] + boxes[:, 2:]).mean(axis=0) / 2
    assert np.abs(centre - 32).max() < 0.2
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 64**2
    small = areas < 0.5  # small ones always fit, so that they are uniform
    assert abs(np.median(areas[small]) - 0.29) < 0.01


def test_training_crop_without_reduction_is_crop_then_resize(tmp_path: Path):
    image = Image.fromarray(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    image.save(tmp_path / "x.png")
    for uniforms in RNG.random((10, CROP_UNIFORMS)):
        box = random_crop_box(120, 90, uniforms)
        wanted = image.crop(box).resize((32, 32), Image.Resampling.BILINEAR)
        assert torch.equal(decode.load(tmp_path / "x.png", 32, uniforms), to_tensor(wanted))


def test_jpeg_is_decoded_smaller_but_never_below_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reductions: list[int] = []
    plain_draft = JpegImagePlugin.JpegImageFile.draft

    def spy(self, mode, size):
        full = self.width
        result = plain_draft(self, mode, size)
        reductions.append(round(full / self.width))
        return result

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", spy)
    for turned in range(1, 9):
        image = scene(1601, 1203)
        image.save(tmp_path / "x.jpg", quality=95, exif=orientation(turned))
        upright = ImageOps.exif_transpose(Image.open(tmp_path / "x.jpg")).convert("RGB")
        for uniforms in RNG.random((4, CROP_UNIFORMS)):
            left, top, right, bottom = random_crop_box(*upright.size, uniforms)
            got = decode.load(tmp_path / "x.jpg", 64, uniforms)
            full = upright.crop((left, top, right, bottom)).resize((64, 64), Image.Resampling.BILINEAR)
            assert (got.float() - to_tensor(full).float()).abs().mean() < 0.5
            assert min(right - left, bottom - top) // reductions[-1] >= 64
            assert reductions[-1] == 8 or min(right - left, bottom - top) // (2 * reductions[-1]) < 64
    assert max(reductions) == 8 and len(set(reductions)) > 1
    reductions.clear()
    decode.load(tmp_path / "x.jpg", 64)
    assert not reductions  # evaluation is exact


@pytest.mark.parametrize("turned", range(1, 9))
def test_training_crops_of_turned_pictures_are_those_of_the_upright_one(tmp_path: Path, turned: int):
    scene(90, 60).save(tmp_path / "x.png", exif=orientation(turned))
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "x.png"))
    for uniforms in RNG.random((5, CROP_UNIFORMS)):
        wanted = upright.crop(random_crop_box(*upright.size, uniforms)).resize((32, 32), Image.Resampling.BILINEAR)
        # turned after resizing, so that Pillow's two directions come in another order: one level at most
        got = decode.load(tmp_path / "x.png", 32, uniforms).int()
        assert (got - to_tensor(wanted).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (3, 700)])
def test_a_line_of_pixels_does_not_grow_without_bounds(size: tuple[int, int]):
    got = to_tensor(evaluation_crop(Image.new("RGB", size, (10, 20, 30)), 224))
    assert torch.equal(got, torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 224, 224))


def test_grey_pictures(tmp_path: Path):
    scene(50, 40).save(tmp_path / "x.jpg")
    assert decode.load(tmp_path / "x.jpg", 16, channels=1).shape == (1, 16, 16)
    assert decode.load(tmp_path / "x.jpg", 16, [0.3] * CROP_UNIFORMS, channels=1).shape == (1, 16, 16)
