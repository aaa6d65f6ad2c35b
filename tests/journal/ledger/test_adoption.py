"""What the ledger is told of streams whose process is gone, and of those that are older than it."""

from __future__ import annotations

import fcntl
import gc
import sys
import threading
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from otel_audit import ids
from otel_audit.delivery.processor import BatchProcessor
from otel_audit.journal.files import StreamFiles, streams_in, sync_file
from otel_audit.journal.journal import Journal
from otel_audit.journal.ledger.adoption import Adopter, tree_of
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.ledger.registrar import Registrar, head_content
from otel_audit.journal.locks import FileLock
from otel_audit.journal.stream import Limits, StreamWriter
from otel_audit.journal.stream_tree import StreamTree
from otel_audit.settings import Durability
from otel_audit.verification.findings import Verdict
from otel_audit.verification.verify import verify_directory
from tests.journal.ledger.telling import a_ledger, held_turn
from tests.journal.ledger.test_registrar import assert_is_head, entries, kinds, lines_of, until
from tests.journal.moments import before_lock
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import a_journal, append, description
from tests.servers.polling import PATIENCE_S


def an_adopter(directory: Path, **options: Any) -> Adopter:
    return Adopter(a_ledger(directory), find_after_s=0, **options)


def knowing() -> dict[str, Any]:
    return {**description(), "ledger": {"size": 0}}


def left_behind(directory: Path, *, count: int = 3, knows_ledger: bool = True, **options: Any) -> StreamFiles:
    """A stream whose process was killed: nobody holds its lock, and the file of the lock is there."""
    before = {files.stream_id for files in streams_in(directory)}
    journal = Journal(
        directory, describe=lambda: {**description(), **({"ledger": {}} if knows_ledger else {})}, **options
    )
    for name in range(count):
        append(journal, name)
    stream = journal.stream
    assert stream is not None
    stream.let_go(remove=False)
    journal.reopen()
    del journal, stream
    gc.collect()
    (files,) = [files for files in streams_in(directory) if files.stream_id not in before]
    assert files.writer_lock.exists()
    return files


def test_a_stream_whose_process_was_killed_is_told_of_once_and_its_lock_file_goes(tmp_path: Path) -> None:
    files = left_behind(tmp_path)
    with files.segment(1).open("ab") as segment:
        segment.write(b'{"event_type":"torn')
    adopter = an_adopter(tmp_path)

    assert adopter.take_over() == 1
    assert (adopter.take_over(), an_adopter(tmp_path).take_over(), adopter.find()) == (0, 0, 0)

    (entry,) = entries(tmp_path)
    assert (entry["kind"], entry["stream"], entry["size"], entry["torn_bytes"]) == ("adopt", files.stream_id, 4, 19)
    assert set(entry["adopter"]) == {"pid", "host_id", "boot_id"}
    assert_is_head(entry, files)
    assert not files.writer_lock.exists()


def test_a_stream_that_lived_and_died_while_its_lock_was_looked_at_is_told_of(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path, str(ids.new_id()))
    files.writer_lock.touch()  # as its writer does before it locks the file
    lived: list[int] = []

    def live(operation: int) -> None:
        """Before the adopter locks the file for good, which nobody held when it looked."""
        if operation & fcntl.LOCK_EX and not lived:
            lived.append(operation)
            limits = Limits()
            StreamWriter(files, knowing(), limits=limits, durability=Durability.OS, retire=lambda _: None).abandon()

    adopter = an_adopter(tmp_path)
    with before_lock(files.writer_lock, live):
        adopter.take_over()
    assert lived
    adopter.take_over()

    (entry,) = entries(tmp_path)
    assert (entry["kind"], entry["stream"]) == ("adopt", files.stream_id)
    assert not files.writer_lock.exists()


def test_of_a_writer_that_died_before_its_first_line_nothing_is_told_and_the_trail_stays_whole(tmp_path: Path) -> None:
    left_behind(tmp_path)
    files = StreamFiles(tmp_path, str(ids.new_id()))
    files.writer_lock.touch()
    files.segment(1).touch()

    assert an_adopter(tmp_path).take_over() == 1

    assert kinds(tmp_path) == ["adopt"]
    assert not files.writer_lock.exists()
    assert verify_directory(tmp_path).verdict is Verdict.CONSISTENT


def test_a_stream_is_not_told_of_again_once_retention_has_told_of_it_too(tmp_path: Path) -> None:
    files = left_behind(tmp_path)
    adopter = an_adopter(tmp_path)
    adopter.take_over()
    a_ledger(tmp_path).tell([(Kind.RETAIN, {"stream": files.stream_id, "segment": 1})])
    files.writer_lock.touch()  # left by whoever was killed while it removed the segment

    assert adopter.take_over() == 0

    assert kinds(tmp_path) == ["adopt", "retain"]
    assert not files.writer_lock.exists()


def test_nobody_is_told_that_others_had_the_turn_when_a_stream_should_be_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind(tmp_path)
    held = held_turn(tmp_path)
    asked = threading.Event()
    processor = BatchProcessor(tmp_path, [], adopter=an_adopter(tmp_path))
    with before_lock(LedgerFiles(tmp_path).lock, lambda _: asked.set()):
        processor.start()
        assert asked.wait(PATIENCE_S)
    processor.close(timeout_s=PATIENCE_S)
    held.release()

    assert capsys.readouterr().err == ""
    assert an_adopter(tmp_path).take_over() == 1


def test_an_end_that_is_written_while_the_stream_is_taken_over_is_the_only_one(tmp_path: Path) -> None:
    files = left_behind(tmp_path)
    ends = head_content(files.stream_id, tree_of(files)[0].head())
    taking = threading.Thread(target=an_adopter(tmp_path).take_over)
    asked = threading.Event()

    def ask(_: int) -> None:
        if threading.current_thread() is taking:
            asked.set()

    with a_ledger(tmp_path).turn() as turn, before_lock(LedgerFiles(tmp_path).lock, ask):
        taking.start()
        assert asked.wait(PATIENCE_S)
        turn.write([(Kind.END, ends)])  # by the process whose close did not wait for it
    taking.join(PATIENCE_S)

    assert [entry["kind"] for entry in entries(tmp_path)] == ["end"]
    assert not files.writer_lock.exists()


def test_a_stream_that_is_written_is_left_alone(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")

    adopter = an_adopter(tmp_path)
    assert (adopter.take_over(), adopter.find()) == (0, 0)

    assert not LedgerFiles(tmp_path).segments()
    journal.close()
    assert adopter.take_over() == 0


def test_many_dead_streams_take_one_turn(tmp_path: Path) -> None:
    files = [left_behind(tmp_path, count=1) for _ in range(20)]

    assert an_adopter(tmp_path).take_over() == 20

    assert [entry["stream"] for entry in entries(tmp_path)] == [each.stream_id for each in files]
    assert len(LedgerFiles(tmp_path).segment(1).read_bytes().split(b'{"system":"note"')) == 3  # of the begin, and one


def a_dead_stream_of_some_segments(directory: Path) -> StreamFiles:
    """A stream with heads at its rotations, whose end nobody has told."""
    registrar = Registrar(a_ledger(directory), describe=dict)
    journal = Journal(
        directory,
        describe=knowing,
        on_open=registrar.follow,
        on_close=lambda stream: False,
        limits=Limits(segment_bytes=4096),
    )
    for name in range(60):
        append(journal, name)
    until(lambda: kinds(directory).count("head") >= 3)
    journal.close()
    registrar.close()
    (files,) = streams_in(directory)
    return files


def test_the_tree_of_a_stream_without_its_first_segments_goes_on_from_the_edge_in_the_ledger(tmp_path: Path) -> None:
    files = a_dead_stream_of_some_segments(tmp_path)
    whole = lines_of(files)
    for number in (1, 2):
        files.segment(number).unlink()

    assert an_adopter(tmp_path).take_over() == 1

    adopted = entries(tmp_path)[-1]
    for number, lines in ((1, whole[:1]), (2, whole[1 : len(whole) - len(lines_of(files))])):
        files.segment(number).write_bytes(b"".join(line + b"\n" for line in lines))
    assert adopted["kind"] == "adopt"
    assert_is_head(adopted, files)


def test_segments_that_retention_removes_meanwhile_are_no_hole_in_a_stream_that_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = a_dead_stream_of_some_segments(tmp_path)
    last = lines_of(files)[-1]
    failures: list[Exception] = []
    read = StreamTree.read

    def removed_before_it_is_read(tree: StreamTree) -> None:
        files.segment(1).unlink(missing_ok=True)
        read(tree)

    def removed_before_it_is_synced(path: Path) -> None:
        files.segment(2).unlink(missing_ok=True)
        sync_file(path)

    monkeypatch.setattr(StreamTree, "read", removed_before_it_is_read)
    monkeypatch.setattr("otel_audit.journal.ledger.adoption.sync_file", removed_before_it_is_synced)

    assert an_adopter(tmp_path, failed=lambda files, error: failures.append(error)).take_over() == 1

    adopted = entries(tmp_path)[-1]
    assert failures == []
    assert (adopted["kind"], adopted["hash"]) == ("adopt", sha256(last).hexdigest())
    assert adopted["root"] is not None
    assert "why" not in adopted


def test_where_the_tree_cannot_be_built_the_entry_says_why(tmp_path: Path) -> None:
    files = left_behind(tmp_path, count=60, limits=Limits(segment_bytes=4096))
    files.segment(1).unlink()

    an_adopter(tmp_path).take_over()

    (entry,) = entries(tmp_path)
    assert entry["root"] is None
    assert "no edge" in entry["why"]
    assert entry["size"] == 60 + len(files.segments()) + 1


@pytest.mark.parametrize("state", ["dead", "ended"])
def test_a_stream_of_an_earlier_version_is_found(tmp_path: Path, state: str) -> None:
    files = left_behind(tmp_path, knows_ledger=False)
    if state == "ended":
        files.writer_lock.unlink()
    adopter = an_adopter(tmp_path)

    assert adopter.take_over() + adopter.find() == 1
    assert an_adopter(tmp_path).find() == 0

    (entry,) = entries(tmp_path)
    assert (entry["kind"], entry["stream"]) == ("found", files.stream_id)
    assert_is_head(entry, files)


def test_a_file_that_names_the_ledger_and_is_not_known_there_is_not_vouched_for(tmp_path: Path) -> None:
    files = left_behind(tmp_path)
    files.writer_lock.unlink()

    assert an_adopter(tmp_path).find() == 0


def test_a_stream_in_memory_is_told_to_no_ledger(tmp_path: Path) -> None:
    files = left_behind(tmp_path, durability=Durability.MEMORY)

    assert an_adopter(tmp_path).take_over() == 0

    assert not LedgerFiles(tmp_path).segments()
    assert not files.writer_lock.exists()


def test_whoever_must_not_begin_a_ledger_leaves_the_streams_until_there_is_one(tmp_path: Path) -> None:
    files = left_behind(tmp_path)
    shipper = an_adopter(tmp_path, begins=False)
    assert shipper.take_over() == 0
    assert files.writer_lock.exists()

    a_ledger(tmp_path).tell([(Kind.OPEN, {"stream": files.stream_id})])

    assert shipper.take_over() == 1


def test_a_stream_that_the_ledger_could_not_be_told_of_is_told_later(tmp_path: Path) -> None:
    files = left_behind(tmp_path)
    held = held_turn(tmp_path)
    adopter = an_adopter(tmp_path)

    with pytest.raises(Exception, match="turn"):
        adopter.take_over()

    assert files.writer_lock.exists()
    assert not FileLock.is_held(files.writer_lock)
    held.release()
    assert adopter.take_over() == 1


def test_a_stream_is_not_told_of_again_when_its_adopter_was_killed_before_the_lock_file_was_gone(
    tmp_path: Path,
) -> None:
    files = left_behind(tmp_path)
    an_adopter(tmp_path).take_over()
    files.writer_lock.touch()

    assert an_adopter(tmp_path).take_over() == 0

    assert kinds(tmp_path) == ["adopt"]
    assert not files.writer_lock.exists()


def test_an_adopter_that_comes_late_for_a_stream_leaves_it_to_the_one_before(tmp_path: Path) -> None:
    """It has read the stream already when the other one gets the lock, tells and removes the file."""
    files = left_behind(tmp_path)
    late = an_adopter(tmp_path)
    built: list[int] = []

    def tell_first(frame: FrameType, event: str, arg: Any) -> None:
        if event == "return" and frame.f_code.co_name == "tree_of" and not built:
            built.append(an_adopter(tmp_path).take_over())

    sys.setprofile(tell_first)
    try:
        told = late.take_over()
    finally:
        sys.setprofile(None)

    assert (built, told) == ([1], 0)
    assert kinds(tmp_path) == ["adopt"]
    assert not files.writer_lock.exists()


def test_processes_that_find_the_same_streams_tell_of_each_once(tmp_path: Path) -> None:
    files = [left_behind(tmp_path, knows_ledger=False) for _ in range(3)]
    for each in files:
        each.writer_lock.unlink()
    a_ledger(tmp_path).tell([(Kind.HEAD, {"stream": "s", "size": 1})])
    first, second = an_adopter(tmp_path), an_adopter(tmp_path)
    told: list[int] = []

    def find_first(frame: FrameType, event: str, arg: Any) -> None:
        """Once the second one has read what it tells of."""
        if event == "call" and frame.f_code.co_name == "_say" and not told:
            told.append(0)
            told[0] = first.find()

    sys.setprofile(find_first)
    try:
        told.append(second.find())
    finally:
        sys.setprofile(None)

    assert told == [3, 0]
    assert kinds(tmp_path).count("found") == 3


def test_lines_that_may_not_be_on_the_disk_are_not_vouched_for(tmp_path: Path) -> None:
    files = left_behind(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        SlowDisk(patch).fails = True
        assert an_adopter(tmp_path).take_over() == 0
    assert files.writer_lock.exists()

    assert an_adopter(tmp_path).take_over() == 1
