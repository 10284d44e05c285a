"""Which label is nearest, against a distance map of the whole grid."""

import numpy as np
from scipy import ndimage

from segmamba.spine.nearest import nearest_labels, nearest_points


def test_the_nearest_label_is_as_far_as_the_distance_map_says_and_lies_there() -> None:
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.random((24, 30, 26)), 2)
    labels = np.where(blobs > np.quantile(blobs, 0.9), 1 + (np.indices(blobs.shape)[0] // 8), 0)
    places = np.argwhere(labels == 0)[::7]
    distances = ndimage.distance_transform_edt(labels == 0)[tuple(places.T)]
    for within in (5.0, 100.0):
        owners = nearest_labels(labels, places, within)
        np.testing.assert_array_equal(owners > 0, distances <= within)
        for value in (1, 2, 3):
            own = owners == value
            to_value = ndimage.distance_transform_edt(labels != value)[tuple(places[own].T)]
            np.testing.assert_allclose(distances[own], to_value)
    assert (distances == 5).any()  # which is within


def test_no_places_have_no_owners() -> None:
    assert len(nearest_labels(np.ones((2, 2, 2), np.uint8), np.zeros((0, 3), int), 5.0)) == 0


def test_the_nearest_of_a_few_centres_is_as_far_as_their_distances_say() -> None:
    rng = np.random.default_rng(0)
    points, centres = rng.uniform(-300, 300, (5000, 3)) + 1000, rng.uniform(-300, 300, (7, 3)) + 1000
    nearest, distances = nearest_points(points, centres)
    apart = np.linalg.norm(points[:, None] - centres, axis=2)
    assert np.array_equal(nearest, apart.argmin(axis=1))
    np.testing.assert_allclose(distances, apart.min(axis=1))
    assert nearest_points(points, centres[:1])[0].max() == 0
    assert len(nearest_points(points[:0], centres)[0]) == 0
