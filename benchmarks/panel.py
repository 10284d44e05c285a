"""What a run costs outside the engine: ``python benchmarks/panel.py``.

From the click on Segment to the shown result, for a volume of 512 x 512 x 400 voxels and 25 vertebrae, with a worker
that has their label map ready: the seconds, and how long Slicer's events were held up at most. Runs in the tests'
stand-in for Slicer, which draws no views; what their drawing takes comes on top in Slicer. Needs slicer-core and
PySide6.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path += [str(REPOSITORY / part) for part in ("Testing", "Testing/host")]

import slicer  # noqa: E402
from helpers import large  # noqa: E402
from slicer_host import SlicerHost  # noqa: E402


def measure(host: SlicerHost, folder: Path) -> dict[str, float]:
    """Run once, and return seconds by what they are."""
    widget = host.load(REPOSITORY / "SegMambaSlicer" / "SegMambaSlicer.py").widgetRepresentation().self()
    widget.logic._worker = large.ReadyWorker(large.add_volume(), folder)
    slicer.util.selectModule("SegMambaSlicer")
    host.process_events()
    clock = large.Clock()
    clock.start()
    begin = time.perf_counter()
    widget.ui.segmentButton.click()
    while widget.job is not None:
        host.process_events()
    seconds = time.perf_counter() - begin
    waited, computed = clock.stop()
    assert widget.ui.resultTable.rowCount == large.STRUCTURES, widget.ui.statusLabel.text
    return {
        "from click to result": seconds,
        "longest gap between events": waited.max(),
        "longest gap in computing time": computed.max(),
    }


def main() -> None:
    """Measure and print as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        host = SlicerHost(Path(folder))
        host.start()
        seconds = measure(host, Path(folder))
        host.stop()
    print(json.dumps({name: round(float(value), 3) for name, value in seconds.items()}, indent=1))


if __name__ == "__main__":
    main()
