"""The schema of an event, and the page made from it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from otel_audit.cli.schema import event_schema, schema, schema_markdown
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.journal.files import StreamFiles, segments_in
from otel_audit.logger import AuditLogger
from otel_audit.records.attributes import ATTRIBUTES
from tests.examples import examples
from tests.journal_lines import HEADER, line_of, raw_line
from tests.recording import a_trail, recorder

PRESENCE = {"always", "when set"}
DOCS = Path(__file__).parents[2] / "docs"


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


TEXTS = st.text(max_size=20) | st.sampled_from(
    ["success", "deny", "\ud800", "x" * 5000, "a\0b", "Bearer abcdefghijklmnop"]
)
PRINCIPALS = st.builds(
    AuditPrincipal,
    username=TEXTS,
    roles=st.lists(TEXTS, max_size=3),
    kind=st.sampled_from([None, "user", "service", "system"]),
    on_behalf_of=st.none() | TEXTS,
)
RESOURCES = st.builds(AuditResource, type=TEXTS, name=TEXTS, actions=st.lists(TEXTS, max_size=3))
SCALARS = st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS
EVENTS = st.builds(
    AuditEvent,
    event_type=TEXTS,
    timestamp=TEXTS,
    trace_id=st.none() | TEXTS,
    span_id=st.none() | TEXTS,
    jsonrpc_id=st.none() | TEXTS,
    principal=PRINCIPALS,
    source=st.builds(AuditSource, ip=TEXTS, transport=TEXTS, user_agent=st.none() | TEXTS),
    action=st.builds(AuditAction, path=TEXTS, method=st.none() | TEXTS, arguments_digest=st.none() | TEXTS),
    resource=RESOURCES,
    outcome=TEXTS,
    duration_ms=st.none() | st.floats(),
    status_code=st.none() | st.integers(-(10**3), 10**3),
    reason=st.none() | TEXTS,
    attributes=st.none() | st.dictionaries(TEXTS, SCALARS | st.lists(SCALARS, max_size=3), max_size=4),
)


@examples(30, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(EVENTS, TEXTS, PRINCIPALS, RESOURCES, st.none() | st.floats()), min_size=1, max_size=5))
def test_whatever_is_logged_is_a_line_of_the_schema(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[AuditEvent, str, AuditPrincipal, AuditResource, float]]
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    with recorder(directory) as audit:
        for event, text, principal, resource, duration_ms in calls:
            audit.log(event)
            audit.log_mcp_call(
                tool_name=text, principal=principal, outcome=text, duration_ms=duration_ms, resource=resource
            )
            audit.log_http_request(
                method=text, path=text, principal=principal, status_code=200, duration_ms=duration_ms, outcome=text
            )
            audit.log_authn(outcome=text, principal=principal, detail=text)
            audit.log_authz(outcome=text, principal=principal, resource=resource, detail=text)

    of_a_line, of_an_event = validator("#/$defs/JournalLine"), validator()
    lines = lines_in(directory)
    assert len(lines) == 1 + 5 * len(calls)
    for line in lines:
        of_a_line.validate(line)
        of_an_event.validate(line)


def lines_in(directory: Path) -> list[dict[str, Any]]:
    """The lines of the one segment of the one stream."""
    ((stream_id, (number,)),) = segments_in(directory).items()
    return [
        json.loads(line) for line in StreamFiles(directory, stream_id).segment(number).read_bytes().split(b"\n")[:-1]
    ]


def test_what_the_journal_says_itself_is_a_line_of_the_schema(tmp_path: Path) -> None:
    with closing(AuditLogger(a_trail(tmp_path, durability="fsync"))) as audit:
        audit.log(AuditEvent(event_type="invoice.paid"))
        ((stream_id, _),) = segments_in(tmp_path).items()
        StreamFiles(tmp_path, stream_id).segment(1).unlink()
        audit.log(AuditEvent(event_type="invoice.paid"))

    lines = lines_in(tmp_path)
    assert [line.get("system") for line in lines] == ["segment", None, None, "gap"]
    for line in lines:
        validator("#/$defs/JournalLine").validate(line)


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
