"""Whole synthetic CTs with tumours, as evaluation cases.

``python -m segmamba.training.colorectal.render_scans MAP.npz ... OUT_FOLDER``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segmamba.errors import SegMambaError
from segmamba.training.colorectal.map_format import BowelMap, load_bowel_maps
from segmamba.training.colorectal.parameters import draw_tumours
from segmamba.training.colorectal.samples import synthesize_ct
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import SPACING
from segmamba.utils.atomic import atomic_write

# Size (z, y, x) that a scan has at most.
LARGEST_SCAN_MM = (480.0, 340.0, 420.0)


def render_scans(maps: Sequence[BowelMap], output: Path, count: int, spacing: float, seed: int = 0) -> None:
    """Write ``count`` synthetic CTs of each map, ``SUBJECT-NN.npz``, on the device of the maps.

    Parameters
    ----------
    maps : sequence of BowelMap
        Of subjects that are not trained on.
    output : Path
        Folder, made if missing.
    count : int
        Of each map.
    spacing : float
        Of the scans' isotropic grid, in mm.
    seed : int
    """
    output.mkdir(parents=True, exist_ok=True)
    for bowel in maps:
        shape = np.minimum(np.array(bowel.packed.shape) * SPACING, LARGEST_SCAN_MM)
        depth, height, width = (int(n) for n in shape / spacing)
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            generator = torch.Generator(bowel.packed.device).manual_seed(seed + number)
            context = SamplingContext((depth, height, width), spacing, bowel.packed.device, rng, generator)
            tumours = draw_tumours(bowel.seeds, rng)
            image, scene = synthesize_ct(bowel, tumours, (np.array(bowel.packed.shape) - 1) / 2, context, cut=False)
            with atomic_write(output / f"{bowel.subject}-{number:02}.npz", (".npz",)) as file:
                np.savez_compressed(
                    file,
                    image=image.cpu().numpy().round().astype(np.int16),
                    labels=scene.labels.cpu().numpy().astype(np.uint8),
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.colorectal.render_scans", description="Render whole synthetic CTs."
    )
    parser.add_argument("maps", metavar="MAP.npz", type=Path, nargs="+", help="bowel maps of held-out subjects")
    parser.add_argument("output", metavar="OUT_FOLDER", type=Path, help="for SUBJECT-NN.npz, made if missing")
    parser.add_argument("--count", type=int, default=24, help="of each map (24)")
    parser.add_argument("--spacing", type=float, default=1.75, help="in mm (1.75)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        maps = load_bowel_maps(options.maps, device)
        render_scans(maps, options.output, options.count, options.spacing, options.seed)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.count * len(maps)} scans are in {options.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
