"""What a dead process left is taken by one other, and only by one that may."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.shipment import Shipment, adopt, take
from tests.chain_check import application_events
from tests.journal.moments import before_lock
from tests.journal.writing import a_journal, append, description, finish, ids_of, lines_of, said, start_script
from tests.opening import opening

A_WRITER = """
    import sys
    from pathlib import Path
    from tests.journal.writing import a_journal, append

    journal = a_journal(Path(sys.argv[1]))
    for name in range(100):
        append(journal, name)
    print(journal.stream.files.stream_id, flush=True)
    sys.stdin.read()
"""

# Each stream is marked while it is held; a mark that is there already means that two have it at once.
AN_ADOPTER = """
    import os, sys
    from pathlib import Path
    from otel_audit.journal.shipment import adopt

    directory, marks = Path(sys.argv[1]), Path(sys.argv[2])
    sys.stdin.readline()
    taken = 0
    for _ in range(20):
        for shipment in adopt(directory, wanted=lambda header: True, known=set(), most=5):
            mark = marks / shipment.files.stream_id
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            progress = shipment.cursor.progress("otlp")
            shipment.cursor.advance("otlp", type(progress)(counts=progress.counts + type(progress.counts)(exported=1)))
            mark.unlink()
            shipment.release()
            taken += 1
    print(taken, flush=True)
"""


def everything(header: Mapping[str, Any]) -> bool:
    return True


def of(service: str) -> Any:
    def wanted(header: Mapping[str, Any]) -> bool:
        resource = header.get("resource", {})
        return bool(resource.get("service.name") == service)

    return wanted


def adopted(directory: Path, **options: Any) -> list[Shipment]:
    return list(adopt(directory, **{"wanted": everything, "known": set(), **options}))


def a_dead_stream(directory: Path, **changed: Any) -> StreamFiles:
    """A stream that ended; `changed` is what its header says otherwise."""
    journal = Journal(directory, describe=lambda: {**description(), **changed})
    receipt = append(journal, "a")
    journal.close()
    assert receipt.stream_id is not None
    return StreamFiles(directory, receipt.stream_id)


def ids(shipments: list[Shipment]) -> list[str]:
    return [shipment.files.stream_id for shipment in shipments]


def release(shipments: list[Shipment]) -> None:
    for shipment in shipments:
        shipment.release()


@pytest.mark.processes
def test_the_stream_of_a_killed_writer_is_adopted_whole(tmp_path: Path) -> None:
    writer = start_script(A_WRITER, tmp_path)
    stream_id = said(writer)
    assert adopted(tmp_path) == []

    writer.send_signal(signal.SIGKILL)
    finish(writer)

    (shipment,) = adopted(tmp_path)
    assert shipment.files.stream_id == stream_id
    assert shipment.ended
    assert ids_of(lines_of(shipment.files)) == [str(name) for name in range(100)]
    shipment.release()


def test_a_live_stream_is_left_alone_unless_it_is_asked_for(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    stream_id = append(journal, "a").stream_id

    assert adopted(tmp_path) == []
    (shipment,) = adopted(tmp_path, live=everything)
    assert shipment.files.stream_id == stream_id
    assert not shipment.ended
    append(journal, "b")
    journal.close()
    assert shipment.ended
    assert ids_of(lines_of(shipment.files)) == ["a", "b"]
    shipment.release()
    assert not list(tmp_path.glob("*.lock"))


def test_a_stream_whose_writer_may_live_on_another_host_is_taken_only_when_that_is_asked_for(memory_disk: Path) -> None:
    files = a_dead_stream(memory_disk, host_id="f" * 32)
    a_dead_stream(memory_disk, host_id="f" * 32, resource={"service.name": "bank"})
    left: list[StreamFiles] = []

    assert adopted(memory_disk, wanted=of("shop"), left=left.append) == []
    shipments = adopted(memory_disk, wanted=of("shop"), foreign=True)

    assert left == [files]
    assert ids(shipments) == [files.stream_id]
    release(shipments)


@pytest.mark.processes
def test_on_a_local_disk_a_free_lock_says_that_the_writer_is_gone_whatever_host_it_was_on(ext4_disk: Path) -> None:
    moved = a_dead_stream(ext4_disk, host_id="f" * 32)
    a_dead_stream(ext4_disk, host_id="f" * 32, resource={"service.name": "bank"})
    live = Journal(ext4_disk, describe=lambda: {**description(), "host_id": "f" * 32})
    append(live, "a")

    shipments = adopted(ext4_disk, wanted=of("shop"))

    assert ids(shipments) == [moved.stream_id]
    release(shipments)
    live.close()


def test_a_stream_of_an_earlier_boot_is_taken(tmp_path: Path) -> None:
    files = a_dead_stream(tmp_path, boot_id="0" * 32)

    shipments = adopted(tmp_path)

    assert ids(shipments) == [files.stream_id]
    release(shipments)


def test_a_service_takes_the_streams_of_its_own_only(tmp_path: Path) -> None:
    a_dead_stream(tmp_path, resource={"service.name": "bank"})
    ours = a_dead_stream(tmp_path)
    known: set[str] = set()

    shipments = adopted(tmp_path, wanted=of("shop"), known=known)

    assert ids(shipments) == [ours.stream_id]
    assert len(known) == 1
    release(shipments)


def test_a_stream_that_was_delivered_is_not_taken_again(tmp_path: Path) -> None:
    a_dead_stream(tmp_path)
    (shipment,) = adopted(tmp_path)
    assert shipment.ended
    shipment.cursor.end()
    shipment.release()

    assert adopted(tmp_path) == []
    assert not list(tmp_path.glob("*.lock"))


def test_a_search_opens_no_file_of_a_stream_that_ended(tmp_path: Path) -> None:
    for _ in range(20):
        a_dead_stream(tmp_path)
    for shipment in adopted(tmp_path):
        assert shipment.ended
        shipment.cursor.end()
        shipment.release()
    behind = a_dead_stream(tmp_path)

    with opening(tmp_path) as opening_:
        (shipment,) = adopted(tmp_path)

    assert shipment.stream_id == behind.stream_id
    assert {name.partition(".")[0] for _, name in opening_.opened} == {behind.stream_id}
    shipment.release()


def test_an_end_that_is_not_in_the_size_of_the_cursor_is_read_once_and_noted_there(tmp_path: Path) -> None:
    files = a_dead_stream(tmp_path)
    (shipment,) = adopted(tmp_path)
    assert shipment.ended
    shipment.cursor.end()
    shipment.release()
    with files.cursor.open("r+b") as cursor:
        cursor.truncate(cursor.seek(0, 2) - 1)  # as on a disk that would not take it

    assert adopted(tmp_path) == []

    with opening(tmp_path) as opening_:
        assert adopted(tmp_path) == []
    assert opening_.opened == []


def test_a_stream_that_was_let_go_before_its_end_is_taken_again(tmp_path: Path) -> None:
    files = a_dead_stream(tmp_path)
    release(adopted(tmp_path))

    shipments = adopted(tmp_path)

    assert ids(shipments) == [files.stream_id]
    release(shipments)


def test_a_stream_that_somebody_exports_is_not_taken(tmp_path: Path) -> None:
    files = a_dead_stream(tmp_path)
    shipment = take(files)
    assert shipment is not None

    assert take(files) is None
    assert adopted(tmp_path) == []

    shipment.release()
    again = take(files)
    assert again is not None
    again.release()


def test_of_a_stream_that_is_removed_while_it_is_taken_no_file_is_made_again(tmp_path: Path) -> None:
    files = a_dead_stream(tmp_path)
    removed: list[Path] = []

    def remove(_: int) -> None:
        """Remove the stream, as the retention of another process does once it is delivered, with its lock file last."""
        if not removed:
            removed.extend([files.segment(1), files.ship_lock])
            for path in removed:
                path.unlink()

    with before_lock(files.ship_lock, remove):
        assert adopted(tmp_path) == []

    assert removed
    assert list(tmp_path.iterdir()) == []


def test_no_more_streams_are_taken_than_asked_for_and_the_oldest_first(tmp_path: Path) -> None:
    streams = [a_dead_stream(tmp_path).stream_id for _ in range(5)]

    first = adopted(tmp_path, most=2)
    rest = adopted(tmp_path, most=10)

    assert ids(first) == streams[:2]
    assert ids(rest) == streams[2:]
    assert adopted(tmp_path, most=0) == []
    release([*first, *rest])


def test_a_stream_whose_files_cannot_be_used_does_not_keep_others_from_being_taken(tmp_path: Path) -> None:
    broken = a_dead_stream(tmp_path)
    broken.cursor.mkdir()
    good = a_dead_stream(tmp_path)
    failed: list[str] = []

    shipments = adopted(tmp_path, failed=lambda files, error: failed.append(files.stream_id))

    assert ids(shipments) == [good.stream_id]
    assert failed == [broken.stream_id]
    release(shipments)
    broken.cursor.rmdir()
    shipments = adopted(tmp_path, known={good.stream_id})
    assert ids(shipments) == [broken.stream_id]
    release(shipments)


@pytest.mark.parametrize("cut", [0, 20, 400])
def test_a_torn_first_line_does_not_stop_the_adoption_of_others(tmp_path: Path, cut: int) -> None:
    torn = a_dead_stream(tmp_path)
    with torn.segment(1).open("r+b") as segment:
        segment.truncate(cut)
    good = a_dead_stream(tmp_path)

    shipments = adopted(tmp_path, wanted=of("shop"))

    assert ids(shipments) == [good.stream_id]
    release(shipments)


@pytest.mark.processes
def test_two_processes_never_have_the_same_stream_at_once(tmp_path: Path) -> None:
    directory, marks = tmp_path / "audit", tmp_path / "marks"
    marks.mkdir()
    for _ in range(12):
        a_dead_stream(directory)
    adopters = [start_script(AN_ADOPTER, directory, marks) for _ in range(3)]
    for adopter in adopters:
        assert adopter.stdin is not None
        adopter.stdin.write("go\n")
        adopter.stdin.flush()

    counts = [int(said(adopter)) for adopter in adopters]
    for adopter in adopters:
        finish(adopter)

    assert [adopter.returncode for adopter in adopters] == [0, 0, 0]
    assert sum(count > 0 for count in counts) > 1
    shipments = adopted(directory)
    assert sum(shipment.cursor.progress("otlp").counts.exported for shipment in shipments) == sum(counts)
    release(shipments)
    assert len(streams_in(directory)) == 12
    assert len(application_events(directory)) == 12
