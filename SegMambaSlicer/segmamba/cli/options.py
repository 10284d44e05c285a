"""Options of the command line from the fields of `Request` and `Options`, and back."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import MISSING, Field
from typing import Any

from segmamba.option_types import KEY, Choice, Switch, declared
from segmamba.request import FILES, Options, Request

KNOWN = declared(Request) | declared(Options)


def add_options(parser: Any, names: Iterable[str]) -> None:
    """Add options, named as the fields of `Request` and `Options`; one that is not given leaves no attribute."""
    for name in names:
        each, declaration = KNOWN[name]
        what: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": help_of(name)}
        kind = declaration.kind
        if isinstance(kind, Switch):
            parser.add_argument(flag(each), action="store_const", const=not each.default, **what)
        else:
            what |= {"action": "append"} if kind.repeated else {"nargs": kind.words}
            parser.add_argument(flag(each), type=kind.word, metavar=declaration.metavar, **what)


def read_request(namespace: argparse.Namespace, **values: Any) -> Request:
    """Return the request that parsed options say; ``values`` are fields that none of them says."""
    return Request.of(**{**_given(Request, namespace), **_given(Options, namespace), **values})


def read_options(namespace: argparse.Namespace) -> Options:
    """Return how a model is to run, as parsed options say."""
    return Options(**_given(Options, namespace))


def to_arguments(request: Request) -> list[str]:
    """Return the options that `read_request` makes the same request of, without its `FILES`."""
    found: list[str] = []
    for owner in (request, request.options):
        for name, (each, declaration) in declared(owner).items():
            value = getattr(owner, name)
            if name in FILES or value == each.default:
                continue
            words = declaration.kind.to_words(value)
            if isinstance(declaration.kind, Switch):
                found.append(flag(each))
            elif declaration.kind.words is None:
                # Each in one word, for a value that begins with a dash.
                found += [f"{flag(each)}={word}" for word in words]
            else:
                found += [flag(each), *words]
    return found


def flag(each: Field[Any]) -> str:
    """Return what an option is called on the command line: ``--scan-backend``, or ``--no-refine`` to switch it off."""
    name = each.metadata[KEY].flag or each.name.replace("_", "-")
    return f"--{'no-' if each.default is True else ''}{name}"


def help_of(name: str) -> str:
    """Return what the command line's help says of an option."""
    each, declaration = KNOWN[name]
    text = declaration.help
    if isinstance(declaration.kind, Choice):
        text += f": {declaration.kind.values()}"
    plain = each.default in (None, MISSING) or isinstance(declaration.kind, Switch)
    return text if plain else f"{text} (default {each.default})"


def _given(owner: Any, namespace: argparse.Namespace) -> dict[str, Any]:
    found = {name: declaration.kind for name, (_field, declaration) in declared(owner).items()}
    return {name: kind.from_words(getattr(namespace, name)) for name, kind in found.items() if name in namespace}
