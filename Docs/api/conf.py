"""The API reference: ``make docs`` builds it from the docstrings into ``build/docs``, and takes warnings for errors."""

from segmamba import __version__

project = "SegMambaSlicer"
author = "SegMambaSlicer contributors"
release = __version__

extensions = ["sphinx.ext.apidoc", "sphinx.ext.autodoc", "numpydoc"]
apidoc_modules = [
    {
        "path": f"../../SegMambaSlicer/{package}",
        "destination": f"generated/{package}",
        "separate_modules": True,
        "module_first": True,
    }
    for package in ("segmamba", "segmamba_mrml")
]
# Built by few: documents do without it.
autodoc_mock_imports = ["mamba_ssm"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# `name` in a docstring is a reference where there is such a name, else code.
default_role = "py:obj"
# A class lists its attributes where its docstring says what they are, not a second time.
numpydoc_show_class_members = False
html_theme = "alabaster"
html_theme_options = {"description": "Segmentation of CT and MR with state-space networks", "page_width": "1100px"}
exclude_patterns = ["generated/*/modules.rst"]
