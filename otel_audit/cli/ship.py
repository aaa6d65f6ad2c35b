"""`otel-audit ship`: deliver the streams of a directory that nobody delivers."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from opentelemetry.sdk.resources import SERVICE_NAME

from otel_audit._version import __version__
from otel_audit.cli.command import FINDING, WRONG_USAGE
from otel_audit.cli.health import GivenAddress, Health
from otel_audit.cli.options import Stop, directory_argument, say_if_empty
from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.delivery.processor import Adoption, BatchProcessor
from otel_audit.delivery.sweep import Sweep, SweepReport, adopter_of, ledger_of, restart, retention_of
from otel_audit.delivery.worker import BatchLimits
from otel_audit.errors import AuditError, LedgerBusy
from otel_audit.journal.files import make_directory, say_exposure
from otel_audit.journal.ledger.adoption import Adopter
from otel_audit.journal.ledger.shipping import LedgerShipping
from otel_audit.journal.locks import prove_locks
from otel_audit.journal.retention import Removed, Retention
from otel_audit.notices import Notices, escaped, number_of, shown_json
from otel_audit.settings import OtlpSettings, Settings

__all__ = ["ship"]

_DESCRIPTORS_A_STREAM: Final = 6
_DESCRIPTORS_FOR_THE_REST: Final = 64


@click.command()
@directory_argument
@click.option("--once", is_flag=True, help="Deliver what is there now, and end.")
@click.option("--again", is_flag=True, help="Send everything once more, from the oldest line that is kept.")
@click.option("--adopt-foreign", is_flag=True, help="Include streams of other hosts, whose writers may be alive.")
@click.option(
    "--health",
    "address",
    metavar="[HOST:]PORT",
    type=GivenAddress(),
    help="Answer /livez and /readyz over HTTP there, for a probe. Without a host on loopback only.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.pass_context
def ship(
    ctx: click.Context,
    directory: Path,
    once: bool,
    again: bool,
    adopt_foreign: bool,
    address: tuple[str, int] | None,
    as_json: bool,
) -> None:
    """Deliver over OTLP the events that processes left in a directory, or write with OTEL_AUDIT_EXPORT=ship.

    Streams of every service are sent as their writers would have sent them. Without --once, it runs until SIGTERM or
    Ctrl-C. With --once, it delivers what it can. It does not wait for an unreachable destination, and waits for an
    answer no longer than OTEL_EXPORTER_OTLP_TIMEOUT (10 s unless set).

    Exit code 1 if anything is left undelivered.
    """
    if once and address is not None:
        raise click.UsageError("expected --health without --once, got both; a probe asks what runs on", ctx)
    try:
        settings = Settings.load(os.environ, {"export": "otlp", "directory": str(directory)})
        assert settings.otlp is not None  # it is read because export names it
        exporter = OtlpExporter(settings.otlp, delay_s=settings.batch_delay_s, batch_bytes=settings.batch_bytes)
        make_directory(directory)
        prove_locks(directory)
    except AuditError as error:
        click.echo(f"otel-audit ship: {escaped(str(error))}", err=True)
        sys.exit(WRONG_USAGE)
    say_if_empty(directory)
    adoption = Adoption(_every, live=_leaves_delivery, foreign=adopt_foreign, at_once=_streams_at_once())
    if again and (busy := restart(directory, exporter.name, adoption, file_mode=settings.file_mode)):
        click.echo(f"{busy} streams are not sent again: another process delivers them", err=True)
    notices = Notices()
    say_exposure(directory, notices)
    ledger = ledger_of(settings, partial(_description, settings), notices)
    retention = retention_of(
        settings, adoption, [exporter.name], notices, ledger=ledger, begins=False, off_host=[exporter.name]
    )
    # Which name a ledger has is for the service to say that writes the directory.
    adopter = adopter_of(ledger, settings, notices, foreign=adopt_foreign, begins=False)
    shipping = None
    if ledger is not None:
        shipping = LedgerShipping(directory, [exporter.name], file_mode=settings.file_mode)
    with Stop() as stop:
        if once:
            sweep = _sweep(settings, exporter, adoption, stop)
            report = sweep.run()
            _tell_of_the_dead(settings, adopter, stop)
            _remove(settings, retention, stop)
            if shipping is not None:
                sweep.deliver_ledger(shipping)
            exporter.close()
            sys.exit(_said(settings, settings.otlp, report, as_json))
        processor = BatchProcessor(
            settings.directory,
            [exporter],
            adoption=adoption,
            limits=_limits(settings),
            file_mode=settings.file_mode,
            notices=notices,
            retention=retention,
            adopter=adopter,
            ledger=shipping,
        )
        with _answering(address, processor):
            sys.exit(_ship_on(settings, settings.otlp, processor, stop, as_json))


@contextmanager
def _answering(address: tuple[str, int] | None, processor: BatchProcessor) -> Iterator[None]:
    """Answer probes until the end, also while the processor is being closed."""
    if address is None:
        yield
        return
    try:
        health = Health(address, processor)
    except OSError as error:
        said = f"--health: expected an address where this process can listen, got {address[0]}:{address[1]}"
        click.echo(f"otel-audit ship: {said}: {error.strerror or error}; choose another port", err=True)
        sys.exit(WRONG_USAGE)
    with health:
        yield


def _sweep(settings: Settings, exporter: OtlpExporter, adoption: Adoption, stop: Stop) -> Sweep:
    return Sweep(
        settings.directory,
        exporter,
        adoption,
        limits=_limits(settings),
        file_mode=settings.file_mode,
        stopped=stop,
    )


def _said(settings: Settings, otlp: OtlpSettings, report: SweepReport, as_json: bool) -> int:
    """Print what was done, and return the exit code."""
    if as_json:
        click.echo(shown_json(_once_json(settings, otlp, report)))
    else:
        _say(otlp, report)
    return FINDING if report.left else 0


def _tell_of_the_dead(settings: Settings, adopter: Adopter | None, stop: Stop) -> None:
    """Record in the ledger how far the streams of dead processes came. A failure is printed, and costs no event."""
    try:
        if adopter is not None:
            adopter.take_over(stop)
    except (OSError, LedgerBusy) as error:
        said = f"{settings.directory}: the ledger is not told of streams that ended: {error}"
        click.echo(f"otel-audit ship: {escaped(said)}", err=True)


def _remove(settings: Settings, retention: Retention | None, stop: Stop) -> None:
    """Remove delivered events that are old enough. A failure is printed, and costs no event."""
    if retention is None:
        return
    try:
        removed = retention.look(stopped=stop)
    except OSError as error:
        said = f"{settings.directory}: old events cannot be removed: {error}"
        click.echo(f"otel-audit ship: {escaped(said)}", err=True)
        return
    if removed != Removed():
        click.echo(f"retention removed {removed.segments} segments, {removed.bytes} bytes", err=True)


def _ship_on(settings: Settings, otlp: OtlpSettings, processor: BatchProcessor, stop: Stop, as_json: bool) -> int:
    click.echo(escaped(f"shipping {settings.directory} to {otlp.shown_endpoint} until Ctrl-C or SIGTERM"), err=True)
    processor.start()
    stop.wait()
    delivered = processor.close(timeout_s=settings.close_timeout_s)
    blocked = processor.blocked()  # behind the close, whose last try may be the first to be answered
    if as_json:
        reason = next(iter(blocked.values()), None)
        click.echo(shown_json({**_place(settings, otlp), "delivered": delivered, "blocked": reason}))
    else:
        click.echo("stopped; all is delivered" if delivered else "stopped; events wait in the journal", err=True)
    return 0 if delivered else FINDING


def _description(settings: Settings) -> dict[str, Any]:
    return {
        "resource": {SERVICE_NAME: settings.service_name},
        "resource_schema_url": "",
        "scope": {"name": "otel_audit", "version": __version__},
        "export": ["otlp"],
    }


def _every(header: Mapping[str, Any]) -> bool:
    return True


def _leaves_delivery(header: Mapping[str, Any]) -> bool:
    """Return True if a living writer leaves the delivery to this command."""
    return header.get("export") == ["ship"]


def _streams_at_once() -> int:
    """Return how many streams the descriptors allow, since those of living writers are held as long as these live."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (min(allowed, 1 << 16) - _DESCRIPTORS_FOR_THE_REST) // _DESCRIPTORS_A_STREAM)


def _limits(settings: Settings) -> BatchLimits:
    return BatchLimits(settings.batch_count, settings.batch_bytes, settings.backoff_cap_s)


def _once_json(settings: Settings, otlp: OtlpSettings, report: SweepReport) -> Mapping[str, Any]:
    return {
        **_place(settings, otlp),
        "streams": report.streams,
        "exported": report.counts.exported,
        "quarantined": report.counts.quarantined,
        "system": report.counts.system,
        "left": [{"stream_id": left.stream_id, "reason": left.reason} for left in report.left],
    }


def _place(settings: Settings, otlp: OtlpSettings) -> dict[str, str]:
    return {"directory": str(settings.directory), "endpoint": otlp.shown_endpoint}


def _say(otlp: OtlpSettings, report: SweepReport) -> None:
    click.echo(
        f"{number_of(report.counts.exported, 'event')} and {number_of(report.counts.system, 'system line')} of "
        f"{number_of(report.streams, 'stream')} sent to "
        f"{escaped(otlp.shown_endpoint)}, {report.counts.quarantined} quarantined"
    )
    for left in report.left:
        click.echo(f"{left.stream_id}: not sent: {escaped(left.reason)}", err=True)
