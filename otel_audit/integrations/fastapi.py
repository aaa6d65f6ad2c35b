"""Dependencies for FastAPI that record who was let in and who was not, and why.

Each takes a dependency of the application and gives one that FastAPI resolves just like it, parameters and all.
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
    """Return a dependency that asks `check`, records its decision as `authz.decision`, and stops whoever is denied.

    `check` may have parameters and dependencies of its own, and may be async. It denies by returning `False`, `None` or
    a `Ruling` that does, or by raising `PermissionError` or an `HTTPException` with status 401 or 403; a denial that is
    not such an exception becomes a 403. What it returns otherwise is the value of the dependency. Any other exception
    is recorded as `error`, a time-out or cancellation as `cancelled`, and goes on.

    `resource`: what is asked for, or a function that says it of the `Request` or `WebSocket`; `actions`: what is to be
    done to it; `policy_id`: the rule, where a `Ruling` names none.

    A decision to allow that cannot be recorded is none where the loss rule is `closed`: the client gets 503.

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
    """Return a dependency that asks `authenticate`, and records `authn.success` or `authn.failure`.

    `authenticate` may have parameters and dependencies of its own, and may be async. It fails by returning `False`,
    `None` or a user whose `is_authenticated` is false, or by raising `PermissionError` or an `HTTPException` with
    status 401 or 403; a failure that is not such an exception becomes a 401. Whom it returns (an `AuditPrincipal`, a
    name, claims, an object of a user) is the value of the dependency, and the principal of the request. `auth_type`:
    how, such as `oidc`, where the user does not say it.

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
    """Return the request or connection. This is a dependency, since a check may have a parameter for it itself."""
    return connection


def _dependency(
    check: Check, decide: Callable[[HTTPConnection, dict[str, Any]], Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """Return a function with the parameters of `check`, which FastAPI fills in, and one for the request."""
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
    """Return the signature with its annotations evaluated: FastAPI would read texts as names of this module.

    Raises:
        NameError: an annotation of a parameter names what is not there.
    """
    try:
        return inspect.signature(check, eval_str=True)
    except NameError:
        from fastapi.dependencies.utils import get_typed_signature

        # FastAPI does not ask what a dependency returns, which may be imported for a type checker only.
        signature = get_typed_signature(check)
        if any(isinstance(each.annotation, ForwardRef) for each in signature.parameters.values()):
            raise
        return signature


async def _asked(check: Check, values: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(check) or inspect.iscoroutinefunction(type(check).__call__):
        return await check(**values)
    value = await run_in_threadpool(functools.partial(check, **values))
    # Of a plain function around a coroutine function. A coroutine is true, whatever it would have said.
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
    """Return the principal as far as it is known by now."""
    exchange = exchange_of(connection.scope)
    if exchange is None:
        return connection.scope.get(_PRINCIPAL) or _any_scope.of(connection.scope)
    return exchange.told or _any_scope.of(connection.scope, exchange.found)


def _make_known(connection: HTTPConnection, principal: AuditPrincipal) -> None:
    """Keep the principal, but not in the state of the request, where the application may keep its own user."""
    exchange = exchange_of(connection.scope)
    if exchange is not None:
        exchange.told = principal
    else:
        connection.scope[_PRINCIPAL] = principal


def _is_nobody(user: Any) -> bool:
    """Return True if this says that nobody was found, as Starlette's `UnauthenticatedUser` does."""
    return user is None or user is False or getattr(user, "is_authenticated", None) is False


def _named(user: Any, auth_type: str) -> AuditPrincipal:
    found = _any_scope.named(user) or AuditPrincipal()
    return found if found.auth_type else found.model_copy(update={"auth_type": auth_type})


def _with_actions(resource: AuditResource, actions: Sequence[str]) -> AuditResource:
    return resource if resource.actions or not actions else resource.model_copy(update={"actions": list(actions)})


async def _raised(audit: AuditLogger, event: AuditEvent, error: BaseException, refusal: str) -> None:
    """Record an exception: of a refusal the detail, which the client is told anyway; else only its class.

    Raises:
        HTTPException: as `_record`, but not in the place of a cancellation.
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
    """Record the event, or let the request go no further.

    Raises:
        HTTPException: 503, where the loss rule is `closed`.
    """
    waits = audit.recorder.syncs or audit.recorder.may_refuse
    try:
        if waits:
            await audit.alog(event)
        else:
            audit.log(event)
    except AuditUnavailable as error:
        raise HTTPException(503, REFUSAL.decode().strip(), headers={"retry-after": "5"}) from error
