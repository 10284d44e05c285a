"""The tissue labels of tissue label maps.

Labels 1 to 26 are vertebrae (VerSe numbering: C1-C7 = 1-7, T1-T12 = 8-19, L1-L6 = 20-25, sacrum = 26).
TotalSegmentator's (v2) other structures keep their class id plus ``ORGAN_OFFSET``.
"""

from __future__ import annotations

SPACING = 1.5  # mm, isotropic: the grid of all tissue label maps, that of the TotalSegmentator data set
VERTEBRAE = 26
ORGAN_OFFSET = 26
AIR, FAT, MUSCLE, SOFT, DISC, OUTSIDE = 0, 150, 151, 152, 153, 255  # OUTSIDE: not in the field of view
LAST_TISSUE = DISC
# TotalSegmentator's (v2) own classes: the last one, and those of the spine, which come from the vertebrae's label map.
LAST_ORGAN = 117
VERTEBRA_CLASSES = range(25, 51)


def organ(class_id: int) -> int:
    """Return the label of a TotalSegmentator v2 class."""
    return class_id + ORGAN_OFFSET


SPLEEN, KIDNEY, LIVER, STOMACH, SMALL_BOWEL, COLON = (organ(i) for i in (1, 2, 5, 6, 18, 20))
LUNG, TRACHEA, HEART, AORTA, CAVA = (organ(i) for i in (10, 16, 51, 52, 63))
SCAPULA, CLAVICLE, CORD, BRAIN, SKULL = (organ(i) for i in (71, 73, 79, 90, 91))
CARTILAGE = organ(117)
LIMB_BONES = range(organ(69), organ(78) + 1)
LEFT_RIBS, RIGHT_RIBS = range(organ(92), organ(103) + 1), range(organ(104), organ(115) + 1)
RIBS = range(organ(92), organ(115) + 1)
FIRST_THORACIC, LAST_THORACIC = 8, 19
RIBS_AND_STERNUM = range(organ(92), organ(116) + 1)
BOWEL = tuple(organ(i) for i in (6, 18, 19, 20))  # stomach, small bowel, duodenum, colon
BONES = (*range(1, VERTEBRAE + 1), *LIMB_BONES, *RIBS_AND_STERNUM, SKULL)


def rib_level(label: int) -> int:
    """Return the level of the thoracic vertebra that bears a rib: 8 for both first ones, to 19."""
    return FIRST_THORACIC + (label - LEFT_RIBS.start) % len(LEFT_RIBS)
