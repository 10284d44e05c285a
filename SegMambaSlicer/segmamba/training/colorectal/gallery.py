"""A page of samples to look at: ``python -m segmamba.training.colorectal.gallery MAPS_FOLDER OUT.png``.

Each kind of tumour, and bowel without one; each sample without and with outlines of its labels (window -160 to 240 HU).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from segmamba.errors import SegMambaError
from segmamba.reporting.overlay import draw_outline, show_slice
from segmamba.training.colorectal.labels import COLON_LABEL, RECTUM_LABEL, TUMOUR_LABEL
from segmamba.training.colorectal.map_format import BowelMap, load_bowel_maps
from segmamba.training.colorectal.parameters import KINDS, draw_seed, draw_tumour
from segmamba.training.colorectal.samples import synthesize_ct
from segmamba.training.colorectal.seeds import POSITION, RADIUS
from segmamba.training.synthesis.context import SamplingContext

PATCH, SPACING_MM = (40, 168, 208), 1.75
ROWS, COLUMNS = 5, 3
WINDOW_HU = (-160, 240)
COLORS = {TUMOUR_LABEL: "#ff4a3d", COLON_LABEL: "#ffd166", RECTUM_LABEL: "#4cc9f0"}
NO_TUMOUR = "no tumour"

Picture = tuple[str, np.ndarray, np.ndarray]


def pictures(maps: Sequence[BowelMap], seed: int) -> list[Picture]:
    """Return title, slice (y, x) of the CT in HU and slice of its labels for each picture of the page."""
    rng = np.random.default_rng(seed)
    context = SamplingContext(PATCH, SPACING_MM, torch.device("cpu"), rng, torch.Generator().manual_seed(seed))
    kinds = [*KINDS, NO_TUMOUR]
    result = []
    for number in range(ROWS * COLUMNS):
        kind, bowel = kinds[number // COLUMNS], maps[number % len(maps)]
        row = draw_seed(bowel.seeds, rng)
        tumours = [draw_tumour(row, float(bowel.seeds[row, RADIUS]), rng, kind)] if kind in KINDS else []
        image, scene = synthesize_ct(bowel, tumours, bowel.seeds[row, POSITION], context, cut=False)
        labels = scene.labels.numpy()
        shown = labels == TUMOUR_LABEL if tumours else labels > 0
        slice_number = int(shown.sum(axis=(1, 2)).argmax())
        volume = (labels == TUMOUR_LABEL).sum() * SPACING_MM**3 / 1000
        title = f"{kind}, {volume:.0f} mL" if tumours else kind
        result.append((title, image[slice_number].numpy(), labels[slice_number]))
    return result


def draw_page(page: Sequence[Picture], path: Path) -> None:
    """Write the page as an image file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMNS * 5.4, ROWS * 2.35), facecolor="white")
    axes = figure.subplots(ROWS, 2 * COLUMNS).reshape(-1, 2)
    for (title, image, labels), (left, right) in zip(page, axes, strict=True):
        for axis in (left, right):
            show_slice(axis, image, WINDOW_HU)
        left.set_title(title, fontsize=9, loc="left", pad=2)
        for label, color in COLORS.items():
            draw_outline(right, labels == label, color, linewidths=0.8)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.98, wspace=0.02, hspace=0.1)
    figure.savefig(path, dpi=95)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.colorectal.gallery", description="Draw a page of colorectal samples."
    )
    parser.add_argument("maps", metavar="MAPS_FOLDER", type=Path)
    parser.add_argument("output", metavar="OUT.png", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        maps = load_bowel_maps(sorted(options.maps.glob("*.npz")), torch.device("cpu"))
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    draw_page(pictures(maps, options.seed), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
