"""Log records of the standard library are audit events: what of them is recorded, through queues and configurations."""

from __future__ import annotations

import json
import logging
import logging.config
import logging.handlers
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from logging.config import DictConfigurator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_audit.configuration import configure
from otel_audit.errors import ConfigError
from otel_audit.event import AuditEvent, AuditPrincipal
from otel_audit.integrations.parent import within
from otel_audit.integrations.stdlib_logging import AuditCapture, AuditHandler
from otel_audit.logger import AuditLogger
from otel_audit.settings import OnLoss
from otel_audit.sinks import FileAuditSink, LoggerAuditSink
from tests.chain_check import application_events, read_streams
from tests.integrations.logged import every_byte, logger_with, queued, recorded
from tests.recording import recorder

HANDLER = "otel_audit.integrations.stdlib_logging.AuditHandler"
SECRET = "ghp_" + "a1B2" * 9
PLAIN_MESSAGE = "the customer's name is in here"
tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
unsampled = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("t")


def fail_with(message: str) -> Callable[[logging.Logger], None]:
    def log(logger: logging.Logger) -> None:
        try:
            raise LookupError(message)
        except LookupError:
            logger.exception("sale failed")

    return log


def test_a_record_is_an_event_with_its_text_and_no_outcome(tmp_path: Path) -> None:
    (event,) = recorded(tmp_path, lambda logger: logger.warning("sold %d of %s", 3, "tea"))

    assert event["event_type"] == "log.record"
    assert event["detail"] == "sold 3 of tea"
    assert event["outcome"] == ""
    assert event["attributes"] == {"log.logger": "shop", "log.level": "WARNING"}
    assert "error_type" not in event


def test_the_time_is_that_of_the_record(tmp_path: Path) -> None:
    record = logging.makeLogRecord(
        {"name": "shop", "msg": "sold", "created": 1_700_000_000.25, "levelno": logging.INFO}
    )

    (event,) = recorded(tmp_path, lambda logger: logger.handle(record))

    assert event["timestamp"] == "2023-11-14T22:13:20.250Z"
    assert event["time_ns"] == 1_700_000_000_250_000_000


def test_extra_gives_the_fields_of_the_event_and_what_is_no_field_is_an_attribute(tmp_path: Path) -> None:
    fields = {
        "event_type": "shop.sale",
        "principal": {"username": "ann"},
        "outcome": "denied",
        "till": 7,
        "attributes": {"log.level": "mine", "lane": "b"},
    }

    (event,) = recorded(tmp_path, lambda logger: logger.info("sold", extra={"audit": fields}))

    assert (event["event_type"], event["outcome"], event["detail"]) == ("shop.sale", "denied", "sold")
    assert event["principal"]["username"] == "ann"
    assert event["attributes"] == {"log.logger": "shop", "log.level": "mine", "lane": "b", "till": 7}


def test_extra_may_be_an_event(tmp_path: Path) -> None:
    given = AuditEvent(
        event_type="shop.sale", principal=AuditPrincipal(username="ann"), detail="tea", outcome="success"
    )

    (event,) = recorded(tmp_path, lambda logger: logger.info("sold", extra={"audit": given}))

    assert {key: event[key] for key in ("event_type", "detail", "outcome")} == {
        "event_type": "shop.sale",
        "detail": "tea",
        "outcome": "success",
    }
    assert event["principal"]["username"] == "ann"


class Texts(logging.Handler):
    """Keeps the texts of its records."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Unreadable(dict[str, object]):
    def items(self) -> Any:
        raise ValueError(SECRET)


@pytest.mark.parametrize(
    "extra",
    ["text", 7, [1], {}, Unreadable(a=1), {"principal": "ann"}, {"attributes": 5}, {1: 2}, {"duration_ms": "long"}],
    ids=repr,
)
def test_an_odd_extra_never_costs_the_event(tmp_path: Path, extra: object) -> None:
    (event,) = recorded(tmp_path, lambda logger: logger.info("sold", extra={"audit": extra}))

    assert event["detail"] == "sold"
    assert event["attributes"]["log.logger"] == "shop"
    assert SECRET not in json.dumps(event)


class Broken:
    def __str__(self) -> str:
        raise ValueError(SECRET)


@pytest.mark.parametrize(
    ("message", "arguments", "detail"),
    [
        ("sold %d", ("tea",), "sold %d"),
        ("sold", ("tea",), "sold"),
        pytest.param(Broken(), (), "[unreadable message]", id="broken"),
        (7, (), "7"),
        ("\ud800%", (), "\ufffd%"),
    ],
    ids=repr,
)
def test_a_text_that_cannot_be_made_never_costs_the_event(
    tmp_path: Path, message: object, arguments: tuple[object, ...], detail: str
) -> None:
    (event,) = recorded(tmp_path, lambda logger: logger.info(message, *arguments))

    assert event["detail"] == detail


def test_of_an_exception_its_class_is_recorded_and_no_more(tmp_path: Path) -> None:
    (event,) = recorded(tmp_path, fail_with(PLAIN_MESSAGE))

    assert (event["error_type"], event["detail"], event["outcome"]) == ("LookupError", "sale failed", "")
    assert PLAIN_MESSAGE.encode() not in every_byte(tmp_path)


def test_a_secret_in_the_text_is_removed(tmp_path: Path) -> None:
    (event,) = recorded(tmp_path, lambda logger: logger.info("token %s", SECRET, extra={"audit": {"note": SECRET}}))

    assert event["redacted"] == ["$.attributes.note", "$.detail"]
    assert SECRET.encode() not in every_byte(tmp_path)


def test_the_event_has_the_active_span_and_the_event_under_way(tmp_path: Path) -> None:
    spans = []

    def log(logger: logging.Logger) -> None:
        for each in (tracer, unsampled):
            with each.start_as_current_span("sale") as span, within("0192-parent"):
                logger.info("sold")
                spans.append(span.get_span_context())
        logger.info("closed")

    first, second, outside = recorded(tmp_path, log)

    for event, span, flags in ((first, spans[0], 1), (second, spans[1], 0)):
        assert (event["trace_id"], event["span_id"]) == (f"{span.trace_id:032x}", f"{span.span_id:016x}")
        assert event["trace_flags"] & 1 == flags
        assert event["parent_id"] == "0192-parent"
    assert {"trace_id", "span_id", "parent_id"} & outside.keys() == set()


def test_level_filters_and_propagation_are_those_of_logging(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        handler = AuditHandler(audit, level="WARNING")
        handler.addFilter(lambda record: "noise" not in record.getMessage())
        with logger_with(handler, name="shop"):
            child = logging.getLogger("shop.till")
            child.info("too low")
            child.error("noise")
            child.error("sold out")

    assert [event["detail"] for event in application_events(tmp_path)] == ["sold out"]
    assert application_events(tmp_path)[0]["attributes"]["log.logger"] == "shop.till"


def test_what_our_own_logger_sink_wrote_is_left_alone(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit, queued(AuditHandler(audit)) as front:
        own, texts = LoggerAuditSink(), logging.FileHandler(tmp_path / "texts")
        with logger_with(AuditHandler(audit), front, texts, name="feast.audit") as logger:
            own.emit(AuditEvent(event_type="ours"))
            logger.info(AuditEvent(event_type="theirs").to_jsonl())

    # By the handler itself, and by the one behind the queue.
    assert [event["event_type"] for event in application_events(tmp_path)] == ["theirs", "theirs"]
    assert (tmp_path / "texts").read_text().count("\n") == 2


def test_a_logger_whose_sink_is_the_logger_of_its_handler_neither_loops_nor_hangs(tmp_path: Path) -> None:
    audit = AuditLogger(LoggerAuditSink())
    texts = logging.FileHandler(tmp_path / "texts")
    with logger_with(AuditHandler(audit), texts, name="feast.audit") as logger:

        def log() -> None:
            audit.log(AuditEvent(event_type="ours", request_id="r", timestamp="t"))
            logger.info("theirs")

        thread = threading.Thread(target=log, daemon=True)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()

    first, second, third = (tmp_path / "texts").read_text().splitlines()
    assert json.loads(first)["event_type"] == "ours"
    # Handlers are called in turn: the event of the text is written before the next handler has the text.
    assert (json.loads(second)["detail"], third) == ("theirs", "theirs")
    assert audit.stats().emitted == audit.stats().exported == 2


def test_behind_a_queue_the_event_is_that_of_the_thread_that_logged(tmp_path: Path) -> None:
    with (
        recorder(tmp_path) as audit,
        queued(AuditHandler(audit), AuditCapture()) as front,
        logger_with(front) as logger,
        tracer.start_as_current_span("sale") as span,
        within("0192-parent"),
    ):
        logger.info("sold %s", "tea")
        fail_with(PLAIN_MESSAGE)(logger)

    sold, failed = application_events(tmp_path)
    assert (sold["detail"], failed["detail"], failed["error_type"]) == ("sold tea", "sale failed", "LookupError")
    for event in (sold, failed):
        assert event["trace_id"] == f"{span.get_span_context().trace_id:032x}"
        assert event["span_id"] == f"{span.get_span_context().span_id:016x}"
        assert event["parent_id"] == "0192-parent"
    assert PLAIN_MESSAGE.encode() not in every_byte(tmp_path)


def test_a_captured_record_is_read_after_a_pickle(tmp_path: Path) -> None:
    record = logging.makeLogRecord({"name": "shop", "msg": "sold", "levelno": logging.INFO})
    with tracer.start_as_current_span("sale") as span:
        AuditCapture().filter(record)
    pickled = pickle.dumps(record.__dict__)
    assert b"otel_audit." not in pickled  # it can be read where this package is not

    (event,) = recorded(tmp_path, lambda logger: logger.handle(logging.makeLogRecord(pickle.loads(pickled))))

    assert event["trace_id"] == f"{span.get_span_context().trace_id:032x}"


def test_behind_a_plain_queue_no_message_of_an_exception_is_recorded(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit, queued(AuditHandler(audit)) as front, logger_with(front) as logger:
        fail_with(PLAIN_MESSAGE)(logger)
        try:
            raise ExceptionGroup("several", [ValueError(PLAIN_MESSAGE)])
        except ExceptionGroup:
            logger.info("and", exc_info=True, stack_info=True)

    details = [event["detail"] for event in application_events(tmp_path)]
    assert details == ["sale failed\n[traceback left out]", "and\n[traceback left out]"]
    assert PLAIN_MESSAGE.encode() not in every_byte(tmp_path)


def test_behind_a_plain_queue_the_span_is_what_otels_instrumentation_noted(tmp_path: Path) -> None:
    instrumentor = LoggingInstrumentor()
    instrumentor.instrument(set_logging_format=True, enable_log_auto_instrumentation=False)
    spans = []
    try:
        with recorder(tmp_path) as audit, queued(AuditHandler(audit)) as front, logger_with(front) as logger:
            for each in (tracer, unsampled):
                with each.start_as_current_span("sale") as span:
                    logger.info("sold")
                    spans.append(span.get_span_context())
            logger.info("closed")
    finally:
        instrumentor.uninstrument()

    first, second, outside = application_events(tmp_path)
    assert [first["trace_id"], second["trace_id"]] == [f"{span.trace_id:032x}" for span in spans]
    assert [first["span_id"], second["span_id"]] == [f"{span.span_id:016x}" for span in spans]
    assert (first["trace_flags"], second["trace_flags"]) == (1, 0)
    assert "trace_id" not in outside


def test_nothing_is_raised_and_no_text_is_said_when_an_event_is_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = FileAuditSink(tmp_path / "closed")
    sink.close()
    audit = AuditLogger(sink, on_loss=OnLoss.CLOSED)

    with logger_with(AuditHandler(audit)) as logger:
        logger.info("sold %s", PLAIN_MESSAGE)
    said = capfd.readouterr().err
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with logger_with(AuditHandler(audit)) as logger:
        logger.info("sold %s", PLAIN_MESSAGE)

    assert "log records are lost" in said
    assert "test_logging_handler.py" in said
    assert PLAIN_MESSAGE not in said
    assert capfd.readouterr().err == ""
    assert audit.stats().dropped == 2


def test_the_lock_of_the_handler_keeps_no_record_waiting(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        handler = AuditHandler(audit)
        with logger_with(handler) as logger:
            handler.acquire()
            try:
                thread = threading.Thread(target=logger.info, args=("sold",), daemon=True)
                thread.start()
                thread.join(30)
                assert not thread.is_alive()
            finally:
                handler.release()


class Talkative(InMemoryLogRecordExporter):
    """An exporter that logs each export."""

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        logging.getLogger("shop.exporter").warning("exporting %d", len(batch))
        return super().export(batch)


def test_an_export_makes_no_events_of_its_own_log_records(tmp_path: Path) -> None:
    exporter = Talkative()  # type: ignore[no-untyped-call]  # the SDK left it untyped
    audit = configure(directory=tmp_path, exporters=[exporter])
    with logger_with(AuditHandler(audit)) as logger, logger_with(texts := Texts(), name="shop.exporter") as child:
        child.propagate = True
        for number in (1, 2):
            logger.info("sold %d", number)
            assert audit.flush(timeout_s=30).complete
    audit.close()

    assert [event["detail"] for event in application_events(tmp_path)] == ["sold 1", "sold 2"]
    assert texts.lines[0].startswith("exporting")


def test_a_handler_closes_its_own_journal_and_no_other(tmp_path: Path) -> None:
    with recorder(tmp_path / "given") as audit:
        with logger_with(AuditHandler(audit)) as logger:
            logger.info("sold")
        audit.log(AuditEvent(event_type="after"))
    assert len(read_streams(tmp_path / "given")) == 1  # closed in between, it would have opened another
    own = AuditHandler(directory=tmp_path / "own", export="none")
    with logger_with(own) as logger:
        logger.info("before")
        own.close()
        logger.info("after")

    assert [event["event_type"] for event in application_events(tmp_path / "given")] == ["log.record", "after"]
    assert {event["detail"] for event in application_events(tmp_path / "own")} == {"before", "after"}


def test_settings_beside_a_logger_are_refused(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit, pytest.raises(ConfigError, match=r"either audit or settings.*directory"):
        AuditHandler(audit, directory=tmp_path)


@pytest.mark.parametrize("key", ["class", "()"])
def test_a_configuration_names_the_handler_and_its_settings(tmp_path: Path, key: str) -> None:
    config: dict[str, Any] = {
        key: HANDLER,
        "level": "WARNING",
        "event_type": "shop.log",
        "line_loggers": "shop",
        "directory": str(tmp_path),
        "export": "none",
    }
    handler = DictConfigurator({"version": 1}).configure_handler(config)

    with logger_with(handler) as logger:
        logger.info("too low")
        logger.warning("sold")
        logger.warning(AuditEvent(event_type="read").to_jsonl())

    assert [event["event_type"] for event in application_events(tmp_path)] == ["shop.log", "read"]


def test_a_configuration_may_name_a_logger_that_is_there(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        handler = DictConfigurator({"version": 1}).configure_handler({"class": HANDLER, "audit": audit})
        with logger_with(handler) as logger:
            logger.info("sold")

    assert [event["detail"] for event in application_events(tmp_path)] == ["sold"]


def test_a_wrong_setting_in_a_configuration_stops_it(tmp_path: Path) -> None:
    configurator = DictConfigurator({"version": 1})

    with pytest.raises(ConfigError, match="durability"):
        configurator.configure_handler({"class": HANDLER, "directory": str(tmp_path), "durability": "forever"})


PROGRAM = """
import atexit, logging, logging.config, logging.handlers, queue, sys

def in_front_of(target):
    records = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, target)
    listener.start()
    atexit.register(listener.stop)
    return logging.handlers.QueueHandler(records)

HANDLERS = "otel_audit.integrations.stdlib_logging"
logging.config.dictConfig({
    "version": 1,
    "filters": {"capture": {"()": f"{HANDLERS}.AuditCapture"}},
    "handlers": {
        "audit": {"class": f"{HANDLERS}.AuditHandler", "directory": sys.argv[1], "export": "none"},
        "front": {"()": in_front_of, "target": "cfg://handlers.audit", "filters": ["capture"]},
    },
    "root": {"level": "INFO", "handlers": ["audit"]},
    "loggers": {"shop": {"handlers": ["front"], "propagate": False}},
})
logging.info("at once")
try:
    raise LookupError(sys.argv[2])
except LookupError:
    logging.getLogger("shop").exception("through the queue")
"""


@pytest.mark.processes
def test_a_process_that_is_configured_by_a_dict_ends_with_its_events_on_disk(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path), PLAIN_MESSAGE],
        env={**kept, "OTEL_SERVICE_NAME": "shop"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first, second = application_events(tmp_path)
    assert (first["detail"], second["detail"]) == ("at once", "through the queue")
    assert second["error_type"] == "LookupError"
    assert PLAIN_MESSAGE.encode() not in every_byte(tmp_path)
