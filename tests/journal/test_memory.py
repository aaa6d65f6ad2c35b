"""A journal in memory: the same lines and the same chain, a bound that holds, and numbers that add up."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from otel_audit.errors import AuditUnavailable, JournalFull, JournalUnwritable
from otel_audit.journal.cursor import Position, Progress
from otel_audit.journal.journal import Receipt
from otel_audit.journal.memory_journal import MemoryJournal
from otel_audit.journal.memory_stream import MemoryReader, MemoryStream, QueueLimits
from otel_audit.journal.quarantine import Quarantined
from tests.journal.writing import append, assert_chained, description, finish, ids_of, said, start_script

NOWHERE = Path("/nowhere/at/all")
MIB = 1024 * 1024


def in_memory(
    events: int = 2048, size: int = 32 * MIB, exporters: Sequence[str] = ("one",), **more: Any
) -> MemoryJournal:
    options = {"describe": description, **more}
    return MemoryJournal(NOWHERE, limits=QueueLimits(events, size), exporters=exporters, **options)


def stream_of(journal: MemoryJournal) -> MemoryStream:
    assert isinstance(journal.stream, MemoryStream)
    return journal.stream


def waiting(journal: MemoryJournal, behind: int = 0) -> list[bytes]:
    """The lines behind this number that a reader gets, a few at a time."""
    reader = MemoryReader(stream_of(journal))
    lines: list[bytes] = []
    position = Position(1, 0, behind)
    while (chunk := reader.read(position, max_lines=3, max_bytes=1000)).lines:
        lines += [line.content for line in chunk.lines]
        position = chunk.end
    return lines


def deal(journal: MemoryJournal, seq: int, *, refused: Sequence[int] = (), exporter: str = "one") -> None:
    """The exporter has dealt with the lines up to this number, as a `StreamExport` would keep it."""
    stream = stream_of(journal)
    before = stream.cursor.progress(exporter)
    numbers = range(before.position.seq + 1, seq + 1)
    lines = {number: stream.line(number) for number in numbers}
    events = [number for number, line in lines.items() if line is not None and "system" not in json.loads(line)]
    stream.cursor.advance(
        exporter,
        Progress(
            Position(1, 0, seq),
            exported=before.exported + len([number for number in events if number not in refused]),
            system=before.system + len(numbers) - len(events),
            quarantined=before.quarantined + len([number for number in events if number in refused]),
            quarantine=tuple(Quarantined(number, number, "400") for number in refused),
        ),
    )


def numbers(journal: MemoryJournal) -> tuple[int, int, int, int]:
    """Emitted, exported, pending and dropped."""
    exported = journal.exported
    written = journal.written
    return written.emitted, exported, written.emitted - written.dropped - exported, written.dropped


def test_lines_are_numbered_and_chained_behind_a_header_that_says_memory() -> None:
    journal = in_memory()

    receipts = [append(journal, name) for name in "abc"]

    lines = waiting(journal)
    header = json.loads(lines[0])
    assert header["segment"]["durability"] == "memory"
    assert header["segment"]["resource"] == description()["resource"]
    assert "prev_hash" not in header
    assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3, 4]
    assert ids_of(lines) == ["a", "b", "c"]
    assert_chained(lines)
    stream_id = stream_of(journal).files.stream_id
    assert receipts == [Receipt(name, stream_id, seq, False) for seq, name in enumerate("abc", 2)]


def test_ten_threads_write_one_chain() -> None:
    journal = in_memory()

    def write(name: int) -> None:
        for number in range(100):
            append(journal, f"{name}-{number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = waiting(journal)
    assert_chained(lines)
    assert sorted(ids_of(lines)) == sorted(f"{name}-{number}" for name in range(10) for number in range(100))


def test_a_full_queue_refuses_the_new_event_and_keeps_the_old_ones() -> None:
    journal = in_memory(events=3)
    for name in "abc":
        append(journal, name)

    with pytest.raises(JournalFull, match=r"got 3 events that wait; .*raise OTEL_AUDIT_QUEUE_SIZE"):
        append(journal, "d")

    assert ids_of(waiting(journal)) == ["a", "b", "c"]
    assert numbers(journal) == (4, 0, 3, 1)
    assert journal.written.by_reason["queue full"] == 1


def test_the_first_line_after_a_full_queue_says_how_many_events_were_lost() -> None:
    journal = in_memory(events=3)
    for name in "abc":
        append(journal, name)
    for name in "def":
        with pytest.raises(JournalFull):
            append(journal, name)

    deal(journal, 2)
    append(journal, "g")

    gap, last = map(json.loads, waiting(journal, behind=4))
    assert gap["gap"]["lines"] == 3
    assert gap["gap"]["by_reason"]["queue full"]["count"] == 3
    assert last["event_id"] == "g"
    assert_chained(waiting(journal, behind=2))
    assert numbers(journal) == (7, 1, 3, 3)


def test_a_loss_is_told_without_another_event_once_there_is_room() -> None:
    journal = in_memory(events=1)
    append(journal, "a")
    with pytest.raises(JournalFull):
        append(journal, "b")
    journal.tend()
    assert stream_of(journal).head.seq == 2

    deal(journal, 2)
    journal.tend()

    assert [json.loads(line)["gap"]["lines"] for line in waiting(journal, behind=2)] == [1]


def test_a_queue_of_one_takes_the_event_behind_the_gap() -> None:
    journal = in_memory(events=1)
    for round_ in range(5):
        append(journal, f"kept-{round_}")
        with pytest.raises(JournalFull):
            append(journal, f"lost-{round_}")
        deal(journal, stream_of(journal).head.seq)

    assert numbers(journal) == (10, 5, 0, 5)


def test_bytes_are_bounded_too() -> None:
    journal = in_memory(size=10_000)
    names = iter(range(20))

    with pytest.raises(JournalFull, match=r"got \d+ bytes of events that wait"):
        all(append(journal, name, detail="x" * 1000) for name in names)

    lines = waiting(journal)
    assert 8_000 < sum(map(len, lines)) <= 10_000
    deal(journal, stream_of(journal).head.seq)
    append(journal, "again", detail="x" * 1000)


def test_a_line_is_kept_until_every_exporter_has_dealt_with_it() -> None:
    journal = in_memory(events=2, exporters=("one", "two"))
    append(journal, "a")
    append(journal, "b")

    deal(journal, 3, exporter="one")
    assert ids_of(waiting(journal)) == ["a", "b"]
    with pytest.raises(JournalFull):
        append(journal, "c")

    deal(journal, 2, exporter="two")
    assert stream_of(journal).line(2) is None
    append(journal, "d")
    assert numbers(journal) == (4, 1, 2, 1)


def test_what_a_destination_refused_is_freed_and_counted_as_dropped_and_told() -> None:
    journal = in_memory(exporters=("one", "two"))
    for name in "abc":
        append(journal, name)

    deal(journal, 4, refused=[3], exporter="one")
    deal(journal, 4, exporter="two")

    assert numbers(journal) == (3, 2, 0, 1)
    assert journal.written.by_reason["refused by destination"] == 1
    assert journal.progress()["one"].quarantine == ()
    append(journal, "d")
    journal.close()
    told = [json.loads(line) for line in waiting_of_closed(journal)]
    (gap,) = [each["gap"] for each in told if each.get("system") == "gap"]
    assert gap["by_reason"]["refused by destination"]["count"] == 1


def waiting_of_closed(journal: MemoryJournal) -> list[bytes]:
    assert journal.only is not None
    return [line for seq in range(1, journal.only.head.seq + 1) if (line := journal.only.line(seq)) is not None]


def test_what_is_given_up_is_dropped_once_and_a_later_event_is_refused() -> None:
    journal = in_memory()
    for name in "abc":
        append(journal, name)
    deal(journal, 2)
    journal.close()

    assert journal.give_up() == 2
    assert journal.give_up() == 0

    assert numbers(journal) == (3, 1, 0, 2)
    with pytest.raises(JournalUnwritable, match="expected an open journal, got one that was closed"):
        append(journal, "late")
    assert numbers(journal) == (4, 1, 0, 3)
    assert {"not delivered": 2, "closed": 1}.items() <= journal.written.by_reason.items()


def test_a_journal_that_is_given_up_before_its_first_event_refuses_it() -> None:
    journal = in_memory()

    assert journal.give_up() == 0

    with pytest.raises(JournalUnwritable, match="closed"):
        append(journal, "late")
    assert numbers(journal) == (1, 0, 0, 1)


def test_an_export_that_ends_after_the_end_changes_no_number() -> None:
    journal = in_memory()
    append(journal, "a")
    stream = stream_of(journal)
    journal.close()
    journal.give_up()

    stream.cursor.advance("one", Progress(Position(1, 0, 2), exported=1, system=1))

    assert numbers(journal) == (1, 0, 0, 1)


def test_an_event_from_inside_an_append_finds_no_room_and_is_counted_at_the_end() -> None:
    def describe() -> dict[str, Any]:
        receipts.append(append(journal, "inner"))
        return description()

    receipts: list[Receipt] = []
    journal = in_memory(events=1, describe=describe)

    append(journal, "outer")

    assert receipts == [Receipt("inner", None, None, False)]
    assert numbers(journal) == (2, 0, 2, 0)
    journal.close()
    assert journal.give_up() == 2
    assert numbers(journal) == (2, 0, 0, 2)


def test_a_journal_that_is_closed_from_inside_its_first_append_counts_that_event_as_lost() -> None:
    def describe() -> dict[str, Any]:
        journal.close()
        journal.give_up()
        return description()

    journal = in_memory(describe=describe)

    with pytest.raises(JournalUnwritable, match="closed"):
        append(journal, "a")

    assert numbers(journal) == (1, 0, 0, 1)


INTERRUPTED = """
    import random, signal
    from otel_audit.journal.memory_stream import QueueLimits
    from tests.journal.test_memory import append, ids_of, in_memory, waiting
    from tests.journal.writing import assert_chained

    journal = in_memory(events=1_000_000, size=1 << 30)
    dice = random.Random(7)
    acknowledged, interrupts, tried = [], 0, 0

    def interrupt(signum, frame):
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(20e-6, 300e-6))
        while frame is not None:
            if frame.f_code.co_filename.endswith(("journal.py", "stream.py")):
                raise KeyboardInterrupt
            frame = frame.f_back

    append(journal, tried)  # the stream is open, as in a service that runs
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 50e-6)
    while interrupts < 3000:
        tried += 1
        try:
            append(journal, tried)
        except KeyboardInterrupt:
            interrupts += 1
        else:
            acknowledged.append(str(tried))
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    lines = waiting(journal)
    assert_chained(lines)
    ids = ids_of(lines)
    assert set(acknowledged) <= set(ids), "an acknowledged event is not there"
    assert len(ids) == len(set(ids)), "an event is there twice"
    print(len(acknowledged) > 100, flush=True)
"""


def test_thousands_of_interrupts_inside_append_break_no_chain_and_lose_nothing_acknowledged() -> None:
    process = start_script(INTERRUPTED)
    assert said(process) == "True"
    finish(process)


class Queue(RuleBasedStateMachine):
    """Appends and acknowledgements by two exporters, in any order."""

    LIMITS = QueueLimits(events=5, bytes=6000)

    def __init__(self) -> None:
        super().__init__()
        self.journal = in_memory(self.LIMITS.events, self.LIMITS.bytes, exporters=("one", "two"))
        self.seen: dict[int, bytes] = {}
        self.logged = 0
        self.refused = 0
        self.is_over = False

    @rule(chars=st.integers(0, 1500))
    def log(self, chars: int) -> None:
        self.logged += 1
        try:
            receipt = append(self.journal, self.logged, detail="x" * chars)
        except AuditUnavailable:
            self.refused += 1
        else:
            assert receipt.seq == stream_of(self.journal).head.seq

    @precondition(lambda self: self.journal.only is not None and not self.is_over)
    @rule(exporter=st.sampled_from(["one", "two"]), share=st.floats(0, 1), refuses=st.booleans())
    def acknowledge(self, exporter: str, share: float, refuses: bool) -> None:
        assert self.journal.only is not None
        done, last = self.journal.progress()[exporter].position.seq, self.journal.only.head.seq
        seq = done + round((last - done) * share)
        deal(self.journal, seq, refused=[seq] if refuses and seq > done else [], exporter=exporter)

    @rule()
    def tend(self) -> None:
        self.journal.tend()

    @precondition(lambda self: self.logged > 20)
    @rule()
    def end(self) -> None:
        if not self.is_over:
            self.keep_what_is_there()
        self.is_over = True
        self.journal.give_up()

    @invariant()
    def keep_what_is_there(self) -> None:
        only = self.journal.only
        if only is None or self.is_over:
            return
        there = {seq: line for seq in range(1, only.head.seq + 1) if (line := only.line(seq)) is not None}
        assert all(self.seen.get(seq, line) == line for seq, line in there.items())
        self.seen.update(there)
        events = len(ids_of(list(there.values())))
        assert events <= self.LIMITS.events
        assert sum(map(len, there.values())) <= self.LIMITS.bytes
        done = [progress.position.seq for progress in self.journal.progress().values()]
        assert list(there) == list(range(min(done) + 1, only.head.seq + 1))
        assert numbers(self.journal)[2] == events

    @invariant()
    def the_numbers_add_up(self) -> None:
        emitted, exported, pending, dropped = numbers(self.journal)
        assert emitted == self.logged
        assert min(exported, pending, dropped) >= 0
        assert dropped >= self.refused
        assert not (self.is_over and pending)

    def teardown(self) -> None:
        assert_chained([line for _, line in sorted(self.seen.items())])
        told = [json.loads(line)["gap"]["lines"] for line in self.seen.values() if b'{"system":"gap"' in line]
        assert sum(told) <= numbers(self.journal)[3]


TestQueue = Queue.TestCase
TestQueue.settings = hypothesis_settings(max_examples=40, stateful_step_count=60, deadline=None)
