"""The options that say how a model runs, the same for one volume and for many."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from segmamba.request import Options, Request


def add_model_options(parser: Any) -> None:
    """Add what `model_request` reads to a command."""
    parser.add_argument("--task", help="vertebrae or colorectal: the task's default model is taken")
    parser.add_argument("--model", metavar="ID", help="a model, see 'segmamba models'")
    parser.add_argument("--structures", metavar="A,B", help="keep only these, by name or value")
    parser.add_argument(
        "--roi",
        nargs=6,
        type=float,
        metavar=("R", "A", "S", "R2", "A2", "S2"),
        help="label only the box between two corners: patient coordinates in mm as Slicer shows them (RAS)",
    )
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: average over mirrored copies")
    parser.add_argument("--overlap", type=float, metavar="PART", help="overlap of windows, 0 to 0.9")
    parser.add_argument("--no-refine", action="store_true", help="do not refine the masks by the shapes of vertebrae")
    text = "keep also what is not part of the column, a small piece of bowel, or a tumour that is small or unsure"
    parser.add_argument("--no-postprocess", action="store_true", help=text)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", default="auto", help="auto (default), float32, float16 or bfloat16")
    parser.add_argument("--scan-backend", default="auto", help="auto (default), torch, triton or mamba_ssm")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights to use instead of the model's own")
    parser.add_argument("--manifest", metavar="FILE", help="a manifest of your own")


def model_request(options: argparse.Namespace, **files: Any) -> Request:
    """Return the request that options of `add_model_options` say; ``files`` are its other fields."""
    names = None if options.structures is None else tuple(name.strip() for name in options.structures.split(","))
    return Request(
        **files,
        task=options.task,
        model=options.model,
        checkpoint=options.checkpoint,
        manifest=options.manifest,
        options=Options(
            device=options.device,
            precision=options.precision,
            scan_backend=options.scan_backend,
            overlap=options.overlap,
            tta=options.tta,
            roi=_lps_corners(options.roi) if options.roi else None,
            structures=names,
            refine=not options.no_refine,
            postprocess=not options.no_postprocess,
            seed=options.seed,
        ),
    )


def _lps_corners(ras: Sequence[float]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the lowest and the highest LPS corner of the box between two RAS points."""
    pairs = zip((-1, -1, 1), ras[:3], ras[3:], strict=True)
    x, y, z = (sorted((sign * first, sign * second)) for sign, first, second in pairs)
    return (x[0], y[0], z[0]), (x[1], y[1], z[1])
