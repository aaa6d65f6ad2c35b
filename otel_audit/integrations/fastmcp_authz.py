"""FastMCP 4: auth checks that record whom they let call a tool, read a resource or get a prompt, and why."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent, AuditPrincipal, AuditResource
from otel_audit.integrations.mcp_call import EVENT_TYPES
from otel_audit.integrations.mcp_caller import principal_of, token_attributes
from otel_audit.integrations.mcp_recording import REFUSAL, current_call, recorded, set_meanwhile
from otel_audit.integrations.parent import parent_id
from otel_audit.integrations.ruling import Ruling
from otel_audit.logger import AuditLogger

__all__ = ["Ruling", "audited_check", "decided_once"]

Check = Callable[[Any], Any]
_Decision = tuple["_AuditedCheck", str]

_ALLOW: Final = "allow"
_DENY: Final = "deny"
_LISTINGS: Final = frozenset({"list_tools", "list_resources", "list_resource_templates", "list_prompts"})

_decided: ContextVar[set[_Decision] | None] = ContextVar("otel_audit_fastmcp_decided", default=None)


def audited_check(audit: AuditLogger, check: Check, *, policy_id: str = "", reason: str = "") -> Any:
    """An auth check that asks `check`, records its decision on a call as `authz.decision`, and decides the same.

    For `auth=` of a tool, resource or prompt, and for `AuthMiddleware`; of a list of checks, each for itself. `check`
    is any auth check, sync or async, FastMCP's own too: the client is still told the scopes that `require_scopes` and
    `restrict_tag` miss. It may return a `Ruling`. What it raises is a denial, as it is to FastMCP, and goes on.

    `policy_id` and `reason`: the rule and why, where a `Ruling` or an `AuthorizationError` does not say.

    Recorded inside the calls that `audit_server` records, once for each call, and not where FastMCP asks which
    components to list. A decision that cannot be recorded is a denial where the loss rule is `closed`.
    """
    return _kind_of(check)(audit, check, policy_id, reason)


@contextlib.contextmanager
def decided_once() -> Iterator[None]:
    """What is decided inside is about one call. FastMCP asks a check several times before it runs a tool."""
    with set_meanwhile(_decided, set()):
        yield


class _AuditedCheck:
    def __init__(self, audit: AuditLogger, check: Check, policy_id: str, reason: str) -> None:
        self._audit = audit
        self._check = check
        self._policy_id = policy_id
        self._reason = reason
        self.__name__ = getattr(check, "__name__", type(check).__name__)  # FastMCP logs it when the check raises

    async def __call__(self, context: Any) -> Any:
        """Raises what the check raises, and `AuthorizationError` for a decision that had to be recorded and was not."""
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
        """Those that the check misses, where it is one about scopes."""
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
        decided.add(decision)  # only now: FastMCP asks again after a denial, and must not get what is not recorded


def _kind_of(check: Check) -> type[_AuditedCheck]:
    """The class for a check: FastMCP tells the missing scopes only of a kind of its own."""
    kinds = [kind for kind in type(check).__mro__ if "missing_scopes" in vars(kind)]
    return type("_AuditedScopes", (_AuditedCheck, kinds[-1]), {}) if kinds else _AuditedCheck


def _event(context: Any) -> AuditEvent | None:
    """The event of a decision on the call under way; None where there is no call, or components are listed."""
    call = current_call()
    if call is None or _decided.get() is None or _is_listing():
        return None
    is_tool = call.event_type == EVENT_TYPES["tools/call"]
    return AuditEvent(
        event_type="authz.decision",
        principal=principal_of(context.token) or call.principal or AuditPrincipal(),
        source=call.source,
        action=call.action,
        resource=AuditResource(type="mcp.tool", name=call.action.mcp_tool) if is_tool else call.resource,
        request_id=call.request_id,
        jsonrpc_id=call.jsonrpc_id,
        parent_id=parent_id(),
        attributes=token_attributes(context.token) or None,
    )


def _is_listing() -> bool:
    """Whether FastMCP asks in order to list components, as it also does inside a call when it finds nothing to run.

    The stack says it, and nothing else: the check gets the same context, and a component may bear another name than
    the one that was called, where its server is mounted or a transform renames it.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not recorded.__code__:
        if frame.f_code.co_name in _LISTINGS and str(frame.f_globals.get("__name__")).startswith("fastmcp."):
            return True
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return False


def _raised(event: AuditEvent, error: Exception) -> None:
    """A denial. The text counts only of FastMCP's own error, which is one for the caller."""
    from fastmcp.exceptions import AuthorizationError

    event.outcome = _DENY
    event.error_type = type(error).__qualname__
    if isinstance(error, AuthorizationError):
        event.reason = str(error) or None


def _denial(message: str) -> Exception:
    from fastmcp.exceptions import AuthorizationError

    error: Exception = AuthorizationError(message)
    return error
