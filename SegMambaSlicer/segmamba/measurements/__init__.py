"""Measurements of segmented vertebrae: `vertebrae` makes the table, `vertebral_body` finds the body in a mask."""
