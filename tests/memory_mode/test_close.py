"""The end of a trail in memory mode: what waits is delivered in time, or by the next start, also after SIGKILL."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from otel_audit.trail import Stats
from tests.delivery.audited_server import AuditedServer
from tests.journal.writing import finish, said, start_script
from tests.memory_mode.trail import arrived, ids, log, recording, settings_for
from tests.servers import poll
from tests.servers.otlp_server import Answer, OtlpServer

ROOT = Path(__file__).parents[2]


def test_close_delivers_what_waits(server: AuditedServer, memory_disk: Path) -> None:
    with recording(settings_for(server, memory_disk, batch_delay_s=60)) as audit:
        log(audit, *range(20))

    assert ids(next(iter(arrived(server).values()))) == [str(number) for number in range(20)]
    assert audit.stats() == Stats(20, 0, 0, 0)


def test_what_a_dead_server_did_not_take_until_the_end_is_delivered_by_the_next_start(
    server: AuditedServer, memory_disk: Path
) -> None:
    with OtlpServer() as gone:
        pass
    with recording(settings_for(gone, memory_disk)) as audit:
        log(audit, *range(30))
        poll(lambda: audit.stats().blocked, what="the first try")
        started = time.monotonic()
        audit.close(timeout_s=1)

        assert time.monotonic() - started < 5
        stats = audit.stats()
        assert (stats.emitted, stats.exported, stats.pending, stats.dropped) == (30, 0, 30, 0)

    with recording(settings_for(server, memory_disk)) as audit:
        audit.start()
        poll(lambda: arrived(server), what="the backlog")
        poll(lambda: len(server.accepted), until=lambda count: count == 31, what="all of it")
    assert ids(next(iter(arrived(server).values()))) == [str(number) for number in range(30)]


def test_a_server_that_never_answers_holds_up_close_no_longer_than_its_time(
    server: AuditedServer, memory_disk: Path
) -> None:
    server.judge = lambda names: Answer(delay_s=30)
    with recording(settings_for(server, memory_disk)) as audit:
        log(audit, *range(30))
        poll(lambda: server.requests, what="the request")
        started = time.monotonic()
        audit.close(timeout_s=0.5)

        assert time.monotonic() - started < 5
        assert audit.stats().pending == 30


def test_an_event_after_the_end_waits_for_the_next_start(server: AuditedServer, memory_disk: Path) -> None:
    with recording(settings_for(server, memory_disk)) as audit:
        log(audit, "a")
        audit.close()

        (receipt,) = log(audit, "late")

        assert receipt.seq is not None
        assert audit.stats() == Stats(1, 1, 0, 0)


ENDS = """
    import sys
    from otel_audit.configuration import configure
    from otel_audit.event import AuditEvent

    audit = configure(
        durability="memory", directory=sys.argv[2], endpoint=sys.argv[1], protocol="http/protobuf", batch_delay_s=60
    )
    for name in range(100):
        audit.log(AuditEvent(event_type="test", event_id=str(name)))
"""


@pytest.mark.processes
def test_a_process_that_ends_normally_delivers_first(server: AuditedServer, memory_disk: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ENDS), server.endpoint, str(memory_disk)],
        cwd=ROOT,
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert ids(next(iter(arrived(server).values()))) == [str(number) for number in range(100)]


@pytest.mark.processes
def test_what_a_killed_process_had_acknowledged_is_delivered_by_the_next_start(
    server: AuditedServer, memory_disk: Path
) -> None:
    waits = ENDS + '    print("logged", flush=True)\n    sys.stdin.read()\n'
    process = start_script(waits, server.endpoint, memory_disk)
    assert said(process) == "logged"
    process.kill()
    finish(process)

    with recording(settings_for(server, memory_disk)) as audit:
        audit.start()
        poll(lambda: len(server.accepted), until=lambda count: count == 101, what="all of it")
    assert ids(next(iter(arrived(server).values()))) == [str(number) for number in range(100)]
