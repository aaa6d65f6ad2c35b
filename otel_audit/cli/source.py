"""The SOURCE of the commands that read a whole trail: how it is opened, and how far it has been read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from otel_audit.cli.options import existing_directory, say_if_empty, unreadable
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.location import is_url, open_store
from otel_audit.stores.store import Store

__all__ = ["opened_source", "progress_bar"]


def opened_source(ctx: click.Context, source: str | None) -> Store:
    """Open a source that was given, or that of the settings. An empty directory is a journal that has not begun.

    Raises:
        UsageError: it does not exist, or cannot be read.
        NothingStored: no trail lies there.
        StoreUnreadable: the URL cannot be understood.
    """
    if source is not None and is_url(source):
        return open_store(source)
    given = source or os.environ.get("OTEL_AUDIT_DIR")
    path = Path(given) if given else None
    if path is None or not path.is_file():
        path = existing_directory(ctx, path)
    try:
        if path.is_dir() and not any(path.iterdir()):
            say_if_empty(path)
            return DirectoryStore(path)
        return open_store(path)
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def progress_bar(doing: str, size_bytes: Callable[[], int | None]) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, on a terminal only. Give what to call with each number of bytes that is done.

    `size_bytes` is asked for the bytes in all if there is a terminal; None where they are not known.
    """
    console = Console(stderr=True)
    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=size_bytes() if console.is_terminal else None)
        yield lambda done: bar.advance(task, done)
