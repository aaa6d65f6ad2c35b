"""The progress bar of commands that read a whole trail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar"]


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
