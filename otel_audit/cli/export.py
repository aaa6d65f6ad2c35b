"""`otel-audit export`: write the events of a trail in the format of another system."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from otel_audit.cli.command import FINDING
from otel_audit.cli.options import GivenMoment, GivenWord, recorded_access
from otel_audit.cli.source import opened_source, places_of, progress_bar, source_errors
from otel_audit.journal.line import GAP, SEGMENT, Line, Tail, is_system, system_start
from otel_audit.journal.reader import header_of, service_in
from otel_audit.query.filters import Filters
from otel_audit.records.encoding import UnreadableLine, read_line
from otel_audit.records.ocsf import ocsf_event
from otel_audit.stores.store import ForeignRecord, Kind, Store
from otel_audit.verification.directory import bytes_of

__all__ = ["export"]

_HEADER: Final = system_start(SEGMENT)
_GAP: Final = system_start(GAP)


@dataclass(slots=True)
class _Left:
    """How much was not written."""

    damaged: int = 0
    foreign: int = 0


@click.command()
@click.argument("source", metavar="[SOURCE]", required=False, envvar="OTEL_AUDIT_DIR")
@click.option(
    "--format",
    "to",
    type=GivenWord(["ocsf"]),
    required=True,
    help="ocsf: events of the Open Cybersecurity Schema Framework 1.8.0, as docs/ocsf.md maps them.",
)
@click.option("--since", "since_ns", type=GivenMoment(), help="From this time on: 2d, 3h, yesterday, 2026-11-29.")
@click.option("--until", "until_ns", type=GivenMoment(), help="Before this time.")
@click.pass_context
def export(ctx: click.Context, source: str | None, to: str, since_ns: int | None, until_ns: int | None) -> None:
    """Write the events of a trail in another format, one JSON object a line.

    SOURCE is the directory of a journal, the archive of a collector, a log of events, or the URL of a log store:
    loki+https://HOST, victorialogs+https://HOST. Without SOURCE it is the journal of the settings. Events come stream
    by stream, each stream in order; copies are written once.

    Exit code 1 if something in SOURCE is damaged. stderr says how much; everything else was written.
    """
    left = _Left()
    places = places_of(ctx, [source] if source is not None else [])
    with (
        source_errors(ctx),
        recorded_access("export", places, since_ns=since_ns, until_ns=until_ns) as look,
        opened_source(ctx, source) as store,
        _bar(store) as passed,
    ):
        for event in _events(store, left, Filters(since_ns=since_ns, until_ns=until_ns), passed):
            look.add(1)
            sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    if left.foreign:
        click.echo(f"otel-audit export: records of others left out: {left.foreign}", err=True)
    if left.damaged:
        said = f"damaged lines left out: {left.damaged}; `otel-audit verify` says where"
        click.echo(f"otel-audit export: {said}", err=True)
        sys.exit(FINDING)


def _bar(store: Store) -> AbstractContextManager[Callable[[int], None]]:
    if sys.stdout.isatty():
        return nullcontext(lambda size: None)  # the events stand where the bar would
    path = Path(store.where)
    return progress_bar("exporting", lambda: bytes_of(path) if store.kind is Kind.JOURNAL else None)


def _events(store: Store, left: _Left, asked: Filters, passed: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """Yield every event of the period, also the gaps of the journal, but not its segment headers and its ledger."""
    for stream_id in store.streams():
        service = ""
        for content in store.lines_of(stream_id):
            if not isinstance(content, Line):
                left.damaged += 1
                continue
            line = content.content
            passed(len(line) + 1)
            if line.startswith(_HEADER):
                service = service_in(header_of(line)) or service
            elif line.startswith(_GAP) or not is_system(line):
                try:
                    if _is_in(asked, line):
                        yield ocsf_event(line, service)
                except UnreadableLine:
                    left.damaged += 1
    for other in store.others():
        if isinstance(other, ForeignRecord):
            left.foreign += 1
        else:
            left.damaged += 1


def _is_in(asked: Filters, line: bytes) -> bool:
    """Return True if a line is of the period.

    Raises:
        UnreadableLine: it is no event.
    """
    if asked.since_ns is None and asked.until_ns is None:
        return True
    tail = Tail.of(line)
    time_ns: int = tail.time_ns if tail is not None else read_line(line)["time_ns"]
    is_begun = asked.since_ns is None or time_ns >= asked.since_ns
    return is_begun and (asked.until_ns is None or time_ns < asked.until_ns)
