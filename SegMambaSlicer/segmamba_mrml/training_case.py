"""A corrected segmentation and its volume as a case to train on, in a folder in nnU-Net's layout.

``segmamba train FOLDER`` reads such a folder, and so does every program that reads nnU-Net's data sets.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

import segmamba
from segmamba.errors import InputError, OutputError
from segmamba.inference.channels import on_grid
from segmamba.io.modality import resolve_modality
from segmamba.io.volume import Volume, to_image
from segmamba.labels import Label
from segmamba.models.settings import user_folder
from segmamba.utils.atomic import atomic_write
from segmamba_mrml.reports import channel_nodes, parts, read_report
from segmamba_mrml.segmentation import segment_ids, type_code
from segmamba_mrml.volumes import volume_of

DESCRIPTION, BACKGROUND = "dataset.json", "background"
# The key of what was drawn in each case, see `segmamba.training.dataset.partial`.
LABELLED = "labelled"
IMAGES, LABELS, PROVENANCE = "imagesTr", "labelsTr", "provenance"
ENDING = ".nii.gz"
# Structures that the model does not have get values from here on.
FIRST_OWN_VALUE, LAST_VALUE = 100, 254
NAME_LENGTH = 10


def save_training_case(
    segmentation_node: Any,
    volume_node: Any,
    folder: Path | str,
    structures: Sequence[Label],
    replace: bool = False,
) -> str:
    """Save a volume and its segmentation as they are now, and return the case's name.

    Of a model that takes several volumes, all are saved, on this one's grid.

    What counts as labelled in it: the structures that the run was to find, and all that have a segment. Others may be
    there, and ``dataset.json`` says so (`LABELLED`): a training takes them for unknown, not for background.

    The name says nothing of the patient, but is the same for all volumes of one: ``sub-`` and a code that only this
    computer user can make again. Nothing else of a DICOM header is saved.

    Parameters
    ----------
    segmentation_node : vtkMRMLSegmentationNode
    volume_node : vtkMRMLScalarVolumeNode
        What was segmented.
    folder : Path or str
        Of the data set; it is made if it is not there.
    structures : sequence of Label
        Of the model: segments of their codes get their names and values. Other segments are structures of their own.
    replace : bool
        Take the place of an earlier case of the same image.

    Raises
    ------
    InputError
        There is nothing to save, the folder is of other images or labels, it has the same image already (`saved_case`
        tells), or one of several volumes is gone.
    OutputError
        The folder cannot be written.
    """
    volume, folder = volume_of(volume_node), Path(folder)
    images = _images(segmentation_node, volume_node, volume)
    digest = image_digest(volume)
    earlier = saved_case(folder, digest)
    if earlier and not replace:
        raise InputError(
            f"This image is in {folder} already, as {earlier}: replace that case, or choose another folder."
        )
    description = _read_description(folder, list(images))
    labels, values = labels_on_volume(segmentation_node, volume_node, structures, description["labels"])
    name = earlier or _new_name(folder, person_code(volume_node, digest))
    drawn = {structure for structure, value in values.items() if (labels == value).any()}
    provenance = {"case": name, "image_sha256": digest} | _provenance(segmentation_node, structures, drawn)
    try:
        for part in (IMAGES, LABELS, PROVENANCE):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}): choose another folder.") from error
    for number, array in enumerate(images.values()):
        _write(array, volume, folder / IMAGES / f"{name}_{number:04}{ENDING}")
    _write(labels, volume, folder / LABELS / f"{name}{ENDING}")
    description["labels"] = {BACKGROUND: 0, **values}
    description["numTraining"] = len(list((folder / LABELS).glob(f"*{ENDING}")))
    # The description last: a case that it does not count yet is one more file, never a broken data set.
    _write_json(provenance, folder / PROVENANCE / f"{name}.json")
    described = {case: [n for n in known if n in values] for case, known in _labelled(folder).items()}
    description[LABELLED] = description.get(LABELLED, {}) | described
    _write_json(description, folder / DESCRIPTION)
    return name


def _provenance(segmentation_node: Any, structures: Sequence[Label], drawn: set[str]) -> dict[str, Any]:
    """Return where the labels come from, what was looked for, and which structures there are."""
    reports = parts(read_report(segmentation_node))
    model = reports[0].get("model", {})
    looked_for = {label.name for part in reports for label in _looked_for(part, structures)}
    return {
        "saved": date.today().isoformat(),
        "software": f"SegMambaSlicer {segmamba.__version__}",
        "model": {key: model.get(key) for key in ("id", "version", "checkpoint_sha256")},
        "labelled": sorted(looked_for | set(_segment_names(segmentation_node, structures).values())),
        "structures": sorted(drawn),
    }


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    with atomic_write(path, (".json",)) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _looked_for(report: Mapping[str, Any], structures: Sequence[Label]) -> list[Label]:
    """Return the structures that a run was to find: none without a run."""
    if "run" not in report:
        return []
    asked = (report["run"].get("options") or {}).get("structures")
    if asked is None:
        return list(structures)
    keys = {str(key).strip().casefold() for key in asked}
    return [s for s in structures if keys & {s.name.casefold(), s.name.split()[0].casefold(), str(s.value)}]


def _labelled(folder: Path) -> dict[str, list[str]]:
    """Return what counts as labelled in each case that was saved here."""
    found = {path.stem: _read_json(path).get("labelled") for path in sorted((folder / PROVENANCE).glob("*.json"))}
    return {case: names for case, names in found.items() if isinstance(names, list)}


def _read_json(path: Path) -> dict[str, Any]:
    """Return an object from a file; an empty one where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def saved_case(folder: Path | str, digest: str) -> str:
    """Return the name of the case in a folder that has the image of a digest, or an empty text."""
    for path in sorted((Path(folder) / PROVENANCE).glob("*.json")):
        if _read_json(path).get("image_sha256") == digest:
            return path.stem
    return ""


def image_digest(volume: Volume) -> str:
    """Return what only the same voxels have, as hexadecimal text."""
    return hashlib.sha256(np.ascontiguousarray(volume.array).tobytes()).hexdigest()


def labels_on_volume(
    segmentation_node: Any, volume_node: Any, structures: Sequence[Label], known: Mapping[str, int]
) -> tuple[np.ndarray, dict[str, int]]:
    """Return a segmentation as one label map on a volume's grid, and the value of each structure's name.

    Parameters
    ----------
    segmentation_node, volume_node, structures
        See `save_training_case`.
    known : mapping of str to int
        Values that the data set gives names already; they stay.

    Returns
    -------
    labels : ndarray of uint8, shape (z, y, x)
        Where segments overlap, the later one counts.
    values : dict of str to int
        Of all structures of the data set, those of ``known`` with them, in ascending order.

    Raises
    ------
    InputError
        No voxel is labelled, or there are more structures than a label map has values.
    """
    by_name = {label.name: label for label in structures}
    values = {name: value for name, value in known.items() if value}
    labels = np.zeros(slicer.util.arrayFromVolume(volume_node).shape, np.uint8)
    for identifier, name in _segment_names(segmentation_node, structures).items():
        label = by_name.get(name)
        if name not in values:
            values[name] = _free_value(label.value if label else FIRST_OWN_VALUE, values, segmentation_node)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation_node, identifier, volume_node)
        if mask is not None:
            labels[mask > 0] = values[name]
    if not labels.any():
        raise InputError(
            f"'{segmentation_node.GetName()}' labels no voxel of '{volume_node.GetName()}': segment it first."
        )
    return labels, dict(sorted(values.items(), key=lambda item: item[1]))


def _segment_names(segmentation_node: Any, structures: Sequence[Label]) -> dict[str, str]:
    """Return the name of each segment's structure: that of its code, else the segment's own."""
    by_code = {(label.type.scheme, label.type.value): label.name for label in structures}
    segmentation = segmentation_node.GetSegmentation()
    segments = {identifier: segmentation.GetSegment(identifier) for identifier in segment_ids(segmentation_node)}
    return {identifier: by_code.get(type_code(one), one.GetName()) for identifier, one in segments.items()}


def person_code(volume_node: Any, otherwise: str) -> str:
    """Return a code for the patient of a volume; without DICOM for ``otherwise``, which only the same image has.

    It is made with a secret that stays in the user's settings: from the code alone nobody finds the patient's ID.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume_node.GetScene())
    item = hierarchy.GetItemByDataNode(volume_node) if hierarchy else 0
    key = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMPatientIDAttributeName()
    patient = hierarchy.GetAttributeFromItemAncestor(item, key) if item else ""
    code = hmac.new(_secret(), (patient or otherwise).encode(), hashlib.sha256).hexdigest()
    return f"sub-{code[:NAME_LENGTH]}"


def _secret() -> bytes:
    path = user_folder("XDG_CONFIG_HOME", ".config") / "training-secret"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        return path.read_bytes()
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): check the folder's permissions.") from error


def _images(segmentation_node: Any, volume_node: Any, volume: Volume) -> dict[str, np.ndarray]:
    """Return what is saved of a case by the names of the channels: (z, y, x), on the grid of the volume."""
    nodes = channel_nodes(segmentation_node)
    if not nodes:
        return {resolve_modality(volume).modality or "MR": volume.array}
    gone = [name for name, node in nodes.items() if node is None]
    if gone:
        raise InputError(f"The volume of channel {gone[0]} is not in the scene: load it and segment again.")
    volumes = {name: volume if node is volume_node else volume_of(node) for name, node in nodes.items()}
    return {name: on_grid(one, volume.geometry, float(one.array.min())) for name, one in volumes.items()}


def _read_description(folder: Path, channels: Sequence[str]) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        labels = {BACKGROUND: 0}
        names = {str(number): name for number, name in enumerate(channels)}
        return {"name": folder.name, "channel_names": names, "labels": labels, "file_ending": ENDING}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        there, labels = list(content["channel_names"].values()), content["labels"]
        plain = all(isinstance(value, int) for value in labels.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not describe a data set of nnU-Net's layout: choose another folder.") from error
    if there != list(channels) or not plain or content.get("file_ending", ENDING) != ENDING:
        raise InputError(
            f"{folder} is of other images ({', '.join(there)}): choose another folder for {', '.join(channels)}."
        )
    return content


def _new_name(folder: Path, person: str) -> str:
    number = 1
    while (folder / LABELS / f"{person}_{number:02}{ENDING}").exists():
        number += 1
    return f"{person}_{number:02}"


def _free_value(wanted: int, values: Mapping[str, int], node: Any) -> int:
    taken = set(values.values())
    free = [value for value in (wanted, *range(FIRST_OWN_VALUE, LAST_VALUE + 1)) if value not in taken]
    if not free:
        raise InputError(f"'{node.GetName()}' has more structures than a label map has values: remove some segments.")
    return free[0]


def _write(array: np.ndarray, volume: Volume, path: Path) -> None:
    with atomic_write(path, (ENDING,)) as file:
        sitk.WriteImage(to_image(np.ascontiguousarray(array), volume.geometry), str(file), useCompression=True)
