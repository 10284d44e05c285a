"""Measurements of segmented vertebrae: `vertebrae` gives the table, `vertebral_body` finds the body in a mask."""
