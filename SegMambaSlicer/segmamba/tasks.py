"""The names of the tasks that code knows by name; a manifest may have others."""

# Its labels are the levels of the spine: they can be numbered, refined and measured.
VERTEBRAE_TASK = "vertebrae"
COLORECTAL_TASK = "colorectal"
