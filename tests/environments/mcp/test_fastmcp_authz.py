"""FastMCP: whom an auth check let in, whom not, and why, is recorded once for each call."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import TOKEN, Service
from conftest import client as sdk_client
from fastmcp import Client, FastMCP
from fastmcp.exceptions import AuthorizationError
from fastmcp.server.auth import AuthContext, require_scopes, restrict_tag
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from fastmcp.server.dependencies import get_access_token
from fastmcp.server.middleware import AuthMiddleware, Middleware, MiddlewareContext
from fastmcp.server.transforms import ToolTransform
from fastmcp.tools.tool_transform import ToolTransformConfig
from tools import SECRET, TOKENS

from otel_audit import AuditLogger
from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent
from otel_audit.integrations.mcp import audit_server
from otel_audit.integrations.mcp.fastmcp import Ruling, audited_check
from otel_audit.settings import OnLoss
from tests.recording import a_trail, recorder
from tests.servers.ports import LOOPBACK, free_port

SERVICE_TOKEN = "token-of-a-service"  # has the scope to read, not that to write
Work = Callable[["Client[Any]"], Awaitable[Any]]


@asynccontextmanager
async def served(server: FastMCP[Any]) -> AsyncIterator[str]:
    """The URL of the server, which runs over streamable HTTP and believes the tokens of these tests."""
    server.auth = StaticTokenVerifier(TOKENS)
    port = free_port()
    http = uvicorn.Server(uvicorn.Config(server.http_app(), host=LOOPBACK, port=port, log_level="warning"))
    running = asyncio.create_task(http.serve())
    try:
        while not http.started:
            assert not running.done(), "expected a server that starts"
            await asyncio.sleep(0.02)
        yield f"http://{LOOPBACK}:{port}/mcp"
    finally:
        http.should_exit = True
        await running


def events_of(
    directory: Path, build: Callable[[AuditLogger], FastMCP[Any]], work: Work, token: str = TOKEN
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The decisions and the calls that are recorded while a client works."""

    async def run(server: FastMCP[Any]) -> None:
        async with asyncio.timeout(120), served(server) as url, Client(url, auth=token) as client:
            await work(client)

    with recorder(directory) as audit:
        asyncio.run(run(audit_server(build(audit), audit)))
    events = Service("fastmcp", directory, sdk_client.over_http).all_events()
    decisions = [event for event in events if event["event_type"] == "authz.decision"]
    return decisions, [event for event in events if event["event_type"] != "authz.decision"]


def guarded(audit: AuditLogger, check: Any, *, policy_id: str = "", reason: str = "") -> FastMCP[Any]:
    """A tool, a resource, a template and a prompt, each behind the same check."""
    server: FastMCP[Any] = FastMCP("guarded")
    auth = audited_check(audit, check, policy_id=policy_id, reason=reason)

    @server.tool(auth=auth)
    def drop(table: str) -> str:
        return f"dropped {table}"

    @server.resource("features://drivers", auth=auth)
    def drivers() -> str:
        return "drivers"

    @server.resource("features://views/{name}", auth=auth)
    def view(name: str) -> str:
        return name

    @server.prompt(auth=auth)
    def explain() -> str:
        return "explain"

    return server


def refused(operation: Awaitable[Any], match: str) -> Awaitable[None]:
    async def ask() -> None:
        with pytest.raises(Exception, match=match):
            await operation

    return ask()


async def drop(client: Client[Any]) -> None:
    answer = await client.call_tool("drop", {"table": "drivers"})
    assert answer.data == "dropped drivers"


async def drop_in_vain(client: Client[Any]) -> None:
    await refused(client.call_tool("drop", {"table": "drivers"}), "drop")


def test_a_call_that_is_allowed_leaves_who_it_was_and_why(tmp_path: Path) -> None:
    def build(audit: AuditLogger) -> FastMCP[Any]:
        check = require_scopes("features:write")
        return guarded(audit, check, policy_id="features.drop", reason="needs features:write")

    (decision,), (call,) = events_of(tmp_path, build, drop)

    assert (decision["outcome"], decision["policy_id"]) == ("allow", "features.drop")
    assert decision["reason"] == "needs features:write"
    assert (decision["principal"]["id"], decision["principal"]["kind"]) == ("alice", "user")
    assert decision["principal"]["issuer"] == call["principal"]["issuer"] == "https://issuer.example"
    assert decision["attributes"]["mcp.auth.scopes"] == ["features:read", "features:write"]
    assert (decision["resource"]["type"], decision["resource"]["name"]) == ("mcp.tool", "drop")
    assert decision["parent_id"] == call["event_id"]
    assert all(decision[key] == call[key] for key in ("request_id", "jsonrpc_id", "source", "action"))
    assert (call["event_type"], call["outcome"]) == ("mcp.tools.call", "success")


def test_a_call_that_is_denied_says_which_scopes_are_missing(tmp_path: Path) -> None:
    def build(audit: AuditLogger) -> FastMCP[Any]:
        return guarded(audit, require_scopes("features:write"), policy_id="features.drop")

    (decision,), (call,) = events_of(tmp_path, build, drop_in_vain, SERVICE_TOKEN)

    assert (decision["outcome"], decision["policy_id"]) == ("deny", "features.drop")
    assert decision["reason"] == "missing scopes: features:write"
    assert (decision["principal"]["username"], decision["principal"]["kind"]) == ("batch-job", "service")
    assert decision["parent_id"] == call["event_id"]
    assert call["outcome"] == "mcp_error"


def test_a_client_is_still_told_the_scopes_that_the_checks_of_middleware_miss(tmp_path: Path) -> None:
    def build(audit: AuditLogger) -> FastMCP[Any]:
        server: FastMCP[Any] = FastMCP("tagged")
        server.tool(name="drop", tags={"write"})(lambda: "dropped")
        outer = audited_check(audit, restrict_tag("write", scopes=["features:write"]), policy_id="tags")
        inner = audited_check(audit, require_scopes("features:admin"))
        server.add_middleware(AuthMiddleware(auth=outer))
        server.add_middleware(AuthMiddleware(auth=inner))
        return server

    async def work(client: Client[Any]) -> None:
        await refused(client.call_tool("drop", {}), "features:admin, features:write")

    (decision,), (call,) = events_of(tmp_path, build, work, SERVICE_TOKEN)

    assert (decision["outcome"], decision["policy_id"]) == ("deny", "tags")
    assert (call["outcome"], call["error_type"]) == ("denied", "InsufficientScopeError")
    assert decision["parent_id"] == call["event_id"]


def test_a_check_says_itself_which_rule_decided_and_why_of_resources_and_prompts_too(tmp_path: Path) -> None:
    async def by_name(context: AuthContext) -> Ruling:
        await asyncio.sleep(0)
        return Ruling(context.component.name != "drivers", f"asked for {context.component.name}", "by-name")

    async def work(client: Client[Any]) -> None:
        await refused(client.read_resource("features://drivers"), "drivers")
        await client.read_resource("features://views/trips")
        await client.get_prompt("explain")

    decisions, calls = events_of(tmp_path, lambda audit: guarded(audit, by_name, policy_id="other"), work)

    assert [(each["outcome"], each["reason"], each["resource"]) for each in decisions] == [
        ("deny", "asked for drivers", {"type": "mcp.resource", "name": "features://drivers", "actions": []}),
        ("allow", "asked for view", {"type": "mcp.resource", "name": "features://views/trips", "actions": []}),
        ("allow", "asked for explain", {"type": "mcp.prompt", "name": "explain", "actions": []}),
    ]
    assert {each["policy_id"] for each in decisions} == {"by-name"}
    assert [each["parent_id"] for each in decisions] == [each["event_id"] for each in calls]


def test_a_check_that_raises_is_a_denial_without_its_text(tmp_path: Path) -> None:
    def broken(context: AuthContext) -> bool:
        raise LookupError(SECRET)

    (decision,), _ = events_of(tmp_path, lambda audit: guarded(audit, broken, reason="by rule"), drop_in_vain)

    assert (decision["outcome"], decision["error_type"], decision["reason"]) == ("deny", "LookupError", "by rule")
    assert SECRET not in str(decision)


def test_what_a_check_says_when_it_denies_by_an_exception_is_the_reason_and_reaches_the_client(tmp_path: Path) -> None:
    async def closed(context: AuthContext) -> bool:
        raise AuthorizationError("not on a Sunday")

    def build(audit: AuditLogger) -> FastMCP[Any]:
        server = guarded(audit, lambda context: True)
        server.add_middleware(AuthMiddleware(auth=audited_check(audit, closed, policy_id="hours")))
        return server

    async def work(client: Client[Any]) -> None:
        await refused(client.call_tool("drop", {"table": "drivers"}), "not on a Sunday")

    (own, hours), (call,) = events_of(tmp_path, build, work)

    assert own["outcome"] == "allow"
    assert (hours["outcome"], hours["reason"], hours["policy_id"]) == ("deny", "not on a Sunday", "hours")
    assert hours["error_type"] == "AuthorizationError"
    assert {own["parent_id"], hours["parent_id"]} == {call["event_id"]}
    assert call["outcome"] == "denied"


def test_what_is_listed_is_not_a_decision(tmp_path: Path) -> None:
    async def work(client: Client[Any]) -> None:
        assert await client.list_tools() == []
        assert await client.list_resources() == []
        assert await client.list_prompts() == []

    decisions, _ = events_of(tmp_path, lambda audit: guarded(audit, require_scopes("features:admin")), work)

    assert decisions == []


def test_what_is_listed_in_tasks_of_its_own_inside_a_call_is_not_a_decision(tmp_path: Path) -> None:
    def build(audit: AuditLogger) -> FastMCP[Any]:
        check = audited_check(audit, require_scopes("features:admin"))

        class Shown(Middleware):
            async def on_list_tools(self, context: MiddlewareContext[Any], call_next: Any) -> Any:
                tools = await call_next(context)
                asked = [AuthContext(token=get_access_token(), component=tool) for tool in tools]
                shown = await asyncio.gather(*map(check, asked))
                return [tool for tool, is_shown in zip(tools, shown, strict=True) if is_shown]

        outer: FastMCP[Any] = FastMCP("outer")
        inner: FastMCP[Any] = FastMCP("inner", middleware=[Shown()])
        inner.tool(name="drop")(lambda: "")
        outer.mount(inner, namespace="inner")
        return outer

    async def work(client: Client[Any]) -> None:
        await client.call_tool("inner_nothing", {}, raise_on_error=False)

    decisions, (call,) = events_of(tmp_path, build, work)

    assert decisions == []
    assert call["outcome"] == "mcp_error"


@pytest.mark.parametrize(("name", "place"), [("inner_drop", "mounted"), ("remove", "renamed")])
@pytest.mark.parametrize(("token", "outcome"), [(TOKEN, "allow"), (SERVICE_TOKEN, "deny")])
def test_a_tool_under_another_name_has_one_decision_and_its_neighbours_none(
    tmp_path: Path, name: str, place: str, token: str, outcome: str
) -> None:
    def build(audit: AuditLogger) -> FastMCP[Any]:
        outer: FastMCP[Any] = FastMCP("outer")
        inner = guarded(audit, require_scopes("features:write"))
        inner.tool(name="neighbour", auth=audited_check(audit, require_scopes("features:admin")))(lambda: "")
        outer.mount(inner, namespace="inner")
        if place == "renamed":
            outer.add_transform(ToolTransform({"inner_drop": ToolTransformConfig(name="remove")}))
        return outer

    async def work(client: Client[Any]) -> None:
        await client.call_tool(name, {"table": "drivers"}, raise_on_error=outcome == "allow")
        await client.call_tool("nothing", {}, raise_on_error=False)

    (decision,), (call, _) = events_of(tmp_path, build, work, token)

    assert (decision["outcome"], decision["resource"]["name"]) == (outcome, name)
    assert decision["parent_id"] == call["event_id"]


def test_nobody_is_let_in_by_a_decision_that_had_to_be_recorded_and_was_not(tmp_path: Path) -> None:
    full = AuditLogger(a_trail(tmp_path / "full", directory_bytes=2**20), on_loss=OnLoss.CLOSED)
    fill = [AuditEvent(event_type="fill")] * 20_000
    with pytest.raises(AuditUnavailable):
        collections.deque(map(full.log, fill))

    ran: list[str] = []

    def build(_: AuditLogger) -> FastMCP[Any]:
        server: FastMCP[Any] = FastMCP("versions")
        auth = audited_check(full, lambda context: True)
        for version in ("1", "2"):  # FastMCP takes the other one where it may not take the latest
            server.tool(name="drop", version=version, auth=auth)(lambda table: ran.append(table))
        return server

    decisions, (call,) = events_of(tmp_path / "calls", build, drop_in_vain)
    full.close()

    assert (decisions, ran) == ([], [])
    assert call["outcome"] == "mcp_error"
