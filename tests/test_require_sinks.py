"""A begin is as durable as its sink makes it, and refused where it takes none, or cannot be waited for."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent
from otel_audit.logger import AuditLogger
from otel_audit.sinks import AuditSink, JsonlEvent
from tests.recording import a_trail, event_of, recorder
from tests.requiring import both, run


class Closable(AuditSink):
    """A destination that takes events while it is open."""

    def __init__(self) -> None:
        self.is_open = True
        self.taken: list[str] = []

    def emit(self, event: JsonlEvent) -> None:
        if not self.is_open:
            raise OSError("closed")
        self.taken.append(event.to_jsonl())


@both
def test_in_memory_an_event_is_as_durable_as_that_setting_promises(tmp_path: Path, is_async: bool) -> None:
    trail = a_trail(tmp_path, durability="memory", export="jsonl", jsonl_path=tmp_path / "out.jsonl")
    with AuditLogger(trail) as audit:
        running = audit.require("x")
        run(running, is_async=is_async)
        assert audit.flush(timeout_s=30).complete

    assert running.begun is not None
    assert not running.begun.durable
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines if line["event_type"] == "x"] == ["unknown", "success"]


@both
def test_a_sink_that_takes_no_begin_refuses_the_block_and_one_that_takes_no_end_does_not(is_async: bool) -> None:
    sink = Closable()
    audit = AuditLogger(sink)

    run(audit.require("x"), lambda: setattr(sink, "is_open", False), is_async=is_async)
    with pytest.raises(AuditUnavailable, match="Closable: expected to take an event"):
        run(audit.require("x"), lambda: pytest.fail("it ran"), is_async=is_async)

    assert len(sink.taken) == 1
    assert (audit.stats().emitted, audit.stats().dropped) == (3, 2)


def test_a_begin_from_inside_an_append_of_its_thread_is_refused_since_it_cannot_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []
    write = os.write

    def write_and_be_interrupted(descriptor: int, data: bytes) -> int:
        if b'"interrupted"' in bytes(data):
            signal.raise_signal(signal.SIGUSR1)
        return write(descriptor, data)

    with recorder(tmp_path) as audit:

        def handler(*_: object) -> None:
            try:
                with audit.require("x"):
                    pytest.fail("it ran")
            except AuditUnavailable as error:
                raised.append(error)

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            monkeypatch.setattr(os, "write", write_and_be_interrupted)
            receipt = audit.log(AuditEvent(event_type="interrupted"))
        finally:
            signal.signal(signal.SIGUSR1, before)

        assert event_of(tmp_path, receipt)["event_type"] == "interrupted"
    (error,) = raised
    assert "expected to record that it begins" in str(error)
