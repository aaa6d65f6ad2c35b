"""Dependencies for FastAPI that record who was let in and who was not, and why.

Each takes a dependency of the application and gives one that FastAPI resolves just like it, parameters and all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from fastapi import HTTPException, Request
from starlette.concurrency import run_in_threadpool

from otel_audit.errors import AuditUnavailable
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource, Outcome
from otel_audit.integrations.asgi import REFUSAL
from otel_audit.integrations.asgi_exchange import Exchange, exchange_of
from otel_audit.integrations.parent import parent_id
from otel_audit.integrations.principals import Principals, principal_of
from otel_audit.integrations.ruling import Ruling
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices

__all__ = ["Ruling", "audited_authentication", "audited_permission"]

Check = Callable[..., Any]
_REQUEST: Final = "otel_audit_request"
_DENIED: Final = (401, 403)


def audited_permission(
    audit: AuditLogger,
    check: Check,
    *,
    resource: AuditResource | Callable[[Request], AuditResource] | None = None,
    actions: Sequence[str] = (),
    policy_id: str = "",
) -> Callable[..., Awaitable[Any]]:
    """A dependency that asks `check`, records its decision as `authz.decision`, and lets nobody through who is denied.

    `check` may have parameters and dependencies of its own, and may be async. It denies by returning `False`, `None` or
    a `Ruling` that does, or by raising `PermissionError` or an `HTTPException` with status 401 or 403; a denial that is
    not such an exception becomes a 403. What it returns otherwise is the value of the dependency. Any other exception
    is recorded as `error`, and goes on.

    `resource`: what is asked for; `actions`: what is to be done to it; `policy_id`: the rule, where a `Ruling` names
    none.

    A decision to allow that cannot be recorded is none where the loss rule is `closed`: the client gets 503.

    Raises:
        TypeError: `check` is a generator.
    """

    async def decide(request: Request, values: dict[str, Any]) -> Any:
        event = _event(request, "authz.decision")
        about = resource(request) if callable(resource) else resource
        event.resource = _with_actions(about or AuditResource(), actions)
        event.policy_id = policy_id or None
        try:
            value = await _asked(check, values)
        except Exception as error:
            _raised(event, error, "deny")
            await _record(audit, event, request)
            if isinstance(error, PermissionError):
                raise HTTPException(403) from error
            raise
        if isinstance(value, Ruling):
            event.reason, event.policy_id = value.reason or None, value.policy_id or event.policy_id
        event.outcome = "allow" if value else "deny"
        await _record(audit, event, request)
        if not value:
            raise HTTPException(403)
        return value

    return _dependency(check, decide)


def audited_authentication(
    audit: AuditLogger, authenticate: Check, *, auth_type: str = ""
) -> Callable[..., Awaitable[Any]]:
    """A dependency that asks `authenticate`, and records `authn.success` or `authn.failure`.

    `authenticate` may have parameters and dependencies of its own, and may be async. It fails by returning `False` or
    `None`, or by raising `PermissionError` or an `HTTPException` with status 401 or 403; a failure that is not such an
    exception becomes a 401. Whom it returns (an `AuditPrincipal`, a name, claims, an object of a user) is the value of
    the dependency, and the principal of the request. `auth_type`: how, such as `oidc`, where the user does not say it.

    Raises:
        TypeError: `authenticate` is a generator.
    """

    async def decide(request: Request, values: dict[str, Any]) -> Any:
        event = _event(request, "authn.failure")
        event.principal = AuditPrincipal(auth_type=auth_type)
        try:
            user = await _asked(authenticate, values)
        except Exception as error:
            _raised(event, error, Outcome.FAILURE)
            await _record(audit, event, request)
            if isinstance(error, PermissionError):
                raise HTTPException(401) from error
            raise
        if user is None or user is False:
            event.outcome = Outcome.FAILURE.value
            await _record(audit, event, request)
            raise HTTPException(401)
        principal = _named(user, auth_type)
        event.event_type, event.outcome, event.principal = "authn.success", Outcome.SUCCESS.value, principal
        await _record(audit, event, request)
        _make_known(request, principal)
        return user

    return _dependency(authenticate, decide)


def _dependency(
    check: Check, decide: Callable[[Request, dict[str, Any]], Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """A function with the parameters of `check`, which FastAPI fills in, and one for the request."""
    if inspect.isgeneratorfunction(check) or inspect.isasyncgenfunction(check):
        raise TypeError(
            f"expected a function or coroutine function, got the generator function {check!r}; "
            "let a dependency of it yield what must be closed"
        )
    signature = inspect.signature(check, eval_str=True)

    async def dependency(**values: Any) -> Any:
        return await decide(values.pop(_REQUEST), values)

    own = inspect.Parameter(_REQUEST, inspect.Parameter.KEYWORD_ONLY, annotation=Request)
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in signature.parameters.values()]
    dependency.__signature__ = signature.replace(parameters=[*parameters, own])  # type: ignore[attr-defined]  # as inspect reads it
    dependency.__name__ = getattr(check, "__name__", type(check).__name__)
    dependency.__doc__ = check.__doc__
    return dependency


async def _asked(check: Check, values: dict[str, Any]) -> Any:
    if inspect.iscoroutinefunction(check) or inspect.iscoroutinefunction(type(check).__call__):
        return await check(**values)
    return await run_in_threadpool(functools.partial(check, **values))


def _event(request: Request, event_type: str) -> AuditEvent:
    exchange = exchange_of(request.scope)
    event = AuditEvent(
        event_type=event_type,
        action=AuditAction(path=request.url.path, method=request.scope.get("method")),
        principal=_principal(request, exchange) or AuditPrincipal(),
        parent_id=parent_id(),
    )
    if exchange is None:
        peer = request.client.host if request.client is not None else ""
        event.source = AuditSource(ip=peer, transport="http", user_agent=request.headers.get("user-agent"))
        return event
    event.request_id = exchange.request_id
    event.source = AuditSource(ip=exchange.ip, transport=exchange.transport, user_agent=exchange.user_agent)
    return event


_any_scope = Principals(None, Notices())


def _principal(request: Request, exchange: Exchange | None) -> AuditPrincipal | None:
    """As far as it is known by now."""
    return (exchange.told if exchange is not None else None) or _any_scope.of(request.scope)


def _make_known(request: Request, principal: AuditPrincipal) -> None:
    exchange = exchange_of(request.scope)
    if exchange is not None:
        exchange.told = principal
    else:
        request.state.principal = principal


def _named(user: Any, auth_type: str) -> AuditPrincipal:
    found = principal_of(user) or AuditPrincipal()
    return found if found.auth_type else found.model_copy(update={"auth_type": auth_type})


def _with_actions(resource: AuditResource, actions: Sequence[str]) -> AuditResource:
    return resource if resource.actions or not actions else resource.model_copy(update={"actions": list(actions)})


def _raised(event: AuditEvent, error: Exception, refusal: str) -> None:
    """What an exception says: a refusal, whose detail the client is told anyway; else only its class."""
    event.error_type = type(error).__qualname__
    is_refusal = isinstance(error, PermissionError) or getattr(error, "status_code", None) in _DENIED
    event.outcome = refusal if is_refusal else Outcome.ERROR.value
    detail = getattr(error, "detail", None)
    if is_refusal and isinstance(detail, str):
        event.reason = detail


async def _record(audit: AuditLogger, event: AuditEvent, request: Request) -> None:
    """The event is recorded, or the request goes no further.

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
