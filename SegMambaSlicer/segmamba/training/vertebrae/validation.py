"""Overlap of a network's labels with reference labels on real volumes, on the network's own grid, during training.

``python -m segmamba.training.vertebrae.validation IMAGE LABELS MODEL_ID OUT.npz`` makes one such case from a volume.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn

from segmamba.errors import InputError, SegMambaError
from segmamba.evaluation.metrics import dice_foreground
from segmamba.inference.context import RunContext
from segmamba.inference.preprocess import resample_to_model
from segmamba.inference.sliding_window import identity, predict
from segmamba.inference.windows import Windows
from segmamba.io.modality import CT, check_modality
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume, to_image
from segmamba.models.manifest import IntensityNormalization, Model, load_manifest
from segmamba.networks.spine_mamba import LEVELS, MASK, OFFSET
from segmamba.training.synthesis.npz import read_arrays
from segmamba.training.synthesis.synthesizer import normalize
from segmamba.training.synthesis.tissue_labels import VERTEBRAE
from segmamba.utils.arrays import as_labels
from segmamba.utils.atomic import atomic_write, check_output

CASE_EXTENSIONS = (".npz",)
# A case keeps CT's own intensities, so that it outlives a change of the normalisation.
HOUNSFIELD = IntensityNormalization("clip", low=-1024.0, high=3071.0, mean=0.0, std=1.0)


def evaluate(
    network: nn.Module,
    files: Sequence[Path],
    channels: Sequence[IntensityNormalization],
    patch: tuple[int, int, int],
    dtype: torch.dtype,
) -> dict[str, dict[str, float]]:
    """Return metrics of each case, without any post-processing.

    "dice_foreground": Dice of all vertebrae and the sacrum against the background. "level_accuracy", where the network
    answers levels: the part of the reference's voxels whose most probable level is right.

    Parameters
    ----------
    network : Module
        In evaluation mode; it runs where its parameters are.
    files : sequence of Path
        ``.npz`` with ``image`` (intensities) and ``labels``, (z, y, x), on the network's grid.
    channels : sequence of IntensityNormalization
        How the network's input is made from the intensities.
    patch : tuple of int
        Window in voxels along z, y, x; windows overlap by half.
    dtype : dtype
        float32, or the half precision of autocast.

    Raises
    ------
    InputError
        A file is not such a case.
    """
    device = next(network.parameters()).device
    results = {}
    for file in files:
        intensities, reference = read_arrays(
            file, ["image", "labels"], "'python -m segmamba.training.vertebrae.validation'"
        )
        image = normalize(torch.from_numpy(intensities.astype(np.float32))[None], channels)
        answer = predict(network, image, Windows(patch), RunContext(device, dtype), identity).values.cpu()
        results[file.stem] = {"dice_foreground": dice_foreground(answer[MASK].argmax(dim=0).numpy(), reference)}
        if len(answer) > OFFSET.stop:
            levels = answer[LEVELS].argmax(dim=0).numpy() + 1
            right = (levels == reference)[reference > 0]
            results[file.stem]["level_accuracy"] = float(right.mean())
    return results


def evaluation_case(image: Volume, labels: Volume, model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Bring a volume and its reference labels to a model's grid.

    Parameters
    ----------
    image, labels : Volume
        A CT in HU, and vertebrae in VerSe numbering; their grids may differ.
    model : Model
        Gives orientation, spacing and cropping; its normalisation is left out.

    Returns
    -------
    intensities : ndarray of int16 (z, y, x)
        In HU.
    reference : ndarray of uint8 (z, y, x)

    Raises
    ------
    InputError
        The volume is not a CT with a body in it, the labels are not in VerSe numbering, or none lies on the volume.
    """
    in_hounsfield = replace(
        model, modalities=(CT,), preprocessing=replace(model.preprocessing, normalization=(HOUNSFIELD,))
    )
    check_modality(image, in_hounsfield)
    intensities, grid = resample_to_model(image, in_hounsfield)
    on_grid = sitk.Resample(
        to_image(as_labels(labels.array, VERTEBRAE, "The reference"), labels.geometry),
        grid.geometry.size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        grid.geometry.origin,
        grid.geometry.spacing,
        grid.geometry.direction,
    )
    reference = sitk.GetArrayFromImage(on_grid)
    if not reference.any():
        raise InputError("No label lies on the image: give the labels that belong to it.")
    return np.round(intensities[0]).astype(np.int16), reference


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.vertebrae.validation", description="Make an evaluation case for training."
    )
    parser.add_argument("image", metavar="IMAGE", help="a CT: NIfTI, NRRD or MetaImage file, or a DICOM folder")
    parser.add_argument("labels", metavar="LABELS", help="its vertebrae as a label map in VerSe numbering")
    parser.add_argument("model", metavar="MODEL_ID", help="whose grid is used, see 'segmamba models'")
    parser.add_argument("output", metavar="OUT.npz", help="the case")
    options = parser.parse_args(arguments)
    try:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        check_output(options.output, CASE_EXTENSIONS)
        model = load_manifest().model(options.model)
        intensities, reference = evaluation_case(read_volume(options.image), read_volume(options.labels), model)
        with atomic_write(options.output, CASE_EXTENSIONS) as file:
            np.savez_compressed(file, image=intensities, labels=reference)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    shape = " x ".join(map(str, reference.shape))
    print(f"{options.output}: {shape} voxels, labels {', '.join(map(str, np.unique(reference[reference > 0])))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
