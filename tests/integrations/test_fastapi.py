"""Who was let in and who was not is recorded with the reason, by dependencies that are resolved as any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from otel_audit import AuditLogger, AuditMiddleware, AuditPrincipal, AuditResource
from otel_audit.integrations.fastapi import Ruling, audited_authentication, audited_permission
from otel_audit.settings import OnLoss
from tests.integrations.serving import Served, a_logger, events_of, fill, served

USERS = {"t-ann": AuditPrincipal(username="ann", roles=["writer"]), "t-bob": AuditPrincipal(username="bob")}
ANN = {"authorization": "Bearer t-ann"}
BOB = {"authorization": "Bearer t-bob"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def audit(directory: Path) -> AuditLogger:
    return a_logger(directory)


def by_token(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> AuditPrincipal:
    if token.credentials not in USERS:
        raise HTTPException(401, "unknown token")
    return USERS[token.credentials]


def an_app(audit: AuditLogger, **middleware: Any) -> FastAPI:
    """Orders, which writers may delete."""
    app = FastAPI()
    user = Depends(audited_authentication(audit, by_token, auth_type="bearer"))

    def may_write(order: int, user: AuditPrincipal = user) -> Ruling:
        return Ruling("writer" in user.roles, f"roles {user.roles}", "orders.write")

    def the_order(request: Request) -> AuditResource:
        return AuditResource(type="order", name=request.path_params["order"])

    permission = audited_permission(audit, may_write, resource=the_order, actions=["DELETE"])

    @app.delete("/orders/{order}", dependencies=[Depends(permission)])
    def delete(order: int) -> int:
        return order

    app.add_middleware(AuditMiddleware, audit=audit, **middleware)
    return app


def delete(headers: dict[str, str], status: int) -> Callable[[Served], None]:
    def call(server: Served) -> None:
        assert httpx.delete(f"{server.url}/orders/17", headers=headers).status_code == status

    return call


def test_a_request_that_is_let_in_leaves_who_it_was_why_and_what_became_of_it(
    audit: AuditLogger, directory: Path
) -> None:
    authn, authz, request = events_of(an_app(audit), directory, delete(ANN | {"x-request-id": "r-17"}, 200))

    assert (authn["event_type"], authn["outcome"]) == ("authn.success", "success")
    assert authn["principal"] == {"username": "ann", "roles": ["writer"], "auth_type": "bearer"}
    assert (authz["event_type"], authz["outcome"]) == ("authz.decision", "allow")
    assert (authz["reason"], authz["policy_id"]) == ("roles ['writer']", "orders.write")
    assert authz["resource"] == {"type": "order", "name": "17", "actions": ["DELETE"]}
    assert (request["event_type"], request["outcome"]) == ("http.request", "success")
    assert request["principal"] == authz["principal"] == authn["principal"]
    assert {event["request_id"] for event in (authn, authz, request)} == {"r-17"}
    assert authn["parent_id"] == authz["parent_id"] == request["event_id"]
    assert {event["action"]["path"] for event in (authn, authz, request)} == {"/orders/17"}
    assert "t-ann" not in json.dumps([authn, authz, request])


def test_a_request_that_is_not_permitted_leaves_who_was_denied_and_why(audit: AuditLogger, directory: Path) -> None:
    authn, authz, request = events_of(an_app(audit), directory, delete(BOB, 403))

    assert authn["outcome"] == "success"
    assert (authz["outcome"], authz["reason"], authz["policy_id"]) == ("deny", "roles []", "orders.write")
    assert authz["principal"]["username"] == "bob"
    assert (request["outcome"], request["principal"]["username"]) == ("denied", "bob")


def test_a_wrong_token_is_a_failed_authentication_of_nobody(audit: AuditLogger, directory: Path) -> None:
    authn, request = events_of(an_app(audit), directory, delete({"authorization": "Bearer t-eve"}, 401))

    assert (authn["event_type"], authn["outcome"], authn["reason"]) == ("authn.failure", "failure", "unknown token")
    assert authn["principal"] == {"username": "", "roles": [], "auth_type": "bearer"}
    assert authn["source"]["ip"] == "127.0.0.1"
    assert (request["outcome"], request["principal"]["username"]) == ("denied", "")
    assert "t-eve" not in json.dumps([authn, request])


def a_check(audit: AuditLogger, check: Callable[..., Any], directory: Path, status: int) -> list[dict[str, Any]]:
    """What a permission check leaves, asked in an application without the middleware."""
    app = FastAPI()

    permission = audited_permission(audit, check, policy_id="p-1")

    @app.get("/")
    def root(value: object = Depends(permission)) -> str:
        return repr(value)

    def call(server: Served) -> None:
        assert httpx.get(server.url, headers={"x-role": "writer"}).status_code == status

    events = events_of(app, directory, call)
    audit.close()
    return events


async def allows_async(x_role: Annotated[str, Header()]) -> bool:
    return x_role == "writer"


class Allows:
    async def __call__(self, x_role: Annotated[str, Header()]) -> str:
        return x_role


def denies() -> bool:
    return False


def finds_nothing() -> None:
    return None


def raises_permission_error() -> bool:
    raise PermissionError("the file /etc/shadow")


async def raises_forbidden() -> bool:
    raise HTTPException(403, "not yours")


def breaks() -> bool:
    raise LookupError("hunter2")


@pytest.mark.parametrize(
    ("check", "status", "outcome", "reason", "error_type"),
    [
        (allows_async, 200, "allow", None, None),
        (Allows(), 200, "allow", None, None),
        (denies, 403, "deny", None, None),
        (finds_nothing, 403, "deny", None, None),
        (raises_permission_error, 403, "deny", None, "PermissionError"),
        (raises_forbidden, 403, "deny", "not yours", "HTTPException"),
        (breaks, 500, "error", None, "LookupError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_way_a_check_decides_is_one_decision(
    audit: AuditLogger,
    directory: Path,
    check: Callable[..., Any],
    status: int,
    outcome: str,
    reason: str | None,
    error_type: str | None,
) -> None:
    (event,) = a_check(audit, check, directory, status)

    assert event["outcome"] == outcome
    assert event["policy_id"] == "p-1"
    assert (event.get("reason"), event.get("error_type")) == (reason, error_type)
    assert event["source"]["ip"] == "127.0.0.1"
    assert "hunter2" not in json.dumps(event)
    assert "shadow" not in json.dumps(event)


def test_a_parameter_that_is_missing_is_found_by_fastapi_before_anything_is_decided(
    audit: AuditLogger, directory: Path
) -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(audited_permission(audit, allows_async))])
    def root() -> str:
        return ""

    with served(app) as server:
        assert httpx.get(server.url).status_code == 422
    audit.close()

    assert audit.stats().emitted == 0


def test_a_check_that_yields_is_refused_at_once(audit: AuditLogger) -> None:
    def check() -> Iterator[bool]:
        yield True

    with pytest.raises(TypeError, match="expected a function or coroutine function"):
        audited_permission(audit, check)
    audit.close()


def test_the_parameters_of_a_check_stand_in_the_description_of_the_service(audit: AuditLogger) -> None:
    parameters = an_app(audit).openapi()["paths"]["/orders/{order}"]["delete"]

    assert [parameter["name"] for parameter in parameters["parameters"]] == ["order"]
    assert parameters["security"] == [{"HTTPBearer": []}]


@pytest.mark.parametrize("user", [None, False])
def test_an_authentication_that_finds_nobody_is_a_failure(audit: AuditLogger, directory: Path, user: object) -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(audited_authentication(audit, lambda: user))])
    def root() -> str:
        return ""

    app.add_middleware(AuditMiddleware, audit=audit)
    authn, request = events_of(app, directory, lambda server: httpx.get(server.url))

    assert (authn["event_type"], request["outcome"], request["status_code"]) == ("authn.failure", "denied", 401)


def test_nobody_is_let_in_on_a_decision_that_cannot_be_recorded_where_the_rule_is_closed(small_disk: Path) -> None:
    audit = a_logger(small_disk / "audit", on_loss=OnLoss.CLOSED)
    reached: list[str] = []
    app = FastAPI()

    @app.get("/", dependencies=[Depends(audited_permission(audit, lambda: True))])
    def root() -> str:
        reached.append("root")
        return ""

    with served(app) as server:
        fill(audit)
        answer = httpx.get(server.url)
    audit.close()

    assert (answer.status_code, reached) == (503, [])
