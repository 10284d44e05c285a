"""Measurements of segmented vertebrae: `vertebrae` gives the figures, `body` finds the vertebral body in a mask."""
