"""The schema of an event, and the page made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
from click.testing import CliRunner
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from otel_audit.attributes import ATTRIBUTES
from otel_audit.cli.schema import event_schema, schema, schema_markdown
from otel_audit.event import AuditEvent
from tests.journal_lines import HEADER, line_of, raw_line

PRESENCE = {"always", "when set"}
DOCS = Path(__file__).parents[1] / "docs"


def validator(part: str = "") -> jsonschema.Draft202012Validator:
    whole = event_schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    known = Registry().with_resource(whole["$id"], DRAFT202012.create_resource(whole))
    return jsonschema.Draft202012Validator({"$ref": whole["$id"] + part}, registry=known)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(schema, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_event_is_valid_under_its_schema() -> None:
    validator().validate(json.loads(AuditEvent(event_type="invoice.paid", outcome="success").to_jsonl()))


def test_journal_lines_are_valid_under_the_schema_of_a_line() -> None:
    lines = validator("#/$defs/JournalLine")

    lines.validate(json.loads(line_of(AuditEvent(event_type="invoice.paid"))))
    lines.validate(json.loads(raw_line({"system": "segment", "event_type": "audit.segment", "segment": HEADER})))


@pytest.mark.parametrize(
    "bad",
    [
        {"event_type": 7},
        {"event_type": "x", "outcome": 1},
        {"event_type": "x", "principal": {"roles": "admin"}},
        {"event_type": "x", "attributes": {"deep": {"a": 1}}},
        {},
    ],
    ids=repr,
)
def test_what_is_no_event_is_invalid(bad: dict[str, Any]) -> None:
    assert list(validator().iter_errors(bad))


@pytest.mark.parametrize("missing", ["time_ns", "observed_ns", "stream_id", "seq"])
def test_a_line_without_a_key_of_the_journal_is_invalid(missing: str) -> None:
    line = json.loads(line_of(AuditEvent(event_type="x")))
    del line[missing]

    assert list(validator("#/$defs/JournalLine").iter_errors(line))


def test_without_an_option_the_command_prints_the_json_schema() -> None:
    assert json.loads(run()) == json.loads(run("--json")) == event_schema()


def test_the_attribute_table_has_a_line_for_each_key() -> None:
    head, *rows = run("--attributes").splitlines()

    assert head.split() == ["key", "type", "from", "named", "by"]
    assert [row.split()[0] for row in rows] == [row.key for row in ATTRIBUTES]


def test_the_page_in_the_docs_is_up_to_date() -> None:
    """Renew it with `otel-audit schema --markdown > docs/schema.md`."""
    assert run("--markdown") == schema_markdown()
    assert (DOCS / "schema.md").read_text(encoding="utf-8") == schema_markdown()


def test_the_page_says_something_about_every_field() -> None:
    rows = [line.split(" | ") for line in schema_markdown().splitlines() if line.startswith("| `")]

    fields = {row[0]: row[3].removesuffix("|").strip() for row in rows if len(row) == 4 and row[2] in PRESENCE}

    assert len(fields) > 30
    assert all(fields.values())
