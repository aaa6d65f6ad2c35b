"""What must hold once a process is gone: its directory and the collector's archive have the same events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from otel_audit.journal.census import census
from tests.chain_check import application_events, read_streams
from tests.end_to_end.services import events_in_archive, service_environment
from tests.end_to_end.test_main_path import otel_audit
from tests.servers import Collector, poll

__all__ = ["assert_archived", "assert_archived_once", "assert_streams_of_their_own", "ship", "writers"]


def ship(directory: Path, collector: Collector) -> None:
    """The next owner: it delivers what is left."""
    otel_audit("ship", "--once", str(directory), env=service_environment(collector.http_endpoint, directory))


def assert_archived_once(collector: Collector, directory: Path, acknowledged: Sequence[str]) -> None:
    """What is on disk and what is in the archive is the same, each once, and holds what was acknowledged."""
    assert_archived(collector, directory, acknowledged)
    assert set(events_in_archive(collector).values()) == {1}


def assert_archived(collector: Collector, directory: Path, acknowledged: Sequence[str]) -> None:
    """What is on disk and what is in the archive is the same, and holds what was acknowledged.

    In the archive an event may be more than once: where a process was stopped between the answer of the collector and
    its note of it, the next owner sends the batch again.
    """
    on_disk = Counter(event["event_id"] for event in application_events(directory))
    assert set(acknowledged) <= on_disk.keys()
    assert on_disk == dict.fromkeys(on_disk, 1)
    archived = poll(
        lambda: events_in_archive(collector),
        until=lambda seen: seen.keys() >= on_disk.keys(),
        what=f"{len(on_disk)} events in the archive",
    )
    assert archived.keys() == on_disk.keys()
    totals = census(directory).totals
    assert (totals.exported, totals.pending, totals.quarantined, totals.dropped) == (len(on_disk), 0, 0, 0)


def writers(directory: Path) -> list[tuple[int, list[str]]]:
    """By stream: the pid of its writer, and the ids of its events."""
    return [
        (events[0]["segment"]["pid"], [event["event_id"] for event in events if "system" not in event])
        for events in read_streams(directory).values()
    ]


def assert_streams_of_their_own(directory: Path, workers: set[int]) -> None:
    """Each process wrote one, and says who it is; among them are these pids."""
    pids = Counter(pid for pid, _ in writers(directory))
    assert workers <= pids.keys()
    assert pids == dict.fromkeys(pids, 1)
    headers = [events[0]["segment"]["resource"] for events in read_streams(directory).values()]
    assert len({header["service.instance.id"] for header in headers}) == len(headers)
