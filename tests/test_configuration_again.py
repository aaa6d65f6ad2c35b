"""`configure()` again in one process: the same configuration shares journal and delivery, another one has its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter, InMemoryLogRecordExporter
from opentelemetry.sdk.resources import Resource

import otel_audit
from otel_audit.integrations.otel_logs import AuditLogRecordProcessor
from otel_audit.logger import AuditLogger
from tests.servers.otlp_server import OtlpServer
from tests.test_start import delivered, run

CELLS = """
    import os, sys, threading, time
    import otel_audit

    def cell(number):
        audit = otel_audit.configure()
        audit.log_authn(outcome="success", detail=str(number))
        assert audit.flush(timeout_s=20).complete

    def held():
        return [threading.active_count(), len(os.listdir("/proc/self/fd"))]

    cell(0)
    directory = os.environ["OTEL_AUDIT_DIR"]
    while not any(name.startswith("ledger.") and name.endswith(".cursor") for name in os.listdir(directory)):
        time.sleep(0.01)  # until it delivers the ledger too
    first = held()
    for number in range(1, 30):
        cell(number)
    print([first, held()])
    sys.stdout.flush()
    if os.fork() == 0:
        cell(30)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def stream_of(audit: AuditLogger) -> str | None:
    receipt = audit.log_authn(outcome="success")
    assert receipt is not None
    return receipt.stream_id


@pytest.mark.processes
def test_thirty_times_cost_the_threads_and_descriptors_of_once(otlp_server: OtlpServer, tmp_path: Path) -> None:
    said = run(
        CELLS,
        tmp_path,
        {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp_server.base_url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    )

    (threads, descriptors), (threads_at_last, descriptors_at_last) = json.loads(said)
    assert threads_at_last <= threads
    assert descriptors_at_last <= descriptors + 2  # some are open for a moment, such as the directory
    assert sorted(delivered(otlp_server), key=int) == [str(number) for number in range(31)]
    assert len(list(tmp_path.glob("*-*.jsonl"))) == 2  # the forked child has its own


def test_the_former_logger_goes_on_when_the_later_one_is_closed(otlp_server: OtlpServer, tmp_path: Path) -> None:
    former = otel_audit.configure(directory=tmp_path)
    later = otel_audit.configure(directory=tmp_path)
    stream = stream_of(later)

    later.close()
    assert len(delivered(otlp_server)) == 1  # by the close, which lets go of nothing that the former one needs
    assert stream_of(former) == stream
    former.close()

    assert len(delivered(otlp_server)) == 2
    assert stream_of(former) != stream


def test_a_logger_that_nobody_has_any_more_keeps_none_open(otlp_server: OtlpServer, tmp_path: Path) -> None:
    stream_of(otel_audit.configure(directory=tmp_path))
    audit = otel_audit.configure(directory=tmp_path)
    stream = stream_of(audit)

    audit.close()

    assert stream_of(audit) != stream


def test_after_the_close_the_same_configuration_begins_anew(otlp_server: OtlpServer, tmp_path: Path) -> None:
    first = otel_audit.configure(directory=tmp_path)
    stream_of(first)
    first.close()

    with otel_audit.configure(directory=tmp_path, batch_delay_s=0) as second:
        stream_of(second)

    assert len(delivered(otlp_server)) == 2


def test_what_differs_has_a_journal_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: []")
    resource = Resource({"service.name": "till"})
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # the SDK left it without types
    base: dict[str, Any] = {"directory": tmp_path / "audit", "policy": policy}
    made = [
        otel_audit.configure(**base),
        otel_audit.configure(**base, batch_count=7),
        otel_audit.configure(**base, resource=resource),
        otel_audit.configure(**base, exporters=[ConsoleLogRecordExporter]),
        otel_audit.configure(**base, exporters=[exporter]),
    ]
    again = [
        otel_audit.configure(**base),
        otel_audit.configure(**base, batch_count=7),
        otel_audit.configure(**base, resource=Resource({"service.name": "till"})),
        otel_audit.configure(**base, exporters=[ConsoleLogRecordExporter]),
        otel_audit.configure(**base, exporters=[exporter]),
    ]
    policy.write_text("rules: [{type: x, level: metadata}]")
    made.append(otel_audit.configure(**base))
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    made.append(otel_audit.configure(**base))
    plain = AuditLogRecordProcessor(**base)
    streams = [stream_of(audit) for audit in made]

    assert len({*streams}) == len(made)
    assert [stream_of(audit) for audit in again] == streams[:5]
    assert plain.trail.journal.stream is None  # records of the OTel API never join the events
    for audit in [*made, *again]:
        audit.close()
    plain.shutdown()


def test_a_directory_that_cannot_be_written_any_more_is_said_again(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    audit = otel_audit.configure(directory=directory, export="none")
    os.rmdir(directory)
    directory.write_text("")

    with pytest.raises(otel_audit.JournalUnwritable):
        otel_audit.configure(directory=directory, export="none")

    audit.close()
