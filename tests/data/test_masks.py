"""Masks as they are stored, and the paper's weights around objects by their formula."""

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from etude.data import masks
from etude.errors import UsageError

DISCS = np.zeros((40, 50), np.uint16)
Y, X = np.mgrid[:40, :50]
for number, (cy, cx, radius) in enumerate(((15, 12, 8), (20, 30, 7), (33, 44, 4)), start=3):
    DISCS[(Y - cy) ** 2 + (X - cx) ** 2 <= radius**2] = number


def test_border_weights_are_the_formula():
    """w = 1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) with distances by scipy, object by object."""
    distances = []
    for number in (3, 4, 5):
        inside = number == DISCS
        border: Any = inside & ~np.asarray(ndimage.binary_erosion(inside), bool)
        distances.append(ndimage.distance_transform_edt(~border))
    d1, d2 = np.sort(np.stack(distances), 0)[:2]
    expected = 1 + 10 * np.exp(-((d1 + d2) ** 2) / (2 * 5**2))
    found = masks.border_weights(DISCS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    between = found[18, 21]  # one pixel wide
    assert between > 7 and found[0, 49] < 1.01
    assert masks.border_weights(DISCS, w0=3, sigma=2)[18, 21] < 1 + 3 * math.exp(-(2**2) / 8)
    np.testing.assert_array_equal(masks.border_weights(np.zeros((5, 6), np.uint16)), 1)


def test_touching_cells_are_set_apart():
    objects = np.zeros((6, 8), np.uint16)
    objects[1:5, 1:4], objects[1:5, 4:7] = 7, 9
    found = masks.cells(objects)
    assert found[2].tolist() == [0, 1, 1, 0, 0, 1, 1, 0]
    labelled: Any = ndimage.label(found)
    assert labelled[1] == 2
    np.testing.assert_array_equal(masks.cells((objects == 7) * 7), objects == 7)


def test_classes_of_values():
    stored = np.array([[0, 255], [7, 0]], np.uint16)
    found = masks.classes_of(stored, (0, 255), 7, "m.png")
    assert found.tolist() == [[0, 1], [masks.IGNORED, 0]]
    with pytest.raises(UsageError, match=r"m\.png: the mask has the value 7, which is none of the classes' \(0, 255\)"):
        masks.classes_of(stored, (0, 255), None, "m.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "I", "RGB", "LA"])
def test_kinds_of_masks(tmp_path, mode):
    """Whatever holds one number a pixel is read as these numbers, a palette as its indices."""
    array = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    if mode == "P":
        picture = Image.frombytes("P", (3, 2), array.tobytes())
        picture.putpalette([9, 9, 9, 200, 0, 0])
    elif mode == "1":
        picture = Image.fromarray(array.astype(bool))
    elif mode in ("I", "I;16"):
        picture = Image.fromarray(array.astype(np.int32 if mode == "I" else np.uint16))
    elif mode == "LA":
        picture = Image.merge("LA", [Image.fromarray(array), Image.fromarray(np.full_like(array, 255))])
    else:
        picture = Image.fromarray(array).convert(mode)
    path = tmp_path / ("m.tif" if mode == "I" else "m.png")
    picture.save(path)
    assert masks.read(path, (2, 3)).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: Image.new("L", (4, 3)).save(p), "a mask of 4 x 3 pixels, where its picture has 3 x 2"),
        (lambda p: Image.new("RGB", (3, 2), (1, 2, 3)).save(p), "a mask of colours"),
        (lambda p: p.write_bytes(b""), "empty file"),
        (lambda p: Image.new("L", (3, 2)).save(p, "JPEG"), "a mask as JPEG, which does not keep its values"),
        (lambda p: Image.new("L", (3, 2)).save(p, "TIFF", compression="jpeg"), "a mask as TIFF, which does not keep"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\nnonsense nonsense"), "truncated or damaged"),
        (
            lambda p: Image.new("L", (3, 2)).save(
                p, "GIF", save_all=True, append_images=[Image.new("L", (3, 2), 9)], loop=0
            ),
            "2 pictures in one file",
        ),
        (lambda p: Image.new("CMYK", (3, 2), (9, 0, 0, 1)).save(p, "TIFF"), "a mask of colours"),
    ],
)
def test_bad_masks(tmp_path, write, message):
    path = tmp_path / "mask.png"
    write(path)
    with pytest.raises(UsageError, match=message) as caught:
        masks.read(path, (2, 3))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[-1.0], [0.5], [70000.0], [math.nan]])
def test_values_must_be_whole(values):
    with pytest.raises(UsageError, match=r"v\.nii: a mask's values must be whole numbers"):
        masks.whole(np.array(values), "v.nii")
