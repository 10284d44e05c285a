"""Do heights and angles agree with a second method that shares nothing with ours but the masks? JSON lines.

``python benchmarks/second_method.py MASKS...`` gives for each vertebra, T4 to L5, and each curve both values, and last
the mean difference and the limits of agreement (Bland and Altman) of each quantity. Files ``.jsonl`` are such rows.

The second method: the spinal canal is the hole of the mask in the planes across the column; the body is what lies in
front of it. Its surface is that of marching cubes through the blurred mask, on the voxels as they are. End plates are
planes through what of it faces up or down in the inner part of its depth and width (least trimmed squares). In the
middle section, heights are those between parabolas through its upper and its lower side where these meet the front and
the back wall, as ours are; *corner* heights are between the points that lie furthest along the diagonals, on the
rounded rims themselves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vtk
from scipy import ndimage
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from segmamba.evaluation.names import OWN_IDS
from segmamba.evaluation.references import read_reference
from segmamba.io.modality import MR
from segmamba.io.volume import Volume
from segmamba.measurements.vertebrae import centroid, direction, mask_in_box, measure_spine
from segmamba.measurements.vertebral_body import Mask
from segmamba.models.manifest import load_manifest
from segmamba.spine.levels import L1, L5, T12, from_top, is_next, level_name
from segmamba.tasks import VERTEBRAE_TASK
from segmamba.utils.arrays import label_boxes

T4 = 11
BLUR_MM = 0.5
# Planes across the column are so far apart, and their pixels so large, mm.
PLANE_MM, PIXEL_MM, REACH_MM = 2.0, 1.0, 50.0
# They lean by these angles, since laminae lie like shingles, degrees. The canal is a hole between these areas, mm^2.
LEANING_DEG, CANAL_MM2 = (-20.0, 0.0, 20.0, 35.0), (40.0, 1200.0)
# The body is looked for so far in front of the canal's middle, in units of half its depth.
IN_FRONT = 0.8
# Plates are fitted in this part of depth and width, as ours are; sides of the section in a larger one.
INNER, SIDES = 0.7, 0.84
# Surface within this angle of the axis faces up or down; of its points this part fits best.
FACING, TRIMMED = 0.85, 0.75
# Gaps of a ring around the canal up to twice as wide are closed, mm; half the thickness of the middle section.
CLOSED_MM = 2.0
SECTION_MM = 3.0
HEIGHTS = ("anterior", "middle", "posterior")
# Heights of a section that is none of a body: where the canal was not found.
SMALLEST_MM, LARGEST_RATIO = 6.0, 2.0
CORNERS = {"anterior corner": "anterior", "posterior corner": "posterior"}


@dataclass(frozen=True, eq=False)
class Second:
    """A vertebra by the second method: heights in mm, and the normals of its end plates (LPS, upwards)."""

    heights: dict[str, float]
    upper: np.ndarray
    lower: np.ndarray
    axes: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="MASKS")
    rows = []
    for path in parser.parse_args().files:
        if path.suffix == ".jsonl":
            known = [json.loads(line) for line in path.read_text().splitlines()]
            rows += [row for row in known if "case" in row]
            continue
        for row in both(path):
            rows.append(row)
            print(json.dumps(row), flush=True)
    for quantity in sorted({row["quantity"] for row in rows}):
        some = [row for row in rows if row["quantity"] == quantity]
        print(json.dumps({"quantity": quantity, **agreement(some)}))


def both(path: Path) -> Iterator[dict[str, Any]]:
    """Measure a column by both methods."""
    volume = read_reference(path, OWN_IDS)
    boxes = {level: box for level, box in label_boxes(volume.array).items() if level <= L5}
    masks = {level: mask_in_box(volume.array[box] == level, box, volume.geometry) for level, box in boxes.items()}
    labels = load_manifest().default(VERTEBRAE_TASK).labels
    found = measure_spine(masks, Volume(volume.array, volume.geometry, MR), {each.value: each.name for each in labels})
    centres = {level: centroid(mask) for level, mask in masks.items()}
    case = path.name.split("_vertebrae")[0]
    others: dict[int, Second] = {}
    for row in found["measurements"]:
        level = row["value"]
        # What is torn or cut is not compared.
        if not T4 <= level <= L5 or row["fracture_grade"] is None or row["at_border"]:
            continue
        other = second(masks[level], direction(level, centres))
        if other is None:
            continue
        others[level] = other
        for place in (*HEIGHTS, *CORNERS):
            ours = row[f"{CORNERS.get(place, place)}_height_mm"]
            if ours is not None:
                yield {
                    **{"case": case, "level": level_name(level), "quantity": f"{place} height, mm"},
                    **{"ours": ours, "second": round(other.heights[place], 2), "sd": row["height_sd_mm"]},
                }
    rows = {row["value"]: row for row in found["measurements"]}
    for upper, lower in zip(from_top(others), from_top(others)[1:], strict=False):
        ours = rows[upper]["disc_angle_deg"]
        if is_next(upper, lower) and ours is not None:
            angle = sagittal_angle(others[upper].lower, others[lower].upper, others[upper].axes + others[lower].axes)
            yield {
                **{"case": case, "level": level_name(upper), "quantity": "disc angle, degrees"},
                **{"ours": ours, "second": round(angle, 1)},
            }
    by_name = {curve["name"]: curve for curve in found["curves"]}
    for name, first, last, sign in (("thoracic_kyphosis", T4, T12, 1), ("lumbar_lordosis", L1, L5, -1)):
        curve = by_name[name]
        # With a sacrum, lordosis ends there.
        if curve["angle_deg"] is None or not {first, last} <= others.keys() or curve["lower"] != level_name(last):
            continue
        axes = np.sum([others[level].axes for level in others if first <= level <= last], axis=0)
        angle = sign * sagittal_angle(others[first].upper, others[last].lower, axes)
        yield {
            **{"case": case, "level": "", "quantity": f"{name.replace('_', ' ')}, degrees"},
            **{"ours": curve["angle_deg"], "second": round(angle, 1)},
        }


def agreement(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean difference, ours less the second one, and the limits that hold 95 % of the differences."""
    differences = np.array([row["ours"] - row["second"] for row in rows])
    mean, spread = float(differences.mean()), float(differences.std())
    middle = float(np.median(differences))
    # Without what few values that are far off do to the limits: either method may have missed the body.
    robust = 1.96 * 1.4826 * float(np.median(np.abs(differences - middle)))
    return {
        **{"values": len(rows), "mean_difference": round(mean, 2)},
        "limits": [round(mean - 1.96 * spread, 2), round(mean + 1.96 * spread, 2)],
        **{
            "median_difference": round(middle, 2),
            "robust_limits": [round(middle - robust, 2), round(middle + robust, 2)],
        },
        "outside_percent": round(100 * float((np.abs(differences - middle) > 2 * robust).mean()), 1),
        "cases": len({row["case"] for row in rows}),
    }


def second(mask: Mask, up: np.ndarray) -> Second | None:
    """Measure a vertebra by the second method; None where it has no canal or too little surface."""
    vertices, normals = surface(mask)
    up = up / np.linalg.norm(up)
    canal = canal_of(mask, up)
    if canal is None:
        return None
    centre, half_depth, back = canal
    ahead = (vertices - centre) @ back < -IN_FRONT * half_depth
    for _ in range(2):
        facing, left = normals @ up, np.cross(back, up)
        depth, width = (vertices - centre) @ back, (vertices - centre) @ left
        inner = ahead & within(depth, depth[ahead], INNER) & within(width, width[ahead & (np.abs(facing) < 0.5)], INNER)
        plates = [trimmed_plane(vertices[inner & (sign * facing > FACING)]) for sign in (1, -1)]
        if plates[0] is None or plates[1] is None:
            return None
        upper, lower = (plate * np.sign(plate @ up) for plate in plates if plate is not None)
        up = (upper + lower) / np.linalg.norm(upper + lower)
        back = back - (back @ up) * up
        back /= np.linalg.norm(back)
    left = np.cross(back, up)
    section = vertices[ahead & (np.abs((vertices - centre) @ left) < SECTION_MM)]
    if len(section) < 30:
        return None
    plane = np.stack([(section - centre) @ back, (section - centre) @ up], axis=1)
    heights = section_heights(plane)
    return None if heights is None else Second(heights, upper, lower, np.stack([up, back, left]))


def section_heights(plane: np.ndarray) -> dict[str, float] | None:
    """Return the heights of a section (n, 2: backwards, up, mm): between corners, and in the middle between them."""
    middle = (plane.min(axis=0) + plane.max(axis=0)) / 2
    size = np.ptp(plane, axis=0)
    corners = {}
    for name, sign in (
        ("front top", (-1, 1)),
        ("front bottom", (-1, -1)),
        ("back top", (1, 1)),
        ("back bottom", (1, -1)),
    ):
        # Along the diagonal, each side in units of its own length.
        corners[name] = plane[((plane - middle) / size @ np.array(sign)).argmax()]
    # Walls: the median of the section's ends in the middle half of its height.
    waist = np.abs(plane[:, 1] - middle[1]) < size[1] / 4
    walls = [float(np.median(plane[waist & (sign * (plane[:, 0] - middle[0]) > size[0] / 4), 0])) for sign in (-1, 1)]
    if not np.isfinite(walls).all():
        return None
    at = [walls[0], (walls[0] + walls[1]) / 2, walls[1]]
    ends = []
    for sign in (1, -1):
        side = (sign * (plane[:, 1] - middle[1]) > size[1] / 5) & within(plane[:, 0], np.array(walls), SIDES)
        if np.count_nonzero(side) < 12:
            return None
        ends.append(np.polyval(trimmed_parabola(plane[side]), at))
    between = ends[0] - ends[1]
    if between.min() < SMALLEST_MM or between.max() > LARGEST_RATIO * between.min():
        return None
    return {
        **dict(zip(HEIGHTS, between.tolist(), strict=True)),
        "anterior corner": float(np.linalg.norm(corners["front top"] - corners["front bottom"])),
        "posterior corner": float(np.linalg.norm(corners["back top"] - corners["back bottom"])),
    }


def within(values: np.ndarray, among: np.ndarray, part: float) -> np.ndarray:
    """Say which values lie in the inner part of the range that others have, without their outermost hundredth."""
    low, high = np.percentile(among, (1, 99))
    inside: np.ndarray = np.abs(values - (low + high) / 2) <= part * (high - low) / 2
    return inside


def trimmed_parabola(points: np.ndarray) -> np.ndarray:
    """Return the coefficients of the parabola that fits most points (n, 2) best."""
    used, fit = np.ones(len(points), bool), np.zeros(3)
    for _ in range(5):
        fit = np.polyfit(points[used, 0], points[used, 1], 2)
        away = np.abs(np.polyval(fit, points[:, 0]) - points[:, 1])
        used = away <= np.quantile(away, TRIMMED)
    return fit


def surface(mask: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices of a mask's surface (n, 3), LPS mm, and the unit normals there, outwards."""
    spacing = np.linalg.norm(mask.to_lps[:3, :3], axis=0)
    padded = np.pad(mask.array.astype(np.float32), 3)
    soft = ndimage.gaussian_filter(padded, BLUR_MM / spacing[::-1])
    image = vtk.vtkImageData()
    image.SetDimensions(*soft.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(soft.ravel(), deep=True))
    cubes = vtk.vtkFlyingEdges3D()
    cubes.SetInputData(image)
    cubes.SetValue(0, 0.5)
    cubes.ComputeNormalsOff()
    cubes.ComputeGradientsOff()
    cubes.Update()
    index = vtk_to_numpy(cubes.GetOutput().GetPoints().GetData()).astype(float)
    slopes = np.stack(
        [ndimage.map_coordinates(part, index[:, ::-1].T, order=1) for part in np.gradient(soft)][::-1], axis=1
    )
    # The slope over voxels, in the patient.
    normals = -slopes @ np.linalg.inv(mask.to_lps[:3, :3])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return (index - 3) @ mask.to_lps[:3, :3].T + mask.to_lps[:3, 3], normals


def canal_of(mask: Mask, up: np.ndarray) -> tuple[np.ndarray, float, np.ndarray] | None:
    """Return the centre of the spinal canal, half its depth, mm, and the direction from the body to it."""
    points = np.argwhere(mask.array)[:, ::-1] @ mask.to_lps[:3, :3].T + mask.to_lps[:3, 3]
    middle = points.mean(axis=0)
    back = np.array([0.0, 1.0, 0.0]) - up[1] * up
    back /= np.linalg.norm(back)
    left = np.cross(back, up)
    side = np.arange(-REACH_MM, REACH_MM + PIXEL_MM, PIXEL_MM)
    ball = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), round(CLOSED_MM / PIXEL_MM))
    to_index = np.linalg.inv(mask.to_lps[:3, :3])
    best, centre, depth = 0.0, middle, np.zeros(1)
    for lean in np.radians(LEANING_DEG):
        along, across = np.cos(lean) * up + np.sin(lean) * back, np.cos(lean) * back - np.sin(lean) * up
        heights = np.arange(*np.percentile((points - middle) @ along, (5, 95)), PLANE_MM)
        grid = middle + heights[:, None, None, None] * along + side[:, None, None] * across + side[:, None] * left
        index = np.moveaxis((grid - mask.to_lps[:3, 3]) @ to_index.T, -1, 0)[::-1]
        planes = ndimage.map_coordinates(mask.array.astype(np.float32), index, order=1) > 0.5
        for number, plane in enumerate(ndimage.binary_closing(planes, ball[None])):
            holes, count = ndimage.label(ndimage.binary_fill_holes(plane) & ~plane)
            for label in range(1, count + 1):
                area = np.count_nonzero(holes == label) * PIXEL_MM**2
                if CANAL_MM2[0] <= area <= CANAL_MM2[1] and area > best:
                    pixels = np.argwhere(holes == label)
                    depth, width = side[pixels[:, 0]], side[pixels[:, 1]]
                    best = area
                    centre = middle + heights[number] * along + depth.mean() * across + width.mean() * left
    if not best:
        return None
    # The body is the part of the vertebra in front of the canal.
    ahead = points[(points - centre) @ back < -np.ptp(depth) / 2]
    to_body = ahead.mean(axis=0) - centre
    to_body -= (to_body @ up) * up
    return centre, float(np.ptp(depth) / 2 + PIXEL_MM / 2), -to_body / np.linalg.norm(to_body)


def trimmed_plane(points: np.ndarray) -> np.ndarray | None:
    """Return the unit normal of the plane that fits most points best; None for too few points."""
    if len(points) < 40:
        return None
    used, normal = np.ones(len(points), bool), np.zeros(3)
    for _ in range(10):
        centre = points[used].mean(axis=0)
        normal = np.linalg.svd(points[used] - centre, full_matrices=False)[2][2]
        away = np.abs((points - centre) @ normal)
        used = away <= np.quantile(away, TRIMMED)
    return normal


def sagittal_angle(first: np.ndarray, other: np.ndarray, axes: np.ndarray) -> float:
    """Return the angle from one normal to another in the common sagittal plane, degrees; kyphosis is positive."""
    up, back = axes[0] / np.linalg.norm(axes[0]), axes[1] / np.linalg.norm(axes[1])
    back = back - (back @ up) * up
    angles = [np.arctan2(normal @ back, normal @ up) for normal in (first, other)]
    return float(np.degrees(angles[1] - angles[0]))


if __name__ == "__main__":
    main()
