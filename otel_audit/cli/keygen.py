"""`otel-audit keygen`: make the key of an identity, which signs the ledger beside the keys of the hour."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from otel_audit.errors import ConfigError
from otel_audit.notices import escaped
from otel_audit.signing.keys import create_identity

__all__ = ["keygen"]

_WRONG_USAGE = 2


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def keygen(file: Path) -> None:
    """Make an identity key in FILE, which only you may read.

    Set OTEL_AUDIT_IDENTITY_KEY to the file, keep a copy of it where the host cannot reach it, and give auditors what
    `otel-audit vkey` prints. A file that exists is never overwritten.
    """
    try:
        create_identity(file)
    except ConfigError as error:
        click.echo(f"otel-audit keygen: {escaped(str(error))}", err=True)
        sys.exit(_WRONG_USAGE)
    click.echo(f"made {escaped(str(file))}; now: otel-audit vkey {escaped(str(file))} DIR")
