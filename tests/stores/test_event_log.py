"""Lines of a log of events as journal lines: the same ids whenever they are made, and the caller's bytes kept."""

from __future__ import annotations

import json
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.delivery.jsonl import ADDED_KEYS, as_given
from otel_audit.records.encoding import UnreadableLine, read_line
from otel_audit.stores.event_log import EventLog
from tests.replaying.logs import a_line

FIRST = a_line(1).encode()
keys = st.text(max_size=5).filter(lambda key: key not in {"event_type", "timestamp", *ADDED_KEYS})
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def test_what_a_line_lacks_is_derived_from_the_log() -> None:
    log = EventLog(FIRST)

    event = json.loads(log.line(a_line(2).encode(), 7))

    assert event["stream_id"] == log.stream_id
    assert event["seq"] == 7
    assert event["time_ns"] == event["observed_ns"] == 1_767_225_602_250_000_000
    assert {(UUID(event[key]).version, UUID(event[key]).variant) for key in ("event_id", "stream_id")} == {
        (8, RFC_4122)
    }


def test_ids_are_those_of_every_reading() -> None:
    """Written down: another version of this package must make them too."""
    event = json.loads(EventLog(b'{"event_type":"a"}').line(b'{"event_type":"b"}', 2))

    assert event["stream_id"] == "961d407d-f368-8f64-beeb-7aaf2dfc9a4b"
    assert event["event_id"] == "29666e3a-5f84-8c9e-af97-946a333a5e11"


def test_an_id_differs_with_the_bytes_the_place_and_the_log() -> None:
    ids = {
        json.loads(EventLog(first).line(line, number))["event_id"]
        for first in (FIRST, a_line(2).encode())
        for line in (a_line(3).encode(), a_line(4).encode())
        for number in (1, 2)
    }

    assert len(ids) == 8


def test_a_line_with_an_id_keeps_it() -> None:
    event = json.loads(EventLog(FIRST).line(a_line(1, event_id="own").encode(), 1))

    assert event["event_id"] == "own"
    assert event["seq"] == 1


@pytest.mark.parametrize("given_id", ['""', "null", "5"])
def test_what_is_no_id_is_replaced(given_id: str) -> None:
    line = b'{"event_type":"a","event_id":%b,"outcome":"success"}' % given_id.encode()

    event = read_line(EventLog(FIRST).line(line, 1))

    assert UUID(event["event_id"]).version == 8
    assert event["outcome"] == "success"


def test_a_line_of_a_journal_stays_as_it_is() -> None:
    line = EventLog(FIRST).line(FIRST, 1)

    assert EventLog(b"another").line(line, 9) == line


def test_keys_of_a_journal_that_are_not_whole_are_replaced() -> None:
    event = read_line(EventLog(FIRST).line(b'{"event_type":"a","seq":"x","prev_hash":"y","stream_id":"z"}', 3))

    assert event["seq"] == 3
    assert event["stream_id"] == EventLog(FIRST).stream_id
    assert "prev_hash" not in event


@pytest.mark.parametrize("timestamp", ['""', "5", '"yesterday"', '"2026-01-01T00:00:00"', "null"])
def test_a_time_that_is_none_is_unknown(timestamp: str) -> None:
    event = read_line(EventLog(FIRST).line(b'{"event_type":"a","timestamp":%b}' % timestamp.encode(), 1))

    assert event["time_ns"] == event["observed_ns"] == 0


@pytest.mark.parametrize("line", [b"{}", b"5", b"{", b'{"event_type":5}', b'{"event_type":"\xff"}', b"[" * 10_000])
def test_what_is_no_event_is_unreadable(line: bytes) -> None:
    with pytest.raises(UnreadableLine, match="expected"):
        EventLog(FIRST).line(line, 1)


@given(st.dictionaries(keys, values, max_size=5), st.integers(1, 2**40))
def test_the_bytes_of_the_event_come_back(fields: dict[str, object], number: int) -> None:
    line = json.dumps({"event_type": "a", **fields}, ensure_ascii=False, separators=(",", ":"))
    try:
        content = line.encode()
    except UnicodeEncodeError:
        return

    assert as_given(EventLog(FIRST).line(content, number)) == content
