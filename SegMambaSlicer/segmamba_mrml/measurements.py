"""Measurements of the vertebrae of a segmentation node, as they are now, in a table node that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import vtk

from segmamba.errors import InputError
from segmamba.io.volume import Volume
from segmamba.models.manifest import load_manifest
from segmamba.spine.levels import ORDER
from segmamba.utils.arrays import label_boxes
from segmamba_mrml.application import needed_packages
from segmamba_mrml.refinement import read_layer, shifted
from segmamba_mrml.reports import parts, read_report
from segmamba_mrml.segmentation import BINARY_LABELMAP, place_beside, volume_node_of
from segmamba_mrml.vertebra_segments import bones_of
from segmamba_mrml.volumes import RAS_TO_LPS, volume_of, world_matrix

# The segmentation's reference to its table, and the table's to its segmentation: a copy of a segmentation has the first
# one too, but is not what the second one says.
TABLE_ROLE, SEGMENTATION_ROLE = "SegMamba.Measurements", "SegMamba.Segmentation"
# Titles of the table's columns after the names, and their keys in `segmamba.measurements.vertebrae`.
COLUMNS = {
    "Volume (mL)": "volume_ml",
    "R (mm)": "right_mm",
    "A (mm)": "anterior_mm",
    "S (mm)": "superior_mm",
    "Anterior height (mm)": "anterior_height_mm",
    "Middle height (mm)": "middle_height_mm",
    "Posterior height (mm)": "posterior_height_mm",
    "Left height (mm)": "left_height_mm",
    "Right height (mm)": "right_height_mm",
    "Height SD (mm)": "height_sd_mm",
    "Height loss (%)": "height_loss_percent",
    "Loss SD (%)": "height_loss_sd_percent",
    "Genant grade": "fracture_grade",
    "Lowest grade": "fracture_grade_lowest",
    "Highest grade": "fracture_grade_highest",
    "Trabecular density (HU)": "trabecular_hu",
    "Sagittal angle (deg)": "sagittal_angle_deg",
    "Coronal angle (deg)": "coronal_angle_deg",
    "Disc angle (deg)": "disc_angle_deg",
    "Disc anterior (mm)": "disc_anterior_mm",
    "Disc middle (mm)": "disc_middle_mm",
    "Disc posterior (mm)": "disc_posterior_mm",
    "Slip (mm)": "slip_mm",
    "Slip (%)": "slip_percent",
}
# Only where a phantom was given.
CALIBRATED = {"Trabecular density (mg/cm3)": "trabecular_mg_cm3"}
NAME, SHAPE, NOT_JUDGED, CHECK = "Vertebra", "Shape", "Not judged", "Check"
CUT_OFF = "cut off"
DESCRIPTION = (
    "Research use only. Heights are of the vertebral body, at its rims and its centre. Angles, discs and slips are to "
    "the next vertebra below; kyphosis, a tilt to the left and a slip forwards are positive."
)


@dataclass(frozen=True, eq=False)
class MeasuredSpine:
    """The vertebrae of a segmentation as they were measured.

    Attributes
    ----------
    found : dict
        See `segmamba.measurements.vertebrae.measure_spine`.
    masks : dict of int to Mask
        By level, and the sacrum's.
    volume : Volume
        What was segmented.
    """

    found: dict[str, Any]
    masks: dict[int, Any]
    volume: Volume

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each vertebra, see `segmamba.measurements.vertebrae.measure`."""
        rows: list[dict[str, Any]] = self.found["measurements"]
        return rows


def measured_spine(segmentation_node: Any, volume_node: Any = None) -> MeasuredSpine:
    """Measure the vertebrae of a segmentation as they are now, edits by hand included.

    Parameters
    ----------
    segmentation_node : vtkMRMLSegmentationNode
        Its segments are vertebrae by their terms. It may lie on another grid than the volume, and under a linear
        transform.
    volume_node : vtkMRMLScalarVolumeNode, optional
        What was segmented; by default the one that the segmentation refers to.

    Raises
    ------
    InputError
        There is no vertebra or no volume, a level is there twice, or the segmentation is not made of voxels.
    InstallationError
        A package is missing.
    """
    masks = _masks(segmentation_node)
    volume_node = volume_node or volume_node_of(segmentation_node)
    if volume_node is None:
        raise InputError(
            f"The volume of '{segmentation_node.GetName()}' is not in the scene: load it, or pass it to the call."
        )
    names = {label.value: label.name for label in load_manifest().default("vertebrae").labels}
    with needed_packages():
        from segmamba.measurements import bone_density, vertebrae
    volume = _as_segmented(volume_of(volume_node), segmentation_node)
    # The phantom that the run was given.
    line = parts(read_report(segmentation_node))[0].get("run", {}).get("options", {}).get("density_calibration")
    found = bone_density.calibrated(vertebrae.measure_spine(masks, volume, names), line)
    return MeasuredSpine(found, masks, volume)


def measure(segmentation_node: Any, volume_node: Any = None) -> list[dict[str, Any]]:
    """Return the vertebrae's rows of `measured_spine`, with the same parameters and errors."""
    return [row for row in measured_spine(segmentation_node, volume_node).rows if row["value"] in ORDER]


def measurements_table(segmentation_node: Any, volume_node: Any = None) -> Any:
    """Measure the vertebrae of a segmentation, and return the table node with the values.

    The node is made once for each segmentation, beside it in the subject hierarchy, and filled again by later calls. A
    missing value is NaN; the column "Check" says why.

    Parameters and errors are those of `measured_spine`; on an error the scene stays as it was.
    """
    rows = measure(segmentation_node, volume_node)
    node = segmentation_node.GetNodeReference(TABLE_ROLE)
    if node is None or node.GetNodeReference(SEGMENTATION_ROLE) is not segmentation_node:
        name = f"Measurements of {segmentation_node.GetName()}"
        node = segmentation_node.GetScene().AddNewNodeByClass("vtkMRMLTableNode", name)
        node.SetDescription(DESCRIPTION)
        segmentation_node.SetNodeReferenceID(TABLE_ROLE, node.GetID())
        node.SetNodeReferenceID(SEGMENTATION_ROLE, segmentation_node.GetID())
        place_beside(node, segmentation_node)
    was_modified = node.StartModify()
    try:
        _fill(node, rows)
    finally:
        node.EndModify(was_modified)
    return node


def _as_segmented(volume: Volume, node: Any) -> Volume:
    """Return a volume with the modality that it was segmented as, where its own source does not say one."""
    said = parts(read_report(node))[0].get("volume", {}).get("modality")
    return volume if volume.modality or not said else replace(volume, modality=said)


def _masks(node: Any) -> dict[int, Any]:
    """Return the mask of each vertebra by its level, and the sacrum's."""
    segmentation, levels = node.GetSegmentation(), bones_of(node)
    if segmentation.GetNumberOfSegments() and segmentation.GetSourceRepresentationName() != BINARY_LABELMAP:
        raise InputError(f"'{node.GetName()}' has no binary labelmap: open it in Segment Editor, which creates one.")
    with needed_packages():
        from segmamba.measurements.vertebral_body import Mask
    to_lps = RAS_TO_LPS @ world_matrix(node)
    masks: dict[int, Mask] = {}
    for index in range(segmentation.GetNumberOfLayers(BINARY_LABELMAP)):
        layer = read_layer(segmentation, index, segmentation.GetLayerDataObject(index, BINARY_LABELMAP), to_lps)
        boxes = label_boxes(layer.array)
        for identifier, value in layer.values.items():
            if identifier not in levels or value not in boxes:
                continue
            level, box = levels[identifier], boxes[value]
            if level in masks:
                name = segmentation.GetSegment(identifier).GetName()
                raise InputError(f"'{node.GetName()}' has '{name}' twice: rename one of the two, or remove it.")
            start = [part.start for part in reversed(box)]
            masks[level] = Mask(layer.array[box] == value, shifted(layer.to_lps, start))
    if not any(level in ORDER for level in masks):
        raise InputError(f"'{node.GetName()}' has no vertebra to measure: choose a segmentation of vertebrae.")
    return masks


def _fill(node: Any, rows: list[dict[str, Any]]) -> None:
    with needed_packages():
        from segmamba.measurements.vertebrae import flat
    flat_rows = [flat(row) for row in rows]
    node.RemoveAllColumns()
    _add(node, vtk.vtkStringArray(), NAME, [row["name"] for row in rows])
    calibrated = any(row[key] is not None for key in CALIBRATED.values() for row in flat_rows)
    for title, key in (COLUMNS | (CALIBRATED if calibrated else {})).items():
        values = [float("nan") if row[key] is None else row[key] for row in flat_rows]
        _add(node, vtk.vtkDoubleArray(), title, values)
    for title, key in ((SHAPE, "fracture_shape"), (NOT_JUDGED, "not_judged")):
        _add(node, vtk.vtkStringArray(), title, [row[key] or "" for row in flat_rows])
    _add(node, vtk.vtkStringArray(), CHECK, [row["note"] or (CUT_OFF if row["at_border"] else "") for row in rows])
    node.SetUseColumnTitleAsColumnHeader(True)


def _add(node: Any, array: Any, title: str, values: list[Any]) -> None:
    array.SetName(title)
    for value in values:
        array.InsertNextValue(value)
    node.AddColumn(array)
