"""The directory that a command looks at: an argument, `OTEL_AUDIT_DIR`, or the one that the settings give."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from otel_audit.errors import ConfigError
from otel_audit.settings import Durability, Settings

__all__ = ["directory_argument"]

F = TypeVar("F", bound=Callable[..., Any])


def directory_argument(command: F) -> F:
    """Give the command a `directory: Path` that exists; one that does not is wrong usage."""
    return click.argument(
        "directory",
        metavar="[DIR]",
        required=False,
        envvar="OTEL_AUDIT_DIR",
        type=click.Path(path_type=Path),
        callback=_existing,
    )(command)


def _existing(ctx: click.Context, parameter: click.Parameter, given: Path | None) -> Path:
    directory = given or _from_settings(ctx)
    if not directory.is_dir():
        raise click.UsageError(
            f"expected the directory of a journal, got {str(directory)!r}, which does not exist; "
            "give DIR or set OTEL_AUDIT_DIR",
            ctx,
        )
    return directory


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
