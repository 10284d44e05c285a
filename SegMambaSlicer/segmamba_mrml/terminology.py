"""Slicer's own term lists lack single vertebrae, so this module brings lists for all structures of the manifest.

``python -m segmamba_mrml.terminology`` writes them again after a change of the manifest's label sets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segmamba.errors import InstallationError
from segmamba.labels import ANATOMIC_CONTEXT, TERMINOLOGY_CONTEXT
from segmamba.models.resources import MANIFEST_NAME, resource_root

FOLDER = Path("Resources") / "Terminology"
TERMINOLOGY_FILE = "SegMambaSlicer-Terminology.json"
ANATOMIC_FILE = "SegMambaSlicer-AnatomicRegions.json"
# Slicer tells the two kinds of file apart by these addresses, letter by letter.
TERMINOLOGY_SCHEMA = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/segment-context-schema.json#"
ANATOMIC_SCHEMA = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/anatomic-context-schema.json#"
ANATOMICAL_STRUCTURE = "123037004"


def load_terminology() -> None:
    """Give the terms of this module to Slicer's terminology logic; where it has them already, nothing is done.

    Raises
    ------
    InstallationError
        The files are missing or Slicer cannot read them.
    """
    import slicer

    from segmamba_mrml.application import start

    start()
    logic = slicer.modules.terminologies.logic()
    if logic.IsTerminologyContextLoaded(TERMINOLOGY_CONTEXT):
        return
    for name in (TERMINOLOGY_FILE, ANATOMIC_FILE):
        if not logic.LoadContextFromFile(str(resource_root() / FOLDER / name)):
            raise InstallationError(f"The term list {name} is missing or damaged: install SegMambaSlicer again.")


def build_contexts(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return both term lists, by file name, for the label sets of a manifest as read from JSON.

    The anatomic regions are all structures, so that a tumour can be placed in any of them, and all regions.
    """
    entries = [entry for labels in manifest["label_sets"].values() for entry in labels]
    categories: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry in entries:
        scheme, value, _ = entry["category"]
        # A vertebra is its own region; only findings, such as a tumour, have a region to choose.
        empty = {**_code(entry["category"]), "showAnatomy": value != ANATOMICAL_STRUCTURE, "Type": []}
        category = categories.setdefault((scheme, value), empty)
        color = {"recommendedDisplayRGBValue": list(entry["color"])}
        category["Type"].append({**_code(entry["type"]), **color, "3dSlicerLabel": entry["name"]})
    structures = [entry["type"] for entry in entries if entry["category"][1] == ANATOMICAL_STRUCTURE]
    regions = structures + [entry["region"] for entry in entries if entry.get("region")]
    return {
        TERMINOLOGY_FILE: {
            "SegmentationCategoryTypeContextName": TERMINOLOGY_CONTEXT,
            "@schema": TERMINOLOGY_SCHEMA,
            "SegmentationCodes": {"Category": list(categories.values())},
        },
        ANATOMIC_FILE: {
            "AnatomicContextName": ANATOMIC_CONTEXT,
            "@schema": ANATOMIC_SCHEMA,
            "AnatomicCodes": {"AnatomicRegion": _unique(map(_code, regions))},
        },
    }


def write_contexts() -> None:
    """Write both term lists beside the manifest."""
    manifest = json.loads((resource_root() / MANIFEST_NAME).read_text(encoding="utf-8"))
    folder = resource_root() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in build_contexts(manifest).items():
        (folder / name).write_text(as_text(content), encoding="utf-8")


def as_text(content: Mapping[str, Any]) -> str:
    """Return a term list as the text of its file."""
    return json.dumps(content, indent=1) + "\n"


def _code(code: Iterable[str]) -> dict[str, str]:
    scheme, value, meaning = code
    return {"CodingSchemeDesignator": scheme, "CodeValue": value, "CodeMeaning": meaning}


def _unique(codes: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    return list({(code["CodingSchemeDesignator"], code["CodeValue"]): code for code in codes}.values())


if __name__ == "__main__":
    write_contexts()
