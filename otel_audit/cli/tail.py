"""`otel-audit tail`: show the last events of a journal, and follow new ones."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from otel_audit.access import AccessUnrecorded
from otel_audit.cli.options import GivenCount, directory_argument, recorded_access, say_if_empty, unreadable
from otel_audit.delivery.console import Terminal
from otel_audit.notices import escaped, escaped_json
from otel_audit.stores.directory import Latest, Seen

__all__ = ["tail"]

_LOOK_EVERY_S: Final = 0.2


@click.command()
@directory_argument
@click.option("-f", "--follow", is_flag=True, help="Show new events as they are recorded, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=GivenCount(min=0), default=20, show_default=True, help="How many events to show first."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the journal lines, with terminal control characters as JSON escapes.",
)
def tail(directory: Path, follow: bool, lines: int, as_json: bool) -> None:
    """Show the last events, and follow new ones.

    Events of all streams appear in the order in which they were recorded. Times are in UTC.
    """
    try:
        with recorded_access("tail", [os.path.abspath(directory)], ["follow"] if follow else []) as look:
            for found in _found(directory, lines, follow):
                look.add(len(found))
                _show(found, as_json)
                if follow and not found:
                    _wait()
    except KeyboardInterrupt:
        return
    except AccessUnrecorded as error:
        raise click.UsageError(escaped(str(error))) from error


def _found(directory: Path, lines: int, follow: bool) -> Iterator[Sequence[Seen]]:
    latest = Latest(directory)
    try:
        say_if_empty(directory)
        yield latest.last(lines)
        while follow:
            yield latest.new()
    except OSError as error:
        raise unreadable(directory, error) from error


def _wait() -> None:
    """Wait a moment for new lines.

    Raises:
        BrokenPipeError: nobody reads stdout any more, as in `tail -f | grep -m1 x`. Without a new line, no write would
            show it.
    """
    reader = select.poll()
    reader.register(sys.stdout, 0)  # errors are reported all the same
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in reader.poll(_LOOK_EVERY_S * 1000)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _show(found: Sequence[Seen], as_json: bool) -> None:
    if not found:
        return
    if as_json:
        sys.stdout.buffer.write(b"".join(_shown(seen.line) + b"\n" for seen in found))
        sys.stdout.buffer.flush()
    else:
        Terminal(sys.stdout, dated=True).write(lambda view: (view.show(seen.line) for seen in found))


def _shown(line: bytes) -> bytes:
    return escaped_json(line.decode("utf-8", "backslashreplace")).encode()
