"""When segments of the ledger itself go, and that nothing is lost or hidden by it, whatever comes in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from otel_audit.journal.census import census
from otel_audit.journal.files import StreamFiles, segments_in, streams_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.ledger.entries import Kind, last_note
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.journal.ledger.registrar import Registrar, anchor_of
from otel_audit.journal.ledger.removals import Removals
from otel_audit.journal.ledger.shipping import LedgerShipping
from otel_audit.journal.reader import segment_lines
from otel_audit.journal.retention import Retention
from otel_audit.signing.note import Checkpoint
from otel_audit.stores.location import open_store
from otel_audit.verification.findings import Class, Report, Verdict
from otel_audit.verification.pins import KnownNote, Pins
from otel_audit.verification.verify import verify_directory
from tests.journal.ledger.telling import a_ledger
from tests.journal.retaining import Clocks, a_retention
from tests.journal.writing import append, description, finish, start_script
from tests.servers.polling import PATIENCE_S

DAYS = 30
LEDGER_BYTES = 6000

A_PRUNER = """
    import os, signal, sys
    from pathlib import Path
    from tests.verification.test_pruning import Service

    directory, step, calls = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    real = getattr(os, step)

    def killed(path, *arguments, **options):
        global calls
        name = str(path) if step == "unlink" else os.readlink(f"/proc/self/fd/{path}")
        if ".jsonl" in name and "/ledger." in name:
            calls -= 1
            if calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(path, *arguments, **options)

    service = Service(directory)
    service.clocks.pass_days(200)
    setattr(os, step, killed)
    service.retention().look()
    print("not killed", flush=True)
"""


class Service:
    """What runs in a directory, by clocks of its own: lives of processes, and the retention of one that delivers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clocks = Clocks()

    def ledger(self) -> Any:
        return a_ledger(self.directory, segment_bytes=LEDGER_BYTES, clock=lambda: self.clocks.wall_ns)

    def retention(self, **options: Any) -> Retention:
        ledger = self.ledger()
        return a_retention(self.directory, self.clocks, **{"days": DAYS, "ledger": ledger, "begins": False, **options})

    def _described(self) -> dict[str, Any]:
        note = last_note(LedgerFiles(self.directory))
        return {**description(), "export": ["none"], "ledger": {"size": 0} if note is None else anchor_of(note)}

    @contextmanager
    def running(self) -> Iterator[Journal]:
        registrar = Registrar(
            self.ledger(),
            describe=lambda: {"service": "shop", "retention_days": DAYS, "durability": "os"},
            is_waited_for=True,
            end_wait_s=PATIENCE_S,
        )
        journal = Journal(self.directory, describe=self._described, on_open=registrar.follow, on_close=registrar.end)
        yield journal
        journal.close()
        registrar.close()

    def live(self, events: int = 3) -> StreamFiles:
        """A process that begins, logs and ends."""
        before = {files.stream_id for files in streams_in(self.directory)}
        with self.running() as journal:
            for name in range(events):
                append(journal, name)
        (files,) = [files for files in streams_in(self.directory) if files.stream_id not in before]
        return files

    def live_often(self, times: int = 12) -> None:
        for _ in range(times):
            self.live()

    def numbers(self) -> list[int]:
        return LedgerFiles(self.directory).segments()

    def let_all_go(self) -> None:
        """Every stream goes by its age, and then what the ledger says of them."""
        for _ in range(3):
            self.retention().look()
            self.clocks.pass_days(DAYS + 1)
        self.retention().look()


def told(directory: Path) -> dict[str, Any]:
    removals = Removals(directory)
    removals.refresh()
    return dict(removals.pruned or {})


def seen(report: Report) -> list[tuple[str, str]]:
    """Class and kind of what is worth more than a notice."""
    return [(each.weight.value, each.kind) for each in report.all_findings if each.weight is not Class.NOTICE]


def assert_whole(directory: Path, pins: Pins | None = None, **options: Any) -> Report:
    report = verify_directory(directory, pins, **options)
    assert seen(report) == []
    return report


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "audit")


def test_segments_go_when_they_are_old_and_all_of_their_streams_are_gone(service: Service) -> None:
    service.live_often()
    before = service.numbers()
    known = last_note(LedgerFiles(service.directory))
    assert known is not None
    events = census(service.directory).totals.emitted
    service.retention().look()
    service.clocks.pass_days(DAYS - 1)
    service.retention().look()
    assert service.numbers() == before

    service.let_all_go()

    left = service.numbers()
    assert left[0] > before[-2]
    assert len(left) < len(before)
    assert told(service.directory)["segment"] == left[0] - 1
    assert told(service.directory)["begin"]["log_name"] == "otel-audit/shop"
    assert census(service.directory).totals.emitted == census(service.directory).removed.emitted == events
    service.live()
    report = assert_whole(service.directory, Pins(known_note=KnownNote(known.note, known.checkpoint)))
    assert [each.kind for each in report.all_findings].count("ledger_retained") >= 1


@pytest.mark.slow
def test_a_year_of_short_lives_leaves_a_ledger_of_two_months_and_proves_every_day(service: Service) -> None:
    sizes: list[int] = []
    events = 0
    for _ in range(73):
        service.live()
        events += 3
        service.retention().look()
        service.clocks.pass_days(5)
        sizes.append(len(service.numbers()))

    report = assert_whole(service.directory)

    assert max(sizes[20:]) <= max(sizes[:20]) + 1
    assert census(service.directory).totals.emitted == events
    assert service.numbers()[0] > 10
    assert {each.state for each in report.streams} == {"ended", "removed"}


def test_a_stream_that_is_still_there_keeps_what_was_said_since_it_was_opened(service: Service) -> None:
    with service.running() as journal:
        append(journal, "a")
        service.live_often()
        before = service.numbers()
        service.let_all_go()
        assert service.numbers()[: len(before)] == before
    assert_whole(service.directory)

    service.let_all_go()

    assert service.numbers()[0] > before[-2]
    assert_whole(service.directory)


def test_a_stream_that_vanished_without_an_entry_stays_missing(service: Service) -> None:
    files = service.live()
    service.live_often()
    before = service.numbers()
    files.segment(1).unlink()

    service.let_all_go()

    assert service.numbers()[: len(before)] == before
    assert seen(verify_directory(service.directory)) == [("finding", "missing")]


def test_what_an_exporter_lacks_stays_and_goes_once_it_has_it(service: Service) -> None:
    service.live_often()
    before = service.numbers()
    shipping = LedgerShipping(service.directory, ["otlp"])

    def let_go() -> None:
        for _ in range(3):
            service.retention(off_host=["otlp"]).look()
            service.clocks.pass_days(DAYS + 1)

    let_go()
    assert service.numbers()[: len(before)] == before

    shipment = shipping.take()
    assert shipment is not None
    service.retention(off_host=["otlp"]).look()  # another process exports it, and would prune
    assert service.numbers()[: len(before)] == before
    end = shipment.durable()
    assert end is not None
    shipment.cursor.advance("otlp", replace(shipment.cursor.progress("otlp"), position=end))
    shipment.release()
    let_go()
    assert service.numbers()[0] > before[-2]


def test_a_segment_that_somebody_changed_stays(service: Service) -> None:
    service.live_often()
    first = LedgerFiles(service.directory).segment(1)
    raw = first.read_bytes()
    cut = raw.index(b"\n", len(raw) // 2)
    first.write_bytes(raw[:cut] + b" torn \n" + raw[cut + 8 :])

    service.let_all_go()

    assert first.exists()


@pytest.mark.processes
@pytest.mark.parametrize(("step", "calls"), [("unlink", 1), ("unlink", 2), ("unlink", 3), ("fdatasync", 2)])
def test_a_pruner_that_is_killed_leaves_a_ledger_that_is_whole_and_the_next_one_goes_on(
    service: Service, step: str, calls: int
) -> None:
    service.live_often()
    before = service.numbers()
    service.retention().look()

    pruner = start_script(A_PRUNER, service.directory, step, calls)
    finish(pruner)

    assert pruner.returncode == -signal.SIGKILL
    assert_whole(service.directory)
    service.clocks.pass_days(1000)
    service.retention().look()
    service.clocks.pass_days(DAYS + 1)
    service.retention().look()
    assert service.numbers()[0] > before[-2]
    assert_whole(service.directory)


def test_segments_that_somebody_restored_stay_and_disturb_nobody(service: Service, tmp_path: Path) -> None:
    service.live_often()
    shutil.copytree(service.directory, tmp_path / "backup")
    service.let_all_go()
    first = service.numbers()[0]
    for number in range(1, first):
        name = LedgerFiles(service.directory).segment(number).name
        shutil.copy(tmp_path / "backup" / name, service.directory / name)

    service.retention().look()

    assert service.numbers()[: first - 1] == list(range(1, first))
    assert_whole(service.directory)


def test_lines_that_are_gone_and_of_which_nothing_is_said_are_a_finding(service: Service) -> None:
    service.live_often()
    for number in (1, 2):
        LedgerFiles(service.directory).segment(number).unlink()
    assert ("finding", "ledger_cut") in seen(verify_directory(service.directory))
    service.let_all_go()
    assert ("finding", "ledger_cut") in seen(verify_directory(service.directory))


def test_more_than_what_is_said_to_be_removed_is_a_finding(service: Service) -> None:
    service.live_often()
    service.let_all_go()
    service.live_often(6)
    LedgerFiles(service.directory).segment(service.numbers()[0]).unlink()

    assert ("finding", "ledger_cut") in seen(verify_directory(service.directory))


@pytest.mark.parametrize("change", [{"hash": "0" * 64}, {"last_seq": 2, "edge": ["A" * 43 + "="]}])
def test_a_forged_entry_of_other_lines_is_a_finding(service: Service, change: dict[str, Any]) -> None:
    service.live_often()
    service.let_all_go()
    forged = {**told(service.directory), **change}
    service.ledger().tell([(Kind.RETAIN, forged)])

    assert ("finding", "ledger_cut") in seen(verify_directory(service.directory))


def test_an_archive_that_has_the_whole_ledger_vouches_for_what_was_removed(service: Service, tmp_path: Path) -> None:
    archive = tmp_path / "archive"

    def keep() -> None:
        for path in service.directory.glob("*.jsonl"):
            shutil.copy(path, archive)

    archive.mkdir()
    for _ in range(2):  # the second time, what it said of the first removals goes too
        service.live_often()
        keep()
        service.let_all_go()
        keep()

    with open_store(str(archive)) as store:
        report = verify_directory(service.directory, beside=store)

    assert seen(report) == []
    said = [each.message for each in report.all_findings if each.kind == "store_only"]
    assert any("retention removed it, as ledger lines say" in each for each in said)


def test_verify_beside_a_pruner_finds_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The segments go when the first of them has been read."""
    service.live_often()
    service.retention().look()
    service.clocks.pass_days(DAYS + 1)
    pruned: list[int] = []

    def lines_then_prune(files: StreamFiles, number: int, *arguments: Any) -> Any:
        yield from segment_lines(files, number, *arguments)
        if number == 1 and not pruned:
            pruned.append(number)
            service.retention().look()

    monkeypatch.setattr("otel_audit.verification.directory.segment_lines", lines_then_prune)
    assert_whole(service.directory)

    assert pruned == [1]
    assert service.numbers()[0] > 2


def test_what_is_signed_later_goes_on_from_the_tree_of_what_was_removed(service: Service) -> None:
    service.live_often()
    before = last_note(LedgerFiles(service.directory))
    service.let_all_go()
    (service.directory / "ledger.edge").unlink()
    service.live()

    after = last_note(LedgerFiles(service.directory))
    assert before is not None
    assert after is not None
    assert (after.checkpoint.origin, after.checkpoint.size > before.checkpoint.size) == (before.checkpoint.origin, True)
    assert isinstance(after.checkpoint, Checkpoint)
    assert assert_whole(service.directory).verdict is Verdict.CONSISTENT
    assert os.path.exists(LedgerFiles(service.directory).keys)
    assert segments_in(service.directory)


def forge_a_removal(service: Service, *, up_to: int) -> None:
    """What somebody does who has today's keys: remove the ledger up to this segment, and sign that it was retention."""
    files = LedgerFiles(service.directory)
    header = json.loads(files.segment(up_to + 1).read_bytes().split(b"\n")[0])
    content = header["segment"]
    for number in range(1, up_to + 1):
        files.segment(number).unlink()
    gone = {"first_seq": 1, "last_seq": content["size"], "prev_hash": None, "hash": header["prev_hash"]}
    told = {"stream": header["stream_id"], "segment": up_to, "edge": content["edge"], "reason": "age", "begin": None}
    service.ledger().tell([(Kind.RETAIN, {**told, **gone})])


def test_a_forged_removal_is_listed_and_hides_no_stream_from_an_archive(service: Service, tmp_path: Path) -> None:
    victim = service.live()
    service.live_often()
    shutil.copytree(service.directory, tmp_path / "archive")
    victim.segment(1).unlink()
    forge_a_removal(service, up_to=2)

    alone = verify_directory(service.directory)
    with open_store(str(tmp_path / "archive")) as store:
        beside = verify_directory(service.directory, beside=store)

    assert [each for each in seen(alone) if each[0] == "finding"] == []
    assert "ledger_retained" in {each.kind for each in alone.all_findings}
    assert alone.verdict is not Verdict.PROVEN
    assert [
        each.stream_id for each in beside.all_findings if each.kind == "store_only" and each.weight is Class.FINDING
    ] == [victim.stream_id]


def test_lines_that_were_removed_before_an_archive_had_them_are_unproven(service: Service, tmp_path: Path) -> None:
    service.live_often()
    shutil.copytree(service.directory, tmp_path / "archive")
    LedgerFiles(tmp_path / "archive").segment(2).unlink()
    service.let_all_go()
    service.live_often()
    service.let_all_go()  # now what it said of the first removals is gone as well
    for number in service.numbers():
        shutil.copy(LedgerFiles(service.directory).segment(number), tmp_path / "archive")

    with open_store(str(tmp_path / "archive")) as store:
        report = verify_directory(service.directory, beside=store)

    assert {("unproven", "retained_there"), ("unproven", "store_only")} <= set(seen(report))
    assert [each for each in seen(report) if each[0] == "finding"] == []
