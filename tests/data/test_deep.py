"""Pictures with 16 bits and transparency: what is read, what is written, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from etude.data import deep
from etude.errors import UsageError


def random_picture(channels: int, dtype: torch.dtype, height: int = 13, width: int = 17) -> torch.Tensor:
    values = torch.randint(0, torch.iinfo(dtype).max + 1, (channels, height, width), dtype=torch.int32)
    return values.to(dtype)


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((a.to(torch.int32) == b.to(torch.int32)).all())


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_what_is_saved_is_read_back_bit_for_bit(tmp_path: Path, channels: int, dtype: torch.dtype):
    picture = random_picture(channels, dtype)
    deep.save_png(picture, tmp_path / "a.png")
    assert equal(deep.open_picture(tmp_path / "a.png"), picture)
    assert equal(deep.open_picture((tmp_path / "a.png").read_bytes()), picture)


def test_grey_with_alpha(tmp_path: Path):
    picture = random_picture(2, torch.uint8)
    deep.save_png(picture, tmp_path / "a.png")
    assert equal(deep.open_picture(tmp_path / "a.png"), picture)
    deep.save_png(random_picture(2, torch.uint16), tmp_path / "deep.png")  # Pillow reads these as 8-bit RGBA
    assert deep.open_picture(tmp_path / "deep.png").shape == (4, 13, 17)


def test_an_interlaced_deep_png_of_another_encoder(tmp_path: Path):
    """Adam7 by hand: passes of a 16-bit RGB picture, each row with its filter byte 0."""
    picture = random_picture(3, torch.uint16, 9, 11)
    pixels = picture.permute(1, 2, 0).contiguous().numpy().astype(">u2")
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    raw = b""
    for top, left, down, right in passes:
        part = pixels[top::down, left::right]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    head = struct.pack(">IIBBBBB", 11, 9, 16, 2, 0, 0, 1)
    with open(tmp_path / "a.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    assert equal(deep.open_picture(tmp_path / "a.png"), picture)


def test_orientation_turns_both_bytes(tmp_path: Path):
    picture = random_picture(3, torch.uint16)
    deep.save_png(picture, tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    raw, data = (tmp_path / "a.png").read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    (tmp_path / "a.png").write_bytes(raw[:33] + chunk + raw[33:])  # after the header
    turned = torch.from_numpy(np.rot90(picture.numpy(), -1, (1, 2)).copy())
    assert equal(deep.open_picture(tmp_path / "a.png"), turned)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [("1", "png", 1), ("CMYK", "jpg", 3), ("P", "gif", 3), ("LA", "png", 2), ("RGB", "bmp", 3), ("L", "jpg", 1)],
)
def test_other_kinds_become_grey_or_colour(tmp_path: Path, mode: str, suffix: str, channels: int):
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (9, 5)).save(path)
    assert deep.open_picture(path).shape == (channels, 5, 9) and deep.open_picture(path).dtype == torch.uint8


def test_a_palette_with_a_transparent_colour(tmp_path: Path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png", transparency=1)
    assert deep.open_picture(tmp_path / "a.png")[:, 0, 0].tolist() == [0, 255, 0, 0]


def test_what_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    deep.save_png(random_picture(3, torch.uint16, 40, 40), tmp_path / "whole.png")
    raw = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    said = {"moving.gif": "3 pictures", "cut.png": "truncated", "zero.png": "empty", "text.png": "not a picture"}
    for name, words in said.items():
        with pytest.raises(UsageError, match=words) as caught:
            deep.open_picture(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setenv("ETUDE_MAX_PIXELS", "1000")
    with pytest.raises(UsageError, match="more than the limit"):
        deep.open_picture(tmp_path / "whole.png")


def test_alpha_apart_and_quantised():
    picture = torch.tensor([[[0]], [[65535]], [[13107]], [[32768]]], dtype=torch.int32).to(torch.uint16)
    colour, alpha = deep.split_alpha(picture)
    assert colour.flatten().tolist() == pytest.approx([0, 1, 0.2]) and alpha is not None
    assert equal(deep.quantise(torch.cat((colour, alpha)), torch.uint16), picture)
    assert deep.split_alpha(picture[:3])[1] is None
    assert deep.quantise(torch.tensor([-1.0, 0.5, 2.0]), torch.uint16).to(torch.int32).tolist() == [0, 32768, 65535]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pillow_images_are_read_as_their_files(tmp_path: Path, channels: int):
    shallow, wide = random_picture(channels, torch.uint8), random_picture(channels, torch.uint16)
    deep.save_png(shallow, tmp_path / "a.png")
    deep.save_png(wide, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert equal(deep.open_picture(image), shallow)
    with Image.open(tmp_path / "b.png") as image:
        assert equal(deep.open_picture(image), wide)
        again = deep.open_picture(image)  # loaded by now: Pillow kept the higher bytes of colours
    assert equal(again, wide if channels == 1 else (wide.to(torch.int32) >> 8).to(torch.uint8))


def test_a_preview_is_no_animation(tmp_path: Path):
    photo = Image.new("RGB", (16, 8), "red")
    photo.save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 2))])
    found = deep.open_picture(tmp_path / "camera.jpg")
    assert found.shape == (3, 8, 16) and found[0].float().mean() > 250


def test_a_transparent_colour_of_16_bits(tmp_path: Path):
    """Only the colour equal in both bytes is seen through."""
    for channels in (1, 3):
        picture = torch.tensor([0x1234, 0x1235, 0x1334], dtype=torch.int32).expand(channels, 1, 3).to(torch.uint16)
        deep.save_png(picture, tmp_path / "a.png")
        raw = (tmp_path / "a.png").read_bytes()
        raw = raw[:33] + chunk(b"tRNS", b"\x12\x34" * channels) + raw[33:]
        found = deep.open_picture(raw)
        assert equal(found[:channels], picture)
        assert found[channels:].to(torch.int32).tolist() == [[[0, 65535, 65535]]]


def test_numbers_beyond_16_bits_are_refused(tmp_path: Path):
    Image.fromarray(np.array([[1, 70_000]], dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UsageError, match=r"a\.tif: numbers of 1 to 70000"):
        deep.open_picture(tmp_path / "a.tif")
    Image.fromarray(np.array([[1, 60_000]], dtype=np.int32)).save(tmp_path / "b.tif")
    assert deep.open_picture(tmp_path / "b.tif").to(torch.int32).tolist() == [[[1, 60_000]]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_the_colour_profile_is_kept(tmp_path: Path, dtype: torch.dtype):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = random_picture(3, dtype)
    deep.save_png(picture, tmp_path / "a.png", icc=icc)
    assert equal(deep.open_picture(tmp_path / "a.png"), picture)
    assert deep.profile(tmp_path / "a.png", 3) == icc and deep.profile(tmp_path / "a.png", 1) is None
    deep.save_png(picture, tmp_path / "b.png")
    assert deep.profile(tmp_path / "b.png", 3) is None and deep.profile(picture, 3) is None


def test_a_file_appears_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deep.save_png(random_picture(3, torch.uint16), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        deep.save_png(random_picture(3, torch.uint16), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
