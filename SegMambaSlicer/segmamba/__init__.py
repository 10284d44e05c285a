"""SegMamba engine: segmentation of CT and MR volumes with SegMamba-V2 and SpineMamba.

Needs numpy, SimpleITK, scipy and (to run a network) torch. Knows nothing of Slicer.
Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
