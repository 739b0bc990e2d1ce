"""NIfTI volumes, read and written by nibabel, safely: the header decides before a voxel is read.

A volume is turned to RAS+ (first axis to the patient's right, second to the front, third upwards) and cut into slices
that are laid out as a radiologist's atlas does, the patient's front or top at the upper edge. `write` lays a volume of
labels back into the file's own order of axes, with its affine. Needs the extra `medical`.

Shapes: N slices, H rows, W columns.
"""

import gzip
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from etude.errors import EtudeError, MissingError, UsageError

ENDINGS = (".nii", ".nii.gz")
Axis = Literal["sagittal", "coronal", "axial"]
AXES = ("sagittal", "coronal", "axial")
"""Which of x, y, z runs from slice to slice."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An opened file. `header` alone has been read."""

    path: Path
    image: Any = field(repr=False)
    """nibabel's."""
    axis: Axis

    @property
    def spacing(self) -> tuple[float, float]:
        """Millimetres (or what unit the file has) between rows and between columns of a slice."""
        import nibabel as nib
        from nibabel.affines import voxel_sizes

        turned = nib.orientations.io_orientation(self.image.affine)
        zooms = [0.0, 0.0, 0.0]
        for own, ras in enumerate(turned[:, 0].astype(int)):
            zooms[ras] = float(voxel_sizes(self.image.affine)[own])
        across = [zoom for i, zoom in enumerate(zooms) if i != AXES.index(self.axis)]
        return across[1], across[0]

    @property
    def voxel(self) -> float:
        """A voxel's volume, in cubic millimetres."""
        return float(abs(np.linalg.det(self.image.affine[:3, :3])))

    def slices(self) -> NDArray[np.float32]:
        """(N, H, W) values, scaled as the header says. UsageError for a damaged file, NaN or infinity."""
        import nibabel as nib

        try:
            if self.path.suffix.lower() == ".gz":
                _read_through(self.path)
            with np.errstate(over="ignore"):  # what becomes infinite is told below
                values = np.asarray(self.image.dataobj, dtype=np.float32)
        except Exception as error:  # a truncated file or a damaged gzip raise many kinds
            raise UsageError(f"{self.path}: truncated or damaged volume ({_line(error)})") from error
        if values.ndim == 4:
            values = values[..., 0]
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise UsageError(
                f"{self.path}: {bad:,} of {values.size:,} voxels are NaN, infinite or beyond 3.4e38",
                hint="replace them, e.g. with numpy.nan_to_num, and save the volume anew",
            )
        turned = nib.orientations.io_orientation(self.image.affine)
        values = np.asarray(nib.orientations.apply_orientation(values, turned))
        moved = np.moveaxis(values, AXES.index(self.axis), 0)
        return np.ascontiguousarray(moved.transpose(0, 2, 1)[:, ::-1])

    def write(self, labels: NDArray[np.integer], path: str | Path) -> None:
        """(N, H, W) labels as a NIfTI file with this volume's axes and affine."""
        import nibabel as nib

        moved = np.moveaxis(labels[:, ::-1].transpose(0, 2, 1), 0, AXES.index(self.axis))
        there = nib.orientations.axcodes2ornt("RAS")
        back = nib.orientations.ornt_transform(there, nib.orientations.io_orientation(self.image.affine))
        kind = np.uint8 if labels.max(initial=0) < 256 else np.uint16
        array = np.asarray(nib.orientations.apply_orientation(moved, back)).astype(kind)
        header = self.image.header.copy()
        header.set_data_dtype(kind)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # the picture's window is not the labels'
        nib.save(type(self.image)(array, self.image.affine, header), path)


def is_nifti(path: str | Path) -> bool:
    """Whether a file is called .nii or .nii.gz."""
    return str(path).lower().endswith(ENDINGS)


def stem(path: Path) -> str:
    """A file's name without its ending, .nii.gz being one ending."""
    return path.stem.removesuffix(".nii").removesuffix(".NII") if is_nifti(path) else path.stem


def load(path: str | Path, axis: Axis = "axial") -> Volume:
    """A file's header, checked: three dimensions, a size within the limit, real numbers, a placement that can be
    inverted. UsageError in one line that names the file."""
    try:
        import nibabel as nib
        from nibabel.imageglobals import LoggingOutputSuppressor
    except ImportError:
        raise MissingError(
            "NIfTI volumes are read by nibabel, which is missing", hint="pip install 'etude[medical]'"
        ) from None

    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if not path.stat().st_size:
        raise UsageError(f"{path}: empty file, not a NIfTI volume")
    try:
        with LoggingOutputSuppressor(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Any = nib.load(path)  # pyright: ignore[reportPrivateImportUsage]
            shape, kind = tuple(int(n) for n in image.shape), image.get_data_dtype()
            affine = np.asarray(image.affine, dtype=float)
    except EtudeError:
        raise
    except Exception as error:  # whatever a damaged header leads nibabel to
        raise UsageError(f"{path}: not a NIfTI volume that can be read ({_line(error)})") from error
    said = " x ".join(map(str, shape))
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 1):
        hint = "save one of its volumes as a file of its own" if len(shape) > 3 else "give a volume of slices"
        raise UsageError(f"{path}: {len(shape)} dimensions ({said}); a volume has 3", hint=hint)
    if min(shape) < 1:
        raise UsageError(f"{path}: an empty volume ({said})")
    count = int(np.prod(shape, dtype=object))
    if count > max_voxels():
        raise UsageError(
            f"{path}: {said} voxels, more than the limit of {max_voxels():,}",
            hint=f"cut or resample it, or set ETUDE_MAX_VOXELS={count} if you trust it",
        )
    if kind.kind not in "iuf":
        raise UsageError(f"{path}: voxels of the kind {kind} are not one real number each")
    sides = np.linalg.norm(affine[:3, :3], axis=0)  # in whatever unit: micrometres in metres are small, not flat
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * sides.prod():
        raise UsageError(f"{path}: its affine matrix cannot be inverted, so nothing says where the volume lies")
    return Volume(path, image, axis)


def load_pair(image: Path, mask: Path, axis: Axis = "axial") -> tuple[Volume, Volume]:
    """A volume and its mask, which must lie on the same grid."""
    one, other = load(image, axis), load(mask, axis)
    shapes = one.image.shape[:3], other.image.shape[:3]
    if shapes[0] != shapes[1]:
        ours, theirs = (" x ".join(map(str, shape)) for shape in shapes)
        raise UsageError(f"{mask}: {theirs} voxels, where the volume {image} has {ours}")
    if not np.allclose(one.image.affine, other.image.affine, atol=1e-2 * min(one.spacing)):
        raise UsageError(
            f"{mask}: lies elsewhere than {image}: their affine matrices differ", hint="resample one to the other"
        )
    return one, other


def max_voxels() -> int:
    """The most voxels that a volume may have: ETUDE_MAX_VOXELS, else 300 million."""
    given = os.environ.get("ETUDE_MAX_VOXELS", "300000000")
    try:
        return int(given)
    except ValueError:
        raise UsageError(f"ETUDE_MAX_VOXELS={given!r} is not a whole number") from None


def _read_through(path: Path) -> None:
    """Read a gzip file to its end, where its checksum stands; nibabel stops before it."""
    with gzip.open(path) as file:
        while file.read(1 << 20):
            pass


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
