"""Where things lie in the repository."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# The folder that the packages are imported from.
PACKAGES = REPOSITORY / "SegMambaSlicer"
HELPERS = REPOSITORY / "Testing" / "helpers"
