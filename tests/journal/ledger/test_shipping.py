"""Who may export a directory's ledger, and how far: up to its last note that is whole and durable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from otel_audit.journal.cursor import Progress
from otel_audit.journal.ledger.entries import Kind, SignedNote, statements
from otel_audit.journal.ledger.files import LedgerFiles, LedgerLog
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.journal.ledger.shipping import DurableEnd, LedgerShipment, LedgerShipping
from otel_audit.journal.ledger.standing import EdgeFile, standing_of
from otel_audit.journal.line import Line, Position
from otel_audit.journal.locks import FileLock
from tests.journal.ledger.telling import a_ledger

STREAM = "0198c0de-0000-7000-8000-00000000000f"


def told(directory: Path, turns: int = 1, **options: int) -> Ledger:
    ledger = a_ledger(directory, **options)
    for size in range(1, turns + 1):
        ledger.tell([(Kind.HEAD, {"stream": STREAM, "size": size})])
    return ledger


def log_of(directory: Path) -> LedgerLog:
    log = LedgerFiles(directory).latest()
    assert log is not None
    return log


def notes(log: LedgerLog) -> list[SignedNote]:
    return [each for each in statements(log) if isinstance(each, SignedNote)]


def taken(directory: Path, *exporters: str) -> LedgerShipment:
    shipment = LedgerShipping(directory, exporters or ["otlp"]).take()
    assert shipment is not None
    return shipment


def exported(shipment: LedgerShipment) -> list[bytes]:
    """What an exporter reads now, which then has it."""
    reader, lines = shipment.reader(), list[Line]()
    position = shipment.cursor.progress("otlp").position
    while True:
        chunk = reader.read(position, max_lines=100, max_bytes=1 << 20, until=shipment.durable())
        if chunk.end == position:
            break
        position = chunk.end
        lines += chunk.lines
    reader.close()
    shipment.cursor.advance("otlp", msgspec.structs.replace(Progress(), position=position))
    return [line.content for line in lines]


def lines_in(directory: Path) -> list[bytes]:
    files = LedgerFiles(directory)
    return [line for each in files.segments() for line in files.segment(each).read_bytes().split(b"\n")[:-1]]


def test_every_line_up_to_the_last_note_is_exported_and_then_those_of_the_next_turn(tmp_path: Path) -> None:
    ledger = told(tmp_path, turns=3)
    shipment = taken(tmp_path)

    first = exported(shipment)
    assert first == lines_in(tmp_path)
    assert exported(shipment) == []

    ledger.tell([(Kind.HEAD, {"stream": STREAM, "size": 9})])

    assert first + exported(shipment) == lines_in(tmp_path)
    shipment.release()


def test_the_segments_of_a_ledger_are_exported_one_after_the_other(tmp_path: Path) -> None:
    ledger = told(tmp_path, turns=4, segment_bytes=4096)
    shipment = taken(tmp_path)
    first = exported(shipment)
    for size in range(9):
        ledger.tell([(Kind.HEAD, {"stream": STREAM, "size": size})])

    assert len(LedgerFiles(tmp_path).segments()) > 2
    assert first + exported(shipment) == lines_in(tmp_path)
    shipment.release()


def test_entries_without_a_note_stay_here(tmp_path: Path) -> None:
    told(tmp_path)
    whole = lines_in(tmp_path)
    entry = next(line for line in whole if line.startswith(b'{"system":"ledger"'))
    with LedgerFiles(tmp_path).segment(1).open("ab") as file:
        file.write(entry.replace(b'"seq":2', b'"seq":%d' % (len(whole) + 1)) + b"\n")

    shipment = taken(tmp_path)

    assert exported(shipment) == whole
    shipment.release()


def test_a_note_of_which_nobody_knows_that_it_is_durable_is_made_so_when_its_turn_is_over(tmp_path: Path) -> None:
    told(tmp_path)
    files = LedgerFiles(tmp_path)
    files.edge.unlink()
    end = DurableEnd(log_of(tmp_path))
    with a_ledger(tmp_path).turn():
        assert end() == Position(1)

    assert end() == notes(log_of(tmp_path))[-1].line.end
    assert files.lock.exists()
    assert not FileLock.is_held(files.lock)


def test_a_note_whose_sync_failed_stays_here(tmp_path: Path) -> None:
    told(tmp_path, turns=2)
    log = log_of(tmp_path)
    edges = EdgeFile(LedgerFiles(tmp_path), 0o600)
    standing = standing_of(log, None)
    assert standing is not None
    edges.keep(replace(standing, sealed="fdatasync failed"))
    edges.close()

    assert DurableEnd(log)() == Position(1)
    a_ledger(tmp_path).tell([(Kind.HEAD, {"stream": STREAM, "size": 9})])
    assert DurableEnd(log)() == notes(log_of(tmp_path))[-1].line.end


def test_a_turn_that_power_tore_stays_here(tmp_path: Path) -> None:
    told(tmp_path, turns=2)
    files, log = LedgerFiles(tmp_path), log_of(tmp_path)
    last = notes(log)[-1]
    raw = bytearray(files.segment(1).read_bytes())
    entry = raw.rindex(b'{"system":"ledger"')
    raw[entry : last.line.offset - 1] = bytes(last.line.offset - 1 - entry)
    files.segment(1).write_bytes(raw)
    files.edge.unlink()

    assert DurableEnd(log)() == Position(1)


def test_one_process_has_the_ledger_and_the_files_of_the_locks_stay(tmp_path: Path) -> None:
    told(tmp_path)
    first = taken(tmp_path)
    assert LedgerShipping(tmp_path, ["otlp"]).take() is None

    first.release()

    assert LedgerFiles(tmp_path).ship_lock.exists()
    assert LedgerFiles(tmp_path).lock.exists()
    second = taken(tmp_path)
    assert not second.ended
    second.conclude()
    assert not second.cursor.ended
    second.release()


def test_a_ledger_that_was_not_continued_goes_out_before_the_one_behind_it(tmp_path: Path) -> None:
    told(tmp_path, turns=2)
    former = log_of(tmp_path)
    before = lines_in(tmp_path)
    held = taken(tmp_path)
    assert not held.is_followed()
    LedgerFiles(tmp_path).key.unlink()
    told(tmp_path, turns=2)
    assert log_of(tmp_path).directory_id != former.directory_id
    assert not held.is_followed()  # something of it is not delivered

    assert exported(held) == before
    assert held.is_followed()
    held.release()
    behind = taken(tmp_path)

    assert behind.stream_id == log_of(tmp_path).directory_id
    assert before + exported(behind) == lines_in(tmp_path)
    behind.release()


def test_a_ledger_is_sent_again_from_its_first_line(tmp_path: Path) -> None:
    told(tmp_path, turns=2)
    shipment = taken(tmp_path)
    exported(shipment)
    assert not LedgerShipping(tmp_path, ["otlp"]).restart("otlp")
    shipment.release()

    assert LedgerShipping(tmp_path, ["otlp"]).restart("otlp")
    again = taken(tmp_path)

    assert exported(again) == lines_in(tmp_path)
    again.release()


@pytest.mark.parametrize("exporters", [[], ["otlp"]])
def test_nothing_is_taken_and_no_file_is_made_where_there_is_none_or_nobody_to_have_it(
    tmp_path: Path, exporters: list[str]
) -> None:
    if not exporters:
        told(tmp_path)
    names = set(tmp_path.iterdir())

    assert LedgerShipping(tmp_path, exporters).take() is None
    assert set(tmp_path.iterdir()) == names


def test_each_line_is_a_json_object_that_names_the_ledger_as_its_stream(tmp_path: Path) -> None:
    told(tmp_path)
    shipment = taken(tmp_path)

    stored = [json.loads(line) for line in exported(shipment)]

    assert {each["stream_id"] for each in stored} == {shipment.stream_id}
    assert [each["event_type"] for each in stored][-2:] == ["audit.ledger", "audit.note"]
    shipment.release()
