"""A flush hurries, but obeys the server; it ends in its time and says what is missing, and why."""

from __future__ import annotations

import time

from otel_audit.delivery.worker import BatchLimits
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.processor.delivered import Deliver
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer


def test_a_time_that_the_server_asks_for_is_obeyed_whoever_is_in_a_hurry(
    server: AuditedServer, deliver: Deliver
) -> None:
    server.will_answer(Answer(503, headers=(("Retry-After", "2"),)))
    delivered = deliver(exporter_to(server))
    delivered.write("a")
    poll(lambda: delivered.processor.blocked(), what="the refusal")
    refused_at = time.monotonic()

    while len(server.requests) == 1:
        report = delivered.processor.flush(delivered.seqs, timeout_s=0.05)
        assert time.monotonic() < refused_at + 20

    assert time.monotonic() - refused_at > 1.5  # from when this test saw it
    assert not report.complete or server.accepted
    poll(lambda: server.accepted, until=lambda names: len(names) == 2, what="two records")


def test_a_flush_tries_a_destination_that_failed_at_once(server: AuditedServer, deliver: Deliver) -> None:
    server.will_answer(*[Answer(503)] * 8)
    delivered = deliver(exporter_to(server), limits=BatchLimits(backoff_cap_s=3600))
    delivered.write("a")
    poll(lambda: delivered.processor.blocked(), what="the refusal")

    reports = [delivered.processor.flush(delivered.seqs, timeout_s=0.3) for _ in range(12)]

    assert reports[-1].complete
    assert server.accepted == ["header", "a"]


def test_a_flush_says_what_is_missing_and_why_within_its_time(deliver: Deliver) -> None:
    with OtlpServer() as gone:
        pass
    delivered = deliver(exporter_to(gone))
    delivered.write("a", "b")
    began = time.monotonic()

    report = delivered.processor.flush(delivered.seqs, timeout_s=0.5)

    assert time.monotonic() - began < 5
    assert (report.complete, report.pending) == (False, 3)  # the header is a line too
    assert "connection refused" in report.blocked["otlp"]


def test_a_flush_against_a_silent_server_ends_in_time(server: AuditedServer, deliver: Deliver) -> None:
    server.judge = lambda names: Answer(delay_s=60)
    delivered = deliver(exporter_to(server, timeout_s=30))
    delivered.write("a")
    began = time.monotonic()

    report = delivered.processor.flush(delivered.seqs, timeout_s=0.5)
    all_delivered = delivered.processor.close(timeout_s=0.5)

    assert time.monotonic() - began < 10
    assert not report.complete
    assert not all_delivered
