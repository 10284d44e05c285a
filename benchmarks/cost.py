"""What a run takes, from file to file: ``python benchmarks/cost.py CT --model ID [--device cpu] [--random]``.

Prints one JSON object: seconds of each stage, windows, seconds a window, the peak of main memory, and that of the GPU.
``--random`` takes random weights of the model's shapes, for a checkpoint that is not at hand: time and memory are the
same. One run a process, because a process knows only the one peak of its memory. Not for Windows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

from segmamba.inference.file_to_file import requested_model, segment_file
from segmamba.inference.forecast import forecast
from segmamba.io.read import read_volume
from segmamba.models.manifest import load_manifest
from segmamba.request import Options, Request

# What the system counts the peak of main memory in.
UNIT = 1 if sys.platform == "darwin" else 1024


def write_random(model_id: str, path: Path) -> None:
    """Write a checkpoint of random weights."""
    import torch

    from segmamba.networks import build_network
    from segmamba.networks.checkpoint import write_safetensors

    model = load_manifest().model(model_id)
    torch.manual_seed(0)
    write_safetensors(build_network(model.architecture, **model.arguments).state_dict(), path)


def run(request: Request) -> dict[str, object]:
    """Run once in this process and return what it took."""
    spent: list[float] = []

    def note(stage: str, fraction: float) -> None:
        if stage == "predict" and fraction in (0.0, 1.0):
            spent.append(time.process_time())

    report = segment_file(request, note)
    # Afterwards, so that the volume that it reads takes no part in the peak of the run.
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / 2**30, 2)
    told = forecast(read_volume(request.input), requested_model(request), request.options)
    made, seconds = report["run"], report["timings_s"]
    flips = 2 ** len(made["tta_axes"])
    on_gpu = made["device"].startswith("cuda")
    figures: dict[str, object] = {
        "volume": report["volume"]["size"],
        "model grid": made["model_grid"]["size"],
        "device": made["device_title"],
        "precision": made["precision"],
        "warnings": made["warnings"],
        "windows": made["windows"] * flips,
        "s a window": round(seconds["predict"] / made["windows"] / flips, 2),
        "s": seconds,
        "predict, processor s": round(spent[-1] - spent[0], 1),
        "fine windows": made["fine"]["windows"] if "fine" in made else None,
        "peak memory GiB": peak,
        "forecast GiB": round((told.memory_beside_gpu if on_gpu else told.memory) / 2**30, 2),
        "forecast work": told.work,
    }
    if on_gpu:
        import torch

        figures["forecast GPU GiB"] = round(told.device_memory / 2**30, 2)
        figures["peak GPU memory GiB"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volume", metavar="CT")
    parser.add_argument("--model", required=True, metavar="ID")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="in place of the installed one")
    parser.add_argument("--random", action="store_true", help="random weights in place of a checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--overlap", type=float)
    parser.add_argument("--tta", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint
        if options.random:
            checkpoint = Path(folder) / "random.safetensors"
            # In a process of its own, whose memory is not counted.
            maker = multiprocessing.get_context("spawn").Process(target=write_random, args=(options.model, checkpoint))
            maker.start()
            maker.join()
        chosen = Options(device=options.device, precision=options.precision, overlap=options.overlap, tta=options.tta)
        request = Request(
            input=options.volume,
            output=str(Path(folder) / "out.seg.nrrd"),
            model=options.model,
            checkpoint=str(checkpoint) if checkpoint else None,
            options=chosen,
        )
        figures = run(request)
    print(json.dumps({"model": options.model, "random weights": options.random} | figures), flush=True)


if __name__ == "__main__":
    main()
