"""The parts of the module's panel and of its console calls; `SegMambaSlicer` puts them together.

Nothing here is imported when Slicer starts, only when the module is opened or its logic is used.
"""
