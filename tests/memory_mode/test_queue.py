"""`OTEL_AUDIT_DURABILITY=memory`: from the logger to a real server, and what becomes of what it does not take."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import time
import uuid
from pathlib import Path

import pytest

from otel_audit.errors import ConfigError, JournalFull, JournalUnwritable
from otel_audit.journal.census import census
from otel_audit.journal.files import StreamFiles, make_private
from otel_audit.journal.journal import Receipt
from otel_audit.settings import OnLoss
from otel_audit.settings.service import memory_directory
from otel_audit.trail import Stats
from tests.delivery.audited_server import AuditedServer
from tests.memory_mode.trail import (
    DOWN,
    MIB,
    REFUSED,
    adds_up,
    arrived,
    ids,
    kept,
    log,
    recording,
    settings_for,
    told,
    told_in,
)
from tests.servers import poll

LONG = "x" * 2000


def test_what_is_logged_arrives_in_one_chain_and_no_receipt_says_that_it_is_durable(
    server: AuditedServer, memory_disk: Path
) -> None:
    with recording(settings_for(server, memory_disk)) as audit:
        receipts = log(audit, *range(300))

        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(300, 0, 0, 0)

    ((stream, events),) = arrived(server).items()
    assert ids(events) == [str(number) for number in range(300)]
    assert events[0]["segment"]["durability"] == "memory"
    assert {(receipt.stream_id, receipt.durable) for receipt in receipts} == {(stream, False)}
    assert [receipt.seq for receipt in receipts] == list(range(2, 302))


def test_events_wait_for_a_server_that_is_down_and_none_is_lost(server: AuditedServer, memory_disk: Path) -> None:
    is_up = threading.Event()
    server.judge = lambda names: None if is_up.is_set() else DOWN
    with recording(settings_for(server, memory_disk)) as audit:
        log(audit, *range(1000))
        poll(lambda: audit.stats().blocked, what="the first answer")
        report = audit.flush(timeout_s=0.1)
        assert not report.complete
        assert report.pending == 1001  # with the header
        assert "503" in report.blocked["otlp"]
        assert audit.stats().pending == 1000

        is_up.set()
        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(1000, 0, 0, 0)

    (events,) = arrived(server).values()
    assert ids(events) == [str(number) for number in range(1000)]


def test_a_full_queue_refuses_new_events_counts_them_and_says_so_in_the_trail(
    server: AuditedServer, memory_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    is_up = threading.Event()
    server.judge = lambda names: None if is_up.is_set() else DOWN
    with recording(settings_for(server, memory_disk, queue_bytes=MIB)) as audit:
        receipts = log(audit, *range(800), detail=LONG)

        waiting = len(kept(receipts))
        assert kept(receipts) == [str(number) for number in range(waiting)]
        assert 300 < waiting < 500
        assert (audit.stats().pending, audit.stats().dropped) == (waiting, 800 - waiting)
        assert capsys.readouterr().err.count("raise OTEL_AUDIT_QUEUE_BYTES") == 1  # a minute

        is_up.set()
        assert audit.flush(timeout_s=20).complete
        poll(lambda: kept(log(audit, "after")), what="room again")
        assert audit.flush(timeout_s=20).complete
        stats = audit.stats()
        assert (stats.exported, stats.pending, stats.quarantined) == (waiting + 1, 0, 0)

    (events,) = arrived(server).values()
    assert ids(events) == [*kept(receipts), "after"]
    assert told(events) == {"directory limit": stats.dropped}


@pytest.mark.slow
def test_what_is_delivered_makes_room_before_an_event_is_refused(server: AuditedServer, memory_disk: Path) -> None:
    with recording(settings_for(server, memory_disk, queue_bytes=MIB)) as audit:
        for batch in range(20):
            receipts = log(audit, *(f"{batch}-{number}" for number in range(100)), detail=LONG)
            assert len(kept(receipts)) == 100
            assert audit.flush(timeout_s=20).complete

        assert audit.stats() == Stats(2000, 0, 0, 0)


def test_with_closed_a_full_queue_is_told_to_the_caller(server: AuditedServer, memory_disk: Path) -> None:
    server.judge = lambda names: DOWN
    with recording(settings_for(server, memory_disk, queue_bytes=MIB, on_loss=OnLoss.CLOSED)) as audit:
        with pytest.raises(JournalFull, match="OTEL_AUDIT_QUEUE_BYTES"):
            log(audit, *range(800), detail=LONG)

        assert audit.stats().dropped == 1


@pytest.mark.slow
def test_ten_threads_and_a_server_that_comes_and_goes_lose_only_what_was_refused(
    server: AuditedServer, memory_disk: Path
) -> None:
    flips = iter(range(1 << 20))
    server.judge = lambda names: DOWN if next(flips) % 3 == 1 else None
    receipts: list[Receipt] = []
    wrong: list[Stats] = []
    stop = threading.Event()
    with recording(settings_for(server, memory_disk, queue_bytes=MIB, batch_count=40)) as audit:

        def write(name: int) -> None:
            for number in range(200):
                receipts.extend(log(audit, f"{name}-{number}", detail=LONG))
                time.sleep(0.0002)  # so that the server has some of them while others are written

        def watch() -> None:
            while not stop.is_set():
                wrong.extend(stats for stats in [audit.stats()] if not adds_up(stats))

        watcher = threading.Thread(target=watch)
        watcher.start()
        threads = [threading.Thread(target=write, args=(name,)) for name in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        poll(lambda: audit.flush(timeout_s=5).complete, what="all to be delivered")
        poll(lambda: told_in(arrived(server)), until=lambda count: count == audit.stats().dropped, what="every gap")
        stop.set()
        watcher.join()

        stats = audit.stats()
    assert wrong == []
    assert stats.emitted == 2000
    assert stats.exported == len(kept(receipts))
    assert stats.dropped == 2000 - len(kept(receipts))
    (events,) = arrived(server).values()
    assert sorted(ids(events)) == sorted(kept(receipts))


def test_a_record_that_is_refused_is_in_quarantine_as_in_every_journal(
    server: AuditedServer, memory_disk: Path
) -> None:
    server.judge = lambda names: REFUSED if "poison" in names else None
    with recording(settings_for(server, memory_disk)) as audit:
        log(audit, "a", "poison", "b")
        assert audit.flush(timeout_s=20).complete
        assert audit.stats() == Stats(2, 0, 1, 0)


def test_status_finds_nothing_missing_where_delivered_segments_were_removed(
    server: AuditedServer, memory_disk: Path
) -> None:
    with recording(settings_for(server, memory_disk, queue_bytes=MIB)) as audit:
        for _ in range(10):
            log(audit, *range(100), detail=LONG)
            assert audit.flush(timeout_s=20).complete

        counted = census(memory_disk)
        assert not counted.is_stuck
        assert counted.totals.exported == 1000
        (stream,) = counted.streams
        assert not StreamFiles(memory_disk, stream.stream_id).segment(1).exists()
        assert list(memory_disk.glob("ledger.*")) == []


def test_without_a_directory_the_journal_is_in_a_private_one_in_memory(server: AuditedServer) -> None:
    service = f"test-{uuid.uuid4()}"
    settings = settings_for(server, None, service_name=service)
    home = Path(f"/dev/shm/otel-audit-{os.geteuid()}")
    assert settings.directory == home / service
    try:
        with recording(settings) as audit:
            log(audit, "a")
            assert [stat.S_IMODE(path.stat().st_mode) for path in (home, home / service)] == [0o700, 0o700]
    finally:
        shutil.rmtree(home / service)


def test_a_directory_of_somebody_else_a_link_or_an_open_one_is_passed_over(tmp_path: Path) -> None:
    uid = os.geteuid()
    mounts = [tmp_path / name for name in ("link", "open", "missing", "good")]
    for mount in mounts:
        if mount.name != "missing":
            mount.mkdir()
    (tmp_path / "real").mkdir(mode=0o700)
    (mounts[0] / f"otel-audit-{uid}").symlink_to(tmp_path / "real")
    (mounts[1] / f"otel-audit-{uid}").mkdir()
    (mounts[1] / f"otel-audit-{uid}").chmod(0o770)

    assert memory_directory("shop", uid, mounts) == mounts[3] / f"otel-audit-{uid}" / "shop"
    with pytest.raises(ConfigError, match=r"docker run --tmpfs .* set OTEL_AUDIT_DIR to it") as refused:
        memory_directory("shop", uid, mounts[:3])
    assert [str(mount) in str(refused.value) for mount in mounts] == [True, True, True, False]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_directory_that_another_user_has_made_first_is_refused(tmp_path: Path) -> None:
    home = tmp_path / f"otel-audit-{os.geteuid()}"
    home.mkdir(mode=0o700)
    os.chown(home, 12345, 12345)

    with pytest.raises(ConfigError, match="is not a directory of user 0 alone"):
        memory_directory("shop", 0, [tmp_path])
    with pytest.raises(JournalUnwritable, match="expected a directory that only this process's user"):
        make_private(home / "shop")
    assert list(home.iterdir()) == []
