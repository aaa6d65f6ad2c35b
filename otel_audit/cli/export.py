"""`otel-audit export`: write the events of a trail in the format of another system."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import click

from otel_audit.access import recorded_access
from otel_audit.cli.source import opened_source, places_of, source_errors
from otel_audit.journal.line import GAP, SEGMENT, Line, is_system, system_start
from otel_audit.journal.reader import header_of, service_in
from otel_audit.records.encoding import UnreadableLine
from otel_audit.records.ocsf import ocsf_event
from otel_audit.stores.store import ForeignRecord, Store

__all__ = ["export"]

_FINDING: Final = 1
_HEADER: Final = system_start(SEGMENT)
_GAP: Final = system_start(GAP)


@dataclass(slots=True)
class _Left:
    """How much was not written, and why."""

    damaged: int = 0
    foreign: int = 0


@click.command()
@click.argument("source", metavar="[SOURCE]", required=False, envvar="OTEL_AUDIT_DIR")
@click.option(
    "--format",
    "to",
    type=click.Choice(["ocsf"]),
    required=True,
    help="ocsf: events of the Open Cybersecurity Schema Framework 1.8.0, as docs/ocsf.md maps them.",
)
@click.pass_context
def export(ctx: click.Context, source: str | None, to: str) -> None:
    """Write the events of a trail in another format, one JSON object a line.

    SOURCE is the directory of a journal, the archive of a collector, a log of events, or the URL of a log store:
    loki+https://HOST, victorialogs+https://HOST. Without SOURCE it is the journal of the settings. The events of one
    stream come in their order, those of another stream behind them; copies are written once.

    Exit code 1 when something in SOURCE is damaged: stderr says how much. All else was written.
    """
    left = _Left()
    places = places_of(ctx, [source] if source is not None else [])
    with source_errors(ctx), recorded_access("export", places) as look, opened_source(ctx, source) as store:
        for event in _events(store, left):
            look.add(1)
            sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
        sys.stdout.flush()
    if left.foreign:
        click.echo(f"otel-audit export: records of others left out: {left.foreign}", err=True)
    if left.damaged:
        said = f"damaged lines left out: {left.damaged}; `otel-audit verify` says where"
        click.echo(f"otel-audit export: {said}", err=True)
        sys.exit(_FINDING)


def _events(store: Store, left: _Left) -> Iterator[dict[str, Any]]:
    """Yield every event, also the gaps of the journal, but not its segment headers and its ledger."""
    for stream_id in store.streams():
        service = ""
        for content in store.lines_of(stream_id):
            if not isinstance(content, Line):
                left.damaged += 1
                continue
            line = content.content
            if line.startswith(_HEADER):
                service = service_in(header_of(line)) or service
            elif line.startswith(_GAP) or not is_system(line):
                try:
                    yield ocsf_event(line, service)
                except UnreadableLine:
                    left.damaged += 1
    for other in store.others():
        if isinstance(other, ForeignRecord):
            left.foreign += 1
        else:
            left.damaged += 1
