"""The term lists, and what Slicer's terminology logic makes of our tags with them."""

from __future__ import annotations

import json

import pytest
import slicer
import vtk

from segmamba.labels import ANATOMIC_CONTEXT, TERMINOLOGY_CONTEXT
from segmamba.models.manifest import load_manifest
from segmamba.models.resources import MANIFEST_NAME, resource_root
from segmamba_mrml.terminology import FOLDER, as_text, build_contexts, load_terminology

LABELS = {label.terminology_tag: label for model in load_manifest().models for label in model.labels}


def test_files_are_those_that_the_manifest_gives():
    manifest = json.loads((resource_root() / MANIFEST_NAME).read_text(encoding="utf-8"))
    for name, content in build_contexts(manifest).items():
        on_disk = (resource_root() / FOLDER / name).read_text(encoding="utf-8")
        assert on_disk == as_text(content), "run: python -m segmamba_mrml.terminology"


def test_every_structure_of_every_label_set_has_its_own_code():
    manifest = json.loads((resource_root() / MANIFEST_NAME).read_text(encoding="utf-8"))
    for labels in manifest["label_sets"].values():
        codes = [tuple(entry["type"][:2]) for entry in labels]
        assert len(set(codes)) == len(codes)


def test_loading_again_changes_nothing(a_slicer_scene):
    load_terminology()
    before = _context_names()
    load_terminology()
    assert _context_names() == before
    assert TERMINOLOGY_CONTEXT in before and ANATOMIC_CONTEXT in before


@pytest.mark.parametrize("label", LABELS.values(), ids=lambda label: label.name)
def test_slicer_finds_name_colour_and_region_of_each_tag(a_slicer_scene, label):
    load_terminology()
    logic = slicer.modules.terminologies.logic()
    entry = slicer.vtkSlicerTerminologyEntry()
    assert logic.DeserializeTerminologyEntry(label.terminology_tag, entry)
    assert logic.UpdateEntryFromLoadedTerminologies(entry, [], [])
    assert entry.GetTerminologyContextName() == TERMINOLOGY_CONTEXT
    assert entry.GetCategoryObject().GetCodeMeaning() == label.category.meaning
    assert entry.GetTypeObject().GetCodeMeaning() == label.type.meaning
    assert entry.GetTypeObject().GetRecommendedDisplayRGBValue() == label.color
    assert entry.GetRegionObject().GetCodeMeaning() == (label.region.meaning if label.region else None)
    assert logic.SerializeTerminologyEntry(entry) == label.terminology_tag


def test_region_of_a_tumour_is_in_the_list_to_choose_from(a_slicer_scene):
    load_terminology()
    logic = slicer.modules.terminologies.logic()
    region = slicer.vtkSlicerTerminologyType()
    names = set()
    for index in range(logic.GetNumberOfRegionsInRegionContext(ANATOMIC_CONTEXT)):
        assert logic.GetNthRegionInRegionContext(ANATOMIC_CONTEXT, index, region)
        names.add(region.GetCodeMeaning())
    assert {"Colon", "Rectum", "L3 vertebra"} <= names


def _context_names():
    logic, terms, regions = slicer.modules.terminologies.logic(), vtk.vtkStringArray(), vtk.vtkStringArray()
    logic.GetLoadedTerminologyNames(terms)
    logic.GetLoadedRegionContextNames(regions)
    return [names.GetValue(index) for names in (terms, regions) for index in range(names.GetNumberOfValues())]
