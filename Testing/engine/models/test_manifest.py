"""The manifest that comes with the software: valid, consistent, and true about the bundled files."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import tiny
from helpers.repository import PACKAGES

from segmamba.errors import ModelError
from segmamba.models.manifest import Postprocessing, chosen_labels, load_manifest
from segmamba.models.resources import resource_root
from segmamba.models.store import find, sha256
from segmamba.networks import build_network, parameter_count
from segmamba.networks.checkpoint import load_state_dict, load_weights
from segmamba.networks.identify import expected_shapes

ROOT = resource_root()
CONTENT = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
SCHEMA = json.loads((ROOT / "Resources/schemas/weights_manifest.schema.json").read_text(encoding="utf-8"))
BRATS = "segmamba-v2-brats2023-official"
BUNDLED = [model for model in load_manifest().models if model.file.bundled]


def test_the_manifest_obeys_its_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(CONTENT, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("change", "value"),
    [("channel_values", [0]), ("patch", [160, 96]), ("overlap", 1.0), ("limits", []), ("architecture", "unet")],
)
def test_the_schema_refuses_what_the_software_could_not_use(change: str, value: Any) -> None:
    broken = copy.deepcopy(CONTENT)
    broken["models"][0][change] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)


def test_a_bundled_file_without_a_hash_is_refused_by_the_schema() -> None:
    broken = copy.deepcopy(CONTENT)
    broken["models"][0]["file"]["sha256"] = None
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("change", [{"margin_threshold": {"label": 4, "high": 9.0}}, {"resample": "logits"}])
def test_a_margin_threshold_that_cannot_work_is_refused_when_a_manifest_is_loaded(change: Any, tmp_path: Path) -> None:
    broken = copy.deepcopy(CONTENT)
    next(entry for entry in broken["models"] if "margin_threshold" in entry).update(change)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(ModelError, match="a margin threshold for a label that it does not give"):
        load_manifest(path)


@pytest.mark.parametrize("name", ["licence", "memory_gib", "sha256"])
def test_a_null_without_its_reason_is_refused_by_the_schema(name: str) -> None:
    broken = copy.deepcopy(CONTENT)
    del next(entry["unknown"] for entry in broken["models"] if name in entry.get("unknown", {}))[name]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", ["patch", "preprocessing", "channel_values"])
def test_a_model_that_can_run_without_what_a_run_needs_is_refused_by_the_schema(name: str) -> None:
    broken = copy.deepcopy(CONTENT)
    broken["models"][0] |= {name: None, "unknown": {name: "Nobody knows."}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("model", load_manifest().listed, ids=lambda model: model.id)
def test_number_of_parameters_is_that_of_the_network(model: Any) -> None:
    shapes = expected_shapes(model.architecture, model.arguments)
    assert sum(math.prod(shape) for shape in shapes.values()) == model.entry["parameters"]


def test_released_brats_checkpoint_takes_four_volumes_in_its_authors_order() -> None:
    manifest = load_manifest()
    model = manifest.default("brain-tumour")
    assert (model.id, model.file.name) == (BRATS, "final_model_0.8388.pt")
    assert [channel.name for channel in model.input_channels] == ["t2w", "t2f", "t1n", "t1c"]
    assert model.arguments == {"in_channels": 4, "out_channels": 4}
    assert [(label.value, label.name.split()[0]) for label in model.labels] == [
        (1, "Necrotic"),
        (2, "Oedema"),
        (3, "Enhancing"),
    ]


def test_a_model_that_this_version_cannot_run_is_listed_and_cannot_be_chosen(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    next(entry for entry in content["models"] if entry["id"] == BRATS)["unsupported"] = "it needs a newer version."
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content))
    manifest = load_manifest(path)
    listed = manifest.entry(BRATS)
    assert listed.unsupported and listed not in manifest.models and listed.task not in manifest.tasks
    with pytest.raises(ModelError, match=r"cannot be used: it needs a newer version\."):
        manifest.model(BRATS)
    with pytest.raises(ModelError, match="no task 'brain-tumour'"):
        manifest.default(listed.task)


@pytest.mark.parametrize("change", [{"resample": "logits"}, {"channel_values": [0, 1, 2, 3]}])
def test_regions_with_what_does_not_go_with_them_are_refused_by_the_schema(change: Any) -> None:
    broken = copy.deepcopy(CONTENT)
    entry = next(entry for entry in broken["models"] if entry["id"] == BRATS)
    entry |= {"output": "regions", "channel_values": [2, 1, 3]}
    del entry["resample"]
    jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)
    entry |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)


def test_an_address_without_size_and_hash_is_refused_by_the_schema() -> None:
    broken = copy.deepcopy(CONTENT)
    file = next(entry["file"] for entry in broken["models"] if entry["file"]["bundled"] is None)
    file["urls"] = ["https://example.org/model.pt"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)
    file |= {"size": 1, "sha256": "0" * 64}
    jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", ["../model.pt", "a/b.pt", ".hidden", "a b.pt"])
def test_file_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    broken = copy.deepcopy(CONTENT)
    entry = next(entry for entry in broken["models"] if entry["file"]["bundled"] is None)
    entry["file"]["name"] = name
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(ModelError, match="letters, digits"):
        find(load_manifest(path).entry(entry["id"]))


def test_vertebrae_are_numbered_as_in_verse() -> None:
    names = {label.value: label.name.split()[0] for label in load_manifest().default("vertebrae").labels}
    expected = [f"C{i}" for i in range(1, 8)] + [f"T{i}" for i in range(1, 13)] + [f"L{i}" for i in range(1, 7)]
    assert names == dict(enumerate([*expected, "Sacrum"], start=1)) | {28: "T13"}
    # From the top down, wherever structures are listed.
    assert list(names.values())[18:21] == ["T12", "T13", "L1"]


def test_names_colours_and_codes_of_a_task_are_distinct() -> None:
    for labels in CONTENT["label_sets"].values():
        for key in ("value", "name", "color", "type"):
            values = [json.dumps(label[key]) for label in labels]
            assert len(set(values)) == len(values), key


def test_terminology_tags_have_seven_parts() -> None:
    for model in load_manifest().models:
        assert all(label.terminology_tag.count("~") == 6 for label in model.labels)


@pytest.mark.parametrize("model", BUNDLED, ids=lambda model: model.id)
def test_a_bundled_checkpoint_is_what_the_manifest_says(model: Any) -> None:
    path = ROOT / model.file.bundled
    assert path.stat().st_size == model.file.size <= 40e6
    assert sha256(path) == model.file.sha256
    network = build_network(model.architecture, **model.arguments)
    load_weights(network, load_state_dict(path))
    assert parameter_count(network) == model.entry["parameters"]


def test_each_task_has_a_model_and_unknown_names_are_refused_with_the_known_ones() -> None:
    manifest = load_manifest()
    assert manifest.tasks == ("vertebrae", "colorectal", "brain-tumour")
    with pytest.raises(ModelError, match="spinemamba"):
        manifest.model("nonsense")
    with pytest.raises(ModelError, match="vertebrae, colorectal"):
        manifest.default("nonsense")


def test_a_manifest_from_the_future_asks_for_an_update(tmp_path: Path) -> None:
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps(CONTENT | {"schema_version": 3}))
    with pytest.raises(ModelError, match="has schema version 3 and this software reads 2: update"):
        load_manifest(path)


def test_a_manifest_of_an_older_version_is_one_clear_sentence(tmp_path: Path) -> None:
    path = tmp_path / "weights_manifest.json"
    path.write_text(json.dumps({"schema_version": 1, "label_sets": {}, "models": [{"keep": "all"}]}))
    with pytest.raises(ModelError, match="has schema version 1 and this software reads 2: rename its keys"):
        load_manifest(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 2}'])
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "weights_manifest.json"
    path.write_text(text)
    with pytest.raises(ModelError, match="damaged"):
        load_manifest(path)


def test_a_file_that_is_no_text_is_one_short_sentence(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(bytes(range(256)) * 1000)
    with pytest.raises(ModelError, match="check the file") as caught:
        load_manifest(path)
    assert len(str(caught.value)) < 300


def test_an_unknown_post_processing_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = tiny.write_model(tmp_path, postprocessing="best")
    with pytest.raises(ModelError, match=r"'tiny-spine' asks for the postprocessing 'best'.*largest_column, bowel"):
        load_manifest(path)


def test_the_schema_names_every_post_processing() -> None:
    names = SCHEMA["$defs"]["model"]["properties"]["postprocessing"]["enum"]
    assert set(names) == {rule.value for rule in Postprocessing} | {None}


def test_a_missing_manifest_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_manifest(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["L1", "l1 vertebra", " 20 "])
def test_a_structure_is_chosen_by_name_first_word_or_value(name: str) -> None:
    chosen = chosen_labels(load_manifest().default("vertebrae"), [name, ""])
    assert [label.value for label in chosen] == [20]


def test_choosing_no_structure_is_an_error() -> None:
    with pytest.raises(ModelError, match="choose from"):
        chosen_labels(load_manifest().default("vertebrae"), [""])


def test_an_installation_beside_its_shared_files_finds_them(tmp_path: Path) -> None:
    package = PACKAGES / "segmamba"
    (tmp_path / "segmamba" / "models").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "models/__init__.py", "models/resources.py"):
        shutil.copy(package / name, tmp_path / "segmamba" / name)
    shared = tmp_path / "share" / "segmamba"
    shared.mkdir(parents=True)
    (shared / "weights_manifest.json").write_text("{}")
    code = "from segmamba.models.resources import resource_root; print(resource_root())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.strip() == str(shared)
