"""An event that is lost is counted and said, and raised where the loss rule says so."""

from __future__ import annotations

import asyncio
import errno
import resource as process_resource
from pathlib import Path
from typing import Any

import pytest

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.settings import OnLoss
from otel_audit.sinks import AuditSink, JsonlEvent
from tests.chain_check import application_events, read_streams
from tests.recording import recorder


class Refusing(AuditSink):
    """A destination that fails as it is told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = OSError(errno.EIO, "broken")
        self.lines: list[str] = []

    def emit(self, event: JsonlEvent) -> None:
        if self.error is not None:
            raise self.error
        self.lines.append(event.to_jsonl())


def test_a_loss_is_counted_and_said_at_most_once_a_minute_and_the_application_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    sink = Refusing()
    audit = AuditLogger(sink, notices=Notices(clock=lambda: now[0]))

    receipts = [audit.log_authn(outcome="success") for _ in range(5)]
    now[0] = 61.0
    audit.log_authn(outcome="success")
    said = capsys.readouterr().err.splitlines()
    sink.error = None
    audit.log_authn(outcome="success")

    assert all(receipt is not None and not receipt.durable for receipt in receipts)
    assert len(said) == 2
    assert all("Refusing: expected to take an event, got OSError" in line for line in said)
    stats = audit.stats()
    assert (stats.emitted, stats.exported, stats.dropped, stats.pending) == (7, 1, 6, 0)
    assert len(sink.lines) == 1


def test_with_on_loss_closed_a_loss_is_raised_and_counted() -> None:
    sink = Refusing()
    audit = AuditLogger(sink, on_loss=OnLoss.CLOSED)

    with pytest.raises(AuditUnavailable, match="Input/output error") as caught:
        audit.log_authn(outcome="success")

    assert caught.value.__context__ is sink.error
    assert audit.stats().dropped == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), SystemExit(3)], ids=repr)
def test_what_is_no_error_of_the_sink_is_not_swallowed(error: BaseException) -> None:
    sink = Refusing()
    sink.error = error
    audit = AuditLogger(sink)

    with pytest.raises(type(error)):
        audit.log_authn(outcome="success")

    sink.error = None
    assert audit.log_authn(outcome="success") is not None  # the lock was let go


class FileTooLarge:
    """No file may grow beyond what it has, for as long as this is open."""

    def __init__(self, path: Path) -> None:
        self._bytes = path.stat().st_size
        self._before = process_resource.getrlimit(process_resource.RLIMIT_FSIZE)

    def __enter__(self) -> None:
        process_resource.setrlimit(process_resource.RLIMIT_FSIZE, (self._bytes, self._before[1]))

    def __exit__(self, *_: object) -> None:
        process_resource.setrlimit(process_resource.RLIMIT_FSIZE, self._before)


@pytest.mark.parametrize("on_loss", OnLoss)
def test_a_disk_that_takes_no_more_is_a_loss_that_the_journal_tells_of_later(
    tmp_path: Path, on_loss: OnLoss, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorder(tmp_path, on_loss=on_loss) as audit:
        audit.log_authn(outcome="success", detail="before")
        (path,) = tmp_path.glob("*-*.jsonl")
        with FileTooLarge(path):
            for _ in range(3):
                if on_loss is OnLoss.CLOSED:
                    with pytest.raises(AuditUnavailable):
                        audit.log_authn(outcome="success", detail="lost")
                else:
                    receipt = audit.log_authn(outcome="success", detail="lost")
                    assert receipt is not None
                    assert not receipt.durable
        audit.log_authn(outcome="success", detail="after")
        stats = audit.stats()

    assert (stats.emitted, stats.dropped) == (5, 3)
    assert [event["detail"] for event in application_events(tmp_path)] == ["before", "after"]
    assert [gap["lines"] for gap in gaps_in(tmp_path)] == [3]
    assert ("events are lost" in capsys.readouterr().err) == (on_loss is OnLoss.OPEN)


def gaps_in(directory: Path) -> list[dict[str, Any]]:
    events = [event for stream in read_streams(directory).values() for event in stream]
    return [event["gap"] for event in events if event.get("system") == "gap"]


def test_alog_tells_of_a_loss_when_it_is_told_to() -> None:
    audit = AuditLogger(Refusing(), on_loss=OnLoss.CLOSED)

    with pytest.raises(AuditUnavailable):
        asyncio.run(audit.alog(AuditEvent(event_type="x")))
