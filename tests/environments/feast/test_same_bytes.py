"""The same calls on Feast's logger and on ours leave the same bytes, whatever the sink."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from calls import INSTANTS_NS, Call, calls, events, inside, make, spans
from feast.audit import audit_logger as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext

import otel_audit as ours

REQUEST_ID = "11111111-2222-4333-8444-555555555555"


class TheirLogger(theirs.AuditLogger):
    new_request_id = staticmethod(lambda: REQUEST_ID)


class OurLogger(ours.AuditLogger):
    new_request_id = staticmethod(lambda: REQUEST_ID)


Run = Callable[[Any, ModuleType], None]


@contextlib.contextmanager
def at(instant_ns: int) -> Iterator[Callable[[], int]]:
    """Feast's clock stands still; the clock for ours."""

    class Fixed(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant_ns // 1000)

    with mock.patch.object(theirs, "datetime", Fixed):
        yield lambda: instant_ns


def through_stdout(run: Run, *, instant_ns: int, reads: bool) -> tuple[str, str]:
    written = []
    for module, logger_class, extra in sides(instant_ns):
        with at(instant_ns), contextlib.redirect_stdout(io.StringIO()) as stdout:
            run(logger_class(module.StdoutAuditSink(), log_successful_reads=reads, **extra), module)
        written.append(stdout.getvalue())
    return written[0], written[1]


def through_file(run: Run, *, instant_ns: int, reads: bool) -> tuple[bytes, bytes]:
    written = []
    for module, logger_class, extra in sides(instant_ns):
        with at(instant_ns), tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "audit.log"
            path.write_text("a line that was there\n")
            logger = logger_class(module.FileAuditSink(str(path)), log_successful_reads=reads, **extra)
            run(logger, module)
            before_close = path.read_bytes()
            logger.close()
            written.append(path.read_bytes())
            assert before_close == written[-1], "a line was not in the file when log() returned"
    return written[0], written[1]


def through_logger(run: Run, *, instant_ns: int, reads: bool) -> tuple[list[Any], list[Any]]:
    written = []
    for module, logger_class, extra in sides(instant_ns):
        with at(instant_ns), captured("feast.audit") as records:
            run(logger_class(module.LoggerAuditSink(), log_successful_reads=reads, **extra), module)
        written.append([(record.name, record.levelno, record.getMessage()) for record in records])
    return written[0], written[1]


def sides(instant_ns: int) -> list[tuple[ModuleType, Any, dict[str, Any]]]:
    return [(theirs, TheirLogger, {}), (ours, OurLogger, {"clock": lambda: instant_ns})]


@contextlib.contextmanager
def captured(name: str) -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment,method-assign]  # a handler that only keeps
    logger = logging.getLogger(name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


SINKS = pytest.mark.parametrize("through", [through_stdout, through_file, through_logger])


@SINKS
@settings(max_examples=150, deadline=None)
@given(st.lists(calls, min_size=1, max_size=4), spans, INSTANTS_NS, st.booleans())
def test_the_same_calls_of_the_methods_leave_the_same_bytes(
    through: Any, made: Sequence[Call], span: SpanContext | None, instant_ns: int, reads: bool
) -> None:
    def run(logger: Any, module: ModuleType) -> None:
        for call in made:
            getattr(logger, call.method)(**make(module, call.arguments))

    with inside(span):
        expected, got = through(run, instant_ns=instant_ns, reads=reads)

    assert got == expected


@SINKS
@settings(max_examples=150, deadline=None)
@given(events, spans, INSTANTS_NS, st.booleans(), st.booleans())
def test_the_same_event_leaves_the_same_bytes_be_it_ours_or_theirs(
    through: Any, fields: dict[str, Any], span: SpanContext | None, instant_ns: int, reads: bool, theirs_for_both: bool
) -> None:
    fields = {name: as_dict(value) for name, value in fields.items()}

    def run(logger: Any, module: ModuleType) -> None:
        logger.log((theirs if theirs_for_both else module).AuditEvent(**fields))

    with inside(span):
        expected, got = through(run, instant_ns=instant_ns, reads=reads)

    assert got == expected


@settings(max_examples=200, deadline=None)
@given(events)
def test_to_jsonl_gives_the_same_bytes_and_reads_them_back(fields: dict[str, Any]) -> None:
    fields = {name: as_dict(value) for name, value in fields.items()}

    line = ours.AuditEvent(**fields).to_jsonl()

    assert line == theirs.AuditEvent(**fields).to_jsonl()
    assert ours.AuditEvent(**json.loads(line)).to_jsonl() == theirs.AuditEvent(**json.loads(line)).to_jsonl()


@settings(max_examples=200, deadline=None)
@given(calls)
def test_without_successful_reads_the_same_calls_are_left_out(call: Call) -> None:
    def run(logger: Any, module: ModuleType) -> None:
        getattr(logger, call.method)(**make(module, call.arguments))

    expected, got = through_stdout(run, instant_ns=0, reads=False)

    assert (got == "") == (expected == "")


@pytest.mark.parametrize("event_type", ["http.request", "mcp.tools.call", "authz.decision"])
@pytest.mark.parametrize("outcome", ["success", "error", ""])
@pytest.mark.parametrize("tool", ["", "get_online_features", "get_historical_features", "list_projects"])
@pytest.mark.parametrize(
    "actions", [[], ["READ_ONLINE"], ["READ_ONLINE", "READ_OFFLINE"], ["READ_ONLINE", "DELETE"]], ids=str
)
def test_the_read_filter_is_feasts_in_every_case(event_type: str, outcome: str, tool: str, actions: list[str]) -> None:
    def run(logger: Any, module: ModuleType) -> None:
        logger.log(
            module.AuditEvent(
                event_type=event_type,
                outcome=outcome,
                action=module.AuditAction(mcp_tool=tool),
                resource=module.AuditResource(actions=actions),
            )
        )

    expected, got = through_stdout(run, instant_ns=0, reads=False)

    assert got == expected


def test_a_sink_that_feast_has_takes_part_in_our_logger_and_gets_an_event_with_its_methods() -> None:
    class Kept(theirs.AuditSink):
        def __init__(self) -> None:
            self.lines: list[str] = []
            self.closed = False

        def emit(self, event: Any) -> None:
            self.lines.append(event.to_jsonl())

        def close(self) -> None:
            self.closed = True

    sink: Any = Kept()
    principal: Any = theirs.AuditPrincipal(username="ann")
    logger = ours.AuditLogger(sink)
    logger.log_authn(request_id="r", outcome="success", principal=principal)
    logger.close()

    assert theirs.AuditEvent(**json.loads(sink.lines[0])).principal.username == "ann"
    assert sink.closed


def test_feasts_own_logger_writes_into_our_trail(tmp_path: Path) -> None:
    settings = ours.Settings.load({}, {"directory": str(tmp_path), "export": "none"})
    trail: Any = ours.Trail(settings)
    logger = theirs.AuditLogger(trail)

    logger.log_authn(request_id="r", outcome="success", principal=theirs.AuditPrincipal(username="ann"))
    logger.close()

    (path,) = tmp_path.glob("*-*.jsonl")
    event = json.loads(path.read_bytes().splitlines()[-1])
    assert (event["event_type"], event["request_id"], event["principal"]["username"]) == ("authn.success", "r", "ann")
    assert event["event_id"]
    assert event["seq"] == 2


def as_dict(value: Any) -> Any:
    """A part as the dict that any model takes."""
    return dict(value.fields) if hasattr(value, "fields") else value
