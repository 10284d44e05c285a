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
from segmamba.training.colorectal.bowel import Scene
from segmamba.training.colorectal.contents import CONTRAST_HU, Row
from segmamba.training.colorectal.labels import LUMEN
from segmamba.training.colorectal.map_format import BowelMap, field_centre, load_bowel_maps
from segmamba.training.colorectal.parameters import draw_tumours
from segmamba.training.colorectal.samples import synthesize_ct
from segmamba.training.colorectal.seeds import POSITION
from segmamba.training.synthesis.context import SamplingContext
from segmamba.training.synthesis.tissue_labels import SPACING
from segmamba.utils.atomic import atomic_write

# Size (z, y, x) that a scan has at most.
LARGEST_SCAN_MM = (480.0, 340.0, 420.0)
# Less mottled contents are paste.
STOOL_MOTTLE = 0.02


def render_scans(maps: Sequence[BowelMap], output: Path, count: int, spacing: float, seed: int = 0) -> None:
    """Write ``count`` synthetic CTs of each map, ``SUBJECT-NN.npz``, on the device of the maps.

    Each holds ``image`` (HU), ``labels``, ``parts`` (index in `segmamba.training.colorectal.zones.ZONES` plus 1),
    ``contents`` (see `contents_of`), all (z, y, x), and ``centre`` (see `field_centre`).

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
            image, scene = synthesize_ct(bowel, tumours, scan_centre(bowel, shape / SPACING), context, cut=False)
            with atomic_write(output / f"{bowel.subject}-{number:02}.npz", (".npz",)) as file:
                np.savez_compressed(
                    file,
                    image=image.cpu().numpy().round().astype(np.int16),
                    labels=scene.labels.cpu().numpy().astype(np.uint8),
                    parts=torch.where(scene.labels > 0, scene.table[Row.ZONE] + 1, 0).cpu().numpy().astype(np.uint8),
                    contents=contents_of(scene).cpu().numpy().astype(np.uint8),
                    centre=field_centre(scene.tissues.cpu().numpy(), spacing),
                )


def scan_centre(bowel: BowelMap, size: np.ndarray) -> np.ndarray:
    """Return the centre of a scan (z, y, x in the map's voxels): along z that of the bowel, within the map.

    ``size`` (3,) is that of the scan in the map's voxels. A map may reach to the neck: a scan of the abdomen does not.
    """
    heights, slices = bowel.seeds[:, POSITION][:, 0], bowel.packed.shape[0]
    centre = (np.array(bowel.packed.shape) - 1) / 2
    middle = (heights.min() + heights.max()) / 2
    centre[0] = np.clip(middle, size[0] / 2, slices - size[0] / 2) - 0.5 if size[0] < slices else centre[0]
    return centre


def contents_of(scene: Scene) -> torch.Tensor:
    """Return what fills the large bowel (z, y, x): index in `validation.CONTENT_NAMES` plus 1, or 0."""
    table = scene.table
    gas = (scene.height > table[Row.LEVEL]) & (table[Row.LUMPS] <= 0)
    dense = (table[Row.FILLING] > CONTRAST_HU[0]) | (scene.height < table[Row.SEDIMENT])
    stool = (table[Row.MOTTLE] > STOOL_MOTTLE) | (table[Row.LUMPS] > 0)
    content = torch.where(gas, 1, torch.where(dense, 2, torch.where(stool, 3, 4)))
    return torch.where(scene.tissues == LUMEN, content, 0)


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
