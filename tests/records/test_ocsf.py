"""Events of OCSF, validated by the schemas of OCSF 1.8.0 as files; nothing is fetched."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema  # type: ignore[import-untyped]  # no types
from pydantic import BaseModel

from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource, PrincipalKind
from otel_audit.records.encoding import UnreadableLine
from otel_audit.records.ocsf import OCSF_VERSION, ocsf_event
from tests.examples import examples
from tests.journal_lines import line_of, raw_line

ANN = AuditPrincipal(username="ann", id="u-7", issuer="https://id.test", roles=["writer"], kind=PrincipalKind.USER)
BROWSER = AuditSource(ip="192.0.2.7", transport="http", user_agent="curl/8")
ORDER = AuditResource(type="order", name="7", actions=["DELETE"])
COMMON: dict[str, Any] = {
    "timestamp": "2026-09-21T13:33:20.123Z",
    "request_id": "r-1",
    "event_id": "0199aabb-ccdd-7eef-8011-000000000001",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "trace_flags": 1,
}


@functools.cache
def schemas() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(version=OCSF_VERSION))


@functools.cache
def validator(class_uid: int, profiles: tuple[str, ...]) -> Any:
    name = schemas().lookup_class_name_from_uid(class_uid=class_uid)
    return jsonschema.Draft202012Validator(schemas().get_class_schema(class_name=name, profiles=list(profiles)))


def valid(line: bytes, service: str = "shop") -> dict[str, Any]:
    """The event of a line, which its schema accepts."""
    event = ocsf_event(line, service)
    profiles = tuple(event["metadata"].get("profiles", ()))
    validator(event["class_uid"], profiles).validate(json.loads(json.dumps(event)))
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert event["raw_data_hash"]["value"] == hashlib.sha256(line).hexdigest()
    return event


def test_a_request_is_http_activity() -> None:
    line = line_of(
        AuditEvent(
            event_type="http.request",
            principal=ANN,
            source=BROWSER,
            action=AuditAction(path="/orders/7", method="DELETE"),
            resource=ORDER,
            outcome="denied",
            status_code=403,
            duration_ms=12.75,
            detail="DELETE /orders/7 -> 403",
            attributes={"http.route": "/orders/{order}"},
            **COMMON,
        )
    )

    event = valid(line)

    assert (event["class_uid"], event["type_uid"], event["type_name"]) == (4002, 400202, "HTTP Activity: Delete")
    assert event["http_request"] == {
        "user_agent": "curl/8",
        "http_method": "DELETE",
        "url": {"path": "/orders/7"},
    }
    assert event["http_response"] == {"code": 403}
    assert event["actor"]["user"] == {
        "name": "ann",
        "uid": "u-7",
        "domain": "https://id.test",
        "groups": [{"name": "writer", "type": "role"}],
        "type_id": 1,
        "type": "User",
    }
    assert (event["src_endpoint"], event["dst_endpoint"]) == ({"ip": "192.0.2.7"}, {"svc_name": "shop"})
    assert (event["status_id"], event["severity_id"], event["duration"]) == (2, 2, 13)
    assert event["trace"] == {"uid": COMMON["trace_id"]}
    assert event["metadata"]["profiles"] == ["host", "trace"]
    assert (event["time"], event["metadata"]["sequence"]) == (1790000000123, 2)
    assert event["unmapped"] == {
        "span_id": COMMON["span_id"],
        "trace_flags": 1,
        "source": {"transport": "http"},
        "action": {"path": "/orders/7"},
        "resource": {"type": "order", "name": "7", "actions": ["DELETE"]},
        "outcome": "denied",
        "duration_ms": 12.75,
        "attributes": {"http.route": "/orders/{order}"},
        "prev_hash": "5e" * 32,
    }


def test_a_line_of_feast_tells_its_request_in_its_detail() -> None:
    event = valid(line_of(AuditEvent(event_type="http.request", outcome="success", detail="POST /push -> 200")), "")

    assert event["type_name"] == "HTTP Activity: Post"
    assert event["http_request"] == {"http_method": "POST", "url": {"path": "/push"}}
    assert event["status_code"] == "200"


def test_the_call_of_a_tool_is_api_activity() -> None:
    event = valid(
        line_of(
            AuditEvent(
                event_type="mcp.tools.call",
                principal=AuditPrincipal(username="agent-7", kind=PrincipalKind.SERVICE, on_behalf_of="bob"),
                action=AuditAction(mcp_tool="get_online_features"),
                resource=AuditResource(type="feature_view", name="driver_stats", actions=["READ_ONLINE"]),
                outcome="mcp_error",
                error_type="ToolError",
                **COMMON,
            )
        )
    )

    assert (event["class_uid"], event["activity_id"], event["activity_name"]) == (6003, 99, "EXECUTE")
    assert event["api"] == {
        "operation": "get_online_features",
        "service": {"name": "shop"},
        "request": {"uid": "r-1"},
        "response": {"error": "ToolError"},
    }
    assert event["resources"] == [{"name": "driver_stats", "type": "feature_view"}]
    assert event["actor"]["user"] == {"name": "agent-7", "type_id": 4, "type": "Service"}
    assert event["src_endpoint"] == {"svc_name": "shop"}
    assert event["unmapped"]["principal"] == {"on_behalf_of": "bob"}
    assert event["unmapped"]["outcome"] == "mcp_error"


@pytest.mark.parametrize(("verb", "activity_id"), [("CREATE", 1), ("READ", 2), ("UPDATE", 3), ("DELETE", 4)])
def test_an_applications_own_event_is_api_activity_by_its_verb(verb: str, activity_id: int) -> None:
    event = valid(line_of(AuditEvent(event_type="order.change", action=AuditAction(verb=verb), outcome="success")), "")

    assert (event["class_uid"], event["activity_id"]) == (6003, activity_id)
    assert event["api"] == {"operation": "order.change"}
    assert event["actor"] == {"user": {"name": "anonymous", "type_id": 0, "type": "Unknown"}}


@pytest.mark.parametrize(
    ("event_type", "outcome", "status"),
    [("authn.success", "success", (1, "Success")), ("authn.failure", "failure", (2, "Failure"))],
)
def test_a_log_in_is_authentication(event_type: str, outcome: str, status: tuple[int, str]) -> None:
    principal = ANN.model_copy(update={"auth_type": "oidc"})

    event = valid(line_of(AuditEvent(event_type=event_type, outcome=outcome, principal=principal, source=BROWSER)))

    assert (event["class_uid"], event["type_name"]) == (3002, "Authentication: Logon")
    assert (event["status_id"], event["status"]) == status
    assert (event["user"]["name"], event["service"], event["auth_protocol"]) == ("ann", {"name": "shop"}, "oidc")


@pytest.mark.parametrize(
    ("outcome", "action"), [("allow", (1, "Allowed")), ("deny", (2, "Denied")), ("maybe", (0, "Unknown"))]
)
def test_a_decision_is_authorization(outcome: str, action: tuple[int, str]) -> None:
    event = valid(
        line_of(
            AuditEvent(
                event_type="authz.decision",
                outcome=outcome,
                principal=ANN,
                resource=ORDER,
                reason="needs the role writer",
                policy_id="orders.delete",
            )
        )
    )

    assert (event["class_uid"], event["activity_name"], event["privileges"]) == (3003, "Decision", ["DELETE"])
    assert (event["action_id"], event["action"]) == action
    assert event["authorizations"] == [{"decision": action[1], "policy": {"uid": "orders.delete"}}]
    assert event["status_detail"] == "needs the role writer"
    assert event["unmapped"]["resource"] == {"type": "order", "name": "7"}


def test_what_the_journal_lost_is_a_base_event() -> None:
    gap = {"system": "gap", "event_type": "audit.gap", "outcome": "error", "gap": {"lost": 3, "reason": "disk full"}}

    event = valid(raw_line(gap))

    assert (event["class_uid"], event["type_uid"], event["activity_name"]) == (0, 99, "audit.gap")
    assert event["unmapped"]["gap"] == {"lost": 3, "reason": "disk full"}


@pytest.mark.parametrize(
    ("said", "endpoint"),
    [
        ("2001:DB8::7", {"ip": "2001:db8::7"}),
        ("::ffff:192.0.2.7", {"ip": "192.0.2.7"}),
        ("fe80::1%eth0", {"ip": "fe80::1%eth0"}),
        ("hmac:77", {"name": "hmac:77"}),
    ],
)
def test_an_address_is_an_ip_only_if_it_is_one(said: str, endpoint: dict[str, str]) -> None:
    event = valid(line_of(AuditEvent(event_type="http.request", source=AuditSource(ip=said))))

    assert event["src_endpoint"] == endpoint


def test_tags_are_labels() -> None:
    event = valid(line_of(AuditEvent(event_type="http.request", tags=["privileged", "admin"], **COMMON)))

    assert event["metadata"]["labels"] == ["privileged", "admin"]
    assert "tags" not in event["unmapped"]


def test_a_cancelled_request_is_neither_a_success_nor_a_failure() -> None:
    event = valid(line_of(AuditEvent(event_type="http.request", outcome="cancelled")))

    assert (event["status_id"], event["status"]) == (99, "Cancelled")


@pytest.mark.parametrize("line", [b"[]", b"{", b'{"event_type":7}', b"\xff", b"[" * 100_000])
def test_a_line_that_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(UnreadableLine):
        ocsf_event(line, "shop")


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
event_types = st.sampled_from(["http.request", "websocket.session", "mcp.tools.call", "authn.x", "authz.y"]) | st.text()
parts: dict[str, type[BaseModel]] = {
    "principal": AuditPrincipal,
    "source": AuditSource,
    "action": AuditAction,
    "resource": AuditResource,
}
texts_and_values: dict[str, st.SearchStrategy[Any]] = {"event_type": event_types}
odd_events = st.fixed_dictionaries(
    texts_and_values,
    optional={
        **{
            name: json_values | st.dictionaries(st.sampled_from(list(model.model_fields)), json_values, max_size=4)
            for name, model in parts.items()
        },
        **{name: json_values for name in AuditEvent.model_fields if name not in {"event_type", *parts}},
    },
)


@pytest.mark.slow
@given(odd_events)
@examples(60)
def test_an_event_with_values_of_any_type_is_valid_and_loses_none_of_them(given_event: dict[str, Any]) -> None:
    event = valid(raw_line(given_event))

    shown = json.dumps(event)
    for text in texts_in(given_event):
        assert json.dumps(text)[1:-1] in shown or text in ("GET", "POST")


def texts_in(value: Any) -> list[str]:
    """All texts of an event, but for those that are written in another way: an address, and the kind of a user."""
    if isinstance(value, dict):
        return [t for name, each in value.items() if name not in ("ip", "kind") for t in texts_in(each)]
    if isinstance(value, list):
        return [t for each in value for t in texts_in(each)]
    return [value] if isinstance(value, str) else []
