"""Quantize a checkpoint to int8.

``python -m segmamba.training.quantize CHECKPOINT OUT.safetensors``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segmamba.errors import SegMambaError
from segmamba.models.store import sha256
from segmamba.networks.checkpoint import load_state_dict, save_quantized
from segmamba.utils.atomic import atomic_write, check_output

EXTENSIONS = (".safetensors",)


def quantize(checkpoint: Path, output: Path) -> None:
    """Write the weights of a checkpoint, quantized to int8.

    Raises
    ------
    ModelError
        The file is not a checkpoint, or its weights are not finite.
    OutputError
        The result cannot be written.
    """
    check_output(output, EXTENSIONS)
    state = load_state_dict(checkpoint)
    with atomic_write(output, EXTENSIONS) as file:
        save_quantized(state, file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m segmamba.training.quantize", description="Store a checkpoint's large weights in eight bits."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("output", type=Path, metavar="OUT.safetensors")
    options = parser.parse_args(arguments)
    try:
        quantize(options.checkpoint, options.output)
    except SegMambaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}: {options.output.stat().st_size} bytes, SHA-256 {sha256(options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
