"""A training, a comparison, a case's page and a batch from a PACS, to which faults happen."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import requests

from helpers import tiny
from helpers.flaky_link import Link, flaky_link
from helpers.followed_spine import write_exams
from helpers.labelled_images import cached, image_of
from helpers.many_cases import write
from helpers.orthanc import PASSWORD, USER, Pacs, orthanc
from helpers.pacs_studies import write_studies
from helpers.phantoms import grid_around_patient, phantom, rotation
from helpers.quick_engine import EngineHere
from helpers.strikes import Said, cut, full_disk, is_sentence, killed, later, remove
from segmamba.batch import engine
from segmamba.cli.main import main
from segmamba.errors import InputError
from segmamba.inference.file_to_file import segment_file
from segmamba.io.read import read_volume
from segmamba.request import Request

KINDS_OF_RESULTS = ("SEG", "RTSTRUCT", "SR")


def command(*arguments: str) -> None:
    """Run a command in this process; `Said` where it ends in sentences."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    if status:
        raise Said(err.getvalue().strip())


class Training:
    """A training of a network with one convolution on three cases."""

    kinds = tuple(f"training: {kind}" for kind in ("killed", "disk full", "folder deleted", "state cut", "log cut"))

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._draw = folder / "run", random.Random(seed)
        train(folder / "peace")
        self._expected = weights(folder / "peace")

    def strike(self, kind: str) -> None:
        what = kind.partition(": ")[2]
        shutil.rmtree(self._folder, ignore_errors=True)
        if what == "killed":
            killed(self._draw.uniform(0.05, 0.6), train, self._folder)
        elif what == "disk full":
            with full_disk(self._draw.randrange(9)):
                train(self._folder)
        elif what == "folder deleted":
            with later(self._draw.uniform(0.0, 0.3), remove(self._folder)):
                train(self._folder)
        else:
            train(self._folder, until=4)
            name = "state.pt" if what == "state cut" else "log.jsonl"
            cut(self._folder / name, self._draw)
            try:
                train(self._folder)
            except InputError:
                # As its sentence says: another folder.
                shutil.rmtree(self._folder)
                raise

    def again(self) -> None:
        train(self._folder)

    def wrong(self, complete: bool) -> list[str]:
        found = []
        if (self._folder / "weights.safetensors").is_file():
            each = weights(self._folder)
            if complete and any(not np.array_equal(each[name], self._expected[name]) for name in self._expected):
                found.append("other weights")
        elif complete:
            found.append("no weights")
        if complete:
            from segmamba.training.dataset.curves import read_log

            logged = {entry["iteration"] for entry in read_log(self._folder / "log.jsonl")}
            found += [f"iteration {each} is not in the log" for each in (6, 8) if each not in logged]
        return found


def train(folder: Path, until: int | None = None) -> None:
    """Train in a folder, or go on there; ``until`` is the iteration at which the session ends."""
    from dataclasses import replace

    from segmamba import networks
    from segmamba.models.manifest import IntensityNormalization
    from segmamba.training import loop
    from segmamba.training.dataset.plan import Plan, Recipe
    from segmamba.training.dataset.task import DatasetTask

    class Session(DatasetTask):
        def is_over(self, run: loop.Run) -> bool:
            return until is not None and run.iteration >= until

    networks.ARCHITECTURES["one_convolution"] = ("helpers.voxel_networks", "OneConvolution")
    arguments = {"in_channels": 1, "out_channels": 2}
    recipe = Recipe(architecture="one_convolution", arguments=arguments, device="cpu", readers=1)
    recipe = replace(recipe, iterations=8, warmup=2, log_every=2, checkpoint_every=2, folder=str(folder))
    channel = IntensityNormalization("percentile", 0.5, 99.5)
    plan = Plan("cubes", ("MR",), {"cube": 1}, None, "LPS", (1.0,) * 3, False, (channel,), (8, 8, 8), (2,), recipe)
    cases = [cached(*image_of(seed), name=str(seed)) for seed in range(3)]
    with contextlib.redirect_stdout(io.StringIO()):
        loop.train(recipe, task=Session(plan, cases))


def weights(folder: Path) -> dict[str, Any]:
    """Return the averaged weights of a training."""
    from segmamba.networks.checkpoint import load_state_dict

    return {name: value.numpy() for name, value in load_state_dict(folder / "weights.safetensors").items()}


class Comparison:
    """``segmamba compare`` on two exams, with all its results."""

    kinds = tuple(f"compare: {kind}" for kind in ("exam cut", "exam gone", "disk full", "output deleted", "killed"))

    def __init__(self, folder: Path, seed: int) -> None:
        self._draw = random.Random(seed)
        self._given, self._in, self._out = folder / "given", folder / "in", folder / "out"
        write_exams(self._given)
        self._prepare()

    def strike(self, kind: str) -> None:
        what = kind.partition(": ")[2]
        self._prepare()
        files = sorted(path for path in self._in.rglob("*") if path.is_file())
        if what == "exam cut":
            cut(self._draw.choice(files), self._draw)
        elif what == "exam gone":
            self._draw.choice(files).unlink()
        before = {path: path.read_bytes() for path in files if path.exists()}
        try:
            if what == "disk full":
                with full_disk(self._draw.randrange(3)):
                    command(*self._arguments())
            elif what == "output deleted":
                with later(self._draw.uniform(0, 1.0), remove(self._out)):
                    command(*self._arguments())
            elif what == "killed":
                killed(self._draw.uniform(0.05, 1.5), command, *self._arguments())
            else:
                command(*self._arguments())
        finally:
            assert before == {path: path.read_bytes() for path in files if path.exists()}, "an exam has changed"

    def again(self) -> None:
        self._prepare()
        command(*self._arguments())

    def wrong(self, complete: bool) -> list[str]:
        checks: dict[str, Callable[[str], Any]] = {
            "c.json": lambda text: json.loads(text)["vertebrae"][3],
            "c.csv": lambda text: list(csv.reader(io.StringIO(text)))[4],
            "c.html": lambda text: text.rindex("</html>"),
        }
        return [found for name, check in checks.items() if (found := problem(self._out / name, check, complete))]

    def _prepare(self) -> None:
        for folder in (self._in, self._out):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._given, self._in)
        self._out.mkdir()

    def _arguments(self) -> list[str]:
        exams = [str(self._in / "first.json"), str(self._in / "second")]
        images = ["--images", *(str(self._in / f"{name}_ct.nii.gz") for name in ("first", "second"))]
        outputs = {"--output": "c.json", "--table": "c.csv", "--page": "c.html"}
        written = [part for option, name in outputs.items() for part in (option, str(self._out / name))]
        return ["compare", *exams, *images, *written, "--overwrite"]


def problem(path: Path, check: Callable[[str], Any], complete: bool) -> str | None:
    """Return what is wrong with a result: it is not whole or, if all should be there, it is missing."""
    if not path.exists():
        return f"no {path.name}" if complete else None
    try:
        check(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, IndexError) as error:
        return f"{path.name}: {error!r}"
    return None


class CasePage:
    """A segmentation with its page, its measurements and everything else that is written."""

    kinds = tuple(f"page: {kind}" for kind in ("disk full", "output deleted", "killed", "input cut"))

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._draw, self._out = folder, random.Random(seed), folder / "out"
        tiny.write_model(folder)
        self._input = write(phantom(grid_around_patient((6.0, 6.0, 8.0), rotation(0, 0))), folder / "ct.nii.gz")
        self._whole = self._input.read_bytes()
        self.again()
        self._expected = read_volume(self._out / "spine.nrrd").array

    def strike(self, kind: str) -> None:
        what = kind.partition(": ")[2]
        self._prepare()
        if what == "disk full":
            with full_disk(self._draw.randrange(6)):
                segment_file(self._request())
        elif what == "killed":
            killed(self._draw.uniform(0.05, 1.5), segment, self._request().to_dict())
        else:
            action = remove(self._out) if what == "output deleted" else lambda: cut(self._input, self._draw)
            with later(self._draw.uniform(0.0, 0.6), action):
                segment_file(self._request())

    def again(self) -> None:
        self._prepare()
        segment_file(self._request())

    def wrong(self, complete: bool) -> list[str]:
        checks: dict[str, Callable[[str], Any]] = {
            "r.json": lambda text: json.loads(text)["segments"],
            "m.csv": lambda text: list(csv.reader(io.StringIO(text)))[0],
            "page.html": lambda text: text.rindex("</html>"),
        }
        found = [said for name, check in checks.items() if (said := problem(self._out / name, check, complete))]
        labels = self._out / "spine.nrrd"
        if labels.exists():
            if not np.array_equal(read_volume(labels).array, self._expected):
                found.append("other labels")
        elif complete:
            found.append("no labels")
        return found

    def _prepare(self) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        self._input.write_bytes(self._whole)

    def _request(self) -> Request:
        names = {"report": "r.json", "measurements": "m.csv", "page": "page.html", "preview": "p.png"}
        written = {name: str(self._out / file) for name, file in names.items()}
        manifest = str(self._folder / "manifest.json")
        output = str(self._out / "spine.nrrd")
        return Request.of(str(self._input), output, task="vertebrae", manifest=manifest, device="cpu", **written)


def segment(request: dict[str, Any]) -> None:
    """Do a request, in a process of its own."""
    segment_file(Request.from_dict(request))


class FromPacs:
    """A batch of two series from a PACS behind a connection that breaks."""

    kinds = tuple(f"PACS: {kind}" for kind in ("connection broken", "out of reach", "results deleted"))

    def __init__(self, folder: Path, pacs: Pacs, link: Link, seed: int) -> None:
        self._folder, self._pacs, self._link, self._draw = folder, pacs, link, random.Random(seed)
        self._manifest = tiny.write_model(folder)
        self._out = folder / "out"
        self._count = 0
        for place, _ in write_studies(folder / "in", 2):
            pacs.add(sorted(place.iterdir()))
            self._count += 1

    def strike(self, kind: str) -> None:
        what = kind.partition(": ")[2]
        for series in self._pacs.ask("/series?expand"):
            if series["MainDicomTags"]["Modality"] in KINDS_OF_RESULTS:
                requests.delete(f"{self._pacs.url}/series/{series['ID']}", auth=(USER, PASSWORD), timeout=60)
        shutil.rmtree(self._out, ignore_errors=True)
        if what == "connection broken":
            self._link.cuts[:] = [self._draw.choice((None, self._draw.randrange(20, 20_000))) for _ in range(30)]
        elif what == "out of reach":
            self._link.cuts[:] = [None] * self._draw.randrange(12) + [0] * 300
        with later(self._draw.uniform(0, 2.0), remove(self._out)) if what == "results deleted" else nullcontext():
            self._run()

    def again(self) -> None:
        self._link.cuts.clear()
        self._run()

    def wrong(self, complete: bool) -> list[str]:
        found = []
        for kind in KINDS_OF_RESULTS:
            count = len(self._pacs.instances(kind))
            if count > self._count or (complete and count != self._count):
                found.append(f"{count} {kind} of {self._count}")
        rows = self._out / "rows.jsonl"
        if rows.exists():
            errors = [json.loads(line)["error"] for line in rows.read_text(encoding="utf-8").splitlines()]
            found += [f"no sentence: {error}" for error in errors if error and not is_sentence(error)]
        return found

    def _run(self) -> None:
        address = f"dicomweb+{self._link.address}/dicom-web"
        model = ["--manifest", str(self._manifest), "--task", "vertebrae", "--device", "cpu", "--quiet"]
        access = {"SEGMAMBA_PACS_USER": USER, "SEGMAMBA_PACS_PASSWORD": PASSWORD}
        with patch.object(engine, "Engine", EngineHere), patch.dict("os.environ", access):
            command("batch", address, str(self._out), "--query", "Modality=CT", *model)


@contextmanager
def struck_pacs(folder: Path, seed: int) -> Iterator[FromPacs]:
    """Run a PACS and give its scene."""
    with orthanc(folder) as pacs, flaky_link(pacs.url) as link:
        yield FromPacs(folder, pacs, link, seed)
