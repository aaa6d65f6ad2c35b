"""How the demo ends: `verify` checks its journal, and then a copy in which one byte was changed."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from otel_audit.cli.verify import print_report, verdict_words
from otel_audit.journal.files import streams_in
from otel_audit.notices import escaped
from otel_audit.verification.directory import bytes_of
from otel_audit.verification.verify import verify_directory

__all__ = ["show_verification"]

_MOST_BYTES: Final = 16 << 20  # a longer journal takes longer to verify and to copy than anybody watches a demo
_REFUSED: Final = re.compile(rb'"[A-Z]+ [^" ]+ -> (4)\d\d"')
_ANSWERED: Final = re.compile(rb'"[A-Z]+ [^" ]+ -> (2)\d\d"')


def show_verification(directory: Path, command: str) -> None:
    """Print what `verify` says of the journal, and of a copy with one byte changed. No copy is left.

    `command`: how to call this program. Nothing is printed of a journal that is too long to be verified in passing.
    """
    try:
        if bytes_of(directory) > _MOST_BYTES:
            return
        click.echo(f"\n> {command} verify {shlex.quote(str(directory))}")
        print_report(verify_directory(directory))
        with tempfile.TemporaryDirectory(prefix="otel-audit-demo-copy-") as place:
            copy = Path(place) / "journal"
            shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("ledger.key", "*.lock"))
            if (change := _change_a_byte(copy)) is None:
                return
            click.echo(f"\nNow one byte of a copy is changed, {escaped(change)}:")
            click.echo(f"> {command} verify {shlex.quote(str(copy))}")
            Console(highlight=False, soft_wrap=True).print(verdict_words(verify_directory(copy)))
    except (OSError, shutil.Error) as error:  # the disk is full, say: the events are recorded all the same
        click.echo(f"not verified: {escaped(str(error))}")


def _change_a_byte(directory: Path) -> str | None:
    """Make a request that was refused one that succeeded, or the other way round; return the change in words.

    None if the journal has no request.
    """
    segments = [files.segment(number) for files in streams_in(directory) for number in files.segments()]
    for pattern, digit in ((_REFUSED, b"2"), (_ANSWERED, b"4")):
        for path in segments:
            content = path.read_bytes()
            if (found := pattern.search(content)) is not None:
                at = found.start(1)
                changed = content[:at] + digit + content[at + 1 :]
                path.write_bytes(changed)
                return f"{found[0].decode()} to {changed[found.start() : found.end()].decode()}"
    return None
