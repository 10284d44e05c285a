"""The servers that this user knows: their addresses, their tokens, and whether patients' data may go there.

They are in a file of the user's own alone, ``servers.json`` in the folder of the settings.
"""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from segmamba.errors import InputError, OutputError
from segmamba.models.settings import user_folder
from segmamba.utils.atomic import replacing

FILE_NAME = "servers.json"
ADDRESS_VARIABLE = "SEGMAMBA_SERVER"
# The name of a variable, not a token.
TOKEN_VARIABLE = "SEGMAMBA_SERVER_TOKEN"  # nosec B105


@dataclass(frozen=True)
class KnownServer:
    """A server: its address, its token, and whether the user has agreed to send patients' data there."""

    address: str
    token: str = ""
    consent: bool = False


def servers_file() -> Path:
    """Return where the servers are kept, whether the file is there or not."""
    return user_folder("XDG_CONFIG_HOME", ".config") / FILE_NAME


def known_servers() -> list[KnownServer]:
    """Return the servers that this user knows, in the order in which they came.

    Raises
    ------
    InputError
        The file is damaged.
    """
    path = servers_file()
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return [KnownServer(str(each["address"]), str(each["token"]), each["consent"] is True) for each in content]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"The list of servers {path} cannot be read ({type(error).__name__}): remove it.") from error


def known_server(address: str) -> KnownServer:
    """Return what is known of a server; one without a token has that of the environment, if any."""
    address = checked_address(address)
    found = next((each for each in known_servers() if each.address == address), KnownServer(address))
    # Not the other way round: what is meant for one server is not sent to all.
    token = found.token or os.environ.get(TOKEN_VARIABLE, "")
    return KnownServer(address, token, found.consent)


def keep_server(server: KnownServer) -> None:
    """Add a server to the list, or replace what is known of it.

    Raises
    ------
    InputError
        Its address is not one, or the list is damaged.
    OutputError
        The list cannot be written.
    """
    checked_address(server.address)
    _write([*(each for each in known_servers() if each.address != server.address), server])


def forget_server(address: str) -> None:
    """Remove a server, with its token, from the list; errors as of `keep_server`."""
    _write([each for each in known_servers() if each.address != address])


def checked_address(address: str) -> str:
    """Return the address of a server as it is written everywhere.

    Raises
    ------
    InputError
        It is not one, or would send images and token unprotected through a network.

    Examples
    --------
    >>> checked_address(" https://gpu.hospital.example/segmamba/ ")
    'https://gpu.hospital.example/segmamba'
    """
    address = address.strip().rstrip("/")
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or parts.username or parts.query or parts.fragment or len(address.split()) != 1:
        raise InputError(f"'{address}' is not the address of a server: give one like https://gpu.hospital.example.")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise InputError(f"'{address}' would send images unprotected: give an address that begins with https://.")
    return address


def is_loopback(host: str) -> bool:
    """Say whether a name or an address of a host is this computer's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _write(servers: list[KnownServer]) -> None:
    path = servers_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            text = json.dumps([asdict(each) for each in servers], indent=2) + "\n"
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
                stream.write(text)
    except OSError as error:
        text = f"The list of servers {path} cannot be written ({error.strerror}): check the folder."
        raise OutputError(text) from error
