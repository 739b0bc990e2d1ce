"""Small pictures and volumes with masks, as files, for the tests of segmentation."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

MNI152 = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


def opened(path: Path) -> Any:
    """A NIfTI file, as nibabel sees it."""
    return nib.Nifti1Image.from_filename(path)


def write_pair(
    place: Path, stem: str, shape: tuple[int, int] = (20, 24), values: tuple[int, int] = (0, 255), seed: int = 0
) -> None:
    """A picture with a bright disc where its mask is."""
    for name in ("images", "masks"):
        (place / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = (y - rng.uniform(5, 15)) ** 2 + (x - rng.uniform(5, 15)) ** 2 < 25
    image = (60 + 120 * inside + rng.integers(-20, 20, shape)).astype(np.uint8)
    Image.fromarray(image).save(place / "images" / f"{stem}.png")
    Image.fromarray(np.where(inside, values[1], values[0]).astype(np.uint8)).save(place / "masks" / f"{stem}.png")


def write_volume(
    place: Path,
    stem: str,
    shape: tuple[int, int, int] = (12, 14, 20),
    *,
    spacing: tuple[float, float, float] = (1.0, 2.0, 3.0),
) -> None:
    """A volume of noise whose mask is where it is bright."""
    for name in ("images", "masks"):
        (place / name).mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(len(stem)).integers(0, 3000, shape).astype(np.int16)
    affine = np.diag([*spacing, 1.0])
    nib.save(nib.Nifti1Image(image, affine), place / "images" / f"{stem}.nii.gz")
    nib.save(nib.Nifti1Image((image > 1500).astype(np.uint8), affine), place / "masks" / f"{stem}.nii")


def write_mni152(folder: Path) -> None:
    """A head of three shells, whose tissues differ in brightness."""
    x, y, z = np.mgrid[:24, :28, :40]
    radius = np.sqrt(((x - 12) / 12) ** 2 + ((y - 14) / 14) ** 2 + ((z - 20) / 25) ** 2)
    white, grey = radius < 0.5, (radius >= 0.5) & (radius < 0.9)
    t1 = (90 * grey + 200 * white + np.random.default_rng(0).integers(0, 20, x.shape)).astype(np.uint8)
    for kind, array in (("t1", t1), ("gm", 255 * grey.astype(np.uint8)), ("wm", 255 * white.astype(np.uint8))):
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / MNI152.format(kind))


def write_nuclei(folder: Path) -> None:
    """Numbered bright discs on a dark ground, 16 bits deep."""
    objects = np.zeros((64, 96), np.uint16)
    y, x = np.mgrid[:64, :96]
    for number, (cy, cx) in enumerate(((cy, cx) for cy in (10, 30, 50) for cx in range(8, 96, 14)), start=1):
        objects[(y - cy) ** 2 + (x - cx) ** 2 < 36] = number
    image = (objects > 0) * 150 + np.random.default_rng(0).integers(0, 30, objects.shape)
    Image.fromarray(image.astype(np.uint16)).save(folder / "img2d.tif")
    Image.fromarray(objects).save(folder / "mask2d.tif")
