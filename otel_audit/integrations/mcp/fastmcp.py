"""FastMCP 4, the package `fastmcp`: a middleware that sees each call with its own exceptions, and auth checks.

Releases 2 and 3 are built on SDK 1.x, and `sdk1` records their calls.

`CallRecorder` records tool calls, resource reads and prompts. `audited_check` records the decisions of an auth check
about them, with their reasons.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, Final

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent, AuditPrincipal, AuditResource, Outcome
from otel_audit.integrations.lease import Instrumentation
from otel_audit.integrations.mcp.call import (
    EVENT_TYPES,
    REFUSAL,
    Call,
    FindPrincipal,
    current_call,
    name_error,
    recorded,
    set_meanwhile,
    token_attributes,
)
from otel_audit.integrations.mcp.sdk2 import origin_of, refusal
from otel_audit.integrations.parent import Ruling, parent_id
from otel_audit.integrations.principals import principal_of_token
from otel_audit.logger import AuditLogger

__all__ = [
    "CallRecorder",
    "Ruling",
    "audited_check",
    "note_mounts",
    "record_calls",
    "recorded_by_outer_server",
]


Check = Callable[[Any], Any]
_Decision = tuple["_AuditedCheck", str]

_ALLOW: Final = "allow"
_DENY: Final = "deny"

# The decisions about the call under way. FastMCP asks a check several times before a tool runs.
_decided: ContextVar[set[_Decision] | None] = ContextVar("otel_audit_fastmcp_decided", default=None)


def audited_check(audit: AuditLogger, check: Check, *, policy_id: str = "", reason: str = "") -> Any:
    """Return an auth check that calls `check`, records its decision as `authz.decision`, and makes the same decision.

    Use it for `auth=` of a tool, resource or prompt, and for `AuthMiddleware`. In a list of checks, wrap each one.
    `check` is any auth check, sync or async, including FastMCP's own: the client is still told which scopes
    `require_scopes` and `restrict_tag` miss. It may return a `Ruling`. An exception is a denial, as in FastMCP, and is
    raised again.

    `policy_id` and `reason` name the rule and the reason, unless a `Ruling` or an `AuthorizationError` does.

    Decisions are recorded once per call, inside the calls that `audit_server` records, and not when FastMCP asks which
    components to list. If the loss rule is `closed`, a decision that cannot be recorded is a denial.

    Raises:
        RuntimeError: the installed release of `fastmcp` is older than 4, where the decision could not be recorded.
    """
    if (installed := version("fastmcp")).partition(".")[0] in ("2", "3"):
        raise RuntimeError(f"audited_check: expected fastmcp 4, got {installed}; upgrade it")
    _note_listings()
    return _kind_of(check)(audit, check, policy_id, reason)


class _AuditedCheck:
    def __init__(self, audit: AuditLogger, check: Check, policy_id: str, reason: str) -> None:
        self._audit = audit
        self._check = check
        self._policy_id = policy_id
        self._reason = reason
        self.__name__ = getattr(check, "__name__", type(check).__name__)  # FastMCP logs it when the check raises

    async def __call__(self, context: Any) -> Any:
        """Return the decision. Raise as the check does, and `AuthorizationError` if a required record failed."""
        event = _event(context)
        try:
            answer = self._check(context)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception as error:
            if event is not None:
                _raised(event, error)
                await self._record(event)
            raise
        if event is not None:
            self._answered(event, answer, context)
            await self._record(event)
        return answer

    def missing_scopes(self, context: Any) -> set[str]:
        """Return the missing scopes, if the check is one about scopes."""
        ask = getattr(self._check, "missing_scopes", None)
        return set() if ask is None else set(ask(context))

    def _answered(self, event: AuditEvent, answer: Any, context: Any) -> None:
        event.outcome = _ALLOW if answer else _DENY
        if isinstance(answer, Ruling):
            event.reason, event.policy_id = answer.reason or None, answer.policy_id or None
        elif not answer and not self._reason and (missing := self.missing_scopes(context)):
            event.reason = f"missing scopes: {', '.join(sorted(missing))}"

    async def _record(self, event: AuditEvent) -> None:
        decided = _decided.get()
        decision = (self, str(event.outcome))
        if decided is None or decision in decided:
            return
        event.reason = event.reason or self._reason or None
        event.policy_id = event.policy_id or self._policy_id or None
        try:
            if self._audit.recorder.syncs or self._audit.recorder.may_refuse:
                await self._audit.alog(event)
            else:
                self._audit.log(event)
        except AuditUnavailable as error:
            raise _denial(REFUSAL) from error
        decided.add(decision)  # only now: FastMCP asks again after a denial, and an unrecorded decision must not pass


def _kind_of(check: Check) -> type[_AuditedCheck]:
    """Return the class for a check. FastMCP reports missing scopes only for checks of its own kind."""
    kinds = [kind for kind in type(check).__mro__ if "missing_scopes" in vars(kind)]
    return type("_AuditedScopes", (_AuditedCheck, kinds[-1]), {}) if kinds else _AuditedCheck


def _event(context: Any) -> AuditEvent | None:
    """Return the event for a decision on the current call, or None without a call or while components are listed."""
    call = current_call()
    if call is None or _decided.get() is None:
        return None
    is_tool = call.event_type == EVENT_TYPES["tools/call"]
    return AuditEvent(
        event_type="authz.decision",
        principal=call.principal or AuditPrincipal() if context.token is None else principal_of_token(context.token),
        source=call.source,
        action=call.action,
        resource=AuditResource(type="mcp.tool", name=call.action.mcp_tool) if is_tool else call.resource,
        request_id=call.request_id,
        jsonrpc_id=call.jsonrpc_id,
        parent_id=parent_id(),
        attributes=token_attributes(context.token) or None,
    )


@functools.cache
def _note_listings() -> None:
    """Mark the times at which FastMCP's servers list their components, when a check is not a decision on a call.

    They also list components inside a call that finds nothing to run. A check cannot tell the difference: it gets the
    same context, and the name of a component may differ from the called one if its server is mounted or a transform
    renames it.
    """
    from fastmcp import FastMCP

    async def list_undecided(original: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        with set_meanwhile(_decided, None):
            return await original(*args, **kwargs)

    for name in ("list_tools", "list_resources", "list_resource_templates", "list_prompts"):
        Instrumentation(None).wrap(FastMCP, name, list_undecided)


def _raised(event: AuditEvent, error: Exception) -> None:
    """Fill in a denial. Only FastMCP's own error has a message for the caller, which becomes the reason."""
    from fastmcp.exceptions import AuthorizationError

    event.outcome = _DENY
    event.error_type = type(error).__qualname__
    if isinstance(error, AuthorizationError):
        event.reason = str(error) or None


def _denial(message: str) -> Exception:
    from fastmcp.exceptions import AuthorizationError

    error: Exception = AuthorizationError(message)
    return error


# The recorder of the current call, and the mounted server to which the call is being forwarded.
_recorded_by: ContextVar[AuditLogger | None] = ContextVar("otel_audit_fastmcp_recorded_by", default=None)
_handed_to: ContextVar[Any] = ContextVar("otel_audit_fastmcp_handed_to", default=None)


def record_calls(server: Any, audit: AuditLogger, find_principal: FindPrincipal | None) -> None:
    """Make the recorder the server's outermost middleware, so that calls refused by others are recorded too."""
    from fastmcp.server.middleware import Middleware

    if not any(isinstance(each, CallRecorder) for each in server.middleware):
        kind = type("AuditCalls", (CallRecorder, Middleware), {})  # made here, since `fastmcp` may not be installed
        server.middleware.insert(0, kind(audit, find_principal))
    _note_mounts_from_now_on()


@functools.cache
def _note_mounts_from_now_on() -> None:
    note_mounts(Instrumentation(None))


def note_mounts(instrumentation: Instrumentation) -> None:
    """Make a server note to which mounted server it forwards a call.

    A tool that calls another server does so inside the same request of the same client. The two cases differ only in
    the classes that FastMCP uses for mounted components, which do nothing but forward.
    """
    from fastmcp.server.providers import fastmcp_provider

    async def hand_on(original: Callable[..., Awaitable[Any]], component: Any, *args: Any, **kwargs: Any) -> Any:
        with set_meanwhile(_handed_to, component._server):
            return await original(component, *args, **kwargs)

    for component, methods in (
        (fastmcp_provider.FastMCPProviderTool, ("_run", "run")),  # `run` is what a transformed tool calls
        (fastmcp_provider.FastMCPProviderResource, ("_read",)),
        (fastmcp_provider.FastMCPProviderResourceTemplate, ("_read",)),
        (fastmcp_provider.FastMCPProviderPrompt, ("_render", "render")),
    ):
        for method in methods:
            instrumentation.wrap(component, method, hand_on)


class CallRecorder:
    """Record tool calls, resource reads and prompts, whether made by clients or by code on the server.

    A call that a tool makes on a server is a separate event, with the tool's event as its parent. A call forwarded to a
    mounted server is not, if the outer server has recorded it with the same logger.
    """

    def __init__(self, audit: AuditLogger, find_principal: FindPrincipal | None = None) -> None:
        self._audit = audit
        self._find_principal = find_principal

    async def __call__(self, context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Run one message. FastMCP calls this once per message, whether it reaches a tool or fails before."""
        self._audit.start()
        if context.type != "request" or context.method not in EVENT_TYPES:
            return await call_next(context)
        is_recorded = recorded_by_outer_server(context) is self._audit
        with set_meanwhile(_handed_to, None):  # calls by a tool of this server are not forwarded ones
            return await (call_next(context) if is_recorded else self._record(context, call_next))

    async def _record(self, context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        with set_meanwhile(_recorded_by, self._audit), set_meanwhile(_decided, set()):
            return await recorded(
                self._audit,
                _call(context),
                lambda: call_next(context),
                refusal=refusal,
                find_principal=self._find_principal,
                on_error=_tool_failed if context.method == "tools/call" else _failed,
            )


def recorded_by_outer_server(context: Any) -> AuditLogger | None:
    """Return the logger of the server that forwards this call to a server mounted on it, or None if none does."""
    server, own = _handed_to.get(), context.fastmcp_context
    return _recorded_by.get() if server is not None and own is not None and own.fastmcp is server else None


def _call(context: Any) -> Call:
    """Return the call of a message, with the client's request around it. A tool may have made the call."""
    message = context.message if isinstance(context.message, Mapping) else vars(context.message)
    target = message.get("uri" if context.method == "resources/read" else "name")
    live = context.fastmcp_context.request_context if context.fastmcp_context is not None else None
    return Call(
        method=context.method,
        target="" if target is None else str(target),
        arguments=message.get("arguments"),
        **({"is_local": True} if live is None else origin_of(live, live.meta)),
    )


def _failed(event: AuditEvent, error: BaseException) -> None:
    from fastmcp.exceptions import AuthorizationError

    cause = error.__cause__ if isinstance(error, Exception) else None  # FastMCP wraps the exceptions of tools
    if isinstance(error, AuthorizationError) or isinstance(cause, PermissionError):
        event.outcome = event.outcome or Outcome.DENIED.value
    if _is_time_out(cause):
        event.outcome = event.outcome or Outcome.CANCELLED.value
        event.error_type = event.error_type or TimeoutError.__qualname__
    if cause is not None:
        event.error_type = event.error_type or type(cause).__qualname__
    name_error(event, error)


def _is_time_out(cause: BaseException | None) -> bool:
    """Return True after a time-out in the tool or on the server, which FastMCP turns into an `MCPError`."""
    from mcp import MCPError

    ended = cause.__context__ if isinstance(cause, MCPError) else cause
    return isinstance(ended, TimeoutError)


def _tool_failed(event: AuditEvent, error: BaseException) -> None:
    """Fill in a tool's failure. FastMCP returns its own exceptions as tool errors, and others as protocol errors."""
    from fastmcp.exceptions import DisabledError, FastMCPError, NotFoundError

    _failed(event, error)
    if isinstance(error, FastMCPError | NotFoundError | DisabledError):
        event.outcome = event.outcome or "mcp_error"
