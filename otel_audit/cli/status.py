"""`otel-audit status`: count what became of the events in a directory, and say what delays them."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from otel_audit.cli.command import FINDING
from otel_audit.cli.options import (
    GivenPath,
    any_directory_argument,
    existing_directory,
    free_bytes_of_settings,
    plain_console,
    say_if_empty,
    unreadable,
)
from otel_audit.journal.census import STATES, Census, StreamCensus, census
from otel_audit.journal.counts import Counts, Progress
from otel_audit.journal.files import replace_file
from otel_audit.journal.ledger.standing import LedgerState
from otel_audit.journal.room import Space
from otel_audit.moments import utc_text
from otel_audit.notices import escaped, number_of, shown_json

__all__ = ["status"]

_STREAMS_SHOWN: Final = 20
_REFUSALS_SHOWN: Final = 5  # of a stream; refused lines with good ones between them can be thousands
_MEASURED_COLUMNS: Final = 10_000
_OF_LEDGER: Final = ("origin", "vkey", "size", "note_time_ns", "begun_anew")
_READABLE: Final = 0o644  # by the collector of the text files, which runs as another user; numbers name nobody


@click.command()
@any_directory_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with every stream.")
@click.option("--prometheus", "as_metrics", is_flag=True, help="Metrics in Prometheus' text format.")
@click.option("--out", metavar="FILE.prom", type=GivenPath(), help="Replace this file with the metrics, in one step.")
@click.pass_context
def status(ctx: click.Context, directory: Path, as_json: bool, as_metrics: bool, out: Path | None) -> None:
    """Count the events that were delivered, are waiting, were refused or were lost.

    emitted = exported + pending + quarantined + dropped.
    The exit code is 1 if events wait for a blocked exporter or nobody delivers them, if events were dropped, or are
    being dropped because no space is free, if lines are in quarantine or damaged, or if somebody other than retention
    removed files of the journal.
    """
    if as_json and as_metrics:
        raise click.UsageError("expected --json or --prometheus, got both; run it once for each", ctx)
    if out is not None and not as_metrics:
        raise click.UsageError("expected --out with --prometheus, got it alone; it names the file of the metrics", ctx)
    try:
        existing_directory(ctx, directory)
        counted = census(directory)
        ledger = LedgerState.of(directory)
        space = Space.of(directory, free_bytes_of_settings())
    except (click.UsageError, OSError) as error:
        if as_metrics:  # otherwise the numbers of the last run would stay in the file
            from otel_audit.cli.exposition import directory_exposition

            _write(directory_exposition(directory, time.time_ns(), is_missing=True), out)
        if isinstance(error, OSError):
            raise unreadable(directory, error) from error
        raise
    say_if_empty(directory)
    if as_json:
        click.echo(shown_json(_as_json(counted, space, ledger)))
    elif as_metrics:
        from otel_audit.cli.exposition import exposition  # loads the SDK's metrics

        _write(exposition(counted, space, ledger), out)
    else:
        _print(counted, space, ledger)
    is_stuck = counted.is_stuck or (ledger is not None and ledger.is_stuck)
    sys.exit(FINDING if is_stuck or space.is_low else 0)


def _write(metrics: str, out: Path | None) -> None:
    if out is None:
        # A label may hold any character. Prometheus wants it as it is, and a terminal would obey it.
        lines = metrics.split("\n")
        click.echo("\n".join(map(escaped, lines)) if sys.stdout.isatty() else metrics, nl=False)
    else:
        replace_file(out, metrics.encode(), mode=_READABLE)


def _as_json(counted: Census, space: Space, ledger: LedgerState | None) -> Mapping[str, Any]:
    return {
        "directory": str(counted.directory),
        "time": _time(counted),
        **counted.totals.by_name(),
        "removed": counted.removed.by_name(),
        "space": {"free_bytes": space.free_bytes, "floor_bytes": space.floor_bytes, "low": space.is_low},
        "ledger": None if ledger is None else _ledger_json(ledger),
        "streams": [_stream_json(stream) for stream in counted.streams],
    }


def _ledger_json(ledger: LedgerState) -> Mapping[str, Any]:
    delivered = {name: _progress_json(progress) for name, progress in ledger.exporters.items()}
    return {**{name: getattr(ledger, name) for name in _OF_LEDGER}, "exporters": delivered}


def _stream_json(stream: StreamCensus) -> Mapping[str, Any]:
    return {
        "stream_id": stream.stream_id,
        "service_name": stream.service_name,
        "state": STATES[stream.live],
        "unattended": stream.is_unattended,
        "foreign": stream.is_foreign,
        **stream.counts.by_name(),
        "missing": stream.missing,
        "missing_segments": list(stream.missing_segments),
        "exporters": {name: _progress_json(progress) for name, progress in stream.exporters.items()},
    }


def _progress_json(progress: Progress) -> Mapping[str, Any]:
    return {
        "segment": progress.position.segment,
        "offset": progress.position.offset,
        "seq": progress.position.seq,
        "exported": progress.counts.exported,
        "quarantined": progress.counts.quarantined,
        "quarantine": [
            {"first_seq": entry.first_seq, "last_seq": entry.last_seq, "reason": entry.reason}
            for entry in progress.quarantine
        ],
        "damaged": progress.damaged,
        "blocked": progress.blocked or None,
    }


def _print(counted: Census, space: Space, ledger: LedgerState | None) -> None:
    console = plain_console()
    totals = counted.totals
    console.print(Text(f"{escaped(str(counted.directory))}  {_time(counted)}", "bold"))
    console.print(
        f"emitted {totals.emitted} = exported {totals.exported} + pending {totals.pending} + quarantined "
        f"{totals.quarantined} + dropped {totals.dropped}; system lines {totals.system}",
    )
    if counted.removed != Counts():
        removed = counted.removed
        console.print(f"of these, removed by retention: {removed.emitted} events, {removed.system} system lines")
    shown = _worth_a_look(counted.streams)
    if shown:
        _print_streams(console, shown)
    if len(shown) < len(counted.streams):
        console.print(Text(f"and {len(counted.streams) - len(shown)} more streams: see --json", "dim"))
    for stream in shown:
        if said := stream.says_missing:
            console.print(Text(f"{stream.stream_id}: {said}", "bold red"))
        for name, progress in stream.exporters.items():
            _print_troubles(console, stream.stream_id, name, progress)
    _print_unattended(console, counted)
    _print_ledger(console, counted, ledger)
    if space.is_low:
        console.print(Text(space.says, "bold red"))


def _print_ledger(console: Console, counted: Census, ledger: LedgerState | None) -> None:
    """Say how far the signed ledger has come. Where there is none, say what would keep one."""
    if ledger is None:
        if counted.streams:
            is_in_memory = all(stream.is_in_memory for stream in counted.streams)
            why = (
                "memory mode keeps none" if is_in_memory else "a service begins one, unless OTEL_AUDIT_LEDGER is false"
            )
            console.print(f"no signed ledger, so nothing here can be proven: {why}")
        return
    age = f"{ledger.age_s(counted.time_ns):.0f} s old"
    said = f"ledger {escaped(ledger.origin)}: {ledger.size} lines signed, the note is {age}, {_delivered(ledger)}"
    console.print(said)
    for name, progress in ledger.exporters.items():
        _print_troubles(console, "ledger", name, progress)
    if ledger.begun_anew:
        text = f"the ledger was begun anew, its former one could not be continued: {escaped(ledger.begun_anew)}"
        console.print(Text(text, "bold red"))


def _delivered(ledger: LedgerState) -> str:
    """Return where the ledger is beside this host."""
    if not ledger.exporters:
        return "it is on this host only"
    parts = []
    for name in ledger.exporters:
        waiting = ledger.waiting(name)
        parts.append(f"{waiting} lines wait for {escaped(name)}" if waiting else f"{escaped(name)} has all of it")
    return ", ".join(parts)


def _print_unattended(console: Console, counted: Census) -> None:
    waiting = [stream for stream in counted.streams if stream.is_unattended and not stream.is_foreign]
    if waiting:
        events = sum(stream.counts.pending for stream in waiting)
        text = (
            f"nobody delivers {number_of(events, 'event')} of {number_of(len(waiting), 'ended stream')}: "
            "start their service, or run "
        )
        where = shlex.quote(escaped(str(counted.directory)))
        console.print(Text(f"{text}otel-audit ship {where}", "yellow"))
    if (foreign := counted.foreign).streams:
        console.print(Text(escaped(f"{foreign.says}: {foreign.remedy}"), "bold red"))


def _worth_a_look(streams: Sequence[StreamCensus]) -> list[StreamCensus]:
    """Return the streams that are not delivered completely, then the newest ones."""
    ordered = sorted(streams, key=lambda stream: (_is_delivered(stream), stream.live is False, -_age_order(stream)))
    return sorted(ordered[:_STREAMS_SHOWN], key=lambda stream: stream.stream_id)


def _is_delivered(stream: StreamCensus) -> bool:
    return stream.counts.emitted == stream.counts.exported and not stream.missing_segments


def _age_order(stream: StreamCensus) -> int:
    return int(stream.stream_id.replace("-", ""), 16)  # by time, since the ids are UUIDv7


def _print_streams(console: Console, streams: Sequence[StreamCensus]) -> None:
    """Print a table, or two lines for each stream on a terminal too narrow for the ids of a table."""
    table = _table(streams)
    if table.__rich_measure__(console, console.options.update(max_width=_MEASURED_COLUMNS)).maximum <= console.width:
        console.print(table)
        return
    for stream in streams:
        console.print(_two_lines(stream))


def _two_lines(stream: StreamCensus) -> Text:
    shown = Text(stream.stream_id)
    shown.append(f"  {STATES[stream.live]}  {escaped(stream.service_name) or '-'}")
    shown.append(f"  {', '.join(escaped(name) for name in stream.exporters) or '-'}\n ")
    for name, number in stream.counts.by_name().items():
        shown.append(f" {name} {number}", _style(name, number))
    return shown


def _table(streams: Sequence[StreamCensus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("stream", "service", "state"):
        table.add_column(name, overflow="fold")
    for name in Counts().by_name():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("exporters", overflow="fold")
    for stream in streams:
        numbers = stream.counts.by_name()
        table.add_row(
            stream.stream_id,
            Text(escaped(stream.service_name) or "-"),
            STATES[stream.live],
            *(Text(str(number), _style(name, number)) for name, number in numbers.items()),
            Text(", ".join(escaped(name) for name in stream.exporters) or "-"),
        )
    return table


def _style(name: str, number: int) -> str:
    if not number:
        return "dim"
    return {"pending": "yellow", "quarantined": "bold red", "dropped": "bold red", "exported": "green"}.get(name, "")


def _print_troubles(console: Console, stream_id: str, name: str, progress: Progress) -> None:
    where = f"{stream_id} {escaped(name)}"
    if progress.blocked:
        text = f"{where}: blocked behind line {progress.position.seq}: {escaped(progress.blocked)}"
        console.print(Text(text, "bold red"))
    for entry in progress.quarantine[:_REFUSALS_SHOWN]:
        lines = f"lines {entry.first_seq} to {entry.last_seq}"
        console.print(Text(f"{where}: quarantined {lines}: {escaped(entry.reason)}", "red"))
    if more := sum(entry.last_seq - entry.first_seq + 1 for entry in progress.quarantine[_REFUSALS_SHOWN:]):
        console.print(Text(f"{where}: and {number_of(more, 'more quarantined line')}: see --json", "red"))
    if progress.damaged:
        console.print(Text(f"{where}: {progress.damaged} damaged pieces passed over", "red"))


def _time(counted: Census) -> str:
    return utc_text(counted.time_ns, "milliseconds")
