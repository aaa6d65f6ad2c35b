"""`otel-audit pseudonym`: print what a name was recorded as, so that an auditor can look for it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from otel_audit.errors import ConfigError
from otel_audit.redaction.pseudonyms import Pseudonyms, read_keyring
from otel_audit.settings import Settings

__all__ = ["pseudonym"]

_WRONG_USAGE = 2


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option(
    "--keys",
    type=click.Path(dir_okay=False),
    help="File of keys. Without it, that of the setting pseudonym_keys, OTEL_AUDIT_PSEUDONYM_KEYS.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a name.")
def pseudonym(names: tuple[str, ...], keys: str | None, as_json: bool) -> None:
    """Print what each NAME is recorded as under each key, the newest key first.

    For -, read the names from stdin, one a line. Other users of this machine can see a name in the arguments, but not
    one on stdin.
    """
    try:
        keyring = _keyring(keys)
    except ConfigError as error:
        click.echo(f"otel-audit pseudonym: {error}", err=True)
        sys.exit(_WRONG_USAGE)
    if not names:
        click.echo("otel-audit pseudonym: expected a NAME or -, got none", err=True)
        sys.exit(_WRONG_USAGE)
    for name in _each(names):
        for line in _lines(name, keyring, as_json):
            click.echo(line)


def _keyring(path: str | None) -> Pseudonyms:
    found = Path(path) if path is not None else Settings.load(os.environ).pseudonym_keys
    if found is None:
        raise ConfigError("--keys: expected a file of keys, got none; name one, or set OTEL_AUDIT_PSEUDONYM_KEYS")
    return read_keyring(found)


def _each(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name == "-":
            # A list from Windows: no name ends in a carriage return, and one that did would be looked for in vain.
            lines = (line.removesuffix("\r") for line in sys.stdin.read().split("\n"))
            yield from (line for line in lines if line)
        else:
            yield name


def _lines(name: str, keyring: Pseudonyms, as_json: bool) -> list[str]:
    found = keyring.all_of(name)
    return [json.dumps({"name": name, "pseudonyms": found})] if as_json else found
