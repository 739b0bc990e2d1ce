"""NIfTI: slices as an atlas shows them, answers on the file's own grid, one line for each bad file."""

import gzip
import itertools
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from etude.data import nifti
from etude.errors import MissingError, UsageError
from segmentation_files import opened

SHAPE = (5, 6, 7)


def write(path, array, affine=None, kind=nib.Nifti1Image):
    nib.save(kind(array, np.eye(4) if affine is None else affine), path)
    return path


def marked() -> np.ndarray:
    """Voxels that say where they are in RAS+."""
    x, y, z = np.mgrid[:5, :6, :7]
    return (100 * x + 10 * y + z).astype(np.int16)


@pytest.mark.parametrize("order", ["".join(p) for p in itertools.product("RL", "AP", "SI")] + ["SRA", "PIR", "ALS"])
def test_every_orientation_is_cut_alike_and_written_back(tmp_path, order):
    """The same head, its axes stored in any order and direction, gives the same slices; labels go back to the same
    voxels, with the file's affine."""
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    ras: Any = nib.Nifti1Image(marked(), affine)
    turned = ras.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(order))
        )
    )
    path = tmp_path / "head.nii.gz"
    nib.save(turned, path)
    expected = {"axial": ((7, 6, 5), (3.0, 2.0)), "coronal": ((6, 7, 5), (4.0, 2.0)), "sagittal": ((5, 7, 6), (4, 3))}
    for axis in nifti.AXES:
        volume = nifti.load(path, axis)
        slices = volume.slices()
        shape, spacing = expected[axis]
        assert slices.shape == shape and volume.spacing == pytest.approx(spacing)
        assert volume.voxel == pytest.approx(24)
        if axis == "axial":
            assert slices[2, 0].tolist() == [100 * x + 10 * 5 + 2 for x in range(5)]  # the front at the upper edge
        out = tmp_path / f"{axis}.nii.gz"
        volume.write((slices % 97).astype(np.uint8), out)
        back = opened(out)
        np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(turned.dataobj) % 97)
        np.testing.assert_allclose(back.affine, turned.affine)
        assert nib.aff2axcodes(back.affine) == tuple(order) and back.get_data_dtype() == np.uint8


def test_sizes_come_from_the_affine(tmp_path):
    """pixdim may say otherwise; metres are as good as millimetres."""
    image: Any = nib.Nifti1Image(marked(), np.diag([2e-6, 3e-6, 4e-6, 1]))
    image.header["pixdim"][1:4] = 1
    nib.save(image, tmp_path / "a.nii")
    assert opened(tmp_path / "a.nii").header.get_zooms() == (1, 1, 1)
    volume = nifti.load(tmp_path / "a.nii")
    assert volume.spacing == pytest.approx((3e-6, 2e-6)) and volume.voxel == pytest.approx(24e-18)


def test_oblique_affines(tmp_path):
    """A head that lies askew is cut along its nearest axes, and written back where it was."""
    cos, sin = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    affine = np.array([[cos, -sin, 0, 5], [sin, cos, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]])
    volume = nifti.load(write(tmp_path / "a.nii", marked(), affine))
    volume.write(np.full(volume.slices().shape, 300, np.uint16), tmp_path / "b.nii")
    back = opened(tmp_path / "b.nii")
    np.testing.assert_allclose(back.affine, affine, atol=1e-6)
    assert back.get_data_dtype() == np.uint16 and np.asarray(back.dataobj).max() == 300


def test_values_are_scaled_as_the_header_says(tmp_path):
    """Whole numbers that stand for others; labels are written unscaled."""
    scaled = nib.Nifti1Image(marked().astype(np.float32) * 0.5 - 3, np.eye(4))
    scaled.header.set_data_dtype(np.int16)
    nib.save(scaled, tmp_path / "c.nii")
    assert opened(tmp_path / "c.nii").header["scl_slope"] != 1
    volume = nifti.load(tmp_path / "c.nii")
    np.testing.assert_allclose(volume.slices()[0, -1], 50 * np.arange(5) - 3, atol=0.02)
    volume.write(np.full((7, 6, 5), 2, np.uint8), tmp_path / "d.nii")
    assert np.unique(np.asarray(opened(tmp_path / "d.nii").dataobj)).tolist() == [2]


def test_nifti2_and_a_fourth_axis_of_one(tmp_path):
    volume = nifti.load(write(tmp_path / "a.nii", marked()[..., None], kind=nib.Nifti2Image))
    assert volume.slices().shape == (7, 6, 5)
    volume.write(np.zeros((7, 6, 5), np.uint8), tmp_path / "b.nii")
    assert nib.Nifti2Image.from_filename(tmp_path / "b.nii").header["sizeof_hdr"] == 540


def cases(folder):
    """(what to do, message)"""
    noise = np.random.default_rng(0).integers(0, 999, (20, 30, 10)).astype(np.int16)
    content = write(folder / "good.nii.gz", noise).read_bytes()
    nan = marked().astype(np.float32)
    nan[1, 2, 3] = np.nan
    raw = bytearray(gzip.decompress(content))
    yield write(folder / "nan.nii", nan), "1 of 210 voxels are NaN, infinite or beyond"
    yield write(folder / "beyond.nii", 1e300 * marked().astype(np.float64)), "209 of 210 .* beyond 3.4e38"
    flat = bytearray(write(folder / "flat.nii", marked()).read_bytes())
    flat[280:296] = bytes(16)  # srow_x
    (folder / "flat.nii").write_bytes(flat)
    yield folder / "flat.nii", "its affine matrix cannot be inverted"
    yield write(folder / "four.nii", np.zeros((3, 4, 5, 2), np.uint8)), r"4 dimensions \(3 x 4 x 5 x 2\)"
    yield write(folder / "two.nii", np.zeros((3, 4), np.uint8)), "2 dimensions"
    yield write(folder / "complex.nii", np.zeros(SHAPE, np.complex64)), "voxels of the kind complex64"
    (folder / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    yield folder / "cut.nii.gz", "truncated or damaged"
    (folder / "tail.nii.gz").write_bytes(content[:-8])  # every voxel is there, the checksum is not
    yield folder / "tail.nii.gz", "truncated or damaged"
    stored = bytearray(gzip.compress(bytes(raw), compresslevel=0))  # a flipped bit is another voxel, no broken code
    stored[-100] ^= 4
    (folder / "flipped.nii.gz").write_bytes(stored)
    yield folder / "flipped.nii.gz", "truncated or damaged"
    (folder / "head.nii.gz").write_bytes(content[:40])
    yield folder / "head.nii.gz", "not a NIfTI volume that can be read"
    (folder / "short.nii").write_bytes(raw[:400])
    yield folder / "short.nii", "truncated or damaged"
    (folder / "empty.nii").write_bytes(b"")
    yield folder / "empty.nii", "empty file"
    (folder / "text.nii").write_bytes(b"this is no volume " * 40)
    yield folder / "text.nii", "not a NIfTI volume"
    yield folder / "none.nii", "no such file"
    huge = bytearray(raw)
    huge[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()  # dim[1..3]
    (folder / "huge.nii").write_bytes(huge)
    yield folder / "huge.nii", "more than the limit of 300,000,000"
    huge[42:48] = np.array([-5, 6, 7], "<i2").tobytes()
    (folder / "negative.nii").write_bytes(huge)
    yield folder / "negative.nii", "empty volume|not a NIfTI volume"


def test_bad_files_have_one_line_each(tmp_path):
    for path, message in cases(tmp_path):
        with pytest.raises(UsageError, match=message) as caught:
            nifti.load(path).slices()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_pairs_must_lie_on_one_grid(tmp_path):
    image = write(tmp_path / "i.nii", marked())
    with pytest.raises(UsageError, match=r"m\.nii: 5 x 6 x 8 voxels, where the volume .*i\.nii has 5 x 6 x 7"):
        nifti.load_pair(image, write(tmp_path / "m.nii", np.zeros((5, 6, 8), np.uint8)))
    moved = np.eye(4)
    moved[0, 3] = 4
    with pytest.raises(UsageError, match="lies elsewhere"):
        nifti.load_pair(image, write(tmp_path / "n.nii", np.zeros(SHAPE, np.uint8), moved))
    nifti.load_pair(image, write(tmp_path / "o.nii.gz", np.zeros(SHAPE, np.uint8)))


def test_limit_and_missing_library(tmp_path, monkeypatch):
    path = write(tmp_path / "i.nii", marked())
    monkeypatch.setenv("ETUDE_MAX_VOXELS", "209")
    with pytest.raises(UsageError, match="more than the limit of 209") as caught:
        nifti.load(path)
    assert "ETUDE_MAX_VOXELS=210" in caught.value.hint
    monkeypatch.setenv("ETUDE_MAX_VOXELS", "many")
    with pytest.raises(UsageError, match="not a whole number"):
        nifti.load(path)
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(MissingError) as missing:
        nifti.load(path)
    assert "pip install" in missing.value.hint


def test_names(tmp_path):
    for name, stem in (("a.nii.gz", "a"), ("a.b.nii", "a.b"), ("A.NII.GZ", "A"), ("c.png", "c")):
        assert nifti.stem(tmp_path / name) == stem
    assert nifti.is_nifti("X.NII.gz") and not nifti.is_nifti("x.gz")


def test_millimetres_are_those_of_the_affine(tmp_path):
    """Where the header's own sizes say something else."""
    library: Any = nib
    image = library.Nifti1Image(np.zeros((3, 4, 5), np.float32), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.header.set_zooms((1.0, 1.0, 1.0))
    library.save(image, tmp_path / "odd.nii")
    volume = nifti.load(tmp_path / "odd.nii")
    assert volume.voxel == pytest.approx(24) and volume.spacing == pytest.approx((3.0, 2.0))
