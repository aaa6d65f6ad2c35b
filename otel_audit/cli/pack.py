"""`otel-audit pack`: a trail as Parquet files, which any engine reads and `verify` and `query` read too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from otel_audit.access import Look
from otel_audit.cli.command import FINDING
from otel_audit.cli.options import GivenPath, recorded_access
from otel_audit.cli.source import opened_source, places_of, progress_bar, source_errors
from otel_audit.journal.files import make_directory
from otel_audit.journal.locks import FileLock
from otel_audit.notices import escaped, shown_json
from otel_audit.query.database import TrailDatabase
from otel_audit.query.packing import Day, Packing

__all__ = ["pack"]


@click.command()
@click.argument("source")
@click.argument("directory", type=GivenPath(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_context
def pack(ctx: click.Context, /, source: str, directory: Path, as_json: bool) -> None:
    """Pack a trail into Parquet files: a folder for each service, and files for each day.

    SOURCE is what `otel-audit query` takes. Each file is sorted by time and holds the journal lines byte for byte, so
    `otel-audit verify DIRECTORY` and `otel-audit query DIRECTORY` read it.

    Each run adds what is new since the last one, and continues a run that was killed. Nothing is removed. A line that
    is still being written is left to the next run. Exit code 1 when there were damaged bytes, which are not packed.
    """
    with source_errors(ctx):
        make_directory(directory)
        lock = FileLock.acquire(directory / "pack.lock")
        if lock is None:
            raise click.ClickException(
                f"expected to be the only one that packs into {escaped(str(directory))}, got another process at it; "
                "wait for its end"
            )
        try:
            with (
                recorded_access("pack", places_of(ctx, [source])) as look,
                opened_source(ctx, source) as store,
                ExitStack() as stack,
            ):
                with progress_bar("reading", lambda: None) as passed:
                    database = stack.enter_context(TrailDatabase([store], out=directory, passed=passed))
                    packing = Packing(database, directory)
                    days = packing.days()
                events, size_bytes, files = _packed(packing, days, look)
                gathered = database.gathered
        finally:
            lock.release(remove=True)
    if as_json:
        said = {"directory": str(directory), "lines": events, "files": files, "bytes": size_bytes}
        said |= {"damaged": gathered.damaged, "unfinished": gathered.unfinished, "removed": gathered.removed}
        click.echo(shown_json(said))
    else:
        each = f", {size_bytes / events:.0f} bytes a line" if events else ""
        click.echo(f"{events} lines packed into {files} files in {escaped(str(directory))}{each}")
    for each in gathered.unread():
        click.echo(each, err=True)
    if gathered.damaged:
        sys.exit(FINDING)


def _packed(packing: Packing, days: Sequence[Day], look: Look) -> tuple[int, int, int]:
    lines = size_bytes = files = 0
    with progress_bar("packing", lambda: sum(day.size_bytes for day in days)) as passed:
        for day in days:
            added, written = packing.pack(day)
            look.add(added)
            lines, size_bytes, files = lines + added, size_bytes + written, files + bool(added)
            passed(day.size_bytes)
    return lines, size_bytes, files
