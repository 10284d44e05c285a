"""A CT from file to file, side by side on this machine: ours, nnU-Net's predictor and TotalSegmentator's way.

``python benchmarks/peers.py CT [--device cuda] [--runs 5]``      (the peers need ``pip install nnunetv2``)

- *ours*: vertebrae by the bundled model, in a warm worker, as the panel and a batch have it.
- *nnU-Net*: its own predictor (`nnUNetPredictor`), which resamples image and logits, with a plain U-Net of 26 classes
  at 1.5 mm, patch 128^3, half overlap, no mirroring.
- *TotalSegmentator's way*: the image to 1.5 mm by cubic splines, the same predictor on that, and its labels back to the
  image's voxels by nearest neighbour.

The weights of the U-Net are random: it takes as long as trained ones, and its labels mean nothing. It has the size that
nnU-Net plans for such data. Nothing of the peers but their packages is here: what they call is in this file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from segmamba.utils.memory import ENVIRONMENT

os.environ.update(ENVIRONMENT | os.environ)

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from scipy import ndimage  # noqa: E402
from timing import WARM_UP, keep  # noqa: E402

from segmamba.inference.device import choose_device  # noqa: E402
from segmamba.request import Options, Request  # noqa: E402
from segmamba.worker.client import WorkerProcess  # noqa: E402

CLASSES, SPACING_MM, PATCH = 26, 1.5, 128
# The U-Net that nnU-Net plans for such images.
FEATURES = (32, 64, 128, 256, 320, 320)
Seconds = dict[str, float]


def ours(path: Path, device: str, runs: int) -> Seconds:
    """Return the median of the stages' times, and of the whole, of runs in a warm worker."""
    with tempfile.TemporaryDirectory() as folder, WorkerProcess() as worker:
        request = Request(
            str(path), f"{folder}/labels.nii.gz", model="spinemamba", overwrite=True, options=Options(device=device)
        )
        times = []
        for number in range(WARM_UP + runs):
            begun = time.perf_counter()
            stages = worker.run(request)["timings_s"]
            if number >= WARM_UP:
                times.append({**stages, "total": time.perf_counter() - begun})
    return {stage: round(median(run[stage] for run in times), 3) for stage in times[0]}


def predictor(device: str) -> Any:
    """Return nnU-Net's predictor with a plain U-Net of random weights."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, tempfile.gettempdir())  # it warns without them, and uses none of them here
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(0)
    network = PlainConvUNet(
        input_channels=1, n_stages=6, features_per_stage=FEATURES, conv_op=torch.nn.Conv3d, kernel_sizes=3,
        strides=(1, 2, 2, 2, 2, 2), n_conv_per_stage=2, num_classes=CLASSES, n_conv_per_stage_decoder=2,
        conv_bias=True, norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=False,
    ).eval()  # fmt: skip
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    of_logits = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    of_labels = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "peers", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [PATCH] * 3, "median_image_size_in_voxels": [PATCH] * 3, "spacing": [SPACING_MM] * 3,
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False], "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": of_labels,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": of_logits,
        "architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": {}, "_kw_requires_import": []},
    }  # fmt: skip
    intensities = {"mean": 0.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 1300.0}
    plans = {
        "dataset_name": "peers", "plans_name": "peers", "configurations": {"3d_fullres": configuration},
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {"0": intensities}, "label_manager": "LabelManager",
        "original_median_spacing_after_transp": [SPACING_MM] * 3,
        "original_median_shape_after_transp": [PATCH] * 3, "experiment_planner_used": "none",
    }  # fmt: skip
    manager = PlansManager(plans)
    labels = {"background": 0, **{f"class {number}": number for number in range(1, CLASSES)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    made = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, perform_everything_on_device=device != "cpu",
        device=torch.device(device), verbose=False, verbose_preprocessing=False, allow_tqdm=False,
    )  # fmt: skip
    weights = [network.state_dict()]
    made.manual_initialization(network, manager, manager.get_configuration("3d_fullres"), weights, dataset, "", None)
    return made


def nnunet(path: Path, predict: Any) -> Seconds:
    """Time nnU-Net's predictor from file to file; it resamples to its spacing and back."""
    clock = Clock()
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    array, spacing = sitk.GetArrayFromImage(image), list(image.GetSpacing()[::-1])
    clock.lap("read")
    labels = predict.predict_single_npy_array(array[None], {"spacing": spacing})
    clock.lap("predict")
    return written(image, labels, clock)


def totalsegmentator(path: Path, predict: Any) -> Seconds:
    """Time what TotalSegmentator does from file to file, with its resampling around nnU-Net's predictor."""
    clock = Clock()
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    array, spacing = sitk.GetArrayFromImage(image), np.array(image.GetSpacing()[::-1])
    clock.lap("read")
    coarse = ndimage.zoom(array, spacing / SPACING_MM, order=3)
    clock.lap("resample")
    labels = predict.predict_single_npy_array(coarse[None], {"spacing": [SPACING_MM] * 3})
    clock.lap("predict")
    back = ndimage.zoom(labels, np.array(array.shape) / labels.shape, order=0)
    clock.lap("back")
    return written(image, back, clock)


class Clock:
    """Seconds of one step after another."""

    def __init__(self) -> None:
        self.steps: Seconds = {}
        self._begun = self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """End a step."""
        now = time.perf_counter()
        self.steps[step], self._last = round(now - self._last, 3), now

    def total(self) -> Seconds:
        """Return the steps and the whole."""
        return {**self.steps, "total": round(self._last - self._begun, 3)}


def written(image: sitk.Image, labels: np.ndarray, clock: Clock) -> Seconds:
    """Write labels on an image's grid, and return all times."""
    made = sitk.GetImageFromArray(labels.astype(np.uint8))
    made.CopyInformation(image)
    with tempfile.TemporaryDirectory() as folder:
        sitk.WriteImage(made, f"{folder}/labels.nii.gz", True)
    clock.lap("write")
    return clock.total()


def warm_up(predict: Any) -> None:
    """Run a peer's network once: the first use of a GPU is not counted, as ours is not."""
    predict.predict_single_npy_array(np.ones((1, PATCH, PATCH, PATCH), np.float32), {"spacing": [SPACING_MM] * 3})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path)
    parser.add_argument("--device", default="auto", help="cpu or cuda")
    parser.add_argument("--runs", type=int, default=5, help="of ours, after 3 that do not count; peers run once")
    parser.add_argument("--without-nnunet", action="store_true", help="leave out the way that takes minutes")
    given = parser.parse_args()
    if find_spec("nnunetv2") is None:
        sys.exit("The peers need nnU-Net: install it with 'pip install nnunetv2', then try again.")
    device = choose_device(given.device)
    rows: list[dict[str, Any]] = [{"what": "ours", **ours(given.ct, given.device, given.runs)}]
    print(rows[0], flush=True)
    predict = predictor(device.kind)
    warm_up(predict)
    ways: list[tuple[str, Callable[[Path, Any], Seconds]]] = [("TotalSegmentator's way", totalsegmentator)]
    if not given.without_nnunet:
        ways.append(("nnU-Net's predictor", nnunet))
    for what, way in ways:
        seconds = way(given.ct, predict)
        ratio = round(seconds["total"] / rows[0]["total"], 2)
        rows.append({"what": what, "weights": "random", **seconds, "times ours": ratio})
        print(rows[-1], flush=True)
    keep(rows, f"peers {device.title}")


if __name__ == "__main__":
    main()
