"""One vertebra's mask made clean after an edit by hand, on whatever grid its segmentation has.

The shape model knows vertebrae along the patient's axes, so the labels go to a grid along these and only what changed
there comes back: every other voxel stays as it was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from segmamba.errors import InputError
from segmamba.io.volume import corners
from segmamba.models.resources import SHAPES, resource_root
from segmamba_mrml.application import needed_packages
from segmamba_mrml.reports import parts, read_report, write_report
from segmamba_mrml.segmentation import BINARY_LABELMAP, GEOMETRY, label_box, oriented_image
from segmamba_mrml.vertebra_segments import find_vertebra, vertebrae_of
from segmamba_mrml.volumes import RAS_TO_LPS, world_matrix

SPACING_MM = 1.25
# The neighbours are needed whole: they say how the column runs and how large it is.
NEIGHBOURS_MM = 60.0
# Nothing further from the vertebra is changed: `segmamba.spine.shape_model.fit` says nothing about it.
CHANGED_MM = 12.0
# Not free, and neither the vertebra nor a neighbour.
OTHER = 255
EMPTY = "The segment '{}' is empty: choose another one, or draw it first."


def refine(node: Any, segment: str) -> list[dict[str, Any]]:
    """Clean the mask of a vertebra after a manual edit: loose components, holes, and gaps that no vertebra has.

    What was drawn is not trimmed, no voxel of another segment is taken, and nothing is added outside the image.

    Parameters
    ----------
    node : vtkMRMLSegmentationNode
        Also oblique, anisotropic, or under a linear transform.
    segment : str
        What the vertebra is called: "T12", or a segment's name or ID.

    Returns
    -------
    list of dict
        What was changed, as `segmamba.spine.refine.refine` says it; empty where nothing was. The node's report
        follows.

    Raises
    ------
    InputError
        There is no such vertebra, it is empty, or the segmentation is not made of voxels.
    InstallationError
        A package or the shape model is missing.
    """
    refinement = Refinement(node, segment)
    refinement.compute()
    return refinement.apply()


@dataclass(frozen=True, eq=False)
class Layer:
    """A label map that segments share.

    Attributes
    ----------
    array : ndarray
        Shape (z, y, x); not copied.
    to_lps : ndarray
        4 x 4 matrix from its index (x, y, z, 1) to LPS world millimetres.
    values : dict
        Label value of each segment, by its ID.
    """

    array: np.ndarray
    to_lps: np.ndarray
    values: dict[str, int]


class Refinement:
    """The parts of `refine`, for callers that do not wait: made and applied where the scene is, computed anywhere.

    Parameters and errors are those of `refine`; ``node`` is the segmentation.
    """

    def __init__(self, node: Any, segment: str) -> None:
        segmentation = node.GetSegmentation()
        if segmentation.GetSourceRepresentationName() != BINARY_LABELMAP:
            raise InputError(
                f"'{node.GetName()}' has no binary labelmap: open it in Segment Editor, which creates one."
            )
        self.node, self._segment = node, find_vertebra(node, segment)
        self._levels = vertebrae_of(node)
        self._level = self._levels[self._segment]
        to_lps = RAS_TO_LPS @ world_matrix(node)
        # Held, so that the voxels stay while another thread reads them.
        self._images = [segmentation.GetLayerDataObject(index) for index in range(segmentation.GetNumberOfLayers())]
        self._changed_at = self._time()
        self._layers = [read_layer(segmentation, index, image, to_lps) for index, image in enumerate(self._images)]
        own = [index for index, layer in enumerate(self._layers) if self._segment in layer.values]
        if not own:
            raise InputError(EMPTY.format(self._segment))
        self._own = own[0]
        self._image_to_lps, self._image_size = _reference(segmentation, self._images[self._own], to_lps)
        self._before = self._after = np.zeros((0, 0, 0), np.uint8)
        self._start = (0, 0, 0)

    def compute(self) -> None:
        """Find the new mask; touches no node, so that any thread can do it.

        Raises
        ------
        InputError, InstallationError
        """
        with needed_packages():
            from segmamba.spine import refine, shape_model
        layer = self._layers[self._own]
        found = label_box((layer.array == layer.values[self._segment]).view(np.uint8))
        if not found.array.size:
            raise InputError(EMPTY.format(self._segment))
        low = np.array(found.start[::-1])
        high = low + found.array.shape[::-1] - 1
        grid, shape = patient_grid(layer.to_lps, low, high)
        labels = self._labels(grid, shape)
        model = shape_model.load_shapes(resource_root() / SHAPES)
        refined, _ = refine.refine_one(labels, self._level, None, SPACING_MM, model)
        # The same on the segment's own grid, around the segment.
        margin = np.ceil(CHANGED_MM / np.linalg.norm(layer.to_lps[:3, :3], axis=0)).astype(int)
        own, shape = shifted(layer.to_lps, low - margin), tuple((high - low + 1 + 2 * margin)[::-1].tolist())
        self._start = tuple((low - margin)[::-1].tolist())
        self._before = self._labels(own, shape)
        self._after = resample_changes(self._before, own, labels, refined, grid, self._level)

    def apply(self) -> list[dict[str, Any]]:
        """Write the new mask into the segmentation, and return what was changed.

        Raises
        ------
        InputError
            The segmentation is gone or was changed meanwhile.
        """
        if self.node.GetScene() is None or self._time() != self._changed_at:
            raise InputError("The segmentation was changed in the meantime: refine the vertebra again.")
        with needed_packages():
            from segmamba.spine.refine import differences
        volume = abs(float(np.linalg.det(self._layers[self._own].to_lps[:3, :3])))
        changes = differences("edit", self._before, self._after, volume ** (1 / 3))
        if changes:
            mask = self._after == self._level
            self._write(mask)
            self._report(mask, volume, changes)
        return changes

    def _time(self) -> int:
        return max((image.GetMTime() for image in self._images), default=0)

    def _labels(self, to_lps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return what is where on a grid: the vertebra's and its neighbours' levels, `OTHER`, or 0 where it is free."""
        labels = np.where(_outside(self._image_to_lps, self._image_size, to_lps, shape), OTHER, 0).astype(np.uint8)
        # The vertebra's own label map last: it keeps what it shares with other segments.
        for index in sorted(range(len(self._layers)), key=lambda index: index == self._own):
            layer = self._layers[index]
            table = np.zeros(max(layer.values.values(), default=0) + 1, np.uint8)
            for identifier, value in layer.values.items():
                table[value] = self._code(identifier)
            values = sampled(layer.array, layer.to_lps, to_lps, shape)
            codes = table[np.where(values < table.size, values, 0)]
            np.copyto(labels, codes, where=codes > 0)
        return labels

    def _code(self, identifier: str) -> int:
        level = self._levels.get(identifier, OTHER)
        if identifier == self._segment:
            return level
        return level if abs(level - self._level) == 1 else OTHER

    def _write(self, mask: np.ndarray) -> None:
        logic, image = slicer.vtkSlicerSegmentationsModuleLogic, self._images[self._own]
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        start = np.add(self._start, image.GetExtent()[4::-2])
        written = oriented_image(mask.astype(np.uint8), tuple(start.tolist()), matrix)
        logic.SetBinaryLabelmapToSegment(written, self.node, self._segment, logic.MODE_REPLACE, written.GetExtent())

    def _report(self, mask: np.ndarray, volume: float, changes: list[dict[str, Any]]) -> None:
        """Let the node's report follow."""
        report = read_report(self.node)
        index = [part.mean() for part in np.nonzero(mask)][::-1]
        x, y, z = (shifted(self._layers[self._own].to_lps, self._start[::-1]) @ [*index, 1.0])[:3]
        for part in parts(report):
            for row in part.get("segments", []):
                if row.get("segment_id") == self._segment:
                    row["voxels"] = int(mask.sum())
                    row["volume_ml"] = round(row["voxels"] * volume / 1000, 3)
                    row["centroid_ras_mm"] = [round(-x, 2), round(-y, 2), round(z, 2)]
                    part["refinement"] = [*part.get("refinement", []), *changes]
                    write_report(self.node, report, [self._segment])


def patient_grid(to_lps: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Lay a grid along the patient's axes (array axes up, to posterior, to the left) over a box and its neighbourhood.

    Parameters
    ----------
    to_lps : ndarray
        4 x 4 matrix from index (x, y, z, 1) to LPS millimetres.
    low, high : ndarray
        First and last index (x, y, z) of the box.

    Returns
    -------
    tuple
        The grid's own matrix of that kind, and its shape (z, y, x).
    """
    positions = (corners(low, high) @ to_lps.T)[:, :3]
    first = positions.min(axis=0) - NEIGHBOURS_MM
    size = np.ceil((positions.max(axis=0) + NEIGHBOURS_MM - first) / SPACING_MM).astype(int) + 1
    grid = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    grid[:3, 3] = first
    return grid, tuple(size[::-1].tolist())


def sampled(array: np.ndarray, from_lps: np.ndarray, to_lps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array's nearest voxels on another grid of ``shape``; 0 outside. Both matrices are index to LPS."""
    from scipy import ndimage  # takes 0.4 s, which the panel has not when it opens

    matrix = np.linalg.inv(from_lps) @ to_lps
    # Arrays have their axes the other way round.
    matrix[:3] = matrix[2::-1]
    matrix[:, :3] = matrix[:, 2::-1]
    result: np.ndarray = ndimage.affine_transform(array, matrix, output_shape=shape, order=0, mode="grid-constant")
    return result


def resample_changes(
    before: np.ndarray, own: np.ndarray, labels: np.ndarray, refined: np.ndarray, grid: np.ndarray, level: int
) -> np.ndarray:
    """Return labels with what a refinement on another grid has added to a level and taken from it.

    Parameters
    ----------
    before : ndarray of uint8
        Shape (z, y, x); 0 is free.
    own : ndarray
        4 x 4 matrix of its grid, index (x, y, z, 1) to LPS.
    labels, refined : ndarray of uint8
        Before and after the refinement, on the other grid.
    grid : ndarray
        Matrix of that grid.
    level : int
        What is compared.
    """
    from scipy import ndimage

    def here(mask: np.ndarray) -> np.ndarray:
        return sampled(mask.view(np.uint8), grid, own, before.shape) > 0

    was, now = labels == level, refined == level
    cube = np.ones((3, 3, 3), bool)
    after, kept = before.copy(), here(now)
    # One voxel around each change too, where the two grids see the old surface differently.
    after[(before == 0) & kept & here(ndimage.binary_dilation(now & ~was, cube))] = level
    after[(before == level) & ~kept & here(ndimage.binary_dilation(was & ~now, cube))] = 0
    # Pieces and holes between the other grid's points.
    pieces, count = ndimage.label(after == level, structure=cube)
    seen = np.bincount(pieces[kept], minlength=count + 1) > 0
    after[~seen[pieces] & (after == level)] = 0
    after[ndimage.binary_fill_holes(after == level) & (before == 0)] = level
    return after


def shifted(to_lps: np.ndarray, start: Any) -> np.ndarray:
    """Return the index-to-LPS matrix of an array that begins at index ``start`` (x, y, z)."""
    matrix = to_lps.copy()
    matrix[:3, 3] = (to_lps @ [*start, 1.0])[:3]
    return matrix


def read_layer(segmentation: Any, index: int, image: Any, to_lps: np.ndarray) -> Layer:
    """Return a label map of a segmentation, ``image`` being its voxels; ``to_lps`` is the node's RAS to LPS."""
    array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    identifiers = segmentation.GetSegmentIDsForLayer(index)
    values = {each: segmentation.GetSegment(each).GetLabelValue() for each in identifiers}
    return Layer(array, _image_to_lps(image, to_lps), values)


def _reference(segmentation: Any, image: Any, to_lps: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return where the segmented image lies: index to LPS, and size (x, y, z); where that is not known, the mask's."""
    text = segmentation.GetConversionParameter(GEOMETRY)
    if text:
        image = slicer.vtkOrientedImageData()
        slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, image, False)
    return _image_to_lps(image, to_lps), image.GetDimensions()


def _image_to_lps(image: Any, to_lps: np.ndarray) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return shifted(to_lps @ slicer.util.arrayFromVTKMatrix(matrix), image.GetExtent()[::2])


def _outside(box_to_lps: np.ndarray, size: tuple[int, ...], to_lps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Tell of each point of a grid whether it lies outside a box of voxels."""
    matrix = np.linalg.inv(box_to_lps) @ to_lps
    z, y, x = np.ogrid[tuple(slice(length) for length in shape)]
    outside = np.zeros(shape, bool)
    for (by_x, by_y, by_z, first), length in zip(matrix[:3].tolist(), size, strict=True):
        place = by_x * x + by_y * y + by_z * z + first
        outside |= (place < -0.5) | (place > length - 0.5)
    return outside
