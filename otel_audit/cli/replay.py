"""`otel-audit replay`: send what was recorded before, or elsewhere, to an OTLP endpoint.

With `--quarantine`, send the quarantined lines of a journal again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource

from otel_audit._version import __version__
from otel_audit.cli.command import FINDING, WRONG_USAGE
from otel_audit.cli.options import GivenNumber, GivenPath, Stop, say_if_empty
from otel_audit.cli.source import progress_bar
from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.errors import AuditError
from otel_audit.journal.files import make_directory
from otel_audit.journal.locks import FileLock
from otel_audit.notices import escaped, number_of, shown_json
from otel_audit.replaying.replay import (
    QuarantineReplay,
    QuarantineReport,
    Replay,
    ReplayReport,
    ReplayState,
    state_path,
)
from otel_audit.replaying.sending import Patience, Trouble
from otel_audit.replaying.source import ParcelLimits, ReplaySource
from otel_audit.settings import OtlpSettings, Settings
from otel_audit.stores.store import Kind
from otel_audit.trail import SCOPE_NAME

__all__ = ["ReplayEndpoint", "replay", "replay_quarantine"]


@dataclass(frozen=True, slots=True)
class ReplayEndpoint:
    """The OTLP endpoint of the settings, with an exporter to it."""

    settings: Settings
    otlp: OtlpSettings
    exporter: OtlpExporter
    patience: Patience

    @property
    def limits(self) -> ParcelLimits:
        """Return how much goes into one request."""
        return ParcelLimits(self.settings.batch_count, self.settings.batch_bytes)

    @classmethod
    @contextmanager
    def of_settings(cls, *, give_up_after_s: float) -> Iterator[ReplayEndpoint]:
        """Yield the destination. While it is in use, SIGTERM and Ctrl-C only ask for the end.

        Raises:
            ConfigError: a setting is wrong.
        """
        settings = Settings.load(os.environ, {"export": "otlp"})
        assert settings.otlp is not None  # it is read because export names it
        exporter = OtlpExporter(settings.otlp, delay_s=settings.batch_delay_s, batch_bytes=settings.batch_bytes)
        with Stop() as stop:
            patience = Patience(give_up_after_s, settings.backoff_cap_s, pause=stop.wait, stopped=stop)
            try:
                yield cls(settings, settings.otlp, exporter, patience)
            finally:
                exporter.close()


_REFUSALS_SHOWN: Final = 20


def replay_quarantine(directory: Path, destination: ReplayEndpoint, *, as_json: bool) -> bool:
    """Send the quarantined lines of a directory and say what became of them. True when nothing is in quarantine now."""
    run = QuarantineReplay(
        directory,
        destination.exporter,
        limits=destination.limits,
        patience=destination.patience,
        file_mode=destination.settings.file_mode,
    )
    report = run.run()
    if as_json:
        click.echo(shown_json(_quarantine_as_json(directory, destination.otlp, report)))
    else:
        _say_quarantine(destination.otlp, report)
    return report.is_complete


def _quarantine_as_json(directory: Path, otlp: OtlpSettings, report: QuarantineReport) -> Mapping[str, Any]:
    return {
        "directory": str(directory),
        "endpoint": otlp.shown_endpoint,
        "streams": report.streams,
        "lines": report.lines,
        "sent": report.sent,
        "refused": len(report.refused),
        "missing": report.missing,
        "refused_lines": [
            {"stream_id": place.file, "seq": place.line, "reason": reason} for place, reason in report.refused
        ],
        "left": report.left or None,
    }


def _say_quarantine(otlp: OtlpSettings, report: QuarantineReport) -> None:
    click.echo(
        f"{report.sent} of {number_of(report.lines, 'quarantined line')} of {number_of(report.streams, 'stream')} "
        f"sent to {escaped(otlp.shown_endpoint)}, {len(report.refused)} refused again, {report.missing} missing"
    )
    for (stream_id, seq), reason in report.refused[:_REFUSALS_SHOWN]:
        click.echo(f"{stream_id}:{seq}: refused again: {escaped(reason)}", err=True)
    if len(report.refused) > _REFUSALS_SHOWN:
        click.echo(f"and {len(report.refused) - _REFUSALS_SHOWN} more: see --json", err=True)
    if report.left:
        click.echo(f"the rest stays in quarantine: {escaped(report.left)}", err=True)


_TROUBLES_SHOWN: Final = 20


@click.command()
@click.argument("path", required=False, type=GivenPath(exists=True))
@click.option("--quarantine", is_flag=True, help="Send the quarantined lines of the journal in PATH again.")
@click.option(
    "--state",
    "state_directory",
    type=GivenPath(file_okay=False),
    help="Directory for the file that records how far it got.  [default: the directory of the settings]",
)
@click.option("--from-start", is_flag=True, help="Send everything again, from the start.")
@click.option(
    "--give-up-after",
    "give_up_after_s",
    metavar="SECONDS",
    type=GivenNumber(),
    default=60.0,
    show_default=True,
    help="How long to wait for an endpoint that does not answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def replay(
    path: Path | None,
    quarantine: bool,
    state_directory: Path | None,
    from_start: bool,
    give_up_after_s: float,
    as_json: bool,
) -> None:
    """Send the events in PATH to the OTLP endpoint of the settings, with their times, ids and span.

    PATH is the directory of a journal, a collector's archive (a file, or a directory of them), a JSONL export, or an
    audit log of Feast, compressed by gzip or zstd or not. Events without an id get one that is the same each time they
    are sent.

    It continues where an earlier run of the same command ended. Exit code 1 if anything was not sent.

    With --quarantine, PATH is the directory of a journal, by default that of the settings. Only lines in quarantine
    are sent; what is accepted counts as exported. Processes that deliver the journal may go on.
    """
    if quarantine and (state_directory or from_start):
        raise click.UsageError("--state and --from-start do not go with --quarantine: the journal keeps what is sent")
    if path is None and not quarantine:
        raise click.UsageError("expected PATH, the events to send, got none; give it, or --quarantine")
    try:
        with ReplayEndpoint.of_settings(give_up_after_s=give_up_after_s) as destination:
            path = path or destination.settings.directory
            if quarantine:
                done = _quarantine(path, destination, as_json)
            else:
                done = _replay(path, destination, state_directory, from_start, as_json)
    except AuditError as error:
        click.echo(f"otel-audit replay: {escaped(str(error))}", err=True)
        sys.exit(WRONG_USAGE)
    except BrokenPipeError:
        raise  # click ends quietly when who read us has enough
    except OSError as error:
        raise click.UsageError(_unreadable(error)) from error
    sys.exit(0 if done else FINDING)


def _unreadable(error: OSError) -> str:
    return f"expected files that can be read and written, got {error}; correct the path, or run it as the owner"


def _quarantine(directory: Path, destination: ReplayEndpoint, as_json: bool) -> bool:
    if not directory.is_dir():
        raise click.UsageError(f"expected the directory of a journal as PATH, got {str(directory)!r}; correct it")
    say_if_empty(directory)
    return replay_quarantine(directory, destination, as_json=as_json)


def _replay(
    path: Path, destination: ReplayEndpoint, state_directory: Path | None, from_start: bool, as_json: bool
) -> bool:
    settings, otlp = destination.settings, destination.otlp
    source = ReplaySource(path, _header(settings))
    if source.kind is Kind.JOURNAL:
        say_if_empty(path)
    directory = state_directory or settings.directory
    make_directory(directory)
    file = state_path(directory, source.identity, otlp.shown_endpoint)
    if source.kind is Kind.EVENT_LOG and settings.service_name.startswith("unknown_service"):
        click.echo("no service name: set OTEL_SERVICE_NAME, so that the events say who recorded them", err=True)
    with _alone(file) as is_alone:
        state = _state(file, source, from_start)
        report = _run(source, destination, state) if is_alone else ReplayReport(state.tally, _busy(file))
    if as_json:
        click.echo(shown_json(_as_json(source, otlp, state, report)))
    else:
        _say(source, otlp, report)
    return report.is_complete


def _header(settings: Settings) -> Mapping[str, Any]:
    """Return the sender of events that name none: this process, but for what differs at each run."""
    resource = Resource.create({SERVICE_NAME: settings.service_name})
    attributes = dict(resource.attributes)
    if SERVICE_INSTANCE_ID not in OTELResourceDetector().detect().attributes:
        attributes.pop(SERVICE_INSTANCE_ID, None)
    return {
        "resource": attributes,
        "resource_schema_url": resource.schema_url or "",
        "scope": {"name": SCOPE_NAME, "version": __version__},
    }


@contextmanager
def _alone(state_file: Path) -> Iterator[bool]:
    """Yield True if no other process sends the same: two would send all of it twice, and lose each other's state.

    As long as this is entered nobody else begins. The lock of a process that was killed is free.
    """
    lock = FileLock.acquire(_lock_of(state_file))
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release(remove=True)


def _lock_of(state_file: Path) -> Path:
    return state_file.with_suffix(".lock")


def _busy(state_file: Path) -> str:
    return f"another process sends it at this moment, and holds {_lock_of(state_file)}; wait for its end"


def _state(path: Path, source: ReplaySource, from_start: bool) -> ReplayState:
    if from_start:
        return ReplayState(path)
    state = ReplayState.load(path)
    if not source.goes_on(state.marks):
        note = f"{path}: expected the progress of this source, got that of another one with the same beginning"
        state = ReplayState(path, note=f"{note}, or a part of it was changed since; sending everything")
    if state.note:
        click.echo(escaped(state.note), err=True)
    return state


def _run(source: ReplaySource, destination: ReplayEndpoint, state: ReplayState) -> ReplayReport:
    limits, patience = destination.limits, destination.patience
    with progress_bar(
        escaped(source.path.name), source.size_bytes, done_bytes=lambda: source.passed_bytes(state.marks)
    ) as moved:
        try:
            return Replay(source, destination.exporter, state, limits=limits, patience=patience, moved=moved).run()
        except OSError as error:
            return ReplayReport(state.tally, _unreadable(error))


def _as_json(source: ReplaySource, otlp: OtlpSettings, state: ReplayState, report: ReplayReport) -> Mapping[str, Any]:
    tally = report.tally
    return {
        "path": str(source.path),
        "kind": str(source.kind),
        "endpoint": otlp.shown_endpoint,
        "state": str(state.path),
        "read": tally.read,
        "sent": tally.sent,
        "refused": tally.refused,
        "unreadable": tally.unreadable,
        "refused_lines": [_trouble_json(trouble) for trouble in tally.refused_lines],
        "unreadable_lines": [_trouble_json(trouble) for trouble in tally.unreadable_lines],
        "left": report.left or None,
    }


def _trouble_json(trouble: Trouble) -> Mapping[str, Any]:
    return {"file": trouble.place.file, "line": trouble.place.line, "reason": trouble.reason}


def _say(source: ReplaySource, otlp: OtlpSettings, report: ReplayReport) -> None:
    tally = report.tally
    click.echo(
        f"{tally.sent} of {tally.read} records of the {source.kind} {escaped(str(source.path))} sent to "
        f"{escaped(otlp.shown_endpoint)}, {tally.refused} refused, {tally.unreadable} unreadable lines"
    )
    troubles = [("refused", trouble) for trouble in tally.refused_lines]
    troubles += [("unreadable", trouble) for trouble in tally.unreadable_lines]
    for what, ((file, line), reason) in troubles[:_TROUBLES_SHOWN]:
        click.echo(f"{escaped(file)}:{line}: {what}: {escaped(reason)}", err=True)
    if len(troubles) > _TROUBLES_SHOWN:
        click.echo(f"and {len(troubles) - _TROUBLES_SHOWN} more: see --json", err=True)
    if report.left:
        click.echo(f"not everything was sent; the same command continues from here: {escaped(report.left)}", err=True)
