"""Transfer models between computers without a network, as a zip archive or a folder.

Both have the layout of the models folder: for each model a folder named by its id, with a record and a checkpoint, and
with the description of a model that the user trained. Other files are ignored, and files are opened by their expected
names, so that none can be written elsewhere.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from segmamba.errors import Cancelled, ModelError, OutputError
from segmamba.models import store
from segmamba.models.install import PARTIAL, add, changing, check_space, file_name
from segmamba.models.library import DESCRIPTION, described_model, read_description
from segmamba.models.manifest import ListedModel, Manifest
from segmamba.models.own import add_own
from segmamba.models.record import RECORD_NAME, Record, record_from_json
from segmamba.utils.atomic import atomic_write
from segmamba.utils.file_kinds import why_no_checkpoint

PIECE = 1 << 20
# Upper limit of the size of a record.
RECORD_BYTES = 1 << 16
DESCRIPTION_BYTES = 1 << 22

Progress = Callable[[str, float], None]


def is_bundle(path: Path) -> bool:
    """Say whether a path is a folder or zip archive of models; a ``.pt`` checkpoint is a zip archive, too."""
    return path.is_dir() or path.suffix.lower() == ".zip"


def write_bundle(path: Path, models: Sequence[store.Installed], progress: Progress | None = None) -> None:
    """Verify installed models and write them into a zip archive.

    Raises
    ------
    ModelError
        A checkpoint is damaged.
    OutputError
        The archive exists already or cannot be written.
    """
    if path.suffix.lower() != ".zip":
        raise OutputError(f"{path} does not end in .zip: choose a name that does.")
    if path.exists():
        raise OutputError(f"{path} already exists: choose another name.")
    with atomic_write(path, (".zip",)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for index, found in enumerate(models):
            if progress is not None:
                progress("bundle", index / len(models))
            digest = store.verify(found)
            size = found.path.stat().st_size
            name = file_name(found.model, found.path.suffix, digest)
            record = Record(name, size, digest, found.origin, found.source_sha256, found.normalization)
            archive.write(found.path, f"{found.model.id}/{record.file}")
            archive.writestr(f"{found.model.id}/{RECORD_NAME}", record.to_json())
            description = found.path.parent / DESCRIPTION
            if found.place != store.SOFTWARE and description.is_file():
                archive.writestr(f"{found.model.id}/{DESCRIPTION}", read_description(description))


def import_bundle(
    path: Path,
    manifest: Manifest,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[store.Installed, ...]:
    """Import the models of a zip archive or folder into the user's models folder; each is verified first.

    Raises
    ------
    ModelError
        It has no model of the manifest, or names that lead out of it, or a file does not match its record. Models
        before that one are installed.
    OutputError
        The models folder cannot be written or has too little room.
    Cancelled
    """
    with _opened(path) as (names, reader):
        descriptions = _descriptions(path, names, reader)
        wanted = [
            (model, name)
            for model in (*manifest.listed, *_new_models(path, manifest, descriptions))
            for name in names
            # In a zipped folder, its own name comes first.
            if f"/{name}".endswith(f"/{model.id}/{RECORD_NAME}")
        ]
        if not wanted:
            raise ModelError(
                f"{path} has no model that this software knows: make it with 'segmamba models bundle', and import a "
                "single checkpoint by its own name."
            )
        progress, cancelled = progress or (lambda stage, fraction: None), cancelled or (lambda: False)
        bundle = _Bundle(path, manifest, reader, descriptions, progress, cancelled)
        return tuple(_import_one(model, name, bundle) for model, name in wanted)


Reader = Callable[[str], IO[bytes]]


@dataclass(frozen=True)
class _Bundle:
    """What is read from, and with what; ``descriptions`` by the ids of the models."""

    source: Path
    manifest: Manifest
    reader: Reader
    descriptions: Mapping[str, str]
    progress: Progress
    cancelled: Callable[[], bool]


def _descriptions(source: Path, names: Sequence[str], reader: Reader) -> dict[str, str]:
    """Return the descriptions of models that a user trained, by the names of their folders."""
    found = {}
    for name in names:
        path = PurePosixPath(name)
        if path.name == DESCRIPTION and store.PLAIN_NAME.fullmatch(path.parent.name):
            with reader(name) as stream:
                found[path.parent.name] = _read(stream, DESCRIPTION_BYTES, source).decode("utf-8", "replace")
    return found


def _new_models(source: Path, manifest: Manifest, descriptions: Mapping[str, str]) -> list[ListedModel]:
    """Return the described models that the manifest does not have."""
    known = {model.id for model in manifest.listed}
    models = [described_model(text, source) for text in descriptions.values()]
    return [model for model in models if model.id in descriptions and model.id not in known]


def _import_one(model: ListedModel, name: str, bundle: _Bundle) -> store.Installed:
    source, reader, progress, cancelled = bundle.source, bundle.reader, bundle.progress, bundle.cancelled
    with reader(name) as stream:
        text = _read(stream, RECORD_BYTES, source).decode("utf-8", "replace")
    record = record_from_json(text, f"{source}: {name}")
    if model.file.sha256 not in (None, record.sha256, record.source_sha256):
        raise ModelError(f"{source} does not have version {model.version} of '{model.id}': get that one.")
    with changing(model, cancelled) as folder:
        check_space(folder, record.size)
        part = folder / f"import{PARTIAL}"
        try:
            with reader(str(PurePosixPath(name).with_name(record.file))) as stream, part.open("wb") as target:
                done = 0
                # One byte beyond the expected size is enough to detect a file that is too long.
                while piece := _read(stream, min(PIECE, record.size + 1 - done), source):
                    if cancelled():
                        raise Cancelled()
                    target.write(piece)
                    done += len(piece)
                    progress("import", min(1.0, done / record.size))
            if part.stat().st_size != record.size or store.sha256(part) != record.sha256:
                raise ModelError(f"{source} is damaged ({model.id}/{record.file}): copy or make it again.")
            record = replace(record, file=file_name(model, Path(record.file).suffix, record.sha256))
            if model.id in bundle.descriptions:
                add_own(folder, model, bundle.manifest, part, record, bundle.descriptions[model.id])
            else:
                add(folder, part, record)
        finally:
            part.unlink(missing_ok=True)
        found = store.in_folder(model, folder, store.USER)
    assert found is not None
    return found


def _read(stream: IO[bytes], count: int, source: Path) -> bytes:
    try:
        return stream.read(count)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ModelError(f"{source} is damaged ({error}): copy or make it again.") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[tuple[str, ...], Reader]]:
    """Yield the names of all files in an archive, or of the records in a folder, and a function that opens one."""
    if path.is_dir():
        records = [
            item
            for name in (RECORD_NAME, DESCRIPTION)
            for depth in ("*", "*/*")
            for item in path.glob(f"{depth}/{name}")
        ]
        yield (
            tuple(item.relative_to(path).as_posix() for item in records),
            lambda name: _open(path, lambda: (path / name).open("rb")),
        )
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        other = why_no_checkpoint(path) if path.is_file() else None
        if other:
            raise ModelError(f"The file {path} {other}") from error
        raise ModelError(
            f"{path} cannot be read as a zip archive ({error}): check the path, or copy it again."
        ) from error
    with archive:
        for name in archive.namelist():
            if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
                raise ModelError(f"{path} has the name '{name}', which leads out of it: do not use this archive.")
        yield tuple(archive.namelist()), lambda name: _open(path, lambda: archive.open(name))


def _open(path: Path, opener: Callable[[], IO[bytes]]) -> IO[bytes]:
    try:
        return opener()
    except (OSError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is damaged ({error}): copy or make it again.") from error
