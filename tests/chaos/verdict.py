"""Whether the contender kept its word: the ledger against what the collector has, and against the journal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.journal_copy import JournalCopy
from tests.chaos.ledger import Ledger, instance_of
from tests.servers import Record, parse_archive

__all__ = ["Delivery", "Problems", "archived", "judge_ours", "judge_stock"]


class Problems:
    """What should not be, by kind, with the first example of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, kind: str, example: object = "") -> None:
        """One more of this kind."""
        self._counts[kind] += 1
        self._examples.setdefault(kind, str(example))

    def __iter__(self) -> Iterator[str]:
        return (f"{count} x {kind}: {self._examples[kind]}" for kind, count in self._counts.items())


@dataclass(slots=True)
class Delivery:
    """What became of the events. `acknowledged = delivered + lost`; `unanswered` calls ended with their process."""

    intended: int
    acknowledged: int
    refused: int
    unanswered: int
    delivered: int = 0
    lost: int = 0
    duplicates: int = 0
    invented: int = 0
    problems: Problems = field(default_factory=Problems)

    @classmethod
    def of(cls, ledger: Ledger) -> Delivery:
        """Before the archive is looked at."""
        return cls(len(ledger.intended), len(ledger.acknowledged), len(ledger.refused), len(ledger.unanswered))


def archived(path: Path) -> Iterator[Record]:
    """The records of an archive and of the files that it was rotated into; one file at a time in memory."""
    for file in [*sorted(path.parent.glob(f"{path.stem}-*{path.suffix}")), path]:
        if file.exists():
            yield from parse_archive(file.read_bytes())


def judge_stock(ledger: Ledger, records: Iterable[Record]) -> Delivery:
    """By the names of the events, which are the bodies."""
    return _settled(ledger, Counter(record.body for record in records))


def judge_ours(
    ledger: Ledger, records: Iterable[Record], journal: JournalCopy, status: Mapping[str, Any], *, calm: Set[str]
) -> Delivery:
    """By the names of the events; and every record is a line of the journal, and every line is delivered.

    `calm`: the writers that came to their end when nothing was wrong any more.
    """
    problems = Problems()
    seen: Counter[tuple[str, int]] = Counter()
    for record in records:
        if (key := _key_of(record, journal, problems)) is not None:
            seen[key] += 1
    signed = {key for key in seen if key in journal.ledger}
    for key in signed:
        del seen[key]
    _check_ledger(signed, journal, problems)
    for key in journal.lines.keys() - seen.keys():
        problems.add("line of the journal that is not in the archive", key)
    _check_receipts(ledger, journal, problems)
    _check_status(journal, status, problems)
    _check_losses(ledger, journal, calm, problems)
    copies = Counter({name: seen[key] for key, name in journal.names.items() if seen[key]})
    delivery = _settled(ledger, copies, problems)
    # The journal's own lines may come twice too.
    delivery.duplicates = seen.total() - len(seen)
    return delivery


def _settled(ledger: Ledger, copies: Counter[str], problems: Problems | None = None) -> Delivery:
    """Count by name: `copies` says how often each event arrived."""
    delivery = Delivery.of(ledger)
    delivery.problems = problems or Problems()
    delivery.delivered = len(ledger.acknowledged.keys() & copies.keys())
    delivery.lost = delivery.acknowledged - delivery.delivered
    delivery.duplicates = copies.total() - len(copies)
    delivery.invented = len(copies.keys() - ledger.intended)
    for name in sorted(ledger.acknowledged.keys() - copies.keys()):
        delivery.problems.add("acknowledged event that is lost", f"{name} {ledger.acknowledged[name]}")
    for name in sorted(copies.keys() - ledger.intended):
        delivery.problems.add("event that nobody logged", name)
    for name in sorted(copies.keys() & ledger.refused):
        delivery.problems.add("event that was said not to be recorded, and was", name)
    return delivery


def _check_ledger(arrived: Set[tuple[str, int]], journal: JournalCopy, problems: Problems) -> None:
    """Of the ledger everything up to some note is there; what comes behind it may be on its way."""
    for stream_id in {stream_id for stream_id, _ in journal.ledger}:
        numbers = {seq for each, seq in arrived if each == stream_id}
        if numbers != set(range(1, len(numbers) + 1)):
            problems.add("ledger with a hole in the archive", stream_id)
        elif not numbers:
            problems.add("ledger that is not in the archive", stream_id)
        elif json.loads(journal.ledger[stream_id, len(numbers)]).get("system") != "note":
            problems.add("ledger that ends without a note in the archive", (stream_id, len(numbers)))


def _key_of(record: Record, journal: JournalCopy, problems: Problems) -> tuple[str, int] | None:
    """Stream and number of a record, if it is what the journal has there."""
    try:
        event = json.loads(record.body)
        key = event["stream_id"], event["seq"]
    except (ValueError, KeyError, TypeError):
        problems.add("record that is no line of a journal", record.body[:200])
        return None
    if (journal.lines.get(key) or journal.ledger.get(key)) != record.body.encode():
        problems.add("record that differs from the journal's line", f"{key} {record.body[:200]}")
        return None
    said = record.attributes.get("audit.sequence.stream_id"), record.attributes.get("audit.sequence.number")
    if said != key:
        problems.add("record whose attributes name another line", f"{key} {said}")
    if key not in journal.ledger and record.resource.get("service.instance.id") != journal.instances[key[0]]:
        problems.add("record with the resource of another process", f"{key} {record.resource}")
    return key


def _check_receipts(ledger: Ledger, journal: JournalCopy, problems: Problems) -> None:
    """Each receipt names the line in which the event is."""
    for name, place in ledger.acknowledged.items():
        line = journal.lines.get((place.stream_id, place.seq))
        event = json.loads(line) if line is not None else {}
        if (event.get("request_id"), event.get("event_id")) != (name, place.event_id):
            problems.add("receipt that names a line without its event", f"{name} {place} {event}")


def _check_status(journal: JournalCopy, status: Mapping[str, Any], problems: Problems) -> None:
    """`otel-audit status` against what was counted here."""
    expected = {
        "emitted": len(journal.names) + journal.told.total(),
        "exported": len(journal.names),
        "pending": 0,
        "quarantined": 0,
        "dropped": journal.told.total(),
        "system": journal.system,
    }
    said = {name: status.get(name) for name in expected}
    if said != expected:
        problems.add("status that does not add up", f"expected {expected}, got {said}")


def _check_losses(ledger: Ledger, journal: JournalCopy, calm: Set[str], problems: Problems) -> None:
    """What was refused against what the gaps in the journal tell."""
    refused = Counter(map(instance_of, ledger.refused))
    unanswered = Counter(map(instance_of, ledger.unanswered))
    for instance in refused.keys() | journal.told.keys():
        told, most = journal.told[instance], refused[instance] + unanswered[instance]
        # One that ended while the disk was full had no room to tell of its losses; its callers were told of each.
        if told > most or (instance in calm and told != refused[instance]):
            example = f"{instance}: {told} in its gaps, {refused[instance]} refused, {unanswered[instance]} unanswered"
            problems.add("loss that is told wrong", example)
