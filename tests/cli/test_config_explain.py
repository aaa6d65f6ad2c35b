"""`otel-audit config --explain` says which rule an event meets, and what a logger really does with that event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otel_audit.cli.config import config
from otel_audit.event import AuditEvent
from tests.chain_check import application_events, read_streams
from tests.recording import recorder

POLICY = """\
rules:
  - {type: http.request, route: "/health*", keep: false}
  - type: http.request
    outcome: [denied, error]
    level: metadata
    on_loss: closed
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def explain(event: object, *arguments: str, **environ: str) -> Result:
    given = event if isinstance(event, bytes) else json.dumps(event).encode()
    return CliRunner().invoke(config, ["--explain", "-", *arguments], input=given, env=environ)


def rows(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines()}


DENIED: Mapping[str, Any] = {
    "event_type": "http.request",
    "action": {"path": "/orders/7?token=x"},
    "principal": {"username": "ann"},
    "outcome": "deny",
}


def test_the_rule_is_named_with_its_place_and_what_follows_from_it(policy: Path) -> None:
    said = rows(explain(DENIED, OTEL_AUDIT_POLICY=str(policy)))

    assert said["event"] == "type 'http.request', route '/orders/7', actor 'ann', outcome 'deny', which is denied"
    assert said["rule"] == f"{policy}:3:5: $.rules[1]: type: http.request, outcome: denied or error"
    assert said["level"] == "metadata: recorded without detail, attributes and arguments_digest"
    assert said["on_loss"] == "closed: when it cannot be recorded, AuditUnavailable is raised"
    assert said["operation"].startswith("an operation() begins with an event of its own")


def test_an_event_that_is_not_kept_is_said_to_be_only_counted(policy: Path) -> None:
    said = rows(explain({**DENIED, "action": {"path": "/healthz"}}, OTEL_AUDIT_POLICY=str(policy)))

    assert said["rule"].endswith(f"{policy}:2:5: $.rules[0]: type: http.request, route: /health*")
    assert said["level"] == "none: not recorded, only counted"
    assert "on_loss" not in said


def test_an_event_of_no_rule_gets_the_defaults(policy: Path) -> None:
    said = rows(explain({"event_type": "x"}, OTEL_AUDIT_POLICY=str(policy)))

    assert said["event"] == "type 'x', outcome '', which is unknown"
    assert said["rule"] == f"none of the 2 in {policy}: the defaults"
    assert said["level"] == "request: recorded whole"
    assert said["on_loss"].startswith("open: ")
    assert said["operation"] == "an operation() is recorded once, when it ends"


def test_without_a_policy_the_settings_are_explained() -> None:
    read = {"event_type": "mcp.tools.call", "action": {"mcp_tool": "get_online_features"}, "outcome": "success"}

    assert rows(explain(read))["rule"] == "none: OTEL_AUDIT_POLICY is not set"
    said = rows(explain(read, OTEL_AUDIT_LOG_SUCCESSFUL_READS="false", OTEL_AUDIT_ON_LOSS="closed"))
    assert said["rule"].startswith("log_successful_reads is false")
    assert said["level"].startswith("none")
    assert said["operation"].startswith("an operation() begins")


def test_json_has_the_same_for_machines(policy: Path) -> None:
    result = explain(DENIED, "--json", OTEL_AUDIT_POLICY=str(policy))

    said = json.loads(result.stdout)
    assert len(said.pop("policy_hash")) == 64
    assert said == {
        "policy": str(policy),
        "rule": {
            "line": 3,
            "column": 5,
            "conditions": {"type": ["http.request"], "outcome": ["denied", "error"]},
        },
        "log_successful_reads": True,
        "keep": True,
        "level": "metadata",
        "on_loss": "closed",
        "tags": [],
        "operation_begins": True,
    }


def test_a_line_of_the_journal_can_be_asked_about_as_it_stands(tmp_path: Path, policy: Path) -> None:
    with recorder(tmp_path / "journal") as audit:
        audit.log(AuditEvent(**DENIED))
    (line,) = application_events(tmp_path / "journal")
    ((header, _),) = read_streams(tmp_path / "journal").values()

    assert rows(explain(line, OTEL_AUDIT_POLICY=str(policy)))["rule"].startswith(f"{policy}:3:5: ")
    refused = explain(header)
    assert refused.exit_code == 2
    assert "got one of the journal" in refused.stderr


def test_a_file_is_read_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text('{"event_type": "x"')

    result = CliRunner().invoke(config, ["--explain", str(tmp_path / "event.json")])

    assert result.exit_code == 2
    assert f"{tmp_path}/event.json:1:19: expected one event as JSON" in result.stderr


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b"", "expected one event as JSON"),
        (b"\xff", "expected one event as JSON"),
        (b"[" * 100_000, "expected one event as JSON"),
        ([1], "expected one event, a JSON object, got list"),
        ({}, "$.event_type: expected the type of the event, got none"),
        ({"event_type": 7}, "$.event_type: expected a value of the type in docs/schema.md, got int"),
        (
            {"event_type": "x", "principal": {"username": 7}},
            "$.principal.username: expected a value of the type in docs/schema.md, got int",
        ),
        (
            {"event_type": "x", "principal": "ann"},
            "$.principal: expected a value of the type in docs/schema.md, got str",
        ),
        (
            {"event_type": "x", "attributes": {"a": {}}},
            "$.attributes: expected a value of the type in docs/schema.md, got dict",
        ),
        (
            {"event_type": "x", "principle": {}},
            "$: expected a field of an event, got 'principle'; did you mean principal",
        ),
        ({"event_type": "x", "action": {"tool": "t"}}, "$.action: expected a field of an event, got 'tool'; "),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_event_is_refused(event: object, message: str) -> None:
    result = explain(event)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr


def test_a_broken_policy_is_refused_with_its_place(policy: Path) -> None:
    policy.write_text("rules:\n  - kep: false\n")

    results = [
        explain(DENIED, OTEL_AUDIT_POLICY=str(policy)),
        CliRunner().invoke(config, env={"OTEL_AUDIT_POLICY": str(policy)}),
    ]

    for result in results:
        assert result.exit_code == 2
        assert f"{policy}:2:5: $.rules[0]: unknown key 'kep'; did you mean keep?" in result.stderr


def test_the_tags_that_a_rule_gives_are_explained(tmp_path: Path) -> None:
    policy = tmp_path / "tags.yaml"
    policy.write_text("rules: [{outcome: denied, tags: [privileged, admin]}]")

    text = explain(DENIED, OTEL_AUDIT_POLICY=str(policy)).stdout

    assert "tags       privileged, admin\n" in text
    assert json.loads(explain(DENIED, "--json", OTEL_AUDIT_POLICY=str(policy)).stdout)["tags"] == [
        "privileged",
        "admin",
    ]
