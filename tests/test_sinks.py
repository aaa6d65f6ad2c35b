"""Feast's three sinks, and what a sink of one's own must do."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from otel_audit.event import AuditEvent
from otel_audit.logger import AuditLogger
from otel_audit.sinks import AuditSink, FileAuditSink, JsonlEvent, LoggerAuditSink, StdoutAuditSink

EVENT = AuditEvent(event_type="x", detail="ünï\u2028\x00")


def test_a_sink_needs_emit_and_nothing_else() -> None:
    with pytest.raises(TypeError):
        AuditSink()  # type: ignore[abstract]  # what is under test

    class Emitting(AuditSink):
        def emit(self, event: JsonlEvent) -> None: ...

    assert Emitting().close() is None  # type: ignore[func-returns-value]  # what is under test


def test_stdout_gets_one_line_an_event_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    sink = StdoutAuditSink()

    sink.emit(EVENT)

    assert capsys.readouterr().out == EVENT.to_jsonl() + "\n"


def test_stdout_is_the_one_of_the_moment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sink = StdoutAuditSink()
    monkeypatch.setattr(sys, "stdout", sys.stderr)

    sink.emit(EVENT)

    assert capsys.readouterr().err == EVENT.to_jsonl() + "\n"


@pytest.mark.processes
def test_no_event_is_lost_to_the_encoding_of_stdout() -> None:
    program = (
        "import otel_audit as a; a.StdoutAuditSink().emit(a.AuditEvent(event_type='x', detail='\\xfcn\\U0001f600'))"
    )
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}

    done = subprocess.run(
        [sys.executable, "-c", program], check=True, env=environ, timeout=60, stdout=subprocess.PIPE, text=True
    )

    assert AuditEvent.model_validate_json(done.stdout).detail == "ün😀"


def test_a_file_is_appended_to_and_has_each_line_when_emit_returns(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(b"before\n")
    sink = FileAuditSink(path)

    sink.emit(EVENT)
    after_one = path.read_bytes()
    sink.emit(EVENT)
    sink.close()

    assert after_one == b"before\n" + EVENT.to_jsonl().encode() + b"\n"
    assert path.read_bytes() == after_one + EVENT.to_jsonl().encode() + b"\n"


@pytest.mark.processes
def test_a_file_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    program = (
        "import sys, otel_audit\n"
        "sink = otel_audit.FileAuditSink(sys.argv[1])\n"
        "sink.emit(otel_audit.AuditEvent(event_type='x', detail='\\xfcn'))\n"
    )
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environ, timeout=60)

    assert "ün" in path.read_bytes().decode("utf-8")


def test_a_file_that_cannot_be_opened_is_said_when_the_sink_is_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        FileAuditSink(tmp_path / "missing" / "audit.log")


def test_an_event_after_close_is_a_counted_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = AuditLogger(FileAuditSink(tmp_path / "audit.log"))
    audit.close()

    audit.log(EVENT)

    assert audit.stats().dropped == 1
    assert "FileAuditSink" in capsys.readouterr().err


def test_logging_gets_the_line_at_info_under_feasts_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "feast.audit"):
        LoggerAuditSink().emit(EVENT)

    assert caplog.record_tuples == [("feast.audit", logging.INFO, EVENT.to_jsonl())]


def test_logging_takes_another_name_and_no_text_as_a_format(caplog: pytest.LogCaptureFixture) -> None:
    event = AuditEvent(event_type="x", detail="100 %s %d %")

    with caplog.at_level(logging.INFO, "mine"):
        LoggerAuditSink("mine").emit(event)

    assert caplog.record_tuples == [("mine", logging.INFO, event.to_jsonl())]


def test_an_event_that_goes_to_a_plain_sink_gets_no_keys_of_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    audit = AuditLogger(FileAuditSink(path))

    receipt = audit.log_authn(outcome="success", request_id="r")
    audit.close()

    assert receipt == (None, None, None, False)
    line = path.read_text(encoding="utf-8")
    assert [key for key in ("event_id", "trace_flags", "time_ns", "stream_id", "seq") if key in line] == []


class Answering(logging.Handler):
    """Logs an audit event for each line that it gets, as long as there are answers."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.answers, self.lines = answers, list[str]()
        self.audit: AuditLogger | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if self.audit is not None and len(self.lines) <= self.answers:
            self.audit.log(AuditEvent(event_type=f"answer {len(self.lines)}"))


def log_with_answers(answers: int) -> tuple[AuditLogger, list[str]]:
    handler = Answering(answers)
    handler.audit = AuditLogger(LoggerAuditSink("answering"))
    logger = logging.getLogger("answering")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        logging_thread = threading.Thread(
            target=handler.audit.log, args=(AuditEvent(event_type="question"),), daemon=True
        )
        logging_thread.start()
        logging_thread.join(30)
        assert not logging_thread.is_alive()
    finally:
        logger.removeHandler(handler)
    return handler.audit, [json.loads(line)["event_type"] for line in handler.lines]


def test_an_event_that_is_logged_from_inside_a_sink_follows_the_one_that_is_being_written() -> None:
    audit, types = log_with_answers(2)

    assert types == ["question", "answer 1", "answer 2"]
    assert (audit.stats().emitted, audit.stats().dropped) == (3, 0)


def test_a_sink_that_causes_an_event_by_each_event_ends_with_a_loss_that_is_counted_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    audit, types = log_with_answers(1000)

    assert len(types) == 9
    assert (audit.stats().emitted, audit.stats().dropped) == (10, 1)
    assert "its own writing causes" in capsys.readouterr().err


class Refusing(AuditSink):
    """Refuses what is logged from inside it, and the first event too."""

    def __init__(self) -> None:
        self.audit: AuditLogger | None = None
        self.is_first = True

    def emit(self, event: JsonlEvent) -> None:
        if self.is_first and self.audit is not None:
            self.is_first = False
            self.audit.log(EVENT)
        raise OSError("no room")


def test_what_a_sink_refuses_of_the_events_from_inside_it_is_counted() -> None:
    sink = Refusing()
    sink.audit = AuditLogger(sink)

    sink.audit.log(EVENT)

    assert (sink.audit.stats().emitted, sink.audit.stats().dropped) == (2, 2)
