"""The whole job in the scene: a volume node goes to the worker process, a segmentation node comes back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segmamba.errors import InputError
from segmamba.files import Options, Request, requested_model
from segmamba.job import Worker
from segmamba_mrml.host import worker_python
from segmamba_mrml.segmentation import check_segmentation, segmentation_from_labels
from segmamba_mrml.terminology import load_terminology
from segmamba_mrml.volumes import check_volume, export_volume, roi_box

# An attribute and not a text node: it goes where the segmentation goes (copies, the saved scene, the bin) and adds
# nothing to the Data tree that a clinician has to tidy up.
REPORT_ATTRIBUTE = "SegMamba.Report"


def segment_volume_node(
    volume_node: Any,
    task: str,
    model: str | None = None,
    output_node: Any = None,
    roi_node: Any = None,
    device: str = "auto",
    manifest: Path | None = None,
    progress: Callable[[str, float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Any:
    """Segment a volume of the scene in a worker process and add the result to the scene.

    Parameters
    ----------
    volume_node : vtkMRMLScalarVolumeNode
        CT or MR volume, also under a linear transform.
    task : str
        "vertebrae" or "colorectal".
    model : str, optional
        ID of a model of that task; by default the task's first one.
    output_node : vtkMRMLSegmentationNode, optional
        Node to add the segments to; what it holds is kept. By default a new one.
    roi_node : vtkMRMLMarkupsROINode, optional
        Region to segment; by default the whole volume.
    device : str
        "auto", "cpu", "cuda" or "mps".
    manifest : Path, optional
        A manifest of the user's own; by default the one that comes with the software.
    progress : callable, optional
        Called with the stage's name and the fraction done (0 to 1).
    cancelled : callable, optional
        Called several times a second; the job stops when it returns True.

    Returns
    -------
    vtkMRMLSegmentationNode
        Its attribute ``SegMamba.Report`` holds the engine's report as JSON.

    Raises
    ------
    SegMambaError
        One of its kinds, with a sentence that says what to do. The scene is then as it was.
    """
    check_volume(volume_node)
    if output_node is not None:
        check_segmentation(output_node, volume_node)
    with tempfile.TemporaryDirectory(prefix="segmamba-") as folder:
        request = Request(
            input=str(Path(folder) / "input.nrrd"),
            output=str(Path(folder) / "labels.nrrd"),
            task=task,
            model=model,
            manifest=str(manifest) if manifest else None,
            options=Options(device=device, roi=roi_box(roi_node) if roi_node else None),
        )
        structures = requested_model(request).labels
        export_volume(volume_node, request.input)
        with Worker(python=worker_python()) as worker:
            report = worker.run(request, progress, cancelled)
        # Somebody may have deleted a node or closed the scene while the worker was busy.
        if any(node is not None and node.GetScene() is None for node in (volume_node, output_node)):
            raise InputError("The volume or the output was removed from the scene meanwhile: load it and start again.")
        load_terminology()
        name = f"{volume_node.GetName()} {task}"
        node = segmentation_from_labels(request.output, volume_node, structures, name, output_node)
    # The worker saw temporary files that are gone by now.
    report = {**report, "input": volume_node.GetName(), "output": node.GetName()}
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps(report))
    return node
