"""FastAPI dependencies that record authentication and authorization decisions, with their reasons.

Each wraps a dependency of the application. FastAPI resolves the result like the original, including its parameters.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any, Final, ForwardRef

from fastapi import Depends, HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource, Outcome
from otel_audit.integrations.asgi.exchange import exchange_of
from otel_audit.integrations.asgi.middleware import REFUSAL
from otel_audit.integrations.asgi.scope import path_in
from otel_audit.integrations.parent import Ruling, parent_id
from otel_audit.integrations.principals import Principals
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices

__all__ = ["Ruling", "audited_authentication", "audited_permission"]

Check = Callable[..., Any]
_CONNECTION: Final = "otel_audit_connection"
_PRINCIPAL: Final = "otel_audit.principal"
_DENIED: Final = (401, 403)


def audited_permission(
    audit: AuditLogger,
    check: Check,
    *,
    resource: AuditResource | Callable[[Any], AuditResource] | None = None,
    actions: Sequence[str] = (),
    policy_id: str = "",
) -> Callable[..., Awaitable[Any]]:
    """Return a dependency that calls `check`, records its decision as `authz.decision`, and rejects denied requests.

    `check` may have parameters and dependencies of its own, and may be async. It denies by returning `False`, `None` or
    a denying `Ruling`, or by raising `PermissionError` or an `HTTPException` with status 401 or 403. A denial without
    an `HTTPException` becomes a 403. Any other result is the value of the dependency. Any other exception is recorded
    as `error`, a time-out or cancellation as `cancelled`, and raised again.

    `resource` is the requested resource, or a function that returns it for the `Request` or `WebSocket`. `actions` are
    the requested actions. `policy_id` is the rule, unless a `Ruling` names one.

    If the loss rule is `closed`, an allowed request whose decision cannot be recorded is rejected with 503.

    Raises:
        TypeError: `check` is a generator.
    """

    async def decide(connection: HTTPConnection, values: dict[str, Any]) -> Any:
        event = _event(connection, "authz.decision")
        event.policy_id = policy_id or None
        try:
            about = resource(connection) if callable(resource) else resource
            event.resource = _with_actions(about or AuditResource(), actions)
            value = await _asked(check, values)
            is_allowed = bool(value)
        except (Exception, asyncio.CancelledError) as error:
            await _raised(audit, event, error, "deny")
            if isinstance(error, PermissionError):
                raise HTTPException(403) from error
            raise
        if isinstance(value, Ruling):
            event.reason, event.policy_id = value.reason or None, value.policy_id or event.policy_id
        event.outcome = "allow" if is_allowed else "deny"
        await _record(audit, event)
        if not is_allowed:
            raise HTTPException(403)
        return value

    return _dependency(check, decide)


def audited_authentication(
    audit: AuditLogger, authenticate: Check, *, auth_type: str = ""
) -> Callable[..., Awaitable[Any]]:
    """Return a dependency that calls `authenticate`, and records `authn.success` or `authn.failure`.

    `authenticate` may have parameters and dependencies of its own, and may be async. It fails by returning `False`,
    `None` or a user whose `is_authenticated` is false, or by raising `PermissionError` or an `HTTPException` with
    status 401 or 403. A failure without an `HTTPException` becomes a 401. Otherwise its result (an `AuditPrincipal`, a
    name, claims or a user object) is the value of the dependency and the principal of the request. `auth_type` is the
    method, such as `oidc`, if the user object does not name it.

    Raises:
        TypeError: `authenticate` is a generator.
    """

    async def decide(connection: HTTPConnection, values: dict[str, Any]) -> Any:
        event = _event(connection, "authn.failure")
        event.principal = AuditPrincipal(auth_type=auth_type)
        try:
            user = await _asked(authenticate, values)
        except (Exception, asyncio.CancelledError) as error:
            await _raised(audit, event, error, Outcome.FAILURE)
            if isinstance(error, PermissionError):
                raise HTTPException(401) from error
            raise
        if _is_nobody(user):
            event.outcome = Outcome.FAILURE.value
            await _record(audit, event)
            raise HTTPException(401)
        principal = _named(user, auth_type)
        event.event_type, event.outcome, event.principal = "authn.success", Outcome.SUCCESS.value, principal
        await _record(audit, event)
        _make_known(connection, principal)
        return user

    return _dependency(authenticate, decide)


async def _connection(connection: HTTPConnection) -> HTTPConnection:
    """Return the request or connection. It is a dependency, since the check may have such a parameter of its own."""
    return connection


def _dependency(
    check: Check, decide: Callable[[HTTPConnection, dict[str, Any]], Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """Return a function with the parameters of `check`, for FastAPI to fill in, and one more for the request."""
    if any(_yields(each) for each in (check, inspect.unwrap(check), type(check).__call__)):
        raise TypeError(
            f"expected a function or coroutine function, got the generator function {check!r}; "
            "let a dependency of it yield what must be closed"
        )

    async def dependency(**values: Any) -> Any:
        return await decide(values.pop(_CONNECTION), values)

    signature = _signature_of(check)
    own = inspect.Parameter(
        _CONNECTION, inspect.Parameter.KEYWORD_ONLY, default=Depends(_connection), annotation=HTTPConnection
    )
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in signature.parameters.values()]
    dependency.__signature__ = signature.replace(parameters=[*parameters, own])  # type: ignore[attr-defined]  # as inspect reads it
    dependency.__name__ = getattr(check, "__name__", type(check).__name__)
    dependency.__doc__ = check.__doc__
    return dependency


def _yields(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _signature_of(check: Check) -> inspect.Signature:
    """Return the signature with evaluated annotations. FastAPI would look up string annotations in this module.

    Raises:
        NameError: the annotation of a parameter uses an undefined name.
    """
    try:
        return inspect.signature(check, eval_str=True)
    except NameError:
        from fastapi.dependencies.utils import get_typed_signature

        # FastAPI ignores the return annotation, whose names may be imported for a type checker only.
        signature = get_typed_signature(check)
        if any(isinstance(each.annotation, ForwardRef) for each in signature.parameters.values()):
            raise
        return signature


async def _asked(check: Check, values: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(check) or inspect.iscoroutinefunction(type(check).__call__):
        return await check(**values)
    value = await run_in_threadpool(functools.partial(check, **values))
    # A plain function may wrap a coroutine function. The coroutine itself would be true, whatever it returns.
    return await value if inspect.isawaitable(value) else value


def _event(connection: HTTPConnection, event_type: str) -> AuditEvent:
    scope = connection.scope
    exchange = exchange_of(scope)
    event = AuditEvent(
        event_type=event_type,
        action=AuditAction(path=path_in(scope), method=scope.get("method")),
        principal=_principal(connection) or AuditPrincipal(),
        parent_id=parent_id(),
    )
    if exchange is None:
        peer = connection.client.host if connection.client is not None else ""
        transport = "http" if scope["type"] == "http" else "websocket"
        event.source = AuditSource(ip=peer, transport=transport, user_agent=connection.headers.get("user-agent"))
        return event
    event.action.method = exchange.method
    event.request_id = exchange.request_id
    event.source = AuditSource(ip=exchange.ip, transport=exchange.transport, user_agent=exchange.user_agent)
    return event


_any_scope = Principals(None, Notices())


def _principal(connection: HTTPConnection) -> AuditPrincipal | None:
    """Return the principal if it is known by now."""
    exchange = exchange_of(connection.scope)
    if exchange is None:
        return connection.scope.get(_PRINCIPAL) or _any_scope.of(connection.scope)
    return exchange.told or _any_scope.of(connection.scope, exchange.found)


def _make_known(connection: HTTPConnection, principal: AuditPrincipal) -> None:
    """Store the principal, but not in the request's state, where the application may keep its own user."""
    exchange = exchange_of(connection.scope)
    if exchange is not None:
        exchange.told = principal
    else:
        connection.scope[_PRINCIPAL] = principal


def _is_nobody(user: Any) -> bool:
    """Return True if this value means that there is no user, as Starlette's `UnauthenticatedUser` does."""
    return user is None or user is False or getattr(user, "is_authenticated", None) is False


def _named(user: Any, auth_type: str) -> AuditPrincipal:
    found = _any_scope.named(user) or AuditPrincipal()
    return found if found.auth_type else found.model_copy(update={"auth_type": auth_type})


def _with_actions(resource: AuditResource, actions: Sequence[str]) -> AuditResource:
    return resource if resource.actions or not actions else resource.model_copy(update={"actions": list(actions)})


async def _raised(audit: AuditLogger, event: AuditEvent, error: BaseException, refusal: str) -> None:
    """Record an exception: the detail of a refusal, which the client gets anyway, and otherwise only the class.

    Raises:
        HTTPException: as `_record`, but it never replaces a cancellation.
    """
    event.error_type = type(error).__qualname__
    is_refusal = isinstance(error, PermissionError) or getattr(error, "status_code", None) in _DENIED
    is_cancelled = isinstance(error, asyncio.CancelledError | TimeoutError)
    event.outcome = refusal if is_refusal else Outcome.CANCELLED.value if is_cancelled else Outcome.ERROR.value
    detail = getattr(error, "detail", None)
    if is_refusal and isinstance(detail, str):
        event.reason = detail
    with suppress(HTTPException) if isinstance(error, asyncio.CancelledError) else nullcontext():
        await _record(audit, event)


async def _record(audit: AuditLogger, event: AuditEvent) -> None:
    """Record the event, or end the request.

    Raises:
        HTTPException: 503, if the event cannot be recorded and the loss rule is `closed`.
    """
    waits = audit.recorder.syncs or audit.recorder.may_refuse
    try:
        if waits:
            await audit.alog(event)
        else:
            audit.log(event)
    except AuditUnavailable as error:
        raise HTTPException(503, REFUSAL.decode().strip(), headers={"retry-after": "5"}) from error
