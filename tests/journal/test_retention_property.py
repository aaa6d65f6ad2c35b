"""Whatever is logged, delivered, refused, aged and removed in whatever order: no line goes that may not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from otel_audit.delivery.processor import Adoption
from otel_audit.delivery.sweep import restart
from otel_audit.journal.census import census
from otel_audit.journal.cursor import read_cursor
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.journal import Journal
from tests.cli.journals import Inbox, a_journal, deliver, record
from tests.examples import examples
from tests.journal.retaining import Clocks, a_retention, kept_seqs

EXPORTS = (("otlp",), ("otlp", "jsonl"), ("none",), ("ship",))

streams = st.integers(0, 1)
steps = st.one_of(
    st.tuples(st.just("log"), streams, st.integers(1, 25)),
    st.tuples(st.sampled_from(["otlp", "jsonl", "refuse", "refuse"]), streams, st.integers(1, 6)),
    st.tuples(st.just("look"), streams, st.sampled_from([1, 1, 1, 0, 5000])),
    st.tuples(st.sampled_from(["end", "again", "days", "jump"]), streams, st.integers(1, 40)),
)
plans = st.tuples(
    st.tuples(st.sampled_from(EXPORTS), st.sampled_from(EXPORTS)), st.lists(steps, min_size=10, max_size=40)
)


@dataclass
class Stream:
    """One stream as the test knows it: what was logged, and by whose word a line is delivered or in quarantine."""

    journal: Journal
    export: tuple[str, ...]
    files: StreamFiles | None = None
    events: int = 0
    written: int = 0
    live: bool = True

    def log(self, count: int) -> None:
        if self.live:
            self.files = record(self.journal, *(f"{number} {'x' * 80}" for number in range(count)))
            self.events += count
            assert self.journal.stream is not None
            self.written = self.journal.stream.head.seq

    def end(self) -> None:
        self.live = self.live and self.files is None
        if not self.live:
            self.journal.close()

    def must_be_there(self) -> set[int]:
        """The lines that no retention may touch."""
        if self.files is None:
            return set()
        progress = read_cursor(self.files.cursor)[0]
        required = {*progress, *(name for name in self.export if name not in ("none", "ship"))}
        if not required:
            return set() if self.export == ("none",) else set(range(1, self.written + 1))
        done = [progress[name].position.seq if name in progress else 0 for name in required]
        undelivered = set(range(min(done) + 1, self.written + 1))
        quarantined = {
            seq
            for each in progress.values()
            for entry in each.quarantine
            for seq in range(entry.first_seq, entry.last_seq + 1)
        }
        return undelivered | quarantined


@dataclass
class Directory:
    path: Path
    streams: list[Stream]
    clocks: Clocks = field(default_factory=Clocks)

    def do(self, kind: str, stream: Stream, amount: int) -> None:
        match kind:
            case "log":
                stream.log(amount)
            case "end":
                stream.end()
            case "days":
                self.clocks.pass_days(amount)
            case "jump":
                self.clocks.jump_days(amount * 20)
            case "again":
                restart(self.path, "otlp", Adoption(lambda header: header.get("export") == ["otlp"]))
            case "look":
                self.look(amount)
            case _ if stream.files is not None and stream.files.segments():
                inbox = Inbox("jsonl" if kind == "jsonl" else "otlp", refuses=b"3 xx" if kind == "refuse" else b"\n")
                deliver(stream.files, inbox, steps=amount, batch_count=7)

    def look(self, max_bytes: int) -> None:
        before = [stream.must_be_there() & kept_seqs(stream.files) for stream in self.streams if stream.files]
        written = [stream.files.segments()[-1:] for stream in self.streams if stream.files and stream.live]

        a_retention(self.path, self.clocks, max_bytes=max_bytes).look()

        for untouchable, stream in zip(before, [each for each in self.streams if each.files], strict=True):
            assert stream.files is not None
            assert untouchable <= kept_seqs(stream.files)
        assert written == [stream.files.segments()[-1:] for stream in self.streams if stream.files and stream.live]


@examples(40, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans)
def test_no_line_that_is_undelivered_in_quarantine_or_just_written_is_ever_removed(
    plan: tuple[tuple[tuple[str, ...], ...], list[tuple[str, int, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    exports, todo = plan
    path = tmp_path_factory.mktemp("audit")
    streams = [Stream(a_journal(path, export=export, segment_bytes=2048), export) for export in exports]
    directory = Directory(path, streams)
    try:
        for kind, stream, amount in todo:
            directory.do(kind, directory.streams[stream], amount)
            assert census(directory.path).totals.emitted == sum(each.events for each in directory.streams)
    finally:
        for each in directory.streams:
            each.journal.close()
