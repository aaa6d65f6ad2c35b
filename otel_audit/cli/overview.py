"""`otel-audit` without a command: what is in the journal here, and which command to run next."""

from __future__ import annotations

import os
import shlex

import click

from otel_audit._version import __version__
from otel_audit.errors import ConfigError
from otel_audit.journal.census import Census, census
from otel_audit.journal.ledger.standing import LedgerState
from otel_audit.notices import escaped, number_of
from otel_audit.settings import Settings

__all__ = ["show_overview"]


def show_overview() -> None:
    """Print where the journal is, how many events it has, and how far they are delivered and signed.

    Nothing is made, and nothing here is an error: each line that cannot be filled says why.
    """
    click.echo(f"otel-audit {__version__}, audit logging for Python services\n")
    try:
        directory = Settings.load(os.environ).directory
    except ConfigError as error:
        _line("settings", str(error))
        _next("otel-audit config", "each setting in force, and where it came from")
        return
    where = shlex.quote(escaped(str(directory)))
    try:
        if not directory.is_dir():
            _line("journal", f"none yet in {where} (OTEL_AUDIT_DIR)")
            _next("otel-audit demo", "a small service with real requests, and its audit events as they happen")
            return
        counted, ledger = census(directory), LedgerState.of(directory)
    except OSError as error:
        _line("journal", f"{where} cannot be read: {error.strerror or error}")
        _next(f"otel-audit doctor {where}", "what is in the way, and what to do about it")
        return
    _line("journal", where)
    _line("events", _events(counted))
    _line("delivered", _delivered(counted))
    _line("signed", _signed(counted, ledger))
    _next(*_most_useful(counted, ledger, where))


def _line(name: str, text: str) -> None:
    click.echo(f"  {name:<10} {escaped(text)}")


def _next(command: str, says: str) -> None:
    click.echo(f"\nNext: {command}\n      {says}\n\notel-audit --help lists every command.")


def _events(counted: Census) -> str:
    services = sorted({stream.service_name for stream in counted.streams if stream.service_name})
    of = f" of {', '.join(services[:3])}{' and others' if len(services) > 3 else ''}" if services else ""
    return f"{number_of(counted.totals.emitted, 'event')} in {number_of(len(counted.streams), 'stream')}{of}"


def _delivered(counted: Census) -> str:
    totals = counted.totals
    rest = {"pending": totals.pending, "quarantined": totals.quarantined, "dropped": totals.dropped}
    return ", ".join([f"{totals.exported:,}", *(f"{number:,} {name}" for name, number in rest.items() if number)])


def _signed(counted: Census, ledger: LedgerState | None) -> str:
    if ledger is None:
        return "nothing: there is no signed ledger; `otel-audit status` says why"
    return f"by {ledger.origin}, {ledger.age_s(counted.time_ns):.0f} s ago"


def _most_useful(counted: Census, ledger: LedgerState | None, where: str) -> tuple[str, str]:
    if counted.is_stuck:
        return f"otel-audit status {where}", "why events are not delivered, and what to do about it"
    if not counted.totals.emitted:
        return f"otel-audit doctor {where}", "whether events can be recorded and delivered here"
    if ledger is not None:
        return f"otel-audit verify {where}", "whether the trail is whole"
    return f"otel-audit tail {where}", "the last events, and new ones as they come"
