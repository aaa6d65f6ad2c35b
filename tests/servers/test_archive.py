"""The reader of archives, on what a killed file exporter leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.servers.archive import parse_archive, read_archive


def request(*bodies: str) -> bytes:
    records = [{"body": {"stringValue": body}, "attributes": []} for body in bodies]
    tree: dict[str, Any] = {"resourceLogs": [{"resource": {}, "scopeLogs": [{"scope": {}, "logRecords": records}]}]}
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()


def bodies_in(content: bytes) -> list[str]:
    return [record.body for record in parse_archive(content)]


# Texts that look like the start of a request are among the bodies: they must not be taken for one.
texts = (
    st.text(st.characters(exclude_categories=["Cs"])) | st.just('{"resourceLogs":') | st.just('\\"{"resourceLogs":[')
)


@given(st.lists(texts, max_size=4), st.booleans())
def test_requests_are_found_with_and_without_the_newline_between_them(bodies: list[str], newline: bool) -> None:
    content = (b"\n" if newline else b"").join(request(body) for body in bodies)

    assert bodies_in(content) == bodies


@given(texts, texts, st.data())
def test_a_torn_request_costs_only_itself(lost: str, kept: str, data: st.DataObject) -> None:
    whole = request(lost)
    torn = whole[: data.draw(st.integers(0, len(whole) - 1))]

    assert bodies_in(request("first") + b"\n" + torn + request(kept) + b"\n") == ["first", kept]
    assert bodies_in(torn + b"\n" + request(kept)) == [kept]
    assert bodies_in(request("first") + b"\n" + torn) == ["first"]


def test_rotated_files_come_before_the_current_one_and_oldest_first(tmp_path: Path) -> None:
    current = tmp_path / "audit.jsonl"
    (tmp_path / "audit-2026-01-02T00-00-00.000-size.jsonl").write_bytes(request("second"))
    (tmp_path / "audit-2026-01-01T00-00-00.000-size.jsonl").write_bytes(request("first"))
    current.write_bytes(request("third"))

    assert [record.body for record in read_archive(current)] == ["first", "second", "third"]


def test_every_kind_of_value_becomes_its_python_value() -> None:
    values: dict[str, Any] = {
        "int": {"intValue": str(2**63 - 1)},
        "double": {"doubleValue": 0.5},
        "infinity": {"doubleValue": "Infinity"},
        "bytes": {"bytesValue": "AAE="},
        "list": {"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": "1"}]}},
        "empty list": {"arrayValue": {}},
        "map": {"kvlistValue": {"values": [{"key": "k", "value": {"boolValue": False}}]}},
        "none": {},
    }
    pairs = [{"key": key, "value": value} for key, value in values.items()]
    content = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"attributes": pairs}]}]}]}

    (record,) = parse_archive(json.dumps(content, separators=(",", ":")).encode())

    assert record.attributes == {
        "int": 2**63 - 1,
        "double": 0.5,
        "infinity": float("inf"),
        "bytes": b"\x00\x01",
        "list": ["a", 1],
        "empty list": [],
        "map": {"k": False},
        "none": None,
    }
