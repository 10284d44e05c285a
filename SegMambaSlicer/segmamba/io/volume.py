"""A volume is an array plus its geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from segmamba.errors import InputError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

    from segmamba.io.stored_grid import StoredGrid

# A direction matrix further than this from orthonormal shears a 500 mm volume by more than half a millimetre.
SHEAR_TOLERANCE = 1e-3
SPACING_RANGE_MM = (0.01, 50.0)
# No scanner's table is longer. A wrong voxel size would also make a model's grid that no memory holds.
LONGEST_MM = 2500.0
# NIfTI keeps positions in single precision: farther away they would be rounded by more than a hundredth of this unit.
FARTHEST_MM = 1e5
# Corners of two grids that are to be one may be so many voxels apart: headers are rounded.
TOLERANCE_VOXELS = 0.1
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or a DICOM series"
UNKNOWN = f"{{}} is not an image that can be read: give {FORMATS}."
IMPOSSIBLE = "{} has a header with an impossible voxel size or direction: correct the header."
NO_MEMORY = (
    "There is not enough memory to read {}, which has {:,} voxels by its header: close other programs, or crop the "
    "volume; if it is not that large, export it again."
)
SHEARED = "{} has axes that are not at right angles: resample it to a rectangular grid first."
# Where a volume's modality is from.
SOURCE, VALUES, USER = "source", "values", "user"


@dataclass(frozen=True)
class Geometry:
    """Where a voxel array lies in the patient: ITK's convention, LPS millimetres.

    Attributes
    ----------
    size : tuple of int
        Number of voxels along x, y, z (the array's shape is the reverse).
    spacing : tuple of float
        Millimetres along x, y, z.
    origin : tuple of float
        LPS position of the centre of voxel (0, 0, 0), in millimetres.
    direction : tuple of float
        Nine numbers, row-major: column n is the LPS direction in which index n grows.
    header : nibabel header or None
        Of the NIfTI file that the grid is from: it may state two places, which a label map on the grid repeats.

    Examples
    --------
    >>> grid = Geometry((512, 512, 133), (0.7, 0.7, 2.5), (-180.0, -170.0, 30.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> (grid.affine @ [10, 0, 4, 1])[:3].tolist()
    [-173.0, -170.0, 40.0]
    >>> round(grid.voxel_volume, 3)
    1.225
    >>> Geometry.from_affine(grid.size, grid.affine) == grid
    True
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    header: Nifti1Header | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_affine(cls, size: Sequence[int], affine: np.ndarray, name: str = "The volume") -> Geometry:
        """Return the grid that a matrix describes.

        Parameters
        ----------
        size : sequence of int
            Number of voxels along x, y, z.
        affine : ndarray, shape (4, 4)
            From voxel index (x, y, z, 1) to LPS millimetres.
        name : str
            What errors call the volume.

        Raises
        ------
        InputError
            The matrix has a column of zeros or is not finite; whether its axes are at right angles is for
            `check_geometry`.
        """
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not (np.isfinite(affine).all() and spacing.all()):
            raise InputError(f"{name} has an affine that gives no voxel size (zeros, NaN or infinity): correct it.")
        columns, rows, slices = size
        along_x, along_y, along_z = spacing.tolist()
        x, y, z = affine[:3, 3].tolist()
        direction = tuple((affine[:3, :3] / spacing).ravel().tolist())
        return cls((columns, rows, slices), (along_x, along_y, along_z), (x, y, z), direction)

    @property
    def affine(self) -> np.ndarray:
        """The 4x4 matrix from voxel index (x, y, z, 1) to LPS millimetres."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel in cubic millimetres."""
        return math.prod(self.spacing)


@dataclass(frozen=True, eq=False)
class Volume:
    """Intensities and where they lie.

    Attributes
    ----------
    array : ndarray
        Shape (z, y, x), in the data type of the file.
    geometry : Geometry
    modality : str or None
        DICOM modality ("CT", "MR", ...). From a file it is what the file states, or None; a run decides it at its
        start (`segmamba.io.modality.resolve_modality`).
    modality_from : str
        Who says so: "source", "values" (it was inferred from them) or "user".
    notes : tuple of str
        What reading assumed or changed, a sentence each; the report of a run repeats them.
    stored : StoredGrid or None
        The grid of the source's voxels, where that is not rectangular and the volume was resampled.
    channels : tuple of ndarray
        For a model that takes several co-registered volumes, all of them on this one's grid, ``array`` among them and
        in the model's order (`segmamba.inference.channels`). Else empty.
    frame : str or None
        DICOM's frame of reference: volumes of two frames are not co-registered. None where nothing states it.

    Examples
    --------
    >>> geometry = Geometry((3, 4, 5), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    >>> volume = Volume(np.zeros((5, 4, 3), np.int16), geometry, "CT")
    >>> volume.array.shape == volume.geometry.size[::-1]
    True
    """

    array: np.ndarray
    geometry: Geometry
    modality: str | None = None
    modality_from: str = SOURCE
    notes: tuple[str, ...] = ()
    stored: StoredGrid | None = None
    channels: tuple[np.ndarray, ...] = ()
    frame: str | None = None

    @property
    def modality_inferred(self) -> bool:
        """Whether the modality was inferred from the values, because nobody states it."""
        return self.modality_from == VALUES


def image_geometry(image: sitk.Image) -> Geometry:
    """Return the geometry of a 3-D SimpleITK image."""
    return Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def to_image(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """Return a SimpleITK image of an array of shape (z, y, x)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


def check_geometry(geometry: Geometry, name: str, sheared: bool = False) -> None:
    """Raise InputError unless the grid is a sound 3-D one: more than one slice, sane spacing and place, no shear.

    With ``sheared``, its axes may be at other than right angles (`segmamba.io.stored_grid.straightened` is for those).
    """
    if min(geometry.size) < 1:
        raise InputError(f"{name} holds no voxel: export it again.")
    if min(geometry.size) < 2:
        raise InputError(f"{name} has a single slice: give a volume with many slices.")
    low, high = SPACING_RANGE_MM
    if not all(low <= step <= high for step in geometry.spacing):
        steps = " x ".join(f"{step:g}" for step in geometry.spacing)
        raise InputError(f"{name} has a voxel size of {steps} mm, which cannot be right: correct it in the header.")
    longest = max(count * step for count, step in zip(geometry.size, geometry.spacing, strict=True))
    if longest > LONGEST_MM:
        raise InputError(
            f"{name} is {longest / 1000:.1f} m long, more than any patient: correct the voxel size in its header."
        )
    # Written so that NaN is refused, too.
    if not all(abs(part) <= FARTHEST_MM for part in geometry.origin):
        raise InputError(f"{name} has an origin far outside any scanner: correct it in the header.")
    if not sheared and not are_orthonormal(np.reshape(geometry.direction, (3, 3))):
        raise InputError(SHEARED.format(name))


def check_scalar_3d(shape: Sequence[int], components: int, name: str, kind: str = "") -> None:
    """Raise InputError unless a header announces one 3-D volume with one number a voxel.

    Parameters
    ----------
    shape : sequence of int
        Number of voxels along each axis.
    components : int
        Numbers in a voxel.
    name : str
        What errors call the image.
    kind : str
        Type of the voxels, in words.
    """
    if components > 1 or "complex" in kind:
        raise InputError(f"{name} has colours or vectors in its voxels: give a volume with one value per voxel.")
    if len(shape) < 3:
        raise InputError(f"{name} is a {len(shape)}-D image: give a 3-D volume.")
    frames = math.prod(shape[3:])
    if frames > 1:
        raise InputError(f"{name} holds {frames} volumes (4-D): extract one of them and give that.")


def are_one_grid(first: Geometry, second: Geometry) -> bool:
    """Say whether two grids have as many voxels, at the same places but for rounding."""
    if first.size != second.size:
        return False
    ends = corners((0, 0, 0), np.array(first.size) - 1).T
    apart = np.linalg.norm((first.affine @ ends - second.affine @ ends)[:3], axis=0)
    return bool(apart.max() <= TOLERANCE_VOXELS * min(first.spacing))


def are_orthonormal(direction: np.ndarray) -> bool:
    """Say whether the columns of a 3x3 matrix are at right angles and of length one, but for rounding.

    This is the one rule for what counts as shear: for all readers, and for volumes of a Slicer scene.
    """
    return bool(np.allclose(direction.T @ direction, np.eye(3), atol=SHEAR_TOLERANCE))


def nearest_orthonormal(matrix: np.ndarray) -> np.ndarray:
    """Return the orthonormal matrix nearest to a 3x3 matrix: headers round directions."""
    left, _, right = np.linalg.svd(matrix)
    nearest: np.ndarray = left @ right
    return nearest


def corners(low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the eight corners of a box in homogeneous coordinates: shape (8, 4)."""
    return np.array([[*corner, 1.0] for corner in itertools.product(*zip(low, high, strict=True))])
