"""Disks that refuse: each loss rule does what it says, the numbers add up, and the service recovers by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from otel_audit.errors import JournalFull
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import streams_in
from otel_audit.settings import OnLoss
from tests.journal.disks import Unmountable, broken_ext4, read_only, tmpfs
from tests.journal.keeping import Keeping
from tests.journal.service import a_service
from tests.journal.writing import leave_no_room
from tests.servers.polling import poll

RULES = list(OnLoss)


Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path, small_disk: Path) -> Iterator[Mount]:
    """Mounts another file system in memory; skipped with `small_disk` where that is not allowed."""
    with ExitStack() as mounted:
        yield lambda options: mounted.enter_context(tmpfs(tmp_path / "another", options))


@pytest.mark.processes
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_full_disk_costs_new_events_only_and_the_service_recovers(
    small_disk: Path, rule: OnLoss, durability: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 128 * 1024)
    with a_service(small_disk, rule, durability=durability) as service:
        service.fill()
        for number in range(20):
            service.log(f"more-{number}", padding=300)

        ballast.unlink()
        service.recover()
        service.assert_accounted_for()

    assert ("events are lost" in capfd.readouterr().err) == (rule is OnLoss.OPEN)


@pytest.mark.processes
@pytest.mark.parametrize("rule", RULES)
def test_a_full_ext4_costs_new_events_only_and_the_service_recovers(ext4_disk: Path, rule: OnLoss) -> None:
    """Where blocks are given out late, an event that was taken must still find one."""
    ballast = ext4_disk / "ballast"
    ballast.write_bytes(b"\0" * 1024 * 1024)
    with a_service(ext4_disk, rule, segment_bytes=64 * 1024) as service:
        service.fill()
        assert len(service.acknowledged) > 500

        ballast.unlink()
        service.recover()
        service.assert_accounted_for()


@pytest.mark.processes
@pytest.mark.parametrize("rule", RULES)
def test_without_an_inode_for_the_next_segment_events_are_refused_until_there_is_one(
    mount: Mount, rule: OnLoss
) -> None:
    disk = mount("size=4m,nr_inodes=16")
    (disk / "in the way").touch()
    with a_service(disk, rule, segment_bytes=4096) as service:
        service.fill()
        assert len(list(disk.glob("*.jsonl"))) > 5, "it ended for another reason"

        (disk / "in the way").unlink()
        service.recover()
        service.assert_accounted_for()


@pytest.mark.processes
@pytest.mark.parametrize("rule", RULES)
def test_what_a_read_only_disk_refuses_is_told_when_it_can_be_written_again(
    mount: Mount, rule: OnLoss, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = mount("size=1m")
    with a_service(disk, rule) as service:
        with read_only(disk):
            for number in range(5):
                assert not service.log(f"lost-{number}")

        service.recover()
        service.assert_accounted_for()

    assert ("Read-only file system" in capfd.readouterr().err) == (rule is OnLoss.OPEN)


@pytest.mark.processes
@pytest.mark.parametrize("rule", RULES)
def test_a_stream_goes_on_after_its_file_system_broke_and_was_repaired(ext4_disk: Path, rule: OnLoss) -> None:
    with a_service(ext4_disk, rule) as service:
        for number in range(20):
            assert service.log(f"before-{number}")
        try:
            with broken_ext4(ext4_disk):
                poll(lambda: not service.log("lost"), what="an event to be refused")
        except Unmountable as error:
            pytest.skip(f"an ext4 cannot be broken on purpose: {error}")

        service.recover()
        service.assert_accounted_for()
    assert len(streams_in(ext4_disk)) == 1


@pytest.mark.parametrize("rule", RULES)
def test_a_directory_that_was_removed_and_cannot_be_made_again_costs_new_events_only(
    tmp_path: Path, rule: OnLoss
) -> None:
    directory = tmp_path / "audit"
    with a_service(directory, rule) as service:
        assert service.log("before")
        shutil.rmtree(directory)
        directory.write_bytes(b"in its place")
        numbers = iter(range(10_000))
        # What is logged before the next look at the file is in the one that is open, and is put back from there.
        poll(lambda: not service.log(f"meanwhile-{next(numbers)}"), what="an event to be refused")

        directory.unlink()
        service.recover()
        service.assert_accounted_for()


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_delivery_goes_on_and_is_kept_on_a_full_disk(kind: str, request: pytest.FixtureRequest) -> None:
    disk: Path = request.getfixturevalue("small_disk" if kind == "tmpfs" else "ext4_disk")
    exporter = Keeping()
    with a_service(disk, OnLoss.OPEN, exporters=[exporter]) as service:
        assert service.log("first")
        assert service.audit.flush(10).complete
        leave_no_room(disk)
        service.fill()

        assert service.audit.flush(10).complete

        (files,) = streams_in(disk)
        progress, _ = read_cursor(files.cursor)
        assert progress[exporter.name].counts.exported == len(service.acknowledged) == len(exporter.ids)
        stats = service.audit.stats()
        assert (stats.exported, stats.pending, stats.dropped) == (len(service.acknowledged), 0, service.lost)
        (disk / "ballast").unlink()
        service.recover()
        service.assert_accounted_for()
    assert len(exporter.ids) == len(set(exporter.ids)) == len(service.acknowledged)


@pytest.mark.processes
def test_a_full_disk_is_told_as_such(small_disk: Path) -> None:
    with a_service(small_disk, OnLoss.CLOSED) as service:
        leave_no_room(small_disk)
        with pytest.raises(JournalFull, match="free space"):
            service.audit.log_authn(outcome="failure")
