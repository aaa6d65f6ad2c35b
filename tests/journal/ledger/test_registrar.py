"""What the ledger is told of the streams of this process: opened, how far, ended."""

from __future__ import annotations

import base64
import errno
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.ledger.registrar import HeadLimits, Registrar
from otel_audit.journal.locks import FileLock
from otel_audit.journal.stream import Limits, StreamWriter
from otel_audit.settings import Durability
from otel_audit.signing.tree import Edge, leaf_hash
from tests.journal.ledger.telling import a_ledger, checked, held_turn, last_checked
from tests.journal.moments import before_lock
from tests.journal.slow_disk import SlowDisk
from tests.journal.writing import a_journal, append, the_stream, the_writer
from tests.servers.polling import PATIENCE_S, poll


def until(is_true: Callable[[], bool]) -> None:
    poll(is_true, what="what this test waits for")


@contextmanager
def registered(
    directory: Path,
    *,
    heads: HeadLimits | None = None,
    is_waited_for: bool = False,
    end_wait_s: float = PATIENCE_S,
    **options: Any,
) -> Iterator[Journal]:
    """A journal whose streams are told to the ledger of its directory."""
    registrar = Registrar(
        a_ledger(directory),
        describe=lambda: {"service": "shop"},
        limits=heads,
        is_waited_for=is_waited_for,
        end_wait_s=end_wait_s,
    )
    journal = a_journal(directory, on_open=registrar.follow, on_close=registrar.end, **options)
    yield journal
    journal.close()
    registrar.close()


def entries(directory: Path) -> list[dict[str, Any]]:
    """What the ledger says, checked as a stranger would; nothing before it has begun."""
    ledgers = checked(directory)
    if not ledgers:  # nor while its first turn is about to be written
        return []
    assert not ledgers[-1].unsigned
    return [entry for entry in ledgers[-1].entries if entry["kind"] not in ("begin", "key")]


def kinds(directory: Path) -> list[str]:
    return [entry["kind"] for entry in entries(directory)]


def lines_of(files: StreamFiles) -> list[bytes]:
    return [line for number in files.segments() for line in files.segment(number).read_bytes().split(b"\n")[:-1]]


def test_an_end_that_comes_while_the_tree_is_built_has_all_lines(tmp_path: Path) -> None:
    registrar = Registrar(a_ledger(tmp_path), describe=lambda: {"service": "shop"}, end_wait_s=PATIENCE_S)
    journal = a_journal(tmp_path, on_open=registrar.follow, on_close=registrar.end)
    closing = threading.Thread(target=journal.close)

    def close_behind_the_tree(frame: FrameType, event: str, arg: Any) -> None:
        """When the ledger's thread has built the tree: log one more, and close."""
        if event != "return" or frame.f_code.co_name != "grow" or "before" not in frame.f_locals:
            return
        threading.setprofile(None)
        sys.setprofile(None)
        append(journal, "order")
        closing.start()
        life = frame.f_locals["self"]
        until(lambda: life.is_ending)

    threading.setprofile(close_behind_the_tree)
    append(journal, "order")
    until(lambda: closing.ident is not None)
    closing.join(PATIENCE_S)
    registrar.close()

    assert kinds(tmp_path) == ["open", "end"]
    assert entries(tmp_path)[-1]["size"] == len(lines_of(the_stream(tmp_path))) == 3


def assert_is_head(entry: dict[str, Any], files: StreamFiles) -> None:
    lines = lines_of(files)[: entry["size"]]
    edge = Edge()
    for line in lines:
        edge.append(leaf_hash(sha256(line).digest()))
    assert len(lines) == entry["size"]
    assert base64.b64decode(entry["root"]) == edge.root()
    assert entry["hash"] == sha256(lines[-1]).hexdigest()
    if "edge" in entry:
        assert [base64.b64decode(node) for node in entry["edge"]] == list(edge.nodes)


def test_a_process_that_ends_at_once_opens_and_ends_in_one_turn(tmp_path: Path) -> None:
    with registered(tmp_path) as journal:
        append(journal, "a")

    opened, ended = entries(tmp_path)
    assert (opened["kind"], opened["stream"], opened["service"]) == ("open", the_stream(tmp_path).stream_id, "shop")
    assert (ended["kind"], ended["size"]) == ("end", 2)
    assert_is_head(ended, the_stream(tmp_path))
    assert [note.size for note in last_checked(tmp_path).notes][-1] >= 4
    assert not the_stream(tmp_path).writer_lock.exists()


def test_a_stream_that_goes_on_is_opened_in_the_ledger_while_it_is_written(tmp_path: Path) -> None:
    with registered(tmp_path) as journal:
        append(journal, "a")
        until(lambda: kinds(tmp_path) == ["open"])

        assert FileLock.is_held(the_stream(tmp_path).writer_lock)
    assert kinds(tmp_path) == ["open", "end"]


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_stream_has_a_head_when_it_has_so_many_lines_more(tmp_path: Path, durability: str) -> None:
    heads = HeadLimits(lines=100, seconds=3600)
    with registered(tmp_path, heads=heads, durability=Durability(durability)) as journal:
        for name in range(120):
            append(journal, name)
        until(lambda: kinds(tmp_path) == ["open", "head"])

    assert kinds(tmp_path) == ["open", "head", "end"]
    for entry in entries(tmp_path)[1:]:
        assert_is_head(entry, the_stream(tmp_path))


def test_a_stream_that_moved_has_a_head_after_a_while_and_one_that_did_not_has_none(tmp_path: Path) -> None:
    with registered(tmp_path, heads=HeadLimits(lines=10**6, seconds=0.1)) as journal:
        append(journal, "a")
        until(lambda: "head" in kinds(tmp_path))
        append(journal, "b")
        until(lambda: kinds(tmp_path).count("head") == 2)
        time.sleep(0.5)  # several times as long as a stream that moved waits
        seen = kinds(tmp_path)

    assert seen == ["open", "head", "head"]


def test_at_each_rotation_there_is_a_head_with_the_edge(tmp_path: Path) -> None:
    with registered(tmp_path, heads=HeadLimits(10**6, 3600), limits=Limits(segment_bytes=4096)) as journal:
        for name in range(100):
            append(journal, name)

    files = the_stream(tmp_path)
    heads = [entry for entry in entries(tmp_path) if entry["kind"] == "head"]
    ends = [files.segment(number).read_bytes().count(b"\n") for number in files.segments()]
    assert [head["size"] for head in heads] == [sum(ends[: at + 1]) for at in range(len(ends) - 1)]
    for entry in entries(tmp_path)[1:]:
        assert_is_head(entry, files)
    assert all("edge" in head for head in heads)


def test_later_segments_name_the_last_note_of_the_ledger(tmp_path: Path) -> None:
    with registered(tmp_path) as journal:
        append(journal, "a")
        until(lambda: kinds(tmp_path) == ["open"])
        stream = journal.stream
        assert stream is not None
        until(lambda: stream.anchor is not None)
        note = last_checked(tmp_path).notes[-1]
        assert stream.anchor == {
            "directory_id": last_checked(tmp_path).directory_id,
            "origin": note.origin,
            "size": note.size,
            "root": base64.b64encode(note.root).decode(),
        }


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_where_the_receipt_waits_for_it_the_stream_is_open_in_the_ledger_when_it_comes(
    tmp_path: Path, durability: str
) -> None:
    with registered(tmp_path, is_waited_for=True, durability=Durability(durability)) as journal:
        append(journal, "a")

        assert kinds(tmp_path) == ["open"]


def test_nobody_waits_for_a_ledger_that_others_keep_and_the_end_is_left_to_who_takes_the_stream_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = held_turn(tmp_path)
    with registered(tmp_path, end_wait_s=0.1) as journal:
        receipt = append(journal, "a")
        assert receipt.durable
    until(lambda: "will be late" in capsys.readouterr().err)
    held.release()

    assert entries(tmp_path) == []
    assert the_stream(tmp_path).writer_lock.exists()
    assert not FileLock.is_held(the_stream(tmp_path).writer_lock)


def test_a_turn_that_comes_after_whoever_closed_the_stream_has_given_up_does_not_tell_of_its_end(
    tmp_path: Path,
) -> None:
    held = held_turn(tmp_path)
    registrar = Registrar(a_ledger(tmp_path), describe=dict, end_wait_s=0.1)
    journal = a_journal(tmp_path, on_open=registrar.follow, on_close=registrar.end)
    append(journal, "a")
    journal.close()
    thread = registrar._thread
    registrar.close()
    held.release()
    until(lambda: thread is None or thread.is_over)

    assert entries(tmp_path) == [], "somebody may have taken the stream over"


def test_whoever_closes_a_stream_waits_longer_for_a_turn_than_others(tmp_path: Path) -> None:
    held = held_turn(tmp_path)
    registrar = Registrar(a_ledger(tmp_path), describe=dict, end_wait_s=PATIENCE_S)
    journal = a_journal(tmp_path, on_open=registrar.follow, on_close=registrar.end)
    append(journal, "a")
    closing = threading.Thread(target=journal.close)
    tries: list[float] = []
    with before_lock(LedgerFiles(tmp_path).lock, lambda _: tries.append(time.monotonic())):
        closing.start()
        until(lambda: bool(tries) and tries[-1] - tries[0] > 2.5)  # others give up after 2 s
    held.release()
    closing.join(PATIENCE_S)
    registrar.close()

    assert kinds(tmp_path) == ["open", "end"]
    assert not the_stream(tmp_path).writer_lock.exists()


def test_a_stream_that_ends_while_its_opening_waits_for_a_turn_needs_only_that_one(tmp_path: Path) -> None:
    held = held_turn(tmp_path)
    registrar = Registrar(a_ledger(tmp_path), describe=dict, end_wait_s=PATIENCE_S)
    journal = a_journal(tmp_path, on_open=registrar.follow, on_close=registrar.end)
    asked = threading.Event()
    append(journal, "a")
    with before_lock(LedgerFiles(tmp_path).lock, lambda _: asked.set()):
        assert asked.wait(PATIENCE_S)
    closing = threading.Thread(target=journal.close)
    closing.start()
    until(lambda: all(life.is_ending for life in registrar._lives.values()))
    asked.clear()
    with before_lock(LedgerFiles(tmp_path).lock, lambda _: asked.set()):
        assert asked.wait(PATIENCE_S)  # a turn that began to wait before the end may still try once
        asked.clear()
        assert asked.wait(PATIENCE_S)
    held.release()
    closing.join(PATIENCE_S)
    registrar.close()

    assert kinds(tmp_path) == ["open", "end"]
    assert len(last_checked(tmp_path).notes) == 2, "one of the beginning, and one of the only turn"


def test_a_turn_that_was_not_had_is_told_with_a_readable_time_and_one_remedy(tmp_path: Path) -> None:
    held = held_turn(tmp_path)
    registrar = Registrar(a_ledger(tmp_path), describe=dict, end_wait_s=0.3)
    journal = a_journal(tmp_path, on_open=registrar.follow, on_close=registrar.end)
    append(journal, "a")

    journal.close()
    until(lambda: bool(registrar.trouble))

    held.release()
    registrar.close()
    assert re.search(r"within \d(?:\.\d)? s, got none; .*: `fuser` shows which; no event is lost", registrar.trouble)
    assert "let the user" not in registrar.trouble, "the files are not in the way"


def test_what_a_turn_could_not_say_the_next_one_says(tmp_path: Path) -> None:
    held = held_turn(tmp_path)
    registrar = Registrar(a_ledger(tmp_path), describe=dict)
    journal = a_journal(tmp_path, on_open=registrar.follow, on_close=registrar.end)
    append(journal, "a")
    until(lambda: bool(registrar.trouble))
    held.release()
    until(lambda: not registrar.trouble)
    journal.close()
    registrar.close()

    assert kinds(tmp_path) == ["open", "end"]


def test_a_ledger_that_begins_anew_is_told_of_the_live_streams_again(tmp_path: Path) -> None:
    with registered(tmp_path, heads=HeadLimits(lines=1, seconds=3600)) as journal:
        append(journal, "a")
        until(lambda: "open" in kinds(tmp_path))
        former = last_checked(tmp_path).directory_id
        LedgerFiles(tmp_path).key.unlink()
        append(journal, "b")
        until(lambda: last_checked(tmp_path).directory_id != former and "open" in kinds(tmp_path))

    assert "open" in kinds(tmp_path)
    assert kinds(tmp_path)[-1] == "end"
    assert_is_head(entries(tmp_path)[-1], the_stream(tmp_path))


def test_two_streams_of_one_process_end_each_for_itself(tmp_path: Path) -> None:
    seen: list[StreamWriter] = []
    with registered(tmp_path) as journal:
        append(journal, "a")
        assert journal.stream is not None
        seen.append(journal.stream)
        journal.close()
        append(journal, "b")
        assert journal.stream is not None
        seen.append(journal.stream)

    told = [(entry["kind"], entry["stream"]) for entry in entries(tmp_path)]
    assert told == [(kind, stream.files.stream_id) for stream in seen for kind in ("open", "end")]


def test_the_end_of_a_stream_is_told_although_the_files_of_another_one_that_ends_then_are_gone(tmp_path: Path) -> None:
    registrar = Registrar(a_ledger(tmp_path), describe=dict, end_wait_s=PATIENCE_S)
    journal = a_journal(tmp_path, on_open=registrar.follow)
    streams: list[StreamWriter] = []
    held = held_turn(tmp_path)
    asked = threading.Event()
    with before_lock(LedgerFiles(tmp_path).lock, lambda _: asked.set()):
        for name in ("a", "b"):
            append(journal, name)
            assert journal.stream is not None
            streams.append(journal.stream)
            journal.close()
        assert asked.wait(PATIENCE_S)
    # The ledger's thread waits for the first turn now, and the next look finds both streams at their end.
    streams[0].files.segment(1).unlink()
    ends = [threading.Thread(target=registrar.end, args=(stream,)) for stream in streams]
    for each in ends:
        each.start()
    until(lambda: all(life.is_ending for life in registrar._lives.values()))
    held.release()
    for each in ends:
        each.join(PATIENCE_S)
    registrar.close()

    assert [entry["stream"] for entry in entries(tmp_path) if entry["kind"] == "end"] == [streams[1].files.stream_id]


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_no_end_is_signed_over_lines_whose_last_sync_failed(tmp_path: Path, durability: str) -> None:
    """The kernel tells an error once: a second sync of the same file succeeds, and says nothing of these lines."""
    registrar = Registrar(a_ledger(tmp_path), describe=dict, end_wait_s=PATIENCE_S)
    journal = a_journal(tmp_path, on_open=registrar.follow, on_close=registrar.end, durability=Durability(durability))
    append(journal, "a")
    until(lambda: kinds(tmp_path) == ["open"])
    with pytest.MonkeyPatch.context() as patch:
        disk = LosingDisk(patch)
        if durability == "fsync":  # else nothing is left to sync
            the_writer(journal).write_system("note", {}, time.time_ns())
        journal.close()
    registrar.close()

    assert disk.failed == [the_stream(tmp_path).segment(1).name]
    assert kinds(tmp_path) == ["open"]
    assert the_stream(tmp_path).writer_lock.exists(), "whoever takes the stream over tells what is there"
    assert "SyncFailed" in registrar.trouble


def test_a_close_syncs_lines_and_names_once(tmp_path: Path) -> None:
    with registered(tmp_path) as journal, pytest.MonkeyPatch.context() as patch:
        append(journal, "a")
        until(lambda: kinds(tmp_path) == ["open"])
        until(lambda: journal.stream is not None and not journal.stream.is_being_synced)
        disk = SlowDisk(patch)
        append(journal, "b")
        journal.close()

    segment = the_stream(tmp_path).segment(1).name
    assert disk.calls.count(segment) in (1, 2), "two where a background sync had begun"
    assert disk.calls[-1] == "ledger.00000001.jsonl"
    assert tmp_path.name not in disk.calls


class LosingDisk:
    """Stands for `os.fdatasync` of a disk that loses lines of a stream, and tells of it once."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.failed: list[str] = []
        self._real = os.fdatasync
        patch.setattr(os, "fdatasync", self)

    def __call__(self, descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        if not self.failed and not name.startswith("ledger."):
            self.failed.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._real(descriptor)
