"""The configuration of a training run, a JSON file."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmamba.errors import InputError
from segmamba.models.manifest import IntensityNormalization
from segmamba.networks.spine_mamba import OFFSET, RIB
from segmamba.tasks import COLORECTAL_TASK, VERTEBRAE_TASK
from segmamba.training.colorectal.labels import LABELS
from segmamba.training.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """A training run. Relative paths and patterns start from the folder of the configuration file.

    Attributes
    ----------
    architecture, arguments
        For `segmamba.networks.build_network`; ``in_channels`` is the number of channels, ``out_channels`` is 33 (mask,
        offsets, levels, ribs: the first of two stages) or 6 (without levels and ribs: the second); for colorectal
        cancer 4 (background, tumour, colon, rectum).
    task : str
        "vertebrae" or "colorectal": which samples are synthesized and which loss is used.
    channels : tuple of IntensityNormalization
        Normalization of the network's input from HU, of scheme "clip".
    mr_channels : tuple of IntensityNormalization
        Normalization from MR, of scheme "relative", as many as ``channels``.
    mr_share : float
        Part of the synthetic samples that is MR, 0 to 1.
    degraded_share : float
        Part of the synthetic samples in which something hides bone, 0 to 1 (`segmamba.training.synthesis.degradation`).
    exams : str
        Pattern of the ``.npz`` files of `segmamba.training.vertebrae.exams.prepare`, real images, or empty.
    exam_share : float
        Part of all samples that is made of them, 0 to 1.
    anatomies : str
        Pattern of the ``.npz`` files of `segmamba.training.vertebrae.label_maps.prepare`, or of
        `segmamba.training.colorectal.label_maps.prepare`. Empty where ``exam_share`` is 1.
    patch, spacing
        Voxels of a sample along z, y, x, and their size in mm.
    folder : str
        Gets ``state.pt``, ``weights.safetensors`` and ``log.jsonl``; if it has a state, the run resumes from it.
    evaluation : str
        Pattern of evaluation cases, or empty.
    start_from : str
        Weights (``.safetensors``) that a run without a state starts from, or empty.
    batch, iterations, warmup, learning_rate, weight_decay, ema
        AdamW with a linear warm-up and a cosine decay over ``iterations``; weights are averaged with decay ``ema``.
    minutes : float or None
        The decay and the run end when so much time was spent on steps, too, counted over all parts of a run.
    log_every, checkpoint_every, evaluate_every : int
        In iterations.
    seed : int
        Of the first weights and of the samples.
    device : str
        "auto" is CUDA if there is any, else the processor.
    compile : bool
        Compile network and loss on CUDA and capture a step as a CUDA graph: takes one to two minutes, for long runs.
    num_workers : int
        Processes that synthesize samples ahead of the training; 0: the training process does it.
    base : Path
        What relative paths start from.
    """

    channels: tuple[IntensityNormalization, ...]
    anatomies: str
    patch: tuple[int, int, int]
    spacing: float
    task: str = VERTEBRAE_TASK
    mr_channels: tuple[IntensityNormalization, ...] = ()
    mr_share: float = 0.0
    degraded_share: float = 0.0
    exams: str = ""
    exam_share: float = 0.0
    evaluation: str = ""
    num_workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arguments.get("in_channels") != len(self.channels):
            raise ValueError("arguments.in_channels must be the number of channels")
        if self.task not in (VERTEBRAE_TASK, COLORECTAL_TASK):
            raise ValueError(f"task must be {VERTEBRAE_TASK} or {COLORECTAL_TASK}")
        classes = self.arguments.get("out_channels")
        if self.task == COLORECTAL_TASK and classes != 1 + len(LABELS):
            raise ValueError(f"arguments.out_channels must be {1 + len(LABELS)}")
        if self.task == VERTEBRAE_TASK and classes not in (OFFSET.stop, RIB.stop):
            raise ValueError(f"arguments.out_channels must be {RIB.stop}, or {OFFSET.stop} without levels and ribs")
        if any(channel.scheme != "clip" for channel in self.channels):
            raise ValueError("channels must be of scheme clip")
        if any(channel.scheme != "relative" for channel in self.mr_channels):
            raise ValueError("mr_channels must be of scheme relative")
        if self.task == COLORECTAL_TASK and self.mr_share:
            raise ValueError("mr_share must be 0: there is no MR of colorectal cancer")
        if not 0 <= self.mr_share <= 1:
            raise ValueError("mr_share must be from 0 to 1")
        if not 0 <= self.degraded_share <= 1:
            raise ValueError("degraded_share must be from 0 to 1")
        if self.task == COLORECTAL_TASK and self.degraded_share:
            raise ValueError("degraded_share must be 0: it is of vertebrae")
        if not 0 <= self.exam_share <= 1 or bool(self.exams) != (self.exam_share > 0):
            raise ValueError("exams and exam_share, from 0 to 1, must be given together")
        if self.exams and self.task == COLORECTAL_TASK:
            raise ValueError("exams must be left out: they are of vertebrae")
        if not self.anatomies and self.exam_share < 1:
            raise ValueError("anatomies may be empty only where exam_share is 1")
        if (self.mr_share > 0 or self.mr_channels) and len(self.mr_channels) != len(self.channels):
            raise ValueError("mr_channels must be as many as channels")
        for name in ("anatomies", "exams", "evaluation"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a text")
        if len(self.patch) != 3 or not all(isinstance(n, int) and n > 0 for n in self.patch):
            raise ValueError("patch must be three whole numbers")
        if not isinstance(self.num_workers, int) or self.num_workers < 0:
            raise ValueError("num_workers must be a whole number of at least 0")
        if not self.spacing > 0:
            raise ValueError("spacing must be positive")

    def files(self, pattern: str) -> list[Path]:
        """Return the files that a pattern matches, sorted."""
        return sorted(Path(path) for path in glob.glob(os.path.join(glob.escape(str(self.base)), pattern)))


def read_config(path: Path) -> Config:
    """Read a JSON configuration.

    Raises
    ------
    InputError
        The file is missing, is not JSON, has unknown or missing keys, or values that cannot be.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check_keys(content)
        for key in ("channels", "mr_channels"):
            if key in content:
                content[key] = tuple(IntensityNormalization(**channel) for channel in content[key])
        content["patch"] = tuple(content["patch"])
        return Config(**content, base=path.resolve().parent)
    except OSError as error:
        raise InputError(f"The training configuration {path} cannot be read: check the path.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"The training configuration {path} is not valid ({error}): see Docs/training.md.") from error


def _check_keys(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    fields = {field.name: field for field in dataclasses.fields(Config) if field.name != "base"}
    for key in content:
        if key not in fields:
            raise ValueError(f"there is no key '{key}'")
    for key, field in fields.items():
        if field.default is dataclasses.MISSING and key not in content:
            raise ValueError(f"the key '{key}' is missing")
