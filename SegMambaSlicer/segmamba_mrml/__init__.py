"""SegMamba in the MRML scene: volume node in, segmentation node out.

Runs inside 3D Slicer and, the same code, on the pip package ``slicer-core``. Needs slicer, vtk, numpy and SimpleITK;
never imports torch or Qt: networks run in the worker process of `segmamba.worker.client`.
Importing this package imports nothing heavy.
"""
