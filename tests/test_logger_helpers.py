"""A helper writes the line that `log` writes for the same event."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context

from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource, PrincipalKind
from otel_audit.logger import AuditLogger
from otel_audit.policy import read_policy
from tests.arguments import NOW_NS, SECRETS, in_span
from tests.examples import examples
from tests.recording import a_trail, line_of_receipt, without_place

REQUEST_ID = "11111111-2222-4333-8444-555555555555"


class Recorder(AuditLogger):
    """With ids that are known beforehand."""

    @staticmethod
    def new_request_id() -> str:
        return REQUEST_ID


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditLogger]]:
    """One journal for all examples of a property."""
    directory = tmp_path_factory.mktemp("many")
    logger = Recorder(a_trail(directory, segment_bytes=1 << 20), clock=lambda: NOW_NS)
    yield directory, logger
    logger.close()


words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "success", "failure", "allow", '<&>"\\/', "a\u2028b", "\x00\x7f", *SECRETS]),
)
durations = (
    st.none()
    | st.floats()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([True, "1.5", 1e15, 1e16, 1e-5, 1e-7, -0.0])
)
tools = st.sampled_from(["get_online_features", "list_projects", ""]) | words
actions = st.lists(st.sampled_from(["READ_ONLINE", "WRITE_ONLINE"]) | words, max_size=3)


def parts(model: type, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.builds(model, **fields)


CALLS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "principal": {
        "principal": parts(
            AuditPrincipal,
            username=words,
            roles=st.lists(words, max_size=3) | st.just(["r"] * 100),
            auth_type=words,
            id=st.none() | words,
            issuer=st.none() | words,
            kind=st.sampled_from([None, *PrincipalKind]),
            on_behalf_of=st.none() | words,
        )
    },
    "source": {"source": parts(AuditSource, ip=words, transport=words, user_agent=st.none() | words)},
    "resource": {"resource": parts(AuditResource, type=words, name=words, actions=actions)},
}
WHO, WHERE, WHAT = CALLS["principal"], CALLS["source"], CALLS["resource"]
TIMED: dict[str, st.SearchStrategy[Any]] = {**WHO, **WHERE, **WHAT, "outcome": words, "duration_ms": durations}
calls = st.one_of(
    st.tuples(
        st.just("log_mcp_call"),
        st.fixed_dictionaries(
            {"tool_name": tools},
            optional={**TIMED, "request_id": words, "path": words, "detail": words, "jsonrpc_id": words},
        ),
    ),
    st.tuples(
        st.just("log_http_request"),
        st.fixed_dictionaries(
            {"method": words, "path": words}, optional={**TIMED, "request_id": words, "status_code": st.integers()}
        ),
    ),
    st.tuples(
        st.just("log_authn"),
        st.fixed_dictionaries({"outcome": words}, optional={**WHO, **WHERE, "request_id": words, "detail": words}),
    ),
    st.tuples(
        st.just("log_authz"),
        st.fixed_dictionaries({"outcome": words}, optional={**WHO, **WHAT, "request_id": words, "detail": words}),
    ),
)


def event_like(method: str, arguments: Mapping[str, Any]) -> AuditEvent:
    """The event that a helper stands for, in the words of its documentation."""
    defaults = {"log_mcp_call": "mcp-http", "log_http_request": "http"}
    fields: dict[str, Any] = {
        "request_id": arguments.get("request_id", ""),
        "principal": arguments.get("principal") or AuditPrincipal(),
        "source": arguments.get("source") or AuditSource(transport=defaults.get(method, "")),
        "resource": arguments.get("resource") or AuditResource(),
        "outcome": arguments.get("outcome", "success"),
        "duration_ms": arguments.get("duration_ms"),
        "detail": arguments.get("detail", ""),
    }
    match method:
        case "log_mcp_call":
            action = AuditAction(mcp_tool=arguments["tool_name"], path=arguments.get("path", ""))
            fields |= {"event_type": "mcp.tools.call", "action": action, "jsonrpc_id": arguments.get("jsonrpc_id")}
        case "log_http_request":
            verb, path = arguments["method"], arguments["path"]
            fields |= {"event_type": "http.request", "action": AuditAction(path=path)}
            fields["detail"] = f"{verb} {path} -> {arguments.get('status_code', 200)}"
        case "log_authn":
            fields["event_type"] = "authn.success" if arguments["outcome"] == "success" else "authn.failure"
        case "log_authz":
            fields["event_type"] = "authz.decision"
    return AuditEvent(**fields)


@examples(400)
@given(call=calls, flags=st.sampled_from([None, 0, 1]))
def test_a_helper_writes_the_line_that_log_writes_for_the_same_event(
    many: tuple[Path, AuditLogger], call: tuple[str, dict[str, Any]], flags: int | None
) -> None:
    directory, logger = many
    method, arguments = call
    context = Context() if flags is None else in_span(flags=flags)

    of_helper = line_of_receipt(directory, getattr(logger, method)(**arguments, context=context))
    of_log = line_of_receipt(directory, logger.log(event_like(method, arguments), context=context))

    assert without_place(of_helper) == without_place(of_log)
    assert json.loads(of_helper)["event_id"] != json.loads(of_log)["event_id"]


POLICIES = """\
rules:
  - {type: authn.*, outcome: failure, keep: false}
  - {type: http.request, outcome: success, level: metadata}
  - {tool: get_*, actor: "*a*", level: none}
  - {issuer: "*b*", actor_id: "*", level: metadata}
  - {route: /a*, outcome: denied, level: metadata}
"""


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, AuditLogger]]:
    """A journal under a policy, for all examples of a property."""
    directory = tmp_path_factory.mktemp("chosen")
    (directory / "policy.yaml").write_text(POLICIES)
    policy = read_policy(directory / "policy.yaml")
    trail = a_trail(directory / "journal", segment_bytes=1 << 20)
    logger = Recorder(trail, clock=lambda: NOW_NS, policy=policy, log_successful_reads=False)
    yield directory / "journal", logger
    logger.close()


@examples(300)
@given(call=calls, path=st.sampled_from(["/a", "/a/7?q", "/b"]), outcome=st.sampled_from(["", "success", "deny"]))
def test_a_policy_chooses_the_event_of_a_helper_as_it_chooses_that_of_log(
    chosen: tuple[Path, AuditLogger], call: tuple[str, dict[str, Any]], path: str, outcome: str
) -> None:
    directory, logger = chosen
    method, arguments = call
    arguments |= {name: value for name, value in {"path": path, "outcome": outcome}.items() if name in arguments}

    by_helper = getattr(logger, method)(**arguments, context=Context())
    filtered = logger.stats().filtered
    by_log = logger.log(event_like(method, arguments), context=Context())

    assert (by_helper is None) == (by_log is None)
    if by_log is None:
        assert logger.stats().filtered == filtered + 1
    else:
        assert without_place(line_of_receipt(directory, by_helper)) == without_place(line_of_receipt(directory, by_log))
