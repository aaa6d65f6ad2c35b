"""What retention removes where there is a signed ledger: only signed lines, told first, and `verify` has no finding."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from otel_audit.journal.census import census
from otel_audit.journal.counts import Counts
from otel_audit.journal.files import StreamFiles, segments_in, streams_in
from otel_audit.journal.ledger.adoption import Adopter
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.former import entries
from otel_audit.journal.locks import FileLock
from otel_audit.journal.retention import Retention
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from otel_audit.verification.findings import Report, Verdict
from otel_audit.verification.verify import verify_directory
from tests.journal.ledger.telling import a_ledger, checked, last_checked
from tests.journal.ledger.test_registrar import until
from tests.journal.retaining import Clocks, a_retention, a_stream
from tests.journal.writing import append, finish, leave_no_room, start_script

A_REMOVER = """
    import os, signal, sys
    from pathlib import Path
    from tests.journal.test_retention_signed import a_signed_retention

    directory, ending, calls = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    unlink = os.unlink

    def killed(path, *arguments, **options):
        global calls
        if str(path).endswith(ending):
            calls -= 1
            if calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        unlink(path, *arguments, **options)

    os.unlink = killed
    a_signed_retention(directory).look()
    print("not killed", flush=True)
"""


def a_signed_retention(directory: Path, **options: Any) -> Retention:
    """It keeps no byte that may go."""
    return a_retention(
        directory, Clocks(), **{"days": 0, "max_bytes": 1, "ledger": a_ledger(directory), "begins": False, **options}
    )


def a_trail(directory: Path, **overrides: Any) -> Trail:
    small = {
        "directory": str(directory),
        "segment_bytes": 4096,
        "retention_bytes": 10**9,
        "export": "none",
    }
    return Trail(Settings.load({"OTEL_SERVICE_NAME": "shop"}, {**small, **overrides}))


def write(trail: Trail, count: int) -> None:
    for number in range(count):
        append(trail.journal, number, detail="x" * 300)


def a_life(directory: Path, count: int = 25) -> StreamFiles:
    """A stream of several segments that a service has written, and its end is in the ledger."""
    before = set(segments_in(directory))
    trail = a_trail(directory)
    write(trail, count)
    trail.close()
    (stream_id,) = set(segments_in(directory)) - before
    return StreamFiles(directory, stream_id)


def retained(directory: Path) -> list[dict[str, Any]]:
    return [entry for ledger in checked(directory) for entry in ledger.told("retain")]


def borders(directory: Path) -> list[dict[str, Any]]:
    """The heads at the end of segments."""
    return [entry for ledger in checked(directory) for entry in ledger.told("head") if "edge" in entry]


def assert_consistent(directory: Path) -> Report:
    report = verify_directory(directory)
    assert report.verdict is Verdict.CONSISTENT, [str(each) for each in report.all_findings]
    return report


def assert_the_rest_goes(directory: Path, totals: Counts) -> None:
    """After another look of retention no stream is left, and the totals are as they were."""
    a_signed_retention(directory).look()
    assert not list(directory.glob("*-*"))
    assert census(directory).totals == totals
    assert_consistent(directory)


def test_streams_that_ended_go_and_nothing_is_missed(tmp_path: Path) -> None:
    lives = [a_life(tmp_path) for _ in range(3)]
    numbers = {files.stream_id: files.segments() for files in lives}
    totals = census(tmp_path).totals
    assert min(map(len, numbers.values())) >= 3

    a_signed_retention(tmp_path).look()

    assert segments_in(tmp_path) == {}
    assert not (tmp_path / "ledger.jsonl").exists()
    assert not list(tmp_path.glob("*-*.lock"))
    told = retained(tmp_path)
    assert {
        stream_id: [each["segment"] for each in told if each["stream"] == stream_id] for stream_id in numbers
    } == numbers
    assert [each["whole"] for each in told].count(True) == 3
    assert all(each["edge"] for each in told)
    assert told[-1]["totals"]["segments"] == sum(map(len, numbers.values()))
    assert census(tmp_path).totals == census(tmp_path).removed == totals
    assert {each.state for each in assert_consistent(tmp_path).streams} == {"removed"}


def test_several_streams_go_in_one_turn(tmp_path: Path) -> None:
    lives = [a_life(tmp_path, count=2) for _ in range(5)]
    before = len(last_checked(tmp_path).notes)

    assert a_signed_retention(tmp_path).look().segments == len(lives)

    assert len(last_checked(tmp_path).notes) == before + 1


def test_segments_of_one_stream_go_in_one_turn_but_the_last_which_counts_what_is_left(tmp_path: Path) -> None:
    files = a_life(tmp_path, count=100)
    totals, numbers = census(tmp_path).totals, files.segments()
    before = len(last_checked(tmp_path).notes)
    assert len(numbers) > 8

    assert a_signed_retention(tmp_path).look().segments == len(numbers)

    assert len(last_checked(tmp_path).notes) == before + 2
    assert [each["segment"] for each in retained(tmp_path)] == numbers
    assert census(tmp_path).totals == totals
    assert_consistent(tmp_path)


def test_a_look_that_is_stopped_reads_no_further_segment_and_removes_those_it_has_read(tmp_path: Path) -> None:
    files = a_life(tmp_path, count=100)
    numbers = files.segments()
    answers = iter([False] * 4)

    removed = a_signed_retention(tmp_path).look(stopped=lambda: next(answers, True))

    assert removed.segments == 4
    assert files.segments() == numbers[4:]
    assert_consistent(tmp_path)


@pytest.mark.processes
@pytest.mark.parametrize("calls", [1, 2, 4, 7])
def test_a_remover_that_is_killed_among_the_segments_of_one_turn_is_finished_by_the_next(
    tmp_path: Path, calls: int
) -> None:
    files = a_life(tmp_path, count=100)
    totals, numbers = census(tmp_path).totals, files.segments()

    finish(start_script(A_REMOVER, tmp_path, ".jsonl", calls))

    assert files.segments() == numbers[calls - 1 :]
    assert [each["segment"] for each in retained(tmp_path)] == numbers[:-1]
    assert census(tmp_path).totals == totals
    assert_consistent(tmp_path)
    assert_the_rest_goes(tmp_path, totals)


def test_behind_a_segment_that_cannot_be_unlinked_nothing_of_its_stream_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = a_life(tmp_path, count=100)
    totals, numbers = census(tmp_path).totals, files.segments()
    unlink = os.unlink

    def refusing(path: Path, *arguments: object, **options: object) -> None:
        if str(path).endswith(".00000003.jsonl"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing)
        a_signed_retention(tmp_path).look()
        assert files.segments() == numbers[2:]
    assert census(tmp_path).totals == totals
    assert_consistent(tmp_path)

    a_signed_retention(tmp_path).look()
    assert not list(tmp_path.glob("*-*"))
    assert len(retained(tmp_path)) == len(numbers)
    assert census(tmp_path).totals == totals


def test_of_a_live_stream_its_signed_segments_go_and_its_tree_goes_on(tmp_path: Path) -> None:
    trail = a_trail(tmp_path)
    write(trail, 40)
    (files,) = streams_in(tmp_path)
    last = files.segments()[-1]
    until(lambda: len(borders(tmp_path)) >= last - 1)

    a_signed_retention(tmp_path).look()

    assert files.segments() == [last]
    assert census(tmp_path).totals.exported == 40
    write(trail, 10)
    trail.close()
    assert last_checked(tmp_path).told("end")[0]["root"] is not None
    (stream,) = assert_consistent(tmp_path).streams
    assert stream.ended
    a_signed_retention(tmp_path).look()
    assert segments_in(tmp_path) == {}
    assert census(tmp_path).totals.exported == 50
    assert_consistent(tmp_path)


def test_lines_that_nobody_signed_stay_until_somebody_does(tmp_path: Path) -> None:
    older = a_stream(tmp_path, export=("none",))
    ledger = a_ledger(tmp_path)
    ledger.tell([(Kind.HEAD, {})])

    assert a_signed_retention(tmp_path).look().segments == 0
    assert len(older.segments()) == 3

    Adopter(a_ledger(tmp_path), find_after_s=0).find()
    assert a_signed_retention(tmp_path).look().segments == 3
    assert segments_in(tmp_path) == {}
    assert all(each["edge"] for each in retained(tmp_path)), "each goes on from the one before it in the same turn"


def test_without_the_ledger_nothing_of_a_directory_that_has_one_is_removed(tmp_path: Path) -> None:
    files = a_life(tmp_path)
    before = files.segments()

    assert a_retention(tmp_path, Clocks(), days=0, max_bytes=1).look().segments == 0

    assert files.segments() == before
    assert (tmp_path / "ledger.lock").exists()


def test_a_segment_that_was_changed_stays_as_evidence(tmp_path: Path) -> None:
    files = a_life(tmp_path)
    lines = files.segment(1).read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"xxx", b"xyx", 1)
    files.segment(1).write_bytes(b"\n".join(lines))
    failed: list[str] = []

    a_signed_retention(tmp_path, failed=lambda files, error: failed.append(str(error))).look()

    assert 1 in files.segments()
    assert any("are not those that the ledger has signed" in each for each in failed)
    assert verify_directory(tmp_path).verdict is Verdict.BROKEN


def test_a_stream_whose_end_was_cut_off_stays_as_evidence(tmp_path: Path) -> None:
    files = a_life(tmp_path, count=3)
    content = files.segment(1).read_bytes().split(b"\n")
    files.segment(1).write_bytes(b"\n".join(content[:-2]) + b"\n")

    assert a_signed_retention(tmp_path).look().segments == 0

    assert files.segments() == [1]


@pytest.mark.parametrize("is_first", [True, False], ids=["before the ledger", "beside it"])
def test_what_an_older_version_removed_is_counted_on(tmp_path: Path, is_first: bool) -> None:
    directory, elsewhere = tmp_path / "audit", tmp_path / "older"
    directory.mkdir()
    elsewhere.mkdir()
    a_stream(elsewhere, export=("none",))
    events = census(elsewhere).totals.exported
    a_retention(elsewhere, Clocks(), days=0, max_bytes=1).look()
    if is_first:
        (elsewhere / "ledger.jsonl").rename(directory / "ledger.jsonl")
    a_life(directory, count=20)
    a_signed_retention(directory).look()
    if not is_first:
        (elsewhere / "ledger.jsonl").rename(directory / "ledger.jsonl")

    assert census(directory).totals.exported == events + 20
    assert len(list(entries(directory))) == 3


@pytest.mark.processes
@pytest.mark.parametrize(("ending", "calls"), [(".jsonl", 1), (".jsonl", 2), (".jsonl", 4), (".cursor", 1)])
def test_a_remover_that_is_killed_behind_the_entry_is_finished_by_the_next(
    tmp_path: Path, ending: str, calls: int
) -> None:
    for _ in range(2):
        a_life(tmp_path, count=12)
    totals = census(tmp_path).totals

    remover = start_script(A_REMOVER, tmp_path, ending, calls)
    finish(remover)

    assert remover.returncode == -signal.SIGKILL
    told = retained(tmp_path)
    assert told
    assert census(tmp_path).totals == totals
    a_signed_retention(tmp_path, max_bytes=10**9).look()
    left = {(stream_id, number) for stream_id, numbers in segments_in(tmp_path).items() for number in numbers}
    assert not left & {(each["stream"], each["segment"]) for each in told}
    assert census(tmp_path).totals == totals
    assert_consistent(tmp_path)
    assert_the_rest_goes(tmp_path, totals)


def test_files_that_cannot_be_unlinked_are_counted_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        a_life(tmp_path, count=2)
    totals = census(tmp_path).totals
    unlink = os.unlink
    refused: list[Path] = []

    def refusing(path: Path, *arguments: object, **options: object) -> None:
        if str(path).endswith(".00000001.jsonl") and len(refused) < 2:
            refused.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing)
        a_signed_retention(tmp_path).look()
    assert len(refused) == 2
    assert census(tmp_path).totals == totals

    a_signed_retention(tmp_path).look()

    assert not list(tmp_path.glob("*-*"))
    assert len(retained(tmp_path)) == 3
    assert census(tmp_path).totals == totals


@pytest.mark.processes
def test_a_disk_that_is_full_is_made_room_on(small_disk: Path) -> None:
    files = a_life(small_disk)
    retention = a_signed_retention(small_disk, max_bytes=10**9)
    retention.look()
    leave_no_room(small_disk)
    before = os.statvfs(small_disk).f_bavail

    assert a_signed_retention(small_disk).look().segments == len(retained(small_disk)) >= 3

    assert before == 0
    assert os.statvfs(small_disk).f_bavail > 0
    assert files.segments() == []
    assert_consistent(small_disk)


def test_signed_segments_go_when_they_are_old_enough(tmp_path: Path) -> None:
    a_life(tmp_path)
    clocks = Clocks()
    retention = a_signed_retention(tmp_path, days=30, max_bytes=0, clock=clocks)
    retention.look()
    clocks.pass_days(29)
    assert retention.look().segments == 0
    clocks.pass_days(2)

    assert retention.look().segments >= 3
    assert {each["reason"] for each in retained(tmp_path)} == {"age"}


def test_where_a_segment_has_to_wait_no_later_one_of_its_stream_goes_before_it(tmp_path: Path) -> None:
    files, other = a_life(tmp_path), a_life(tmp_path)
    numbers = files.segments()
    lock = FileLock.acquire(files.ship_lock)  # of another process, which removes the first segment
    turns = 0

    def released() -> bool:
        nonlocal turns
        turns += 1
        if turns == 2 and lock is not None:
            lock.release()
        return False

    assert lock is not None
    retention = a_signed_retention(tmp_path)
    retention.look(stopped=released)
    assert turns > 2
    assert (files.segments(), other.segments()) == (numbers, [])

    retention.look()
    assert files.segments() == []
    told = [each["segment"] for each in retained(tmp_path) if each["stream"] == files.stream_id]
    assert told == numbers
    assert_consistent(tmp_path)
