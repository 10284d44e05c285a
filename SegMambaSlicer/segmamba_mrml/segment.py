"""The whole job in the scene: a volume node goes to the worker process, a segmentation node comes back.

`SegmentationCase` holds its parts, before and after the worker, for callers that do not wait in between;
`segment_volume_node` does all of it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from segmamba.errors import InputError, OutputError
from segmamba.inference.channels import in_order
from segmamba.inference.file_to_file import requested_model
from segmamba.inference.outputs import isotropic_path
from segmamba.io.stored_grid import labels_as_stored, resampled
from segmamba.io.volume import Volume
from segmamba.models.manifest import Model
from segmamba.request import Request
from segmamba.worker.client import WorkerProcess
from segmamba_mrml.anchors import centroids
from segmamba_mrml.answers import ANSWERS, add_answers
from segmamba_mrml.application import start, worker_python
from segmamba_mrml.reports import REPORT_ATTRIBUTE, kept_parts, refer_to_channels, write_report
from segmamba_mrml.segmentation import (
    LabelBox,
    check_segmentation,
    label_box,
    read_labels,
    segment_ids,
    segments_in_steps,
)
from segmamba_mrml.slices import stored_volume
from segmamba_mrml.terminology import load_terminology
from segmamba_mrml.volumes import roi_box, write_volume

# Parts of a report that are measured, and that edits make wrong.
MEASURED = ("measurements", "curves", "bone", "look_first")
RESAMPLED = (
    "The slices of '{}' are tilted, sheared or at uneven distances: it was resampled for the run, and the segments lie "
    "on its own voxels."
)
OWN_VOXELS = (
    "The slices of '{}' are tilted, sheared or at uneven distances: the segments have no finer voxels than these."
)
RESAMPLED_CHANNEL = "The slices of '{}' are tilted, sheared or at uneven distances: it was resampled for the run."
__all__ = ["REPORT_ATTRIBUTE", "SegmentationCase", "segment_volume_node"]


class SegmentationCase:
    """One volume node on its way to a segmentation node; the files in between live as long as this object.

    Parameters
    ----------
    volume_node : vtkMRMLScalarVolumeNode
        CT or MR volume, also under a linear transform.
    request : Request
        Task or model and options. Its paths are not used; ``overwrite`` removes what the output node holds, once the
        new segments are there.
    output_node : vtkMRMLSegmentationNode, optional
        Node to add the segments to. By default a new one.
    channels : mapping of str to vtkMRMLScalarVolumeNode, optional
        For a model that takes several co-registered volumes: those besides ``volume_node``, by the model's names.
    levels_node : vtkMRMLSegmentationNode, optional
        Another segmentation of the patient, whose vertebrae say which levels these are.

    Attributes
    ----------
    request : Request
        For the worker.

    Raises
    ------
    SegMambaError
        The node, the model or the region does not suit; nothing was changed.
    """

    def __init__(
        self,
        volume_node: Any,
        request: Request,
        output_node: Any = None,
        channels: Mapping[str, Any] | None = None,
        levels_node: Any = None,
    ) -> None:
        # Held until `close`, so that the voxels do not go while another thread writes them.
        self._volume: Volume | None
        self._volume, self._stored = stored_volume(volume_node)
        # Where the labels lie, of a volume that was resampled.
        self._geometry = self._volume.geometry
        self._channel_nodes = dict(channels or {})
        self._channels = {name: stored_volume(node) for name, node in self._channel_nodes.items()}
        start(volume_node.GetScene())
        if output_node is not None:
            check_segmentation(output_node, volume_node)
        places = centroids(levels_node) if levels_node is not None else {}
        self._volume_node = volume_node
        self._output_node = output_node
        self._levels_node = levels_node
        self._model = requested_model(request)
        check_nodes(in_order(self._model, volume_node, self._channel_nodes), self._model)
        self._box: LabelBox | None = None
        # Such a volume's transform need not have an inverse that keeps a grid.
        self._coarse = self._stored is not None and request.options.output_spacing is not None
        if self._coarse:
            request = replace(request, options=replace(request.options, output_spacing=None))
        self._stopped = threading.Event()
        try:
            # The user's own alone: it will hold the patient's volume.
            self._folder = tempfile.TemporaryDirectory(prefix="segmamba-", ignore_cleanup_errors=True)
        except OSError as error:
            raise OutputError(
                f"No temporary folder can be created ({error.strerror}): free some space, or change TMPDIR."
            ) from error
        folder = Path(self._folder.name)
        files = str(folder / "input.nrrd"), str(folder / "labels.nrrd")
        others = {name: str(folder / f"channel-{number}.nrrd") for number, name in enumerate(self._channel_nodes)}
        self.request = replace(request, input=files[0], output=files[1], channels=others or None)
        # Asked for by any name: here they become volumes of the scene.
        asked: dict[str, Any] = {
            name: str(folder / f"{name}.nrrd") for name in ANSWERS if getattr(request, name) is not None
        }
        self.request = replace(self.request, **asked)
        self._answers: dict[str, Any] = {}
        if levels_node is not None:
            levels = folder / "levels.json"
            levels.write_text(json.dumps(places), encoding="utf-8")
            self.request = replace(self.request, options=replace(request.options, levels_from=str(levels)))

    def named(self, sentence: str) -> str:
        """Return a sentence of the engine's with the volumes' names for the files that were made of them."""
        for file, node in self._nodes_by_file().items():
            sentence = sentence.replace(file, f"'{node.GetName()}'")
        return sentence

    def _nodes_by_file(self) -> dict[str, Any]:
        others = self.request.channels or {}
        found = {self.request.input: self._volume_node}
        if self._levels_node is not None:
            found[str(self.request.options.levels_from)] = self._levels_node
        return found | {others[name]: self._channel_nodes[name] for name in others}

    def export(self) -> None:
        """Write the file that the worker reads; touches no node, so that any thread can do it.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        assert self._volume is not None
        volume = self._volume
        if self._stored is not None:
            volume = resampled(volume, self._stored, "")
            self._geometry = volume.geometry
        write_volume(volume, self.request.input, self._stopped.is_set)
        for name, file in (self.request.channels or {}).items():
            other, stored = self._channels[name]
            write_volume(other if stored is None else resampled(other, stored, ""), file, self._stopped.is_set)

    def read(self) -> None:
        """Read the file that the worker wrote; touches no node, so that any thread can do it.

        Raises
        ------
        InputError
            The file cannot be read.
        """
        asked = {name: getattr(self.request, name) for name in ANSWERS}
        self._answers = {name: sitk.ReadImage(file) for name, file in asked.items() if file is not None}
        if self.request.options.output_spacing is not None:
            self._box = label_box(isotropic_path(self.request.output), own_grid=True)
        elif self._stored is None:
            self._box = label_box(self.request.output)
        else:
            labels = read_labels(self.request.output)
            self._box = label_box(labels_as_stored(labels, self._geometry, self._stored))

    def noted(self, report: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's report, with what was done to the volume before it."""
        notes = [] if self._stored is None else [RESAMPLED.format(self._volume_node.GetName())]
        notes += [OWN_VOXELS.format(self._volume_node.GetName())] if self._coarse else []
        notes += [
            RESAMPLED_CHANNEL.format(self._channel_nodes[name].GetName())
            for name, (_volume, stored) in self._channels.items()
            if stored is not None
        ]
        if not notes:
            return report
        return {**report, "run": {**report["run"], "warnings": [*notes, *report["run"]["warnings"]]}}

    def stop(self) -> None:
        """Let a thread that is in `export` come to its end soon."""
        self._stopped.set()

    def close(self) -> None:
        """Delete the files, and let go of the voxels."""
        self._folder.cleanup()
        self._volume = self._box = None
        self._answers = {}
        self._channels = {}

    def finish(self, report: dict[str, Any]) -> Any:
        """Take the worker's result into the scene at once and return the segmentation node; as `finish_in_steps`."""
        self.read()
        node = None
        for each in self.finish_in_steps(report):
            node = each
        return node

    def finish_in_steps(self, report: dict[str, Any]) -> Generator[Any, None, None]:
        """Take what `read` has read into the scene, and pause (yield the segmentation node) after each segment.

        An iterator that is closed before its end, or that raises, leaves the scene as it was.

        Parameters
        ----------
        report : dict
            The worker's. The node's attribute ``SegMamba.Report`` holds it as JSON, with each segment's
            ``segment_id`` in the node, and in ``earlier`` those of the runs whose segments the node has kept.

        Raises
        ------
        InputError
            The volume or the output is gone from the scene.
        """
        assert self._box is not None
        self._check_still_there(self._volume_node, self._output_node)
        load_terminology()
        name = f"{self._volume_node.GetName()} {self._model.task}"
        before = segment_ids(self._output_node) if self._output_node is not None else []
        steps = segments_in_steps(self._box, self._volume_node, self._model.labels, name, self._output_node)
        known, added = set(before), []
        with contextlib.closing(steps):
            for node in steps:
                added += [identifier for identifier in segment_ids(node) if identifier not in known]
                yield node
                self._check_still_there(self._volume_node, node)
                # A person may have added one of their own meanwhile.
                known = set(segment_ids(node))
        if self.request.overwrite:
            for identifier in before:
                node.GetSegmentation().RemoveSegment(identifier)
        rows = [
            {**row, "segment_id": identifier}
            for row, identifier in zip(report.get("segments", []), added, strict=False)
        ]
        # The worker saw temporary files that are gone by now.
        names: dict[str, Any] = {"input": self._volume_node.GetName(), "output": node.GetName()}
        if "isotropic" in report:
            names["isotropic"] = {**report["isotropic"], "output": node.GetName()}
        if "channels" in report:
            known_nodes = self._nodes_by_file()
            channels = {name: known_nodes[file] for name, file in report["channels"].items()}
            refer_to_channels(node, channels)
            names["channels"] = {name: volume_node.GetName() for name, volume_node in channels.items()}
        earlier = kept_parts(node)
        for name in ANSWERS:
            if name in report:
                names[name] = {**report[name], "output": node.GetName()}
        # Measurements are made of the segments as they are (`segmamba_mrml.measurements`): edits make these wrong.
        lasting = {key: value for key, value in report.items() if key not in MEASURED}
        if self._levels_node is not None:
            run = report["run"]
            lasting["run"] = {**run, "options": {**run["options"], "levels_from": self._levels_node.GetName()}}
        written = {**lasting, **names, "segments": rows} | ({"earlier": earlier} if earlier else {})
        write_report(node, written, added)
        add_answers(self._answers, written, self._volume_node)

    @staticmethod
    def _check_still_there(*nodes: Any) -> None:
        """Somebody may have deleted a node or closed the scene while the worker was busy, or between two steps."""
        if any(node is not None and node.GetScene() is None for node in nodes):
            raise InputError("The volume or the output was removed from the scene: load it and start again.")


def check_nodes(nodes: Sequence[Any], model: Model) -> None:
    """Refuse one volume node for two channels of a model.

    Raises
    ------
    InputError
    """
    seen: dict[str, str] = {}
    for node, channel in zip(nodes, model.input_channels, strict=False):
        other = seen.setdefault(node.GetID(), channel.name)
        if other != channel.name:
            raise InputError(
                f"'{node.GetName()}' is chosen for both channels '{other}' and '{channel.name}': choose one for each."
            )


def segment_volume_node(
    volume_node: Any,
    task: str | None = None,
    output_node: Any = None,
    roi_node: Any = None,
    progress: Callable[[str, float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> Any:
    """Segment a volume of the scene in a worker process and add the result to the scene.

    Parameters
    ----------
    volume_node : vtkMRMLScalarVolumeNode
        CT or MR volume, also under a linear transform.
    task : str, optional
        "vertebrae", "colorectal" or "brain-tumour"; not needed with the option ``model``.
    output_node : vtkMRMLSegmentationNode, optional
        Node to add the segments to; what it holds is kept. By default a new one.
    roi_node : vtkMRMLMarkupsROINode, optional
        Region to segment; by default the whole volume.
    progress : callable, optional
        Called with the stage's name and the fraction done (0 to 1).
    cancelled : callable, optional
        Called several times a second; the job stops when it returns True.
    **options
        ``channels``: for a model that takes several co-registered volumes, the other volume nodes by its names. Else
        those of `segmamba.request`, for example ``model="spinemamba"``, ``device="cpu"``.

    Returns
    -------
    vtkMRMLSegmentationNode
        Its attribute ``SegMamba.Report`` holds the engine's report as JSON.

    Raises
    ------
    SegMambaError
        One of its kinds, with a sentence that says what to do. The scene is then as it was.
    """
    if roi_node is not None:
        options["roi"] = roi_box(roi_node)
    channels = options.pop("channels", None)
    case = SegmentationCase(volume_node, Request.of(task=task, **options), output_node, channels)
    try:
        case.export()
        with WorkerProcess(python=worker_python()) as worker:
            report = worker.run(case.request, progress, cancelled)
        return case.finish(case.noted(report))
    finally:
        case.close()
