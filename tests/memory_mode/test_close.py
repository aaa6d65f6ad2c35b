"""The end of a trail in memory: what waits is delivered in time, or said to be lost."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from otel_audit.trail import Stats
from tests.delivery.audited_server import AuditedServer
from tests.memory_mode.trail import arrived, ids, log, recording, settings_for
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer

ROOT = Path(__file__).parents[2]


def test_close_delivers_what_waits(server: AuditedServer) -> None:
    with recording(settings_for(server, batch_delay_s=60)) as audit:
        log(audit, *range(20))

    assert ids(next(iter(arrived(server).values()))) == [str(number) for number in range(20)]
    assert audit.stats() == Stats(20, 20, 0, 0, 0)


def test_close_with_a_dead_server_ends_in_time_and_says_how_many_events_are_lost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with OtlpServer() as gone:
        pass
    with recording(settings_for(gone)) as audit:
        log(audit, *range(30))
        poll(lambda: audit.stats().blocked, what="the first try")
        started = time.monotonic()
        audit.close(timeout_s=1)

        assert time.monotonic() - started < 5
        notice = capsys.readouterr().err
        assert "events lost: 30, not known to be delivered" in notice
        assert "connection refused" in notice.lower()
        stats = audit.stats()
        assert (stats.emitted, stats.exported, stats.pending, stats.dropped) == (30, 0, 0, 30)
        assert audit.flush(timeout_s=1).pending == 0


def test_a_server_that_never_answers_holds_up_close_no_longer_than_its_time(server: AuditedServer) -> None:
    server.judge = lambda names: Answer(delay_s=30)
    with recording(settings_for(server)) as audit:
        log(audit, *range(30))
        poll(lambda: server.requests, what="the request")
        started = time.monotonic()
        audit.close(timeout_s=0.5)

        assert time.monotonic() - started < 5
        assert audit.stats().dropped == 30


def test_an_event_after_the_end_is_refused_and_counted(server: AuditedServer) -> None:
    with recording(settings_for(server)) as audit:
        log(audit, "a")
        audit.close()

        (receipt,) = log(audit, "late")

        assert receipt.seq is None
        assert audit.stats() == Stats(2, 1, 0, 0, 1)


ENDS = """
    import sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    audit = configure(durability="memory", endpoint=sys.argv[1], protocol="http/protobuf", batch_delay_s=60)
    for name in range(100):
        audit.log(AuditEvent(event_type="test", event_id=str(name)))
"""


def test_a_process_that_ends_normally_delivers_first(server: AuditedServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ENDS), server.endpoint],
        cwd=ROOT,
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert ids(next(iter(arrived(server).values()))) == [str(number) for number in range(100)]
