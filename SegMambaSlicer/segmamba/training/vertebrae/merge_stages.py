"""One checkpoint of two stages, all of them ``.safetensors``.

``python -m segmamba.training.vertebrae.merge_stages COARSE FINE OUT``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segmamba.errors import SegMambaError
from segmamba.networks.checkpoint import load_state_dict
from segmamba.utils.atomic import atomic_write, check_output

EXTENSIONS = (".safetensors",)


def merge(coarse: Path, fine: Path, output: Path) -> None:
    """Write the weights of a `segmamba.networks.two_stage.TwoStageSpineMamba`.

    Raises
    ------
    ModelError
        A file is not a checkpoint.
    OutputError
        The result cannot be written.
    """
    from safetensors.torch import save_file

    check_output(output, EXTENSIONS)
    stages = {"coarse": load_state_dict(coarse), "fine": load_state_dict(fine)}
    weights = {f"{stage}.{name}": value for stage, state in stages.items() for name, value in state.items()}
    with atomic_write(output, EXTENSIONS) as file:
        save_file(weights, file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.vertebrae.merge_stages",
        description="Put the two stages' weights into one checkpoint.",
    )
    for name in ("coarse", "fine", "output"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    options = parser.parse_args(arguments)
    try:
        merge(options.coarse, options.fine, options.output)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}: {options.output.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
