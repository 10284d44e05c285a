"""A Slicer application to test the module's panel in: the real MRML core, Qt as PythonQt shows it, and little else.

The scene, the nodes, the module logics and ``slicer.util`` are Slicer's own, from the pip package ``slicer-core``.
What only the application has (``qt``, ``ctk``, ``slicer.app``, the base classes of scripted modules, node selectors) is
stood in for by the modules of this folder, with the meaning it has in Slicer 5.12.
"""

from slicer_host.host import SlicerHost

__all__ = ["SlicerHost"]
