"""`otel-audit keygen`, `vkey` and `pseudonym`: make an identity key, print its public half, and use pseudonym keys."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from otel_audit.cli.command import FINDING, WRONG_USAGE
from otel_audit.cli.options import GivenPath, unreadable
from otel_audit.errors import AuditError, ConfigError
from otel_audit.journal.ledger.entries import SignedNote, statements_backwards
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.notices import escaped, shown_json
from otel_audit.redaction.pseudonyms import Pseudonyms, read_keyring
from otel_audit.settings import Settings
from otel_audit.settings.proof import default_log_name
from otel_audit.signing.keys import VerifierKey, create_identity, read_public_identity

__all__ = ["keygen", "pseudonym", "vkey"]


@click.command()
@click.argument("file", type=GivenPath(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the path of the file as one JSON object.")
def keygen(file: Path, as_json: bool) -> None:
    """Create an identity key in FILE, readable only by you.

    Set OTEL_AUDIT_IDENTITY_KEY to the file, keep a copy of it where the host cannot reach it, and give auditors what
    `otel-audit vkey` prints. A file that exists is never overwritten.
    """
    try:
        create_identity(file)
    except ConfigError as error:
        click.echo(f"otel-audit keygen: {escaped(str(error))}", err=True)
        sys.exit(WRONG_USAGE)
    if as_json:
        click.echo(shown_json({"file": str(file)}))
        return
    click.echo(f"made {escaped(str(file))}; now: otel-audit vkey {escaped(str(file))} DIR")


@click.command()
@click.argument("file", type=GivenPath(exists=True, file_okay=True))
@click.argument("directory", metavar="[DIR]", required=False, type=GivenPath(exists=True))
@click.option("--json", "as_json", is_flag=True, help="Print the key and its name as one JSON object.")
def vkey(file: Path, directory: Path | None, as_json: bool) -> None:
    """Print the verifier key of the identity in FILE, a private or a public key in PEM.

    The key is named after the ledger in DIR. Without DIR it has the log name of the settings, which is valid for every
    directory of the service.
    """
    try:
        public = read_public_identity(file)
        name = _name(Settings.load(os.environ)) if directory is None else _origin(directory)
        if name is None:
            click.echo(
                f"otel-audit vkey: expected a ledger in {escaped(str(directory))}, got none; the first event begins it",
                err=True,
            )
            sys.exit(FINDING)
        key = str(VerifierKey(name, public))
        click.echo(shown_json({"vkey": key, "name": name}) if as_json else key)
    except AuditError as error:
        click.echo(f"otel-audit vkey: {escaped(str(error))}", err=True)
        sys.exit(WRONG_USAGE)


def _name(settings: Settings) -> str:
    return settings.log_name or default_log_name(settings.service_name)


def _origin(directory: Path) -> str | None:
    try:
        log = LedgerFiles(directory).latest()
        notes = () if log is None else statements_backwards(log)
        return next((each.checkpoint.origin for each in notes if isinstance(each, SignedNote)), None)
    except OSError as error:
        raise unreadable(directory, error) from error


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option(
    "--keys",
    type=GivenPath(dir_okay=False),
    help="File of keys. Without it, that of the setting pseudonym_keys, OTEL_AUDIT_PSEUDONYM_KEYS.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a name.")
def pseudonym(names: tuple[str, ...], keys: Path | None, as_json: bool) -> None:
    """Print what each NAME is recorded as under each key, the newest key first.

    For -, read the names from stdin, one a line. Other users of this machine can see a name in the arguments, but not
    one on stdin.
    """
    try:
        keyring = _keyring(keys)
    except ConfigError as error:
        click.echo(f"otel-audit pseudonym: {escaped(str(error))}", err=True)
        sys.exit(WRONG_USAGE)
    if not names:
        click.echo("otel-audit pseudonym: expected names, got none; give them, or - to read them from stdin", err=True)
        sys.exit(WRONG_USAGE)
    for name in _each(names):
        for line in _lines(name, keyring, as_json):
            click.echo(line)


def _keyring(path: Path | None) -> Pseudonyms:
    found = path if path is not None else Settings.load(os.environ).pseudonym_keys
    if found is None:
        raise ConfigError("--keys: expected a file of keys, got none; name one, or set OTEL_AUDIT_PSEUDONYM_KEYS")
    return read_keyring(found)


def _each(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name == "-":
            # The list may come from Windows. No name ends in a carriage return, and one that did would never be found.
            lines = (line.removesuffix("\r") for line in sys.stdin.read().split("\n"))
            yield from (line for line in lines if line)
        else:
            yield name


def _lines(name: str, keyring: Pseudonyms, as_json: bool) -> list[str]:
    found = keyring.all_of(name)
    return [json.dumps({"name": name, "pseudonyms": found})] if as_json else found
