"""Which label is nearest, against a distance map of the whole grid."""

import numpy as np
from scipy import ndimage

from segmamba.spine.nearest import nearest_labels


def test_the_nearest_label_is_as_far_as_the_distance_map_says_and_lies_there() -> None:
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.random((24, 30, 26)), 2)
    labels = np.where(blobs > np.quantile(blobs, 0.9), 1 + (np.indices(blobs.shape)[0] // 8), 0)
    places = np.argwhere(labels == 0)[::7]
    owners, distances = nearest_labels(labels, places)
    np.testing.assert_allclose(distances, ndimage.distance_transform_edt(labels == 0)[tuple(places.T)])
    for value in (1, 2, 3):
        to_value = ndimage.distance_transform_edt(labels != value)[tuple(places[owners == value].T)]
        np.testing.assert_allclose(distances[owners == value], to_value)


def test_no_places_have_no_owners() -> None:
    owners, distances = nearest_labels(np.ones((2, 2, 2), np.uint8), np.zeros((0, 3), int))
    assert len(owners) == len(distances) == 0
