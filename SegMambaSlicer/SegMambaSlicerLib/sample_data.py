"""The volumes to try the module with, in Slicer's module Sample Data.

Slicer has them too, in categories of its own: addresses and checksums are those of Slicer 5.12's ``SampleData.py``, and
what was downloaded there already is not downloaded again.
"""

from __future__ import annotations

from slicer.util import TESTING_DATA_URL

CATEGORY = "SegMambaSlicer"
# Name in the module, file, node, SHA-256. The node's name also chooses the picture.
SAMPLES = (
    ("Chest CT", "CT-chest.nrrd", "CTChest", "4507b664690840abb6cb9af2d919377ffc4ef75b167cb6fd0f747befdb12e38e"),
    ("Abdomen CT", "CTLiver.nrrd", "CTLiver", "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"),
)


def registerSamples() -> None:
    """Add the category to the module Sample Data; samples that are there already are not added again."""
    from SampleData import SampleDataLogic

    for name, file, node, digest in SAMPLES:
        SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=name,
            uris=f"{TESTING_DATA_URL}SHA256/{digest}",
            fileNames=file,
            nodeNames=node,
            checksums=f"SHA256:{digest}",
        )
