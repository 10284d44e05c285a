"""The commands ``segmamba models ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from segmamba.cli.interrupt import stop_signal
from segmamba.cli.progress import ProgressBar
from segmamba.errors import ModelError, SegMambaError
from segmamba.models import store
from segmamba.models.library import load_models
from segmamba.models.manifest import ListedModel, Manifest, Model
from segmamba.models.settings import MIRROR, MODELS, SHARED_MODELS, VARIABLES, setting, settings_file


def add_command(commands: Any) -> None:
    """Add ``models`` and what it can do to the command line."""
    description = (
        "List the models, or download, import, verify and remove their checkpoints. Three settings, as environment "
        f"variables or in a settings file: {VARIABLES[MODELS]}, your models folder; {VARIABLES[SHARED_MODELS]}, a "
        f"folder of models that is only read; {VARIABLES[MIRROR]}, a server to download from first. "
        "'segmamba models path' shows what they are set to."
    )
    models = commands.add_parser(
        "models", help="list, download, import, verify and remove models", description=description
    )
    models.add_argument("--manifest", metavar="FILE", help="use your own manifest")
    models.set_defaults(run=_list)
    actions = models.add_subparsers(title="commands", metavar="COMMAND")

    def action(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        parser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        # Without a default, so that one given before the command is not lost.
        parser.add_argument("--manifest", metavar="FILE", default=argparse.SUPPRESS, help="use your own manifest")
        parser.set_defaults(run=run)
        return parser

    action("list", _list, "list the models: whether installed, size and origin")
    path = action(
        "path", _path, "print where a model is installed or, without MODEL, the folders and the mirror in use"
    )
    path.add_argument("model", metavar="MODEL", nargs="?")
    verify = action("verify", _verify, "compare size and SHA-256 of installed checkpoints with the expected ones")
    verify.add_argument("models", metavar="MODEL", nargs="*", help="default: all installed models")
    fetch = action("fetch", _fetch, "download checkpoints, or resume an interrupted download")
    fetch.add_argument("models", metavar="MODEL", nargs="+")
    remove = action("remove", _remove, "remove checkpoints from the models folder")
    remove.add_argument("models", metavar="MODEL", nargs="+")
    bundle = action("bundle", _bundle, "write installed models to a zip archive, for a computer without internet")
    bundle.add_argument("output", metavar="OUT.zip", type=Path)
    bundle.add_argument("models", metavar="MODEL", nargs="*", help="default: all except bundled ones")
    importing = action("import", _import, "import a checkpoint, a model that you trained, or a zip or folder of models")
    text = "a .pt, .pth or .safetensors file; the folder of a training; or what 'bundle' wrote"
    importing.add_argument("file", metavar="FILE", type=Path, help=text)
    text = "which model a checkpoint is (default: detected from its weights), or the name for a model that you trained"
    importing.add_argument("--as", dest="model", metavar="MODEL", help=text)
    text = "normalization: clip intensities (HU) to this range"
    importing.add_argument("--clip", nargs=2, type=float, metavar=("LOW", "HIGH"), help=text)
    importing.add_argument("--mean", type=float, metavar="M", help="normalization: mean, subtracted after clipping")
    importing.add_argument("--std", type=float, metavar="S", help="normalization: standard deviation, to divide by")
    text = "import a trained model even if it does worse than the one that it was trained from"
    importing.add_argument("--even-if-worse", action="store_true", help=text)


def _manifest(options: argparse.Namespace) -> tuple[Manifest, Path | None]:
    """Return the manifest, and the folder of one that the user names."""
    if options.manifest is None:
        return load_models(), None
    path = Path(options.manifest)
    return load_models(path), path.parent


def _list(options: argparse.Namespace) -> int:
    manifest, root = _manifest(options)
    rows = [("ID", "TASK", "MODALITY", "INSTALLED", "SIZE", "ORIGIN", "TITLE")]
    problems = []
    for model in manifest.listed:
        state, origin, size = "no", "-", model.file.size
        try:
            found = store.installed(model, root)
            state, origin, size = "yes", found.origin, found.path.stat().st_size
        except ModelError as error:
            problems.append(str(error))
        text = f"{size / 1e6:.1f} MB" if size is not None else "-"
        rows.append((model.id, model.task, _takes(model), state, text, origin, model.title))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    problems += manifest.problems
    problems += [f"'{model.id}' cannot be used: {model.unsupported}" for model in manifest.listed if model.unsupported]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in problems:
        print(line)
    return 0


def _takes(model: ListedModel) -> str:
    """Return the modalities of a model and, where it takes several volumes, the names of those."""
    names = [channel["name"] for channel in model.entry.get("input_channels", ())]
    return ",".join(model.modalities) + (f" ({','.join(names)})" if names else "")


def _path(options: argparse.Namespace) -> int:
    if options.model is None:
        return _places()
    manifest, root = _manifest(options)
    print(store.installed(manifest.entry(options.model), root).path)
    return 0


def _places() -> int:
    """Print the settings, and where each is from."""
    titles = {MODELS: "Models folder", SHARED_MODELS: "Shared models folder", MIRROR: "Mirror"}
    defaults = {MODELS: str(store.default_models_folder())}
    for name, title in titles.items():
        chosen = setting(name)
        if chosen.value:
            print(f"{title}: {chosen.value}, from {chosen.source}")
        else:
            print(f"{title}: {defaults.get(name, 'none')}; {VARIABLES[name]} or the settings file can set it")
    path = settings_file()
    print(f"Settings file: {path}{'' if path.is_file() else ', which does not exist'}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    manifest, root = _manifest(options)
    status = 0
    for model in _chosen(manifest, options.models):
        try:
            if not options.models and store.find(model, root) is None:
                continue
            found = store.installed(model, root)
            digest = store.verify(found)
        except SegMambaError as error:
            print(f"FAIL  {model.id}: {error}")
            status = error.exit_code
            continue
        known = "" if found.sha256 else " (expected one unknown, not compared)"
        print(f"OK    {model.id}: {found.path}, SHA-256 {digest}{known}")
    return status


def _fetch(options: argparse.Namespace) -> int:
    from segmamba.models.download import fetch

    manifest, root = _manifest(options)
    models = _chosen(manifest, options.models)
    for model in models:
        with ProgressBar(sys.stderr) as bar, stop_signal() as stopped:
            found = fetch(model, root, bar.update, stopped)
        print(f"Installed: {model.id}, {found.origin}, {found.path}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from segmamba.models.install import remove

    manifest, _ = _manifest(options)
    for model in _chosen(manifest, options.models):
        print(f"Removed: {model.id}, {remove(model) / 1e6:.1f} MB")
    return 0


def _bundle(options: argparse.Namespace) -> int:
    from segmamba.models.bundle import write_bundle

    manifest, root = _manifest(options)
    if options.models:
        wanted = [store.installed(model, root) for model in _chosen(manifest, options.models)]
    else:
        present = [store.find(model, root) for model in manifest.listed]
        wanted = [found for found in present if found is not None and found.place != store.SOFTWARE]
    if not wanted:
        raise ModelError("Only bundled models are installed: name the models to write.")
    with ProgressBar(sys.stderr) as bar:
        write_bundle(options.output, wanted, bar.update)
    print(f"Written: {options.output} with {', '.join(found.model.id for found in wanted)}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from segmamba.models.bundle import import_bundle, is_bundle
    from segmamba.models.import_checkpoint import NormalizationParameters, import_checkpoint
    from segmamba.models.own import find_description, import_own

    manifest, _ = _manifest(options)
    parameters = (options.clip, options.mean, options.std)
    if None in parameters and parameters != (None, None, None):
        raise ModelError("--clip, --mean and --std belong together: give all three, or none of them.")
    normalization = None
    if options.clip is not None:
        low, high = options.clip
        normalization = NormalizationParameters(low, high, options.mean, options.std)
    trained = find_description(options.file)
    if trained is not None:
        if normalization is not None:
            raise ModelError("A trained model describes its own intensities: leave out --clip, --mean and --std.")
        with stop_signal() as stopped:
            return _report((import_own(trained, manifest, options.model, options.even_if_worse, stopped),))
    bundle = is_bundle(options.file)
    if bundle and (options.model or normalization):
        raise ModelError(
            "A zip or folder of models describes its own content: leave out --as, --clip, --mean and --std."
        )
    with ProgressBar(sys.stderr) as bar, stop_signal() as stopped:
        if bundle:
            imported = import_bundle(options.file, manifest, bar.update, stopped)
        else:
            imported = (import_checkpoint(options.file, manifest, options.model, normalization, bar.update, stopped),)
    return _report(imported)


def _report(imported: tuple[store.Installed, ...]) -> int:
    for found in imported:
        print(f"Installed: {found.model.id}, {found.origin}, {found.path}")
        for note in _notes(found):
            print(f"Note: {note}")
    return 0


def _notes(found: store.Installed) -> Iterator[str]:
    """Say what the user has to know of an imported model."""
    from segmamba.models.import_checkpoint import estimated_channel

    model = found.model
    if not isinstance(model, Model):
        yield f"It is stored, but cannot be used: {model.unsupported}"
    elif found.normalization is None and model.preprocessing.estimated:
        how = (
            "; if you know them, import again with them (--clip LOW HIGH --mean M --std S, or in the panel 'Import as')"
        )
        yield f"{model.preprocessing.estimated}{how if estimated_channel(model) else ''}."


def _chosen(manifest: Manifest, names: list[str]) -> tuple[ListedModel, ...]:
    return tuple(manifest.entry(name) for name in names) if names else manifest.listed
