"""The command ``segmamba serve``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from segmamba.cli.options import add_options
from segmamba.errors import InstallationError
from segmamba.models.settings import user_folder
from segmamba.remote.servers import is_loopback
from segmamba.reporting import DISCLAIMER

NEEDED = (
    "'segmamba serve' needs FastAPI and uvicorn: install them with 'pip install \"segmamba-slicer[server]\"', or "
    "'pip install fastapi uvicorn'."
)
DESCRIPTION = """
Segment for other computers: an HTTP service around the same worker, for Slicer's panel ("Run on") and 'segmamba
segment --server'. It listens on this computer only; a proxy with TLS lets others in. See Docs/server.md.
"""
GIB = 2**30


def add_command(commands: Any) -> None:
    """Add ``serve`` to the command line."""
    parser = commands.add_parser("serve", help="segment for other computers", description=DESCRIPTION)
    parser.set_defaults(run=_run)
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="port; 0 is a free one (%(default)s)")
    token = user_folder("XDG_CONFIG_HOME", ".config") / "server-token"
    text = f"file with the token that clients send; it is made where it is missing (default {token})"
    parser.add_argument("--token-file", type=Path, default=token, metavar="FILE", help=text)
    text = "folder for uploads and results while they are needed (default: the system's for temporary files)"
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help=text)
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per GPU, or one)")
    add_options(parser, ("device", "manifest"))
    parser.add_argument("--queue", type=int, default=32, metavar="N", help="jobs that may wait (%(default)s)")
    text = "largest upload of a job (%(default)s)"
    parser.add_argument("--upload-limit", type=float, default=2, metavar="GIB", help=text)
    text = "largest volume when it is unpacked (%(default)s)"
    parser.add_argument("--volume-limit", type=float, default=4, metavar="GIB", help=text)
    parser.add_argument("--disk-limit", type=float, default=32, metavar="GIB", help="all jobs together (%(default)s)")
    text = "minutes after which a result that nobody fetched is deleted (%(default)s)"
    parser.add_argument("--keep", type=float, default=60, metavar="MINUTES", help=text)


def _run(options: argparse.Namespace) -> int:
    try:
        from segmamba.server.run import prepared
    except ImportError as error:
        raise InstallationError(NEEDED) from error
    from segmamba.server.settings import ServerSettings, server_token

    settings = ServerSettings(
        options.host,
        options.port,
        options.folder,
        options.workers,
        getattr(options, "device", "auto"),
        str(Path(options.manifest).absolute()) if "manifest" in options else None,
        options.queue,
        int(options.upload_limit * GIB),
        int(options.volume_limit * GIB),
        int(options.disk_limit * GIB),
        options.keep * 60,
    )
    token = server_token(options.token_file)

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, _interrupt)
    with prepared(settings, token, log) as (server, listening, _jobs):
        port = listening.getsockname()[1]
        log(f"Serving at http://{settings.host}:{port} with the token in {options.token_file}.")
        if not is_loopback(settings.host):
            log("Others can reach it without encryption: let only a proxy with TLS do so. See Docs/server.md.")
        log(DISCLAIMER)
        # It ends its connections first, and then repeats the signal.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Take the wish to end for Ctrl-C, after which everything is tidied up."""
    raise KeyboardInterrupt
