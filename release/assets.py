"""The assets of a release: the files of its models, their SHA-256 sums, and the manifest with their addresses.

``python release/assets.py OUT --tag v0.3.0`` fills the new folder OUT; `Docs/contributing/release.md` says what to do
with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

MANIFEST = Path(__file__).resolve().parents[1] / "weights_manifest.json"
REPOSITORY = "https://github.com/SegMambaSlicer/SlicerSegMambaSlicer"
SUMS = "SHA256SUMS"


def write_assets(manifest: Path, out: Path, tag: str, repository: str = REPOSITORY, keep: bool = True) -> list[Path]:
    """Write the assets of a release into a new folder and return them.

    Parameters
    ----------
    manifest : Path
        Its models' bundled files lie below its folder.
    out : Path
        Must not exist.
    tag : str
        Name of the release's tag.
    repository : str
        Address of the repository, below which releases are.
    keep : bool
        Whether the manifest goes on naming the bundled files; without them, the models have to be downloaded.

    Raises
    ------
    ValueError
        Two files have one name, or one is not what the manifest says; nothing is left behind.
    OSError
        The folder exists, or cannot be written.
    """
    text = manifest.read_text(encoding="utf-8")
    files = [entry["file"] for entry in json.loads(text)["models"] if entry["file"]["bundled"]]
    if len({file["name"] for file in files}) < len(files):
        raise ValueError(f"{manifest} has two files of one name: assets of a release need different ones.")
    out.mkdir(parents=True)
    try:
        for file in files:
            _copy(manifest.parent / file["bundled"], out / file["name"], file["sha256"])
            text = _with_address(text, file, f"{repository}/releases/download/{tag}/{file['name']}", keep)
        (out / MANIFEST.name).write_text(text, encoding="utf-8")
        assets = sorted(out.iterdir())
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in assets]
        (out / SUMS).write_text("".join(sums), encoding="utf-8")
    except BaseException:
        shutil.rmtree(out)
        raise
    return [*assets, out / SUMS]


def _copy(source: Path, target: Path, sha256: str) -> None:
    shutil.copyfile(source, target)
    if hashlib.sha256(target.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{source} is not the file of the manifest (its SHA-256 differs): correct one of the two.")


def _with_address(text: str, file: dict[str, object], address: str, keep: bool) -> str:
    """Return a manifest's text with one address of a file. The rest of it stays as somebody wrote it."""
    entry = re.compile(rf'\{{[^{{}}]*"sha256": "{file["sha256"]}"[^{{}}]*\}}')
    found = entry.findall(text)
    if len(found) != 1:
        raise ValueError(f"{file['name']} stands {len(found)} times in the manifest: it must be there once.")
    changed = dict(json.loads(found[0]), urls=[address])
    if not keep:
        changed["bundled"] = None
    line = text[: text.index(found[0])].rpartition("\n")[2]
    indent = line[: len(line) - len(line.lstrip())]
    lines = json.dumps(changed, indent=2).replace("\n", f"\n{indent}")
    return text.replace(found[0], lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--tag", required=True, help="the tag of the release")
    parser.add_argument("--repository", default=REPOSITORY, help="address of the repository (default: %(default)s)")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="another manifest")
    text = "write a manifest for packages without the models: they have to be downloaded"
    parser.add_argument("--without-bundled", action="store_true", help=text)
    options = parser.parse_args(arguments)
    try:
        given = options.manifest, options.out, options.tag, options.repository.rstrip("/")
        assets = write_assets(*given, keep=not options.without_bundled)
    except FileExistsError:
        print(f"{options.out} exists: name a new folder.", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for asset in assets:
        print(f"{asset.stat().st_size:12,}  {asset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
