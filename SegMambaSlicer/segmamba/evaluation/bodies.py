"""References of vertebral bodies only: which part of the predicted vertebrae is compared with them. Our own rule."""

from __future__ import annotations

import numpy as np

from segmamba.evaluation.metrics import centroids
from segmamba.io.volume import Geometry

POSTERIOR = np.array([0.0, 1.0, 0.0])
# The posterior wall is looked for in this part of a body's width and height, where it is flat.
MIDDLE = 0.5


def compared_parts(prediction: np.ndarray, reference: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Take away what references of vertebral bodies say nothing about. Only the reference decides what that is.

    A voxel belongs to the body of the reference whose centroid is nearest. It is taken away if it lies behind that
    body's posterior wall, a plane (see `posterior_wall`), and is not in the reference. In front of the wall nothing
    is: what is too much there, above, below or at the sides counts in full.

    Parameters
    ----------
    prediction : ndarray of uint8 (z, y, x)
        Whole vertebrae.
    reference : ndarray of uint8 (z, y, x)
        Bodies, on the same grid.
    geometry : Geometry

    Returns
    -------
    bodies : ndarray of uint8 (z, y, x)
        The prediction without what is behind the walls.
    covered : ndarray of uint8 (z, y, x)
        Of these, what lies along the part of the column that the reference has. Not compared with the background are
        voxels nearer to where a further centroid above the first body or below the last one would be, at the same
        distance as the next one.
    """
    centres = centroids(reference, geometry)
    values = sorted(centres)
    places = np.array([centres[value] for value in values])
    directions = column_directions(places)
    index = np.nonzero(prediction)
    matrix = geometry.affine
    points = np.stack(index[::-1], axis=1) @ matrix[:3, :3].T + matrix[:3, 3]
    distances = np.linalg.norm(points[:, None] - places, axis=2)
    nearest = distances.argmin(axis=1)
    front = reference[index] > 0
    for number, value in enumerate(values):
        body = np.argwhere(reference == value)[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
        backwards, wall = posterior_wall(body, directions[number], max(geometry.spacing))
        front |= (nearest == number) & (points @ backwards <= wall)
    bodies, covered = np.zeros_like(prediction), np.zeros_like(prediction)
    bodies[index] = np.where(front, prediction[index], 0)
    beyond = np.zeros(len(points), dtype=bool)
    if len(places) > 1:
        for end, neighbour in ((places[0], places[1]), (places[-1], places[-2])):
            beyond |= np.linalg.norm(points - (2 * end - neighbour), axis=1) < distances.min(axis=1)
    covered[index] = np.where(beyond, 0, bodies[index])
    return bodies, covered


def column_directions(places: np.ndarray) -> np.ndarray:
    """Return the column's direction at each of its centroids (n, 3), as unit vectors; the body's axis for a single one.

    Both are in LPS mm. At the ends it is the slope of the parabola through three centroids: the last lumbar vertebra
    leans more than the line to its neighbour.
    """
    if len(places) == 1:
        return np.array([[0.0, 0.0, 1.0]])
    slopes = np.gradient(places, axis=0, edge_order=2 if len(places) > 2 else 1)
    directions: np.ndarray = slopes / np.linalg.norm(slopes, axis=1, keepdims=True)
    return directions


def posterior_wall(body: np.ndarray, direction: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """Return the plane of a body's posterior wall.

    Parameters
    ----------
    body : ndarray (n, 3)
        LPS positions of its voxels, mm.
    direction : ndarray (3,)
        The column's, a unit vector.
    step : float
        The largest side of a voxel, mm.

    Returns
    -------
    backwards : ndarray (3,)
        Unit vector at right angles to the column, towards the back.
    wall : float
        Where the plane is along it, mm: half a voxel behind the median of the last voxels of the lines that run
        backwards through the middle half of the body's width and height.
    """
    backwards = POSTERIOR - (POSTERIOR @ direction) * direction
    backwards /= np.linalg.norm(backwards)
    across = np.stack([body @ np.cross(direction, backwards), body @ direction], axis=1)
    low, high = across.min(axis=0), across.max(axis=0)
    inside = (np.abs(across - (low + high) / 2) <= MIDDLE * (high - low) / 2 + step / 2).all(axis=1)
    lines = np.rint((across[inside] - low) / step).astype(int)
    depth = (body @ backwards)[inside]
    _, line = np.unique(lines, axis=0, return_inverse=True)
    last = np.full(line.max() + 1, -np.inf)
    np.maximum.at(last, line.ravel(), depth)
    return backwards, float(np.median(last)) + step / 2
