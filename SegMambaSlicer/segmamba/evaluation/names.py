"""The words for what can be chosen. Apart from the modules that act on them, because it needs no package."""

from __future__ import annotations

# What is compared: whole vertebrae, their bodies, or structures that are not numbered along a column.
WHOLE, BODIES, PLAIN = "whole vertebrae", "vertebral bodies", "structures"
# Numbering of a reference: that of our labels, or classes of TotalSegmentator v2.
OWN_IDS, TOTALSEGMENTATOR_IDS = "own", "totalsegmentator"
IDS = (OWN_IDS, TOTALSEGMENTATOR_IDS)
# A case as it is, and its perturbations.
NATIVE, THICK, SAGITTAL, NOISE, CROP, STORAGE, OBLIQUE = (
    "native",
    "thick",
    "sagittal",
    "noise",
    "crop",
    "storage",
    "oblique",
)
# Crops, by the number of vertebrae that they show.
CROPS = {CROP: 5, f"{CROP}7": 7, f"{CROP}9": 9}
PERTURBATIONS = (THICK, SAGITTAL, NOISE, *CROPS, STORAGE, OBLIQUE)
# Parts of a folder with a split.csv.
TRAIN, TEST = "train", "test"
PARTS = (TRAIN, TEST)
# What the bootstrap draws.
CASES, EACH = "cases", "structures"
RESAMPLES = (CASES, EACH)
