"""Measuring segmentations against references: Docs/evaluation.md. Needs no torch."""
