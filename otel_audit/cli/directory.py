"""The directory that a command looks at: an argument, `OTEL_AUDIT_DIR`, or the one that the settings give."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from otel_audit.cli.parameters import GivenPath
from otel_audit.errors import ConfigError
from otel_audit.journal.files import segments_in
from otel_audit.settings import Durability, Settings
from otel_audit.terminal import escaped

__all__ = ["directory_argument", "free_bytes_of_settings", "say_if_empty", "unreadable"]

F = TypeVar("F", bound=Callable[..., Any])


def directory_argument(command: F) -> F:
    """Give the command a `directory: Path` that exists; one that does not is wrong usage."""
    return click.argument(
        "directory",
        metavar="[DIR]",
        required=False,
        envvar="OTEL_AUDIT_DIR",
        type=GivenPath(),
        callback=_existing,
    )(command)


def _existing(ctx: click.Context, parameter: click.Parameter, given: Path | None) -> Path:
    directory = given or _from_settings(ctx)
    if not directory.is_dir():
        what = "is no directory" if os.path.lexists(directory) else "does not exist"
        raise click.UsageError(
            f"expected the directory of a journal, got {str(directory)!r}, which {what}; "
            "give DIR or set OTEL_AUDIT_DIR",
            ctx,
        )
    return directory


def free_bytes_of_settings() -> int | None:
    """The floor of free space of a service with this environment; the default one where that is not valid."""
    try:
        return Settings.load(os.environ).free_bytes
    except ConfigError:
        return None


def unreadable(directory: Path, error: OSError) -> click.UsageError:
    """What to raise when the journal in the directory cannot be read."""
    where = directory if error.filename is None else error.filename
    return click.UsageError(
        f"{escaped(str(where))}: expected a journal that uid {os.geteuid()} can read, got {error.strerror or error}; "
        "run it as the user of the service, or give that user's files to this one (OTEL_AUDIT_FILE_MODE=0640)"
    )


def say_if_empty(directory: Path) -> None:
    """On stderr, where there is no stream: whoever has mistaken the directory would take silence for good news."""
    if not segments_in(directory):
        click.echo(
            f"{escaped(str(directory))}: no stream is in this directory; if that is unexpected, give DIR or set "
            "OTEL_AUDIT_DIR, and see `otel-audit config` for that of a service",
            err=True,
        )


def _from_settings(ctx: click.Context) -> Path:
    try:
        settings = Settings.load(os.environ)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    if settings.durability is Durability.MEMORY:
        raise click.UsageError(
            "expected a journal in a directory, got OTEL_AUDIT_DURABILITY=memory: the events of such a service are in "
            "its memory only, and audit.stats() or its metrics tell of them; give DIR to look at another journal",
            ctx,
        )
    return settings.directory
