"""Random and damaged files of users: images, DICOM with odd attributes, odd grids and values, channels, folders.

Everything is drawn from a seed. Each is read, or refused in one sentence, soon; and what is read can be true.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset

from helpers import brain, bright_bone
from helpers.damage import Tally, damaged, quietly
from helpers.dicom_files import write_frames, write_slices
from helpers.phantoms import dice, grid_around_patient, phantom, rotation, true_labels
from segmamba.batch.cases import find_cases
from segmamba.batch.channels import cases_of_channels
from segmamba.inference import engine, pipeline
from segmamba.inference.channels import in_order, joined
from segmamba.io.read import read_volume
from segmamba.io.volume import Volume, to_image
from segmamba.models.manifest import Model, load_manifest
from segmamba.request import Options

GRID = grid_around_patient((14.0, 14.0, 16.0), rotation(4, -3))
# Names of files that belong together.
FORMATS = (("nii",), ("nii.gz",), ("nrrd",), ("nhdr", "raw"), ("mha",), ("mhd", "raw"), ("hdr", "img"))
PACKED = ("nii.gz", "nrrd")
ODD: list[Any] = [None, "", "0", "-1", "x", "1e30", "nan", "1e-12", "99999999999999999999", ["1", "2", "3", "4"], "\\"]
# Files of a case, and the channels that they are of, where a model takes several.
LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("imagesTr/s{n}_0000.nii.gz", "imagesTr/s{n}_0001.nii.gz", "labelsTr/s{n}.nii.gz"), ("flair", "t1c")),
    (("sub-{n}/anat/sub-{n}_T2w.nii.gz", "derivatives/sub-{n}/anat/sub-{n}_dseg.nii.gz", "participants.tsv"), ()),
    (("s{n}/ct.nii.gz", "s{n}/segmentations/liver.nii.gz", "meta.csv"), ()),
    (("case_{n}/imaging.nii.gz", "case_{n}/segmentation.nii.gz", "kits.json"), ()),
    (("p{n}/t1c.nrrd", "p{n}/t1n.nrrd", "p{n}/t2f.mha"), ("t1c", "t1n", "t2f")),
    (("{n}.img", "{n}.hdr", "{n}.seg.nrrd"), ()),
)


def sound(volume: Volume) -> Volume:
    """Return a volume that was read; AssertionError if it cannot be one."""
    geometry = volume.geometry
    assert volume.array.ndim == 3 and volume.array.shape == tuple(geometry.size[::-1]), volume.array.shape
    assert all(np.isfinite(step) and step > 0 for step in geometry.spacing), geometry.spacing
    assert np.isfinite(geometry.affine).all() and abs(np.linalg.det(geometry.affine)) > 0, geometry.affine
    assert np.isfinite(volume.array).all(), "values that are not numbers"
    return volume


def write(array: np.ndarray, path: Path, geometry: Any = GRID) -> None:
    """Write an image in the format of its name, whatever its grid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".hdr", ".img")):
        nibabel.save(nibabel.Nifti1Pair(array.T, np.diag([-1, -1, 1, 1]) @ geometry.affine), path)
    else:
        sitk.WriteImage(to_image(array, geometry), str(path), useCompression=True)


def fuzz_images(folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Read files of each format, one of them damaged, or damaged before it was packed."""
    for number in range(count):
        kinds = FORMATS[number % len(FORMATS)]
        with tempfile.TemporaryDirectory(dir=folder) as name:
            paths = [Path(name, f"ct.{kind}") for kind in kinds]
            write(phantom(GRID).array, paths[0])
            struck = draw.choice([path for path in Path(name).iterdir()])
            content = struck.read_bytes()
            start = content.find(b"\x1f\x8b")
            if start >= 0 and kinds[0] in PACKED and draw.random() < 0.6:
                inside = damaged(gzip.decompress(content[start:]), draw)
                struck.write_bytes(content[:start] + gzip.compress(inside, 1))
            else:
                struck.write_bytes(damaged(content, draw))
            _read(f"image {kinds[0]}", struck.read_bytes(), paths[0], tally)


def _read(kind: str, given: bytes, path: Path, tally: Tally) -> None:
    tally.call(kind, given, lambda: sound(quietly(read_volume, path)))


def fuzz_attributes(folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Read DICOM of which attributes are lost, odd, doubled or another frame's; as slices and as frames of one file."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        array = phantom(GRID).array
        slices = [pydicom.dcmread(path) for path in write_slices(Path(name), array, GRID)]
        kinds = {"slices": slices}
        for modality in ("CT", "MR"):
            path = Path(name, f"{modality}.dcm")
            write_frames(path, array, GRID, range(len(array)), repeated=modality == "MR", Modality=modality)
            kinds[f"frames of {modality}"] = [pydicom.dcmread(path)]
    for number in range(count):
        kind = sorted(kinds)[number % len(kinds)]
        seed, alone = draw.random(), draw.randrange(len(kinds[kind])) if draw.random() < 0.5 else None
        with tempfile.TemporaryDirectory(dir=folder) as name:
            given = b""
            for place, dataset in enumerate(kinds[kind]):
                content = None
                if alone in (None, place):
                    changed = copy.deepcopy(dataset)
                    quietly(_change, changed, random.Random(seed), draw)
                    content = quietly(_written, changed)
                content = content or _written(dataset)
                Path(name, f"{place}.dcm").write_bytes(content)
                given += content
            _read(f"DICOM {kind}", given, Path(name), tally)


def _change(dataset: Dataset, same: random.Random, own: random.Random) -> None:
    """Change some attributes; which, is the same in all files of a series."""
    for _number in range(same.choice((1, 1, 2))):
        inside = list(_items(dataset))
        item = same.choice(inside)
        elements = [element for element in item if element.tag.group != 2 and element.keyword]
        if not elements:
            continue
        element = same.choice(elements)
        kind = same.randrange(4)
        if kind == 0:
            del item[element.tag]
        elif element.VR == "SQ":
            items = list(element.value)
            element.value = own.choice(([], items[:-1], items[::-1], items + items[:1]))
        elif element.keyword == "PixelData":
            element.value = damaged(element.value, own)
        elif kind == 1:
            # As another frame or slice has it.
            others = [each[element.tag].value for each in inside if element.tag in each]
            element.value = own.choice(others)
        else:
            item[element.tag] = _odd(element, own)


def _odd(element: Any, draw: random.Random) -> Any:
    changed = copy.deepcopy(element)
    value = draw.choice(ODD)
    if element.VR in ("US", "SS", "UL", "SL"):
        value = draw.choice((0, 1, 3, 65535 if element.VR == "US" else 32767))
    elif element.VR in ("FD", "FL"):
        value = draw.choice((0.0, -1.0, 1e30, float("nan"), [1.0, 2.0]))
    elif element.VM > 1 and isinstance(value, str):
        value = [value, *list(element.value)[1:]]
    changed._value = value if value is not None else ""
    return changed


def _items(dataset: Dataset) -> Iterator[Dataset]:
    """Yield a dataset and all items of sequences in it."""
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _items(item)


def _written(dataset: Dataset) -> bytes:
    """Return a file's bytes; none if pydicom does not write such a value."""
    buffer = io.BytesIO()
    try:
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=False)
    except Exception:
        return b""
    return buffer.getvalue()


def fuzz_grids(folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Segment volumes of very small, very large, oblique and impossible voxels, or find in a sentence why not."""
    model = bright_bone.write_model(folder, 5.0)
    for number in range(count):
        extension = ("nii", "mha", "nrrd")[number % 3]
        matrix = np.array(GRID.affine)
        matrix[:3, :3] *= [10 ** draw.choice((0.0, 0.0, draw.uniform(-9, 9), draw.uniform(-1, 1))) for _axis in "xyz"]
        if draw.random() < 0.3:
            matrix[:3, :3] @= np.array(draw.choices((0.0, 1.0, -1.0, 0.1), k=9)).reshape(3, 3)
        if draw.random() < 0.5:
            matrix[draw.randrange(3), draw.randrange(4)] = draw.choice((0.0, -1e9, 1e30, float("nan"), float("inf")))
        path = folder / f"grid.{extension}"
        with np.errstate(all="ignore"):
            path.write_bytes(_with_matrix(phantom(GRID).array, matrix, extension))
        tally.call(f"grid {extension}", path.read_bytes()[:400], partial(_segmented, path, model, folder))


def _segmented(path: Path, model: Model, root: Path, modality: str = "auto") -> np.ndarray:
    volume = sound(quietly(read_volume, path))
    options = Options(device="cpu", precision="float32", modality=modality)
    with patch.object(engine, "_network", lambda *_: bright_bone.BrightBone()):
        labels: np.ndarray = quietly(pipeline.segment, volume, model, options, root=root).labels
    # On the voxels of the file, which all have this number of voxels, whatever they were resampled to.
    assert labels.shape == GRID.size[::-1]
    assert set(np.unique(labels)) <= {0, *model.channel_values}
    return labels


def _with_matrix(array: np.ndarray, matrix: np.ndarray, extension: str) -> bytes:
    """Return a file whose header says where its voxels lie, true or not."""
    voxels = array.astype("<i2").tobytes()
    size = " ".join(str(length) for length in array.shape[::-1])
    if extension == "nii":
        header = nibabel.Nifti1Header()
        header.set_data_shape(array.shape[::-1])
        header.set_data_dtype(np.int16)
        for row, name in zip(np.diag([-1, -1, 1]) @ matrix[:3], ("srow_x", "srow_y", "srow_z"), strict=True):
            header[name] = row
        header["pixdim"][1:4] = np.linalg.norm(matrix[:3, :3], axis=0)
        header["sform_code"], header["vox_offset"], header["magic"] = 1, 352, b"n+1"
        return bytes(header.binaryblock) + bytes(4) + voxels
    steps = matrix[:3, :3].T
    if extension == "nrrd":
        axes = " ".join("(" + ",".join(map(repr, step)) + ")" for step in steps.tolist())
        origin = ",".join(map(repr, matrix[:3, 3].tolist()))
        lines = ["NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior", f"sizes: {size}"]
        lines += [f"space directions: {axes}", "endian: little", "encoding: raw", f"space origin: ({origin})", "", ""]
        return "\n".join(lines).encode() + voxels
    spacing = np.linalg.norm(steps, axis=1)
    axes = " ".join(map(repr, (steps / spacing[:, None]).ravel().tolist()))
    lines = ["ObjectType = Image", "NDims = 3", f"DimSize = {size}", "ElementType = MET_SHORT", "BinaryData = True"]
    lines += [f"TransformMatrix = {axes}", f"Offset = {' '.join(map(repr, matrix[:3, 3].tolist()))}"]
    lines += [f"ElementSpacing = {' '.join(map(repr, spacing.tolist()))}", "ElementDataFile = LOCAL", ""]
    return "\n".join(lines).encode() + voxels


def fuzz_values(folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Segment what is no CT, or not the modality that it is called: label maps, MR, noise, constants, huge values."""
    model, truth = bright_bone.write_model(folder, 5.0), true_labels(GRID)
    ct = phantom(GRID).array
    noise = np.random.default_rng(draw.randrange(1 << 30))
    kinds: dict[str, Callable[[], np.ndarray]] = {
        "label map": lambda: truth * draw.choice((1, 10)),
        "binary": lambda: (truth > 0).astype(np.uint8),
        "labels and -1": lambda: np.where(truth > 0, truth, -1).astype(np.int16),
        "MR": lambda: (noise.gamma(4, 60, ct.shape) * (ct > -500)).astype(draw.choice(("uint8", "uint16", "f4"))),
        "noise": lambda: noise.normal(0, 10.0 ** draw.randint(-3, 12), ct.shape),
        "constant": lambda: np.full(ct.shape, draw.choice((0, -1024, 1, 3000)), np.int16),
        "one voxel of a huge value": lambda: _with_one(ct, draw.choice((1e38, -1e38, 3e4))),
        "not numbers": lambda: _with_one(ct, draw.choice((float("nan"), float("inf"), float("-inf")))),
        "CT": lambda: ct,
    }
    for number in range(count):
        kind, modality = list(kinds)[number % len(kinds)], draw.choice(("auto", "CT"))
        path = folder / f"values.{draw.choice(('nii.gz', 'nrrd', 'mha'))}"
        write(np.asarray(kinds[kind]()), path)
        segmented = partial(_segmented, path, model, folder, modality)
        tally.call(f"values: {kind}", path.read_bytes()[:400], partial(_checked, kind, segmented))


def _checked(kind: str, segmented: Callable[[], np.ndarray]) -> None:
    labels = segmented()
    if kind == "CT":
        assert dice(labels > 0, true_labels(GRID) > 0) > 0.6, "the bones of the CT"


def _with_one(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32)
    changed.flat[changed.size // 2] = value
    return changed


def fuzz_channels(folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Bring volumes of several channels together, of which some are damaged, copies, elsewhere or of another kind."""
    model = load_manifest(brain.write_brain_model(folder)).model(brain.BRAIN_ID)
    for _number in range(count):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            paths = brain.write_channels(Path(name))
            for channel in draw.sample(brain.CHANNELS, draw.choice((0, 1, 1, 3))):
                _strike_channel(paths, channel, draw)
            own, *others = draw.sample(brain.CHANNELS, draw.choice((3,) * 9 + (2,)))
            given = b"".join(path.read_bytes()[:60] for path in map(Path, paths.values()) if path.is_file())
            tally.call("channels", given, partial(_joined, model, own, others, paths))


def _strike_channel(paths: dict[str, str], channel: str, draw: random.Random) -> None:
    path, kind = Path(paths[channel]), draw.randrange(6)
    grid = brain.GRID
    if kind == 0:
        path.write_bytes(damaged(path.read_bytes(), draw))
    elif kind == 1:
        path.write_bytes(draw.choice(sorted(path.parent.glob("*.nii.gz"))).read_bytes())
    elif kind == 2:
        path.unlink(missing_ok=True)
        paths[channel] = str(path.parent)
    elif kind == 3:
        write((brain.channel(1).array > draw.choice((100, 1e9))).astype(np.uint8), path, grid)
    else:
        size = tuple(draw.choice((1, 5, length)) for length in grid.size)
        spacing = tuple(step * 10 ** draw.choice((0, 0, -6, 4)) for step in grid.spacing)
        origin = tuple(place + draw.choice((0.0, 3.0, 1e4)) for place in grid.origin)
        direction = rotation(draw.choice((0, 7, 90)), draw.choice((0, 7, 180)))
        moved = replace(grid, size=size, spacing=spacing, origin=origin, direction=direction)  # type: ignore[arg-type]
        write(brain.channel(draw.randrange(9), moved).array, path, moved)


def _joined(model: Model, own: str, others: list[str], paths: dict[str, str]) -> None:
    files = in_order(model, paths[own], {name: paths[name] for name in others})
    volumes = [sound(quietly(read_volume, path)) for path in files]
    place = files.index(paths[own])
    whole = joined(volumes, place, model)
    assert whole.geometry == volumes[place].geometry
    assert whole.array.shape == volumes[place].array.shape and len(whole.channels) == len(files)
    assert all(part.shape == whole.array.shape and np.isfinite(part).all() for part in whole.channels)


def fuzz_folders(folder: Path, draw: random.Random, count: int, tally: Tally) -> None:
    """Look for the cases of folders as data sets have them, with damaged, doubled and strange files."""
    images = [phantom(GRID).array, true_labels(GRID)]
    for number in range(count):
        layout, channels = LAYOUTS[number % len(LAYOUTS)]
        with tempfile.TemporaryDirectory(dir=folder) as name:
            root = Path(name, "in")
            for case in range(draw.choice((1, 2, 4))):
                for part in layout:
                    _put(root / part.format(n=case), images, draw)
            files = sorted(path for path in root.rglob("*") if path.is_file())
            given = json.dumps([str(path.relative_to(root)) for path in files]).encode()
            tally.call(f"folder {layout[0]}", given, partial(_found, root, channels))


def _put(path: Path, images: list[np.ndarray], draw: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = draw.randrange(8)
    if path.suffix in (".tsv", ".csv", ".json") or kind == 0:
        path.write_bytes(draw.choice((b"", b"a\tb\n", b"{", b"\xff" * 9, b"[" * 5000)))
    elif kind != 1:
        write(images[draw.random() < 0.4], path)
        if kind == 2:
            path.write_bytes(damaged(path.read_bytes(), draw))
        elif kind == 3:
            path.rename(path.with_name(draw.choice(("\u00e9\u4e2d.nii.gz", "a b.nii", "x" * 200 + ".nrrd", "._x.nii"))))
        elif kind == 4 and not path.with_name("again.nii").is_symlink():
            path.with_name("again.nii").symlink_to(draw.choice((path, path.parent, Path("nowhere"))))


def _found(root: Path, channels: tuple[str, ...]) -> None:
    cases = quietly(find_cases, [str(root)], root.with_name("out"))
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases of one name"
    assert all(Path(case.path).is_relative_to(root) for case in cases)
    assert all(not case.skipped or case.skipped.endswith(".") for case in cases)
    if channels:
        several = cases_of_channels(cases, channels)
        assert all(case.error or case.skipped or len(case.channels) == len(channels) - 1 for case in several)


def fuzz_files(folder: Path, count: int, seed: int) -> Tally:
    """Try ``count`` inputs of each kind.

    Parameters
    ----------
    folder : Path
        For files.
    count, seed : int
    """
    tally, draw = Tally(), random.Random(seed)
    for fuzz in (fuzz_images, fuzz_attributes, fuzz_grids, fuzz_values, fuzz_channels, fuzz_folders):
        fuzz(folder, draw, count, tally)
    return tally
