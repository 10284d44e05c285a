"""What Slicer shows of the module before it is opened. Nothing heavy is imported: Slicer starts with it."""

from __future__ import annotations

from slicer.i18n import tr as _

from segmamba import __version__


def helpText() -> str:
    """Return what the module does, for whom it is not, and its version."""
    return _(
        "Segments vertebrae in CT and MR, and colorectal cancer in CT, with the networks SpineMamba and "
        "SegMamba-V2: choose a volume and a task, then press Segment. The module Sample Data has volumes to try "
        "it with, in the category SegMambaSlicer. "
        "Research software, not a medical device: check every result, and do not use it for diagnosis or "
        "treatment. See the "
        '<a href="https://github.com/SegMambaSlicer/SlicerSegMambaSlicer">project page</a>. Version {version}.'
    ).format(version=__version__)


def acknowledgementText() -> str:
    """Return the papers of the networks."""
    return _(
        "The networks were described in: Z. Xing et al., SegMamba-V2, IEEE Transactions on Medical Imaging 2025, "
        '<a href="https://doi.org/10.1109/TMI.2025.3589797">doi:10.1109/TMI.2025.3589797</a>; and SpineMamba, '
        "Computerized Medical Imaging and Graphics 2025, 102531, "
        '<a href="https://arxiv.org/abs/2408.15887">arXiv:2408.15887</a>.'
    )
