"""The SOURCE of the commands that read a whole trail: open it, report its errors, and show the progress of reading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from otel_audit.cli.options import existing_directory, say_if_empty, unreadable
from otel_audit.errors import AuditError
from otel_audit.notices import escaped
from otel_audit.query.unanswered import QueryFailed
from otel_audit.stores.endpoint import EndpointUrl
from otel_audit.stores.location import is_url, open_store
from otel_audit.stores.store import Kind, Store, StoreUnreadable

__all__ = ["opened_source", "places_of", "progress_bar", "source_errors"]

_STEP_BYTES: Final = 1 << 16  # a bar that moved with each line would cost more than reading it


def opened_source(ctx: click.Context, source: str | None) -> Store:
    """Open a path or URL, or without one the directory of the settings. Warn if no stream is in a directory.

    Raises:
        UsageError: nothing is there, or it cannot be read.
        NothingStored: no trail lies there.
        StoreUnreadable: the URL cannot be understood.
    """
    if source == "":
        raise click.UsageError(
            "expected a path or a URL as SOURCE, got an empty one; leave it out, or set its variable",
            ctx,
        )
    if source is not None and is_url(source):
        return open_store(source)
    given = source or os.environ.get("OTEL_AUDIT_DIR")
    path = Path(given) if given else None
    if path is None or not path.is_file():
        path = existing_directory(ctx, path)
    try:
        store = open_store(path)
        if store.kind is Kind.JOURNAL:
            say_if_empty(path)
        return store
    except OSError as error:
        raise unreadable(path, error) from error


def places_of(ctx: click.Context, sources: Sequence[str]) -> Sequence[str]:
    """Return the paths, made absolute, and the URLs without a password that `opened_source` would open."""
    given = sources or (os.environ.get("OTEL_AUDIT_DIR") or str(existing_directory(ctx, None)),)
    return [EndpointUrl.parse(each).shown if is_url(each) else os.path.abspath(each) for each in given]


@contextmanager
def source_errors(ctx: click.Context) -> Iterator[None]:
    """Turn what is wrong with a source, or with what was asked of it, into a click error: one line and an exit code."""
    try:
        yield
    except (StoreUnreadable, QueryFailed) as error:
        raise click.ClickException(escaped(str(error))) from error
    except AuditError as error:
        raise click.UsageError(escaped(str(error)), ctx) from error


@contextmanager
def progress_bar(
    doing: str, size_bytes: Callable[[], int | None], *, done_bytes: Callable[[], int] = lambda: 0
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, on a terminal only. Yield a function to call with each number of bytes done.

    On a terminal, `size_bytes` is called for the total, or None if it is unknown, and `done_bytes` for the bytes that
    an earlier run has done.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    if not console.is_terminal:
        yield lambda size: None
        return
    # Rich would write to stderr what the command writes to stdout meanwhile, so that a pipe got none of it.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(doing, total=size_bytes(), completed=done_bytes())
        waiting = 0

        def passed(size: int) -> None:
            nonlocal waiting
            waiting += size
            if waiting >= _STEP_BYTES:
                bar.advance(task, waiting)
                waiting = 0

        yield passed
