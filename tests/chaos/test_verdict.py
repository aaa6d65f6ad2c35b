"""The judge: it finds a loss, an invention, a change and a wrong number, so that a quiet verdict means something."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource

from otel_audit import AuditEvent, AuditLogger
from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.chaos.journal_copy import JournalCopy, read_journal
from tests.chaos.ledger import FORKED, NO_PLACE, Ledger, LedgerFile, Place, child_of, read_ledger
from tests.chaos.verdict import Delivery, judge_ours, judge_stock
from tests.servers import Record

INSTANCE = "writer-0-1"
RECORD = Record("", "", "", 0, 0, 0, 9, "INFO", "", {}, {"service.instance.id": INSTANCE}, "", "")


@dataclass
class Evidence:
    """A journal of three events that were all acknowledged and arrived, and what was noted of them."""

    ledger: Ledger
    journal: JournalCopy
    records: list[Record]
    status: dict[str, Any]

    def judged(self) -> Delivery:
        return judge_ours(self.ledger, self.records, self.journal, self.status, calm={INSTANCE})

    def problems(self) -> list[str]:
        return [problem.partition(":")[0] for problem in self.judged().problems]

    def numbers_of(self, *names: str) -> list[int]:
        """The places in `records` of these events."""
        return [self.bodies().index(name) for name in names]

    def bodies(self) -> list[str]:
        return [json.loads(record.body).get("request_id", "") for record in self.records]


def name(number: int) -> str:
    return f"{INSTANCE}.0.{number}"


def log_three(directory: Path, ledgers: Path) -> None:
    ledger = LedgerFile(ledgers, INSTANCE)
    settings = Settings.load({}, {"directory": str(directory), "export": "none"})
    trail = Trail(settings, resource=Resource({"service.name": "chaos", "service.instance.id": INSTANCE}))
    with AuditLogger(trail) as logger:
        for number in range(3):
            ledger.intend(name(number))
            receipt = logger.log(AuditEvent(event_type="test", request_id=name(number)))
            assert receipt is not None
            assert receipt.event_id
            assert receipt.stream_id
            assert receipt.seq
            ledger.acknowledge(name(number), Place(receipt.event_id, receipt.stream_id, receipt.seq))


def record_of(key: tuple[str, int], line: bytes) -> Record:
    attributes = {"audit.sequence.stream_id": key[0], "audit.sequence.number": key[1]}
    return replace(RECORD, body=line.decode(), attributes=attributes)


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    (tmp_path / "ledger").mkdir()
    log_three(tmp_path / "journal", tmp_path / "ledger")
    journal = read_journal(tmp_path / "journal", tmp_path / "scratch", writers={INSTANCE})
    records = [record_of(key, line) for key, line in [*journal.ledger.items(), *journal.lines.items()]]
    status = {"emitted": 3, "exported": 3, "pending": 0, "quarantined": 0, "dropped": 0, "system": 1}
    return Evidence(read_ledger(tmp_path / "ledger"), journal, records, status)


def test_when_all_is_well_nothing_is_found(evidence: Evidence) -> None:
    delivery = evidence.judged()

    assert list(delivery.problems) == []
    counts = (delivery.intended, delivery.acknowledged, delivery.delivered, delivery.lost, delivery.duplicates)
    assert counts == (3, 3, 3, 0, 0)


def test_an_acknowledged_event_that_did_not_arrive_is_lost(evidence: Evidence) -> None:
    del evidence.records[evidence.numbers_of(name(1))[0]]

    delivery = evidence.judged()

    assert (delivery.delivered, delivery.lost) == (2, 1)
    assert "1 x acknowledged event that is lost" in evidence.problems()
    assert "1 x line of the journal that is not in the archive" in evidence.problems()


def test_a_record_that_came_twice_is_a_duplicate_and_no_problem(evidence: Evidence) -> None:
    evidence.records.append(evidence.records[-1])

    delivery = evidence.judged()

    assert delivery.duplicates == 1
    assert list(delivery.problems) == []


def test_an_event_that_nobody_meant_to_log_is_found(evidence: Evidence) -> None:
    evidence.ledger.intended.remove(name(2))
    del evidence.ledger.acknowledged[name(2)]

    assert evidence.judged().invented == 1
    assert evidence.problems() == ["1 x event that nobody logged"]


def test_a_record_that_was_changed_on_its_way_is_found(evidence: Evidence) -> None:
    (number,) = evidence.numbers_of(name(1))
    changed = evidence.records[number].body.replace('"test"', '"fest"')
    evidence.records[number] = replace(evidence.records[number], body=changed)

    assert evidence.judged().lost == 1
    assert "1 x record that differs from the journal's line" in evidence.problems()


def test_a_record_that_no_journal_has_is_found(evidence: Evidence) -> None:
    evidence.records.append(replace(RECORD, body="hello"))

    assert evidence.problems() == ["1 x record that is no line of a journal"]


def test_a_record_under_the_name_of_its_exporter_is_found(evidence: Evidence) -> None:
    evidence.records[-1] = replace(evidence.records[-1], resource={"service.instance.id": "shipper-0-1"})

    assert evidence.problems() == ["1 x record with the resource of another process"]


def test_attributes_that_name_another_line_are_found(evidence: Evidence) -> None:
    record = evidence.records[-1]
    evidence.records[-1] = replace(record, attributes={**record.attributes, "audit.sequence.number": 77})

    assert evidence.problems() == ["1 x record whose attributes name another line"]


def test_a_receipt_for_another_line_is_found(evidence: Evidence) -> None:
    place = evidence.ledger.acknowledged[name(0)]
    evidence.ledger.acknowledged[name(0)] = place._replace(seq=place.seq + 1)

    assert evidence.problems() == ["1 x receipt that names a line without its event"]


def test_an_event_that_was_refused_and_came_all_the_same_is_found(evidence: Evidence) -> None:
    del evidence.ledger.acknowledged[name(2)]
    evidence.ledger.refused.add(name(2))

    assert "1 x event that was said not to be recorded, and was" in evidence.problems()
    assert "1 x loss that is told wrong" in evidence.problems()


def test_an_event_of_a_call_that_never_returned_may_arrive(evidence: Evidence) -> None:
    del evidence.ledger.acknowledged[name(2)]

    assert evidence.judged().unanswered == 1
    assert evidence.problems() == []


def test_what_forked_children_refused_is_told_by_them_together(evidence: Evidence) -> None:
    child = f"{child_of(INSTANCE, 1)}.0.1"
    evidence.ledger.intended.add(child)
    evidence.ledger.refused.add(child)
    assert evidence.problems() == []

    evidence.journal.told[FORKED] = 2

    assert "1 x loss that is told wrong" in evidence.problems()


def test_a_status_that_forgets_an_event_is_found(evidence: Evidence) -> None:
    evidence.status["exported"] = 2

    assert evidence.problems() == ["1 x status that does not add up"]


def test_the_stock_contender_is_judged_by_the_bodies() -> None:
    ledger = Ledger({"a", "b", "c", "d"}, dict.fromkeys("abc", NO_PLACE))
    records = [replace(RECORD, body=body) for body in ("a", "a", "d", "x")]

    delivery = judge_stock(ledger, records)

    counts = (delivery.acknowledged, delivery.delivered, delivery.lost, delivery.duplicates, delivery.invented)
    assert counts == (3, 1, 2, 1, 1)


def test_a_broken_chain_is_no_evidence(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    log_three(tmp_path / "journal", tmp_path / "ledger")
    (segment,) = (tmp_path / "journal").glob("*-*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(name(1).encode(), name(7).encode()))

    with pytest.raises(AssertionError, match="breaks the chain"):
        read_journal(tmp_path / "journal", tmp_path / "scratch", writers={INSTANCE})


def test_a_piece_of_a_line_is_counted_where_a_writer_died_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    log_three(tmp_path / "journal", tmp_path / "ledger")
    (segment,) = (tmp_path / "journal").glob("*-*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"event_type":"te')

    assert read_journal(tmp_path / "journal", tmp_path / "scratch", writers={INSTANCE}).pieces == 1

    following = segment.with_name(segment.name.replace("00000001", "00000002"))
    following.write_bytes(b'{"system":"segment","segment":{"number":2}}\n')
    with pytest.raises(AssertionError, match="name the damage"):
        read_journal(tmp_path / "journal", tmp_path / "again", writers={INSTANCE})


def test_what_retention_removed_is_read_from_the_archive_if_the_ledger_tells_of_it(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    log_three(tmp_path / "journal", tmp_path / "ledger")
    before = read_journal(tmp_path / "journal", tmp_path / "scratch", writers={INSTANCE})
    records = [record_of(key, line) for key, line in before.lines.items()]
    (segment,) = (tmp_path / "journal").glob("*-*.jsonl")
    segment.unlink()

    with pytest.raises(AssertionError, match="an entry for each removal"):
        read_journal(tmp_path / "journal", tmp_path / "untold", writers={INSTANCE}, archive=records)

    stream_id, last_seq = max(before.lines)
    last_hash = sha256(before.lines[stream_id, last_seq]).hexdigest()
    entry = {"kind": "retain", "retain": {"stream_id": stream_id, "last_seq": last_seq, "last_hash": last_hash}}
    (tmp_path / "journal" / "ledger.jsonl").write_text(json.dumps({"number": 1, "prev_hash": None, **entry}) + "\n")
    after = read_journal(tmp_path / "journal", tmp_path / "told", writers={INSTANCE}, archive=records)
    assert after.lines == before.lines
    assert after.put_back == 4


def test_a_ledger_that_was_cut_in_a_line_is_read_up_to_it(tmp_path: Path) -> None:
    ledger = LedgerFile(tmp_path, INSTANCE)
    ledger.intend(name(1))
    ledger.refuse(name(1))
    ledger.intend(name(2))
    with (tmp_path / f"{INSTANCE}.ledger").open("ab") as file:
        file.write(b"a writer-0-1.0.2 an-id a-str")

    found = read_ledger(tmp_path)

    assert found.refused == {name(1)}
    assert found.unanswered == {name(2)}


def test_a_ledger_that_is_changed_holed_missing_or_cut_before_its_note_is_found(evidence: Evidence) -> None:
    ledger = [record for record in evidence.records if record.body.encode() in evidence.journal.ledger.values()]
    others = [record for record in evidence.records if record not in ledger]
    changed = replace(ledger[1], body=ledger[1].body.replace("otel", "OTEL", 1))

    for records, problem in (
        ([*ledger[:1], changed, *ledger[2:]], "1 x record that differs from the journal's line"),
        ([*ledger[:1], *ledger[2:]], "1 x ledger with a hole in the archive"),
        ([], "1 x ledger that is not in the archive"),
        (ledger[:-1], "1 x ledger that ends without a note in the archive"),
    ):
        evidence.records = [*others, *records]
        assert problem in evidence.problems()
