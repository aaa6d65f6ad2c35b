"""What a record's attributes say of the event: verdict, action, actor, request, call, and the caller's own."""

from __future__ import annotations

from typing import Any

import pytest

from otel_audit.event import Outcome
from otel_audit.records import attributes as keys
from otel_audit.records.attributes import MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES
from otel_audit.records.facts import verdict_of
from tests.journal_lines import STREAM_ID, raw_line
from tests.record_lines import MANDATORY, attributes_of, record_of, size_of


@pytest.mark.parametrize(
    ("word", "number", "text", "draft", "result"),
    [
        ("success", 9, "INFO", "success", Outcome.SUCCESS),
        ("allow", 9, "INFO", "success", Outcome.SUCCESS),
        ("", 9, "INFO", "unknown", Outcome.UNKNOWN),
        ("unknown", 9, "INFO", "unknown", Outcome.UNKNOWN),
        ("sucess", 9, "INFO", "unknown", Outcome.UNKNOWN),
        (["success"], 9, "INFO", "unknown", Outcome.UNKNOWN),
        ("failure", 13, "WARN", "failure", Outcome.FAILURE),
        ("denied", 13, "WARN", "failure", Outcome.DENIED),
        ("deny", 13, "WARN", "failure", Outcome.DENIED),
        ("cancelled", 13, "WARN", "failure", Outcome.CANCELLED),
        ("error", 17, "ERROR", "failure", Outcome.ERROR),
        ("mcp_error", 17, "ERROR", "failure", Outcome.ERROR),
    ],
)
def test_the_stored_word_decides_severity_and_outcome(
    word: object, number: int, text: str, draft: str, result: Outcome
) -> None:
    line = raw_line({"event_type": "x", "outcome": word})
    record, found = record_of(line), attributes_of(line)

    assert (record.severity_number, record.severity_text) == (number, text)
    assert (found[keys.OUTCOME], found[keys.RESULT]) == (draft, result.value)


def test_every_outcome_has_a_verdict() -> None:
    assert [verdict_of(outcome).result for outcome in Outcome] == list(Outcome)


@pytest.mark.parametrize(
    ("event", "action"),
    [
        ({"event_type": "http.request", "action": {"method": "GET"}}, "READ"),
        ({"event_type": "http.request", "action": {"method": "HEAD"}}, "READ"),
        ({"event_type": "http.request", "action": {"method": "OPTIONS"}}, "READ"),
        ({"event_type": "http.request", "action": {"method": "POST"}}, "CREATE"),
        ({"event_type": "http.request", "action": {"method": "PUT"}}, "UPDATE"),
        ({"event_type": "http.request", "action": {"method": "PATCH"}}, "UPDATE"),
        ({"event_type": "http.request", "detail": "DELETE /x -> 204"}, "DELETE"),
        ({"event_type": "http.request", "action": {"method": "BREW"}}, "EXECUTE"),
        ({"event_type": "http.request", "action": {"method": "GET", "verb": "EXPORT"}}, "EXPORT"),
        ({"event_type": "mcp.tools.call"}, "EXECUTE"),
        ({"event_type": "mcp.resources.read"}, "READ"),
        ({"event_type": "mcp.prompts.get"}, "READ"),
        ({"event_type": "authn.success"}, "LOGIN"),
        ({"event_type": "authn.failure"}, "LOGIN"),
        ({"event_type": "authz.decision"}, "EXECUTE"),
        ({"event_type": "authz.decision", "resource": {"actions": ["DELETE"]}}, "DELETE"),
        ({"event_type": "authz.decision", "resource": {"actions": ["READ", "DELETE"]}}, "EXECUTE"),
        ({"event_type": "invoice.paid"}, "EXECUTE"),
        ({"event_type": "invoice.paid", "action": {"verb": "APPROVE"}}, "APPROVE"),
        ({"event_type": "audit.segment"}, "EXECUTE"),
    ],
)
def test_the_action_is_the_verb_or_follows_from_the_type(event: dict[str, Any], action: str) -> None:
    assert attributes_of(raw_line(event))[keys.ACTION] == action


@pytest.mark.parametrize(
    ("principal", "actor"),
    [
        ({}, ("anonymous", "system")),
        ({"username": "alice"}, ("alice", "user")),
        ({"username": "cron", "kind": "service"}, ("cron", "service")),
        ({"username": "", "kind": "user"}, ("anonymous", "user")),
        ({"username": "alice", "kind": "robot"}, ("alice", "user")),
        ({"username": ["alice"], "kind": {}}, ("anonymous", "system")),
        ({"username": "alice", "id": "0815"}, ("0815", "user")),
        ({"username": "", "id": "0815"}, ("0815", "user")),
        ({"username": "alice", "id": ""}, ("alice", "user")),
        ({"username": "alice", "id": 7}, ("alice", "user")),
        ("alice", ("anonymous", "system")),
    ],
)
def test_there_is_always_an_actor(principal: object, actor: tuple[str, str]) -> None:
    found = attributes_of(raw_line({"event_type": "x", "principal": principal}))

    assert (found[keys.ACTOR_ID], found[keys.ACTOR_TYPE]) == actor


def test_the_name_and_the_issuer_of_an_actor_stand_beside_what_identifies_it() -> None:
    principal = {"username": "alice", "id": "0815", "issuer": "https://idp.example", "on_behalf_of": "bob"}
    event = {"event_type": "x", "principal": principal, "reason": "on call", "policy_id": "p7"}
    found = attributes_of(raw_line(event))

    assert found["audit.actor.id"] == "0815"
    assert found["audit.actor.name"] == "alice"
    assert found["audit.actor.issuer"] == "https://idp.example"
    assert (found["audit.actor.on_behalf_of"], found["audit.reason"], found["audit.policy.id"]) == (
        "bob", "on call", "p7",
    )  # fmt: skip


def http(event: dict[str, Any]) -> tuple[Any, Any, Any]:
    found = attributes_of(raw_line({"event_type": "http.request", **event}))
    return found.get(keys.HTTP_METHOD), found.get(keys.URL_PATH), found.get(keys.HTTP_STATUS_CODE)


def test_what_a_feast_event_says_only_in_its_detail_becomes_attributes() -> None:
    assert http({"action": {"path": "/a b"}, "detail": "POST /a b -> 403"}) == ("POST", "/a b", 403)
    assert http({"detail": "GET /x -> y -> 200"}) == ("GET", "/x -> y", 200)


def test_explicit_fields_go_before_the_detail() -> None:
    event = {"action": {"method": "PUT", "path": "/b"}, "status_code": 409, "detail": "POST /a -> 403"}

    assert http(event) == ("PUT", "/b", 409)


@pytest.mark.parametrize(
    "detail", ["", "POST", "-> 200", "POST /x", "POST /x -> ok", "POST /x -> ２００", "POST /x -> 999", 7]
)
def test_a_detail_in_another_form_says_no_status(detail: object) -> None:
    assert http({"detail": detail})[2] is None


def test_the_detail_of_another_event_is_never_taken_for_a_request() -> None:
    found = attributes_of(raw_line({"event_type": "invoice.paid", "detail": "POST /x -> 200"}))

    assert not found.keys() & {keys.HTTP_METHOD, keys.URL_PATH, keys.HTTP_STATUS_CODE}


def test_a_query_is_not_part_of_the_path() -> None:
    assert http({"action": {"path": "/x?token=abc"}})[1] == "/x"


def test_an_unknown_method_is_other_and_kept_beside() -> None:
    found = attributes_of(raw_line({"event_type": "http.request", "action": {"method": "BREW"}}))

    assert (found[keys.HTTP_METHOD], found[keys.HTTP_METHOD_ORIGINAL]) == ("_OTHER", "BREW")


def test_mcp_events_say_their_method_and_what_they_were_about() -> None:
    tool = attributes_of(raw_line({"event_type": "mcp.tools.call", "action": {"mcp_tool": "t"}}))
    named = attributes_of(raw_line({"event_type": "mcp.resources.read", "resource": {"name": "file:///a"}}))
    by_path = attributes_of(raw_line({"event_type": "mcp.resources.read", "action": {"path": "file:///b"}}))
    prompt = attributes_of(raw_line({"event_type": "mcp.prompts.get", "resource": {"name": "greet"}}))

    assert (tool[keys.MCP_METHOD], tool["gen_ai.tool.name"]) == ("tools/call", "t")
    assert (named[keys.MCP_METHOD], named[keys.MCP_RESOURCE_URI]) == ("resources/read", "file:///a")
    assert by_path[keys.MCP_RESOURCE_URI] == "file:///b"
    assert keys.URL_PATH not in by_path
    assert (prompt[keys.MCP_METHOD], prompt[keys.PROMPT_NAME]) == ("prompts/get", "greet")


def test_a_line_without_an_id_is_known_by_its_place() -> None:
    assert attributes_of(raw_line({"event_type": "x"}, seq=9))[keys.RECORD_ID] == f"{STREAM_ID}:9"


def test_what_a_client_claims_of_its_request_has_the_keys_that_are_made_for_it() -> None:
    claims = {"audit.request.claimed_id": "r-17", "audit.request.traceparent": "00-1-2-01"}

    found = attributes_of(raw_line({"event_type": "x", "attributes": claims}))

    assert claims.items() <= found.items()
    assert not [key for key in found if key.startswith("audit.attribute.")]


def test_own_attributes_keep_their_name_unless_it_would_pose_as_another_fact() -> None:
    given = {
        "tenant": "blue",
        "http.route": "/items/{id}",
        "audit.outcome": "success",
        "audit_result": "success",
        "audit.verified": True,
        "service_name": "other",
        "trace.id": "other",
        "client_address": "10.0.0.1",
        "X-Forwarded-For": "10.0.0.2",
        "a.b": 1,
        "a_b": 2,
        "A.B": 3,
    }
    line = raw_line({"event_type": "x", "outcome": "error", "attributes": given})
    found = attributes_of(line)

    assert (found["tenant"], found["http.route"], found["a.b"]) == ("blue", "/items/{id}", 1)
    assert (found["audit.outcome"], found["audit.attribute.audit.outcome"]) == ("failure", "success")
    assert found["audit.attribute.audit_result"] == "success"
    assert found["audit.attribute.audit.verified"] is True
    assert found["audit.attribute.service_name"] == "other"
    assert found["audit.attribute.trace.id"] == "other"
    assert found["audit.attribute.client_address"] == "10.0.0.1"
    assert found["audit.attribute.x_forwarded_for"] == "10.0.0.2"
    assert found["audit.attribute.a_b"] == 2
    assert record_of(line).dropped_attributes_count == 1  # A.B would overwrite a_b


def test_lists_of_mixed_types_become_lists_of_one_type() -> None:
    found = attributes_of(raw_line({"event_type": "x", "attributes": {"n": [1, 2.5], "m": [1, "b", True], "e": []}}))

    assert (found["n"], found["m"], found["e"]) == ([1.0, 2.5], ["1", "b", "true"], [])


def test_what_does_not_fit_is_the_callers_last_and_is_counted() -> None:
    line = raw_line({"event_type": "x", "attributes": {f"k{n:03}": n for n in range(100)}})
    found = attributes_of(line)
    kept = [key for key in found if key.startswith("k")]

    assert len(found) == MAX_ATTRIBUTES
    assert kept == [f"k{n:03}" for n in range(len(kept))]
    assert record_of(line).dropped_attributes_count == 100 - len(kept)


def test_a_huge_event_keeps_its_mandatory_attributes_within_the_limit() -> None:
    huge = "é" * 20_000
    line = raw_line(
        {
            "event_type": "x",
            "event_id": huge,
            "principal": {"username": huge, "roles": [huge]},
            "action": {"verb": huge},
            "resource": {"name": huge, "type": huge},
            "detail": huge,
            "request_id": huge,
        }
    )
    found = attributes_of(line)

    assert found.keys() >= MANDATORY
    assert found[keys.ACTOR_ID].endswith("…")
    assert size_of(found) <= MAX_ATTRIBUTES_BYTES
    assert record_of(line).dropped_attributes_count > 0
    assert record_of(line).body.string_value.encode() == line
