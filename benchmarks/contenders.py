"""Who is measured: each gives the function that logs call number `n`, and lets go of everything afterwards."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import get_current_span

from benchmarks.workload import Call
from otel_audit import AuditLogger, Settings, create_audit_logger_from_config, event
from otel_audit.settings import Durability

__all__ = [
    "FEAST",
    "LOGURU",
    "STRUCTLOG",
    "Log",
    "feast",
    "loguru",
    "missing",
    "ours",
    "sdk",
    "sdk_emit",
    "stdlib",
    "structlog",
]

Log = Callable[[int], object]
FEAST: Final = "feast"
STRUCTLOG: Final = "structlog"
LOGURU: Final = "loguru"

_RESOURCE: Final = {"service.name": "benchmark", "service.instance.id": "benchmark-1"}


def missing(package: str) -> bool:
    """True when this environment does not have it."""
    return find_spec(package) is None


@contextlib.contextmanager
def feast(directory: Path, calls: Sequence[Call]) -> Iterator[Log]:
    """Feast's audit logger with its file sink."""
    module = import_module("feast.audit.audit_logger")
    logger = module.AuditLogger(module.FileAuditSink(str(directory / "feast.jsonl")))
    try:
        yield _helpers(logger, module, calls)
    finally:
        logger.close()


@contextlib.contextmanager
def structlog(directory: Path, calls: Sequence[Call]) -> Iterator[Log]:
    """structlog, JSON to a file, with level, time stamp and the ids of the span; no locking, no ids of its own."""
    module = import_module(STRUCTLOG)
    with (directory / "structlog.jsonl").open("w", encoding="utf-8") as file:
        logger = module.wrap_logger(
            module.WriteLogger(file),
            processors=[
                module.processors.add_log_level,
                _add_span_ids,
                module.processors.TimeStamper(fmt="iso"),
                module.processors.JSONRenderer(),
            ],
            wrapper_class=module.make_filtering_bound_logger(20),
            cache_logger_on_first_use=True,
        )
        arguments = [(call.event_type, _nested(call)) for call in calls]

        def log(number: int) -> None:
            name, fields = arguments[number]
            logger.info(name, **fields)

        yield log


@contextlib.contextmanager
def loguru(directory: Path, calls: Sequence[Call]) -> Iterator[Log]:
    """loguru, its own JSON to a file, with the ids of the span."""
    logger = import_module(LOGURU).logger
    logger.remove()  # what it writes to stderr by default, where there is anything left of it
    sink = logger.add(directory / "loguru.jsonl", serialize=True, level="INFO")
    arguments = [(call.event_type, _nested(call)) for call in calls]

    def log(number: int) -> None:
        name, fields = arguments[number]
        logger.bind(**_add_span_ids(None, "", dict(fields))).info(name)

    try:
        yield log
    finally:
        logger.remove(sink)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": record.created, "level": record.levelname, "event": record.msg, **record.__dict__["fields"]}
        return json.dumps(_add_span_ids(None, "", fields))


@contextlib.contextmanager
def stdlib(directory: Path, calls: Sequence[Call]) -> Iterator[Log]:
    """`logging` of the standard library, JSON to a file, with time, level and the ids of the span."""
    handler = logging.FileHandler(directory / "stdlib.jsonl", encoding="utf-8")
    handler.setFormatter(_JsonFormatter())
    logger = logging.Logger("benchmarks", logging.INFO)  # in no tree: nothing else sees its records
    logger.addHandler(handler)
    arguments = [(call.event_type, {"fields": _nested(call)}) for call in calls]

    def log(number: int) -> None:
        name, extra = arguments[number]
        logger.info(name, extra=extra)

    try:
        yield log
    finally:
        handler.close()


class _NowhereExporter(LogRecordExporter):
    """Takes records and does nothing: what is left is the cost of the call."""

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


@contextlib.contextmanager
def sdk_emit(calls: Sequence[Call]) -> Iterator[Log]:
    """The SDK's `Logger.emit` with its batch processor, whose exporter does nothing."""
    with _provider(BatchLogRecordProcessor(_NowhereExporter())) as provider:
        yield _emitter(provider, calls)


@contextlib.contextmanager
def sdk(endpoint: str, calls: Sequence[Call], *, queue: int | None) -> Iterator[tuple[Log, Callable[[], bool]]]:
    """The stock SDK: batch processor and OTLP/HTTP exporter; also its flush. `queue` None: the default size."""
    exporter = OTLPLogExporter(endpoint=endpoint)
    with _provider(BatchLogRecordProcessor(exporter, max_queue_size=queue)) as provider:
        yield _emitter(provider, calls), provider.force_flush


@contextlib.contextmanager
def ours(
    directory: Path,
    calls: Sequence[Call],
    endpoint: str | None = None,
    *,
    protocol: str = "http/protobuf",
    export: str = "otlp",
    durability: Durability = Durability.OS,
) -> Iterator[tuple[Log, AuditLogger]]:
    """`configure()` with its default settings, redaction on; exported over OTLP when there is an endpoint."""
    environment = {
        "OTEL_AUDIT_DIR": str(directory),
        "OTEL_SERVICE_NAME": "benchmark",
        "OTEL_AUDIT_EXPORT": "none",
        "OTEL_AUDIT_DURABILITY": durability,
    }
    if endpoint is not None:
        environment |= {
            "OTEL_AUDIT_EXPORT": export,
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
    logger = create_audit_logger_from_config(Settings.load(environment))
    assert logger is not None
    try:
        yield _helpers(logger, event, calls), logger
    finally:
        logger.close()


def _helpers(logger: Any, models: ModuleType, calls: Sequence[Call]) -> Log:
    """Log through the helpers of Feast's interface, with prebuilt parts."""
    bound = [_bound(logger, models, call) for call in calls]

    def log(number: int) -> object:
        helper, arguments = bound[number]
        return helper(**arguments)

    return log


def _bound(logger: Any, models: ModuleType, call: Call) -> tuple[Callable[..., object], dict[str, Any]]:
    name, arguments = call.helper_arguments(
        models.AuditPrincipal(username=call.username, roles=call.roles, auth_type="oidc"),
        models.AuditSource(ip=call.ip, transport=call.transport),
        models.AuditResource(type=call.resource_type, name=call.resource_name, actions=call.resource_actions),
    )
    return getattr(logger, name), arguments


def _nested(call: Call) -> dict[str, Any]:
    return {
        "request_id": call.request_id,
        "principal": {"username": call.username, "roles": call.roles, "auth_type": "oidc"},
        "source": {"ip": call.ip, "transport": call.transport},
        "action": {"mcp_tool": call.tool, "path": call.path},
        "resource": {"type": call.resource_type, "name": call.resource_name, "actions": call.resource_actions},
        "outcome": call.outcome,
        "duration_ms": call.duration_ms,
        "detail": call.detail,
    }


def _add_span_ids(logger: object, method: str, event_dict: dict[str, Any]) -> dict[str, Any]:
    span = get_current_span().get_span_context()
    event_dict["trace_id"] = f"{span.trace_id:032x}"
    event_dict["span_id"] = f"{span.span_id:016x}"
    return event_dict


@contextlib.contextmanager
def _provider(processor: BatchLogRecordProcessor) -> Iterator[LoggerProvider]:
    provider = LoggerProvider(resource=Resource(_RESOURCE), shutdown_on_exit=False)
    provider.add_log_record_processor(processor)
    try:
        yield provider
    finally:
        provider.shutdown()


def _emitter(provider: LoggerProvider, calls: Sequence[Call]) -> Log:
    logger = provider.get_logger("benchmarks")
    # The dict of attributes is made by the caller of `emit`, so it is prebuilt, as the principals of the others are.
    arguments = [(call.event_type, call.detail, call.attributes()) for call in calls]

    def log(number: int) -> None:
        name, detail, attributes = arguments[number]
        logger.emit(
            timestamp=time.time_ns(),
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            event_name=name,
            body=detail,
            attributes=attributes,
        )

    return log
