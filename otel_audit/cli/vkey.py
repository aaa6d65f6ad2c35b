"""`otel-audit vkey`: print the public half of an identity key, as those who check notes want it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

from otel_audit.cli.options import GivenPath, unreadable
from otel_audit.errors import AuditError
from otel_audit.journal.ledger.entries import SignedNote, statements_backwards
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.notices import escaped
from otel_audit.settings import Settings
from otel_audit.settings.proof import default_log_name
from otel_audit.signing.keys import VerifierKey, read_public_identity

__all__ = ["vkey"]

_FINDING: Final = 1
_WRONG_USAGE: Final = 2


@click.command()
@click.argument("file", type=GivenPath(exists=True, file_okay=True))
@click.argument("directory", metavar="[DIR]", required=False, type=GivenPath(exists=True))
def vkey(file: Path, directory: Path | None) -> None:
    """Print the verifier key of the identity in FILE, a private or a public key in PEM.

    Its name is that of the ledger in DIR, as its notes carry it. Without DIR it is the log name of the settings, which
    stands for all directories of the service.
    """
    try:
        public = read_public_identity(file)
        name = _name(Settings.load(os.environ)) if directory is None else _origin(directory)
        if name is None:
            click.echo(
                f"otel-audit vkey: expected a ledger in {escaped(str(directory))}, got none; the first event begins it",
                err=True,
            )
            sys.exit(_FINDING)
        click.echo(str(VerifierKey(name, public)))
    except AuditError as error:
        click.echo(f"otel-audit vkey: {escaped(str(error))}", err=True)
        sys.exit(_WRONG_USAGE)


def _name(settings: Settings) -> str:
    return settings.log_name or default_log_name(settings.service_name)


def _origin(directory: Path) -> str | None:
    try:
        log = LedgerFiles(directory).latest()
        notes = () if log is None else statements_backwards(log)
        return next((each.checkpoint.origin for each in notes if isinstance(each, SignedNote)), None)
    except OSError as error:
        raise unreadable(directory, error) from error
