"""`otel-audit demo`: a small real service that records audit events, shown as they happen."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from otel_audit.cli.demo_service import FeatureService, Visitors
from otel_audit.cli.options import GivenNumber, GivenPath, plain_console
from otel_audit.cli.verify import print_report, verdict_words
from otel_audit.configuration import create_audit_logger_from_config
from otel_audit.errors import ConfigError, JournalUnwritable
from otel_audit.journal.files import streams_in
from otel_audit.logger import AuditLogger
from otel_audit.notices import escaped
from otel_audit.settings import Durability, ExporterName, Origin, OtlpProtocol, Settings
from otel_audit.trail import Stats
from otel_audit.verification.directory import bytes_of
from otel_audit.verification.verify import verify_directory

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter

__all__ = ["demo"]

_NAME: Final = "otel-audit"
_SERVICE: Final = "otel-audit-demo"
_METRICS_EVERY_MS: Final = 2000  # a demo of some seconds has several points
_METRICS_TIMEOUT_S: Final = 2.0  # nobody waits longer for the end of a demo whose collector is away
_FLUSH_TIMEOUT_S: Final = 5.0
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)


@click.command()
@click.option(
    "--seconds",
    type=GivenNumber(),
    default=5.0,
    show_default=True,
    help="How long to run; 0 means until it is stopped.",
)
@click.option("--rate", type=GivenNumber(above_zero=True), default=8.0, show_default=True, help="Events a second.")
@click.option(
    "--dir",
    "directory",
    type=GivenPath(file_okay=False),
    help="Directory of the journal. Default: OTEL_AUDIT_DIR, or else a new temporary directory.",
)
def demo(seconds: float, rate: float, directory: Path | None) -> None:
    """Run a small service with real requests and spans, and show its audit events as they happen.

    Some requests are denied, some fail, and some are abandoned. The journal is kept. With an OTLP endpoint in the
    environment, the events also go to its collector, with spans and metrics. At the end, `verify` checks the journal,
    and a copy of it with one byte changed.
    """
    settings = _settings(os.environ, directory)
    with _waiting_for_signals():
        _tell_numbers(_recorded(settings, seconds, rate))
        if settings.durability is not Durability.MEMORY:  # whose journal is gone with its service
            _show_verification(settings.directory, _command())
    _tell_more(settings)


def _recorded(settings: Settings, seconds: float, rate: float) -> Stats:
    """Run the demo. Return its counts once everything was delivered, or the time for that is over."""
    resource = Resource.create({SERVICE_NAME: settings.service_name})
    with _tracing(resource) as provider, _measuring(resource):
        try:
            audit = create_audit_logger_from_config(settings)
        except (ConfigError, JournalUnwritable) as error:
            raise click.UsageError(str(error)) from error
        assert audit is not None
        click.echo(f"journal: {settings.directory}   events go to: {_destinations(settings)}\n", err=True)
        try:
            _run(audit, provider, seconds, rate)
            audit.flush(_FLUSH_TIMEOUT_S)
        finally:
            audit.close()
    return audit.stats()


def _settings(environ: Mapping[str, str], directory: Path | None) -> Settings:
    """Return the settings of the environment, with the console in addition to the exporters that it names."""
    fresh = directory is None and not any(environ.get(name) for name in ("OTEL_AUDIT_DIR", "OTEL_AUDIT_CONFIG"))
    overrides: dict[str, Any] = {"directory": Path(tempfile.gettempdir()) if fresh else directory}
    try:
        settings = _with_a_name(environ, {name: value for name, value in overrides.items() if value is not None})
        others = [name for name in settings.export if name not in (ExporterName.NONE, ExporterName.CONSOLE)]
        if others != [ExporterName.SHIP]:  # which stands alone: then nothing is shown
            overrides["export"] = [*others, ExporterName.CONSOLE]
        if fresh:
            overrides["directory"] = Path(tempfile.mkdtemp(prefix="otel-audit-demo-"))
        return _with_a_name(environ, {name: value for name, value in overrides.items() if value is not None})
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _with_a_name(environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    settings = Settings.load(environ, overrides)
    if settings.sources["service_name"].origin is not Origin.DEFAULT:
        return settings
    return Settings.load({**environ, "OTEL_SERVICE_NAME": _SERVICE}, overrides)


def _run(audit: AuditLogger, provider: TracerProvider, seconds: float, rate: float) -> None:
    """Let visitors use the service until the time is over, or until Ctrl-C or SIGTERM."""
    tracer = provider.get_tracer("otel_audit.demo")
    service = FeatureService(audit, tracer)
    visitors = Visitors(service.port, tracer, rate=rate, events=lambda: audit.stats().emitted)
    service.start()
    visitors.start()
    try:
        _wait(seconds)
    finally:  # their threads would keep the process alive
        visitors.stop()
        service.stop()


@contextlib.contextmanager
def _waiting_for_signals() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until they are asked for, in every thread that is started here.

    Without that the system may give one to another thread, and the main thread would not wake up from its wait.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _wait(seconds: float) -> None:
    """Return when the time is over, or on a signal. With 0, only on a signal."""
    if seconds:
        signal.sigtimedwait(_STOPS, seconds)
    else:
        signal.sigwait(_STOPS)


@contextlib.contextmanager
def _tracing(resource: Resource) -> Iterator[TracerProvider]:
    """Return the SDK's provider of spans. It exports only if an endpoint is set; audit events do not need it."""
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if _otlp("TRACES", "ENDPOINT"):
        _silence_exporters()
        provider.add_span_processor(BatchSpanProcessor(_span_exporter()))
    try:
        yield provider
    finally:
        provider.shutdown()


@contextlib.contextmanager
def _measuring(resource: Resource) -> Iterator[None]:
    """Export the metrics of the trail while entered, and their last values at the end, if an endpoint is set."""
    if not _otlp("METRICS", "ENDPOINT"):
        yield
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    _silence_exporters()
    reader = PeriodicExportingMetricReader(_metric_exporter(), _METRICS_EVERY_MS)
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    set_meter_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


def _otlp(signal_name: str, what: str) -> str | None:
    """Return what the environment says about a signal, or else about all of them."""
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{signal_name}_{what}") or os.environ.get(f"OTEL_EXPORTER_OTLP_{what}")


def _silence_exporters() -> None:
    """Let the SDK's exporters write nothing over the events: an endpoint that takes only logs refuses all they send."""
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)


def _metric_exporter() -> MetricExporter:
    """Return the official exporter for the protocol of the environment, gRPC by default."""
    if _otlp("METRICS", "PROTOCOL") == OtlpProtocol.HTTP_PROTOBUF:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter

        return HttpMetricExporter(timeout=_METRICS_TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

    return GrpcMetricExporter(timeout=_METRICS_TIMEOUT_S)


def _span_exporter() -> SpanExporter:
    """Return the official exporter for the protocol of the environment, gRPC by default."""
    if _otlp("TRACES", "PROTOCOL") == OtlpProtocol.HTTP_PROTOBUF:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

        return HttpSpanExporter()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

    return GrpcSpanExporter()


def _destinations(settings: Settings) -> str:
    shown = {ExporterName.CONSOLE: "this console", ExporterName.JSONL: str(settings.jsonl_path)}
    if settings.otlp is not None:
        shown[ExporterName.OTLP] = settings.otlp.endpoint
    return ", ".join(shown.get(name, str(name)) for name in settings.export)


def _tell_numbers(stats: Stats) -> None:
    click.echo(
        f"\n{stats.emitted} events: {stats.exported} delivered, {stats.pending} pending, "
        f"{stats.quarantined} quarantined, {stats.dropped} dropped"
    )
    for exporter, reason in stats.blocked.items():
        waits = "the events are in the journal and go out with its next owner"
        click.echo(f"{exporter} is blocked: {escaped(reason)}; {waits}")


def _command() -> str:
    """Return what to type for `otel-audit` in this shell: its path, if its environment is not active."""
    called = Path(sys.argv[0])
    is_known = called.name != _NAME or shutil.which(_NAME) is not None
    return _NAME if is_known else shlex.quote(str(called))


def _tell_more(settings: Settings) -> None:
    command = _command()
    directory = shlex.quote(str(settings.directory))
    click.echo(f"\nLook further:\n  {command} tail {directory}\n  {command} status {directory}")
    if ExporterName.OTLP in settings.export:
        click.echo("  if docker-compose.yml runs: the dashboard at http://127.0.0.1:3000")
    else:
        click.echo(
            "With a collector:\n  OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 "
            f"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf {command} demo"
        )


_MOST_BYTES: Final = 16 << 20  # a longer journal takes longer to verify and to copy than anybody watches a demo
_REFUSED: Final = re.compile(rb'"[A-Z]+ [^" ]+ -> (4)\d\d"')
_ANSWERED: Final = re.compile(rb'"[A-Z]+ [^" ]+ -> (2)\d\d"')


def _show_verification(directory: Path, command: str) -> None:
    """Print what `verify` says of the journal, and of a copy with one byte changed. No copy is left.

    `command` is how to call this program. Nothing is printed for a journal that takes long to verify.
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
            plain_console().print(verdict_words(verify_directory(copy)))
    except (OSError, shutil.Error) as error:  # for instance, the disk is full; the events are recorded all the same
        click.echo(f"not verified: {escaped(str(error))}")


def _change_a_byte(directory: Path) -> str | None:
    """Turn a refused request into one that succeeded, or the other way round. Return the change in words.

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
