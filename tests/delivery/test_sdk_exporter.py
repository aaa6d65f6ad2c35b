"""Any exporter of the SDK behind our journal and batch processor."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, LogRecordExporter, LogRecordExportResult

from otel_audit import AuditLogger, ConfigError, configure
from otel_audit.delivery.sdk_exporter import sdk_exporters
from tests.delivery.audited_server import names_in
from tests.servers import Collector, poll
from tests.servers.otlp_server import Answer, OtlpServer


class Kept(LogRecordExporter):
    """An exporter as a vendor may write one; fails as often as it is told to."""

    def __init__(self, *, failures: Sequence[LogRecordExportResult | Exception] = ()) -> None:
        self.records: list[ReadableLogRecord] = []
        self.shut_down = 0
        self._failures = list(failures)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        if self._failures:
            failure = self._failures.pop()
            if isinstance(failure, Exception):
                raise failure
            return failure
        self.records += batch
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        self.shut_down += 1

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True

    def bodies(self) -> list[dict[str, Any]]:
        bodies = [json.loads(str(record.log_record.body)) for record in self.records]
        return [body for body in bodies if "system" not in body]


@contextmanager
def audit_to(directory: Path, *exporters: Any, **overrides: Any) -> Iterator[AuditLogger]:
    audit = configure(exporters=exporters, directory=directory, batch_delay_s=0.05, **overrides)
    try:
        yield audit
    finally:
        audit.close()


def test_every_event_reaches_every_exporter_once_and_in_order(tmp_path: Path) -> None:
    first, second = Kept(), Kept()

    with audit_to(tmp_path, first, second) as audit:
        for number in range(200):
            audit.log_authn(outcome="success", detail=str(number))
        assert audit.flush(timeout_s=20).complete

    for exporter in (first, second):
        assert [body["detail"] for body in exporter.bodies()] == [str(number) for number in range(200)]
        assert exporter.shut_down == 1


class SlowToEnd(Kept):
    """Its shutdown takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = threading.Event()

    def shutdown(self) -> None:
        self.may_end.wait(30)
        super().shutdown()


def test_an_exporter_whose_end_takes_long_does_not_hold_up_a_close(tmp_path: Path) -> None:
    exporter = SlowToEnd()
    begun = time.monotonic()

    with audit_to(tmp_path, exporter, close_timeout_s=1) as audit:
        audit.log_authn(outcome="success")

    assert time.monotonic() - begun < 15
    assert audit.stats().exported == 1
    exporter.may_end.set()
    poll(lambda: exporter.shut_down, what="its end")


def test_a_failure_and_an_exception_lose_nothing(tmp_path: Path) -> None:
    exporter = Kept(failures=[LogRecordExportResult.FAILURE, RuntimeError("not what was to be sent")])

    with audit_to(tmp_path, exporter) as audit:
        audit.log_authn(outcome="success")
        poll(lambda: audit.stats().exported, what="the event to be accepted")
        stats = audit.stats()

    assert len(exporter.bodies()) == 1
    assert (stats.emitted, stats.exported, stats.pending, stats.quarantined) == (1, 1, 0, 0)


def test_what_a_failing_exporter_says_of_it_is_its_name_and_not_its_text(tmp_path: Path) -> None:
    exporter = Kept(failures=[RuntimeError("token=hush")] * 50)

    with audit_to(tmp_path, exporter) as audit:
        audit.log_authn(outcome="success")
        poll(lambda: audit.stats().blocked, what="a blocked exporter")
        assert audit.stats().blocked == {"Kept (unconfirmed)": "Kept (unconfirmed): RuntimeError"}


def test_its_progress_survives_a_restart(tmp_path: Path) -> None:
    with audit_to(tmp_path, Kept()) as audit:
        audit.log_authn(outcome="success")
        assert audit.flush(timeout_s=20).complete
    again = Kept()

    with audit_to(tmp_path, again) as audit:
        audit.log_authn(outcome="failure")
        assert audit.flush(timeout_s=20).complete

    assert [body["outcome"] for body in again.bodies()] == ["failure"]


def test_two_of_one_class_have_names_of_their_own() -> None:
    made = sdk_exporters([Kept(), InMemoryLogRecordExporter(), Kept], delay_s=1)  # type: ignore[no-untyped-call]

    assert [each.name for each in made] == [
        "Kept (unconfirmed)",
        "InMemoryLogRecordExporter (unconfirmed)",
        "Kept 2 (unconfirmed)",
    ]


def test_exporters_and_the_setting_export_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected either exporters or the setting export, got both"):
        configure(exporters=[Kept()], directory=tmp_path, export="jsonl")
    assert list(tmp_path.iterdir()) == []


def test_the_official_exporter_gets_through_an_outage(tmp_path: Path) -> None:
    with OtlpServer() as server:
        server.will_answer(Answer(400), Answer(400))
        with audit_to(tmp_path, OTLPLogExporter(endpoint=server.endpoint)) as audit:
            audit.log_authn(outcome="success")
            poll(lambda: audit.stats().exported, what="the event to be accepted")

    assert len(list(filter(None, map(names_in, server.requests)))) == 3


def in_a_child(work: Any) -> int:
    """The exit code of a forked child that does the work; 9 when it raised."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = work()
        finally:
            os._exit(code)
    try:
        poll(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT), what="the child's end")
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


@pytest.mark.processes
def test_a_forked_child_makes_an_exporter_of_its_own_where_it_can(tmp_path: Path, collector: Collector) -> None:
    def exporter() -> OTLPLogExporter:
        return OTLPLogExporter(endpoint=collector.logs_url)

    with audit_to(tmp_path, exporter) as audit:
        audit.log_authn(outcome="success", detail="parent")
        assert audit.flush(timeout_s=20).complete

        def child() -> int:
            audit.log_authn(outcome="success", detail="child")
            return 0 if audit.flush(timeout_s=20).complete else 1

        assert in_a_child(child) == 0

    collector.wait_for_archive(4)  # two events and two headers


@pytest.mark.processes
def test_a_forked_child_never_uses_the_connections_of_its_parent(tmp_path: Path) -> None:
    exporter = Kept()
    with audit_to(tmp_path, exporter) as audit:
        audit.log_authn(outcome="success", detail="parent")
        assert audit.flush(timeout_s=20).complete

        def child() -> int:
            audit.log_authn(outcome="success", detail="child")
            told = audit.flush(timeout_s=3).blocked.get("Kept (unconfirmed)", "")
            return 0 if "made before this process was forked" in told and len(exporter.bodies()) == 1 else 1

        assert in_a_child(child) == 0
        # The child is gone, and this process takes over what it left.
        poll(exporter.bodies, until=lambda bodies: len(bodies) == 2, what="the child's event")
