"""A call of an MCP client, recorded while it runs: the same for every SDK."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditEvent, AuditPrincipal
from otel_audit.integrations.mcp.call import Call, FindPrincipal
from otel_audit.integrations.parent import within
from otel_audit.logger import AuditLogger, mcp_audit_request_id

__all__ = ["REFUSAL", "current_call", "name_error", "recorded", "set_meanwhile"]

T = TypeVar("T")
V = TypeVar("V")

REFUSAL: Final = "The call could not be recorded in the audit trail, and was refused."
"""What the client is told where the loss rule is `closed`: nothing of the server's disk."""

_current_call: ContextVar[AuditEvent | None] = ContextVar("otel_audit_mcp_event", default=None)


def current_call() -> AuditEvent | None:
    """Return the event of the MCP call that runs here, around any request that it makes; None outside of a call."""
    return _current_call.get()


def name_error(event: AuditEvent, error: BaseException) -> None:
    """The event names a JSON-RPC error by its code. Of other exceptions the class says enough: see `Operation`."""
    code = getattr(getattr(error, "error", None), "code", None)
    if isinstance(code, int):
        event.error_type = event.error_type or str(code)  # Source: OTel MCP conventions, `error.type`


async def recorded(
    audit: AuditLogger,
    call: Call,
    run: Callable[[], Awaitable[T]],
    *,
    refusal: Callable[[str], Exception],
    find_principal: FindPrincipal | None = None,
    on_error: Callable[[AuditEvent, BaseException], None] = name_error,
) -> T:
    """What `run` gives; one event of the call is recorded when it ends, however it ends.

    `on_error` fills in the event after an exception. Where the loss rule is `closed` and the call cannot be recorded,
    it does not run, and `refusal` makes the error for the client. Nor does it run if `find_principal` raises.
    """
    principal, doubt = _principal(call, find_principal)
    with call.trace() as span:
        operation = call.operation(audit, principal, span)
        event = operation.event
        try:
            async with operation:
                with _inside(event, event.event_id if operation.begun is None else operation.begun.event_id):
                    try:
                        if doubt is not None:
                            raise doubt
                        answer = await run()
                    except BaseException as error:
                        on_error(event, error)
                        raise
                    _answered(event, answer)
                return answer
        except AuditUnavailable as error:
            raise refusal(REFUSAL) from error


def _principal(call: Call, find: FindPrincipal | None) -> tuple[AuditPrincipal | None, Exception | None]:
    """Who called, or why that is not known: such a call is recorded too."""
    try:
        return call.principal(find), None
    except Exception as error:
        return None, error


@contextlib.contextmanager
def set_meanwhile(variable: ContextVar[V], value: V) -> Iterator[None]:
    """The variable has this value inside."""
    token = variable.set(value)
    try:
        yield
    finally:
        # A coroutine that is thrown away with its event loop ends in another context, where nothing is to be put back.
        with contextlib.suppress(ValueError):
            variable.reset(token)


@contextlib.contextmanager
def _inside(event: AuditEvent, own_id: str | None) -> Iterator[None]:
    """What is recorded inside belongs to this call."""
    with set_meanwhile(_current_call, event), set_meanwhile(mcp_audit_request_id, event.request_id):
        belonging = within(own_id, lambda: event)
        belonging.__enter__()
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # as above
                belonging.__exit__(None, None, None)


def _answered(event: AuditEvent, answer: Any) -> None:
    """An error that is answered is an error of the tool. Source: MCP, "Error Handling" of tools."""
    if _said(answer, "isError", "is_error") is True:
        event.outcome = event.outcome or "mcp_error"
        event.error_type = event.error_type or "tool_error"  # Source: OTel MCP conventions, `error.type`
        return
    # FastMCP wraps what asks the client for more.
    kind = _said(getattr(answer, "input_required", answer), "resultType", "result_type")
    if isinstance(kind, str) and kind != "complete":
        event.outcome = event.outcome or kind  # `input_required`: neither done nor failed yet
    elif _said(answer, "task", "task") is not None:
        event.outcome = event.outcome or "task_created"


def _said(answer: Any, alias: str, name: str) -> Any:
    """A value of a result: a mapping as it goes to the wire, or a model of either SDK."""
    if isinstance(answer, dict):
        return answer.get(alias)
    return getattr(answer, alias, getattr(answer, name, None))
