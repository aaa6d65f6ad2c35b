"""Whom a value names: what applications keep their users in, and nothing that a client merely claims."""

from __future__ import annotations

import functools
from collections import defaultdict
from enum import Enum, StrEnum
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit import AuditPrincipal
from otel_audit.event import PrincipalKind
from otel_audit.integrations.principals import Principals, principal_of
from otel_audit.notices import Notices


class Role(StrEnum):
    WRITER = "writer"


class Plain(Enum):
    READER = "reader"


@pytest.mark.parametrize(
    ("value", "username", "roles"),
    [
        ("ann", "ann", []),
        (AuditPrincipal(username="ann", roles=["a"]), "ann", ["a"]),
        ({"preferred_username": "ann", "sub": "0815", "roles": ["a", 1]}, "ann", ["a"]),
        ({"sub": "0815", "scopes": "read write"}, "0815", ["read", "write"]),
        (SimpleNamespace(id=17), "17", []),
        (SimpleNamespace(username="", email="ann@example.org"), "ann@example.org", []),
        (SimpleNamespace(is_authenticated=True, username="ann", roles=("a", "b")), "ann", ["a", "b"]),
        (SimpleNamespace(id=UUID(int=17)), "00000000-0000-0000-0000-000000000011", []),
        ({"sub": "ann", "scope": "read write"}, "ann", ["read", "write"]),
        ({"sub": "ann", "scp": "access_as_user"}, "ann", ["access_as_user"]),
        (SimpleNamespace(username="ann", scope={"type": "http"}), "ann", []),
        (SimpleNamespace(username="ann", roles=[Role.WRITER, Plain.READER]), "ann", ["writer", "reader"]),
    ],
    ids=repr,
)
def test_a_value_names_its_user_and_roles(value: object, username: str, roles: list[str]) -> None:
    found = principal_of(value)

    assert found is not None
    assert (found.username, found.roles) == (username, roles)


@pytest.mark.parametrize(
    ("value", "identity", "issuer", "username"),
    [
        ("ann", None, None, "ann"),
        ({"username": "ann"}, None, None, "ann"),
        (UUID(int=17), "00000000-0000-0000-0000-000000000011", None, "00000000-0000-0000-0000-000000000011"),
        ({"iss": "https://i", "sub": "00u-eve", "preferred_username": "alice"}, "00u-eve", "https://i", "alice"),
        ({"sub": "00u-mallory", "name": "alice", "email": "alice@example.org"}, "00u-mallory", None, "alice"),
        ({"sub": "0815", "id": "17"}, "0815", None, "0815"),
        (SimpleNamespace(id=17, email="ann@example.org"), "17", None, "ann@example.org"),
        (SimpleNamespace(identity="0815", display_name="Ann"), "0815", None, "Ann"),
        (SimpleNamespace(id=17, issuer="https://idp"), "17", "https://idp", "17"),
        (SimpleNamespace(id=True, username="ann"), None, None, "ann"),
    ],
    ids=repr,
)  # fmt: skip
def test_only_what_identifies_becomes_the_id(
    value: object, identity: str | None, issuer: str | None, username: str
) -> None:
    found = principal_of(value)

    assert found is not None
    assert (found.id, found.issuer, found.username) == (identity, issuer, username)


# Claims as these services document them, shortened to what says who it is.
ENTRA = "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0"
KEYCLOAK = "https://sso.example.org/realms/shop"
TOKENS: dict[str, tuple[dict[str, Any], AuditPrincipal]] = {
    "entra, a user": (
        {
            "iss": ENTRA,
            "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
            "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
            "tid": "72f988bf-86f1-41af-91ab-2d7cd011db47",
            "preferred_username": "abeli@example.org",
            "name": "Abe Lincoln",
            "azp": "6731de76-14a6-49ae-97bc-6eba6914391e",
            "scp": "access_as_user",
        },
        AuditPrincipal(
            username="abeli@example.org",
            id="AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
            issuer=ENTRA,
            roles=["access_as_user"],
        ),
    ),
    "entra, an application": (
        {
            "iss": ENTRA,
            "sub": "f2fd0b1a-0e2a-4c0c-a8a5-3f6c3ba4b1ab",
            "oid": "f2fd0b1a-0e2a-4c0c-a8a5-3f6c3ba4b1ab",
            "azp": "6731de76-14a6-49ae-97bc-6eba6914391e",
            "idtyp": "app",
            "roles": ["Orders.Read.All"],
        },
        AuditPrincipal(
            username="f2fd0b1a-0e2a-4c0c-a8a5-3f6c3ba4b1ab",
            id="f2fd0b1a-0e2a-4c0c-a8a5-3f6c3ba4b1ab",
            issuer=ENTRA,
            roles=["Orders.Read.All"],
            kind=PrincipalKind.SERVICE,
        ),
    ),
    "keycloak, a user": (
        {
            "iss": KEYCLOAK,
            "sub": "c4af3ef1-0d5b-4d77-8d2f-6a9d0ae0a4fe",
            "azp": "web-shop",
            "scope": "profile email",
            "preferred_username": "ann",
            "name": "Ann Other",
            "email": "ann@example.org",
        },
        AuditPrincipal(
            username="ann",
            id="c4af3ef1-0d5b-4d77-8d2f-6a9d0ae0a4fe",
            issuer=KEYCLOAK,
            roles=["profile", "email"],
        ),
    ),
    "keycloak, the account of a service": (
        {
            "iss": KEYCLOAK,
            "sub": "9d7a5cd8-93a5-4b5d-a6a6-0a64a1b4c2f7",
            "azp": "stock-sync",
            "client_id": "stock-sync",
            "preferred_username": "service-account-stock-sync",
        },
        AuditPrincipal(
            username="service-account-stock-sync",
            id="9d7a5cd8-93a5-4b5d-a6a6-0a64a1b4c2f7",
            issuer=KEYCLOAK,
            kind=PrincipalKind.SERVICE,
        ),
    ),
    "keycloak, a user who chose such a name": (
        {
            "iss": KEYCLOAK,
            "sub": "0d3c1b3f-2f5c-4a8e-9c0e-1b6f7f6d2a11",
            "azp": "web-shop",
            "preferred_username": "service-account-stock-sync",
        },
        AuditPrincipal(
            username="service-account-stock-sync", id="0d3c1b3f-2f5c-4a8e-9c0e-1b6f7f6d2a11", issuer=KEYCLOAK
        ),
    ),
    "google": (
        {
            "iss": "https://accounts.google.com",
            "azp": "1234987819200.apps.googleusercontent.com",
            "sub": "110169484474386276334",
            "email": "jsmith@example.com",
            "email_verified": True,
            "name": "Jan Smith",
        },
        AuditPrincipal(username="Jan Smith", id="110169484474386276334", issuer="https://accounts.google.com"),
    ),
    "auth0, a user": (
        {
            "iss": "https://shop.eu.auth0.com/",
            "sub": "auth0|507f1f77bcf86cd799439020",
            "azp": "my_client_id",
            "scope": "openid read:orders",
        },
        AuditPrincipal(
            username="auth0|507f1f77bcf86cd799439020",
            id="auth0|507f1f77bcf86cd799439020",
            issuer="https://shop.eu.auth0.com/",
            roles=["openid", "read:orders"],
        ),
    ),
    "auth0, a machine": (
        {
            "iss": "https://shop.eu.auth0.com/",
            "sub": "my_client_id@clients",
            "azp": "my_client_id",
            "gty": "client-credentials",
        },
        AuditPrincipal(
            username="my_client_id@clients",
            id="my_client_id@clients",
            issuer="https://shop.eu.auth0.com/",
            kind=PrincipalKind.SERVICE,
        ),
    ),
    "RFC 9068, a client for itself": (
        {"iss": "https://as.example.org", "sub": "s6BhdRkqt3", "client_id": "s6BhdRkqt3"},
        AuditPrincipal(
            username="s6BhdRkqt3", id="s6BhdRkqt3", issuer="https://as.example.org", kind=PrincipalKind.SERVICE
        ),
    ),
}


@pytest.mark.parametrize("who", TOKENS)
def test_the_claims_of_a_token_say_who_it_is_and_whether_that_is_a_service(who: str) -> None:
    claims, expected = TOKENS[who]

    assert principal_of(claims) == expected
    assert principal_of(SimpleNamespace(claims=claims, header={"typ": "JWT"})) == expected
    assert principal_of(SimpleNamespace(**{key: value for key, value in claims.items() if key != "scope"})) == (
        expected if "scope" not in claims else expected.model_copy(update={"roles": []})  # of an object: another thing
    )


class Column:
    """A field of an object that a database maps: to read it there is to ask the database."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, row: object, kind: type) -> object:
        if row is None:
            return self
        try:
            return row.__dict__[self._name]
        except KeyError:
            raise AssertionError(f"{self._name} was asked of the database") from None


class Row:
    id, username, email, name, roles = map(Column, ("id", "username", "email", "name", "roles"))

    def __init__(self, **loaded: object) -> None:
        self.__dict__.update(loaded)

    @property
    def display_name(self) -> object:
        return self.name

    @property
    def is_authenticated(self) -> object:
        return self.name


def test_no_field_of_a_row_is_loaded_to_name_its_user() -> None:
    loaded = principal_of(Row(id=17, email="ann@example.org"))

    assert loaded == AuditPrincipal(username="ann@example.org", id="17")
    assert principal_of(Row(id=17)) == AuditPrincipal(username="17", id="17")
    assert principal_of(Row()) is None
    after_a_commit = Row(_sa_instance_state=SimpleNamespace(identity=(17,)))  # of SQLAlchemy
    assert principal_of(after_a_commit) == AuditPrincipal(username="17", id="17")
    assert principal_of(Row(_sa_instance_state=SimpleNamespace(identity=(17, "eu")))) is None
    assert principal_of(Row(_sa_instance_state=SimpleNamespace(identity=None))) is None
    assert principal_of(Row(username="ann", is_authenticated=False)) is None


def test_what_an_object_holds_comes_before_what_it_would_compute() -> None:
    class User:
        def __init__(self) -> None:
            self.id = 17

        @property
        def username(self) -> str:
            raise AssertionError("it has an id")

    assert principal_of(User()) == AuditPrincipal(username="17", id="17")


class Slotted:
    __slots__ = ("id", "name")

    def __init__(self) -> None:
        self.id, self.name = 17, "ann"


class Pair(NamedTuple):
    id: int
    name: str


class Computed:
    @property
    def id(self) -> int:
        return 17

    @functools.cached_property
    def name(self) -> str:
        return "ann"


@pytest.mark.parametrize("value", [Slotted(), Pair(17, "ann"), Computed()], ids=lambda value: type(value).__name__)
def test_an_object_that_keeps_its_user_elsewhere_is_asked(value: object) -> None:
    assert principal_of(value) == AuditPrincipal(username="ann", id="17")


def test_a_coroutine_function_is_refused_at_once() -> None:
    """It would give a coroutine and no user: every request would be nobody's."""

    async def who(scope: object) -> str:
        return "ann"

    class Asks:
        async def __call__(self, scope: object) -> str:
            return "ann"

    for source in (who, functools.partial(who), Asks()):
        with pytest.raises(TypeError, match=r"coroutine function.*set_principal"):
            Principals(source, Notices())


def test_a_coroutine_that_nobody_awaited_is_nobody_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    async def who() -> str:
        return "ann"

    assert Principals(lambda scope: who(), Notices()).of({}) is None
    assert "expected a principal, got the coroutine" in capfd.readouterr().err


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        {},
        {"exp": 17},
        pytest.param(object(), id="object"),
        SimpleNamespace(is_authenticated=False, username="ann"),
        SimpleNamespace(username=True),
        SimpleNamespace(username=b"ann"),
    ],
    ids=repr,
)
def test_a_value_without_a_name_is_nobody(value: object) -> None:
    assert principal_of(value) is None


@pytest.mark.parametrize(
    "scope",
    [
        {"headers": [(b"authorization", b"Bearer of-eve"), (b"x-user", b"eve"), (b"cookie", b"user=eve")]},
        {"query_string": b"user=eve"},
        {"path_params": {"user": "eve"}},
        {"state": {"token": "of-eve"}},
    ],
    ids=repr,
)
def test_what_a_client_sends_names_nobody(scope: dict[str, Any]) -> None:
    assert Principals(None, Notices()).of(scope) is None


class Clock:
    """A clock that a test sets, in seconds."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


BEARER = {"headers": [(b"host", b"x"), (b"authorization", b"Bearer abc")]}
COOKIE = {"headers": [(b"cookie", b"session=abc")]}
NOTICE = "otel-audit: for a minute requests have come with an Authorization header or a cookie, and no event says whose"


@pytest.mark.parametrize(
    ("requests", "notices"),
    [
        ([(0, BEARER, None, 200), (59, COOKIE, None, 200)], 0),
        ([(0, BEARER, None, 200), (60, COOKIE, None, 200), (120, BEARER, None, 200), (999, BEARER, None, 200)], 1),
        ([(0, BEARER, None, 500), (60, BEARER, None, None)], 1),
        ([(0, BEARER, None, 401), (60, BEARER, None, 403), (120, BEARER, None, 401)], 0),
        ([(0, {"headers": []}, None, 200), (60, {"headers": [(b"x", b"authorization")]}, None, 200)], 0),
        ([(0, BEARER, None, 200), (30, BEARER, "ann", 200), (90, BEARER, None, 200), (190, BEARER, None, 200)], 0),
    ],
    ids=["less than a minute", "a minute", "errors", "refused", "no credentials", "somebody is named"],
)
def test_after_a_minute_of_credentials_without_a_user_one_notice_says_how_to_name_them(
    requests: list[tuple[float, dict[str, Any], str | None, int | None]],
    notices: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    principals = Principals(None, Notices(), clock=clock)

    for clock.now_s, scope, name, status_code in requests:
        principals.note(scope, None if name is None else AuditPrincipal(username=name), status_code)

    said = capfd.readouterr().err
    assert said.count(NOTICE) == said.count("\n") == notices
    assert said.count("set_principal(user)") == notices


ISSUED = {"iss": "https://idp.example", "name": "Ann", "scope": "read"}


@pytest.mark.parametrize(
    ("client", "subject", "claims", "identity", "username", "kind"),
    [
        ("notebook", "0815", {**ISSUED, "sub": "0815"}, "0815", "Ann", PrincipalKind.USER),
        ("notebook", None, {**ISSUED, "sub": "0815"}, "0815", "Ann", PrincipalKind.USER),
        ("notebook", "0815", {}, "0815", "0815", PrincipalKind.USER),
        ("0815", "0815", {**ISSUED, "sub": "0815"}, "0815", "Ann", PrincipalKind.USER),  # of FastMCP's for GitHub
        ("batch", None, {}, "batch", "batch", PrincipalKind.SERVICE),
        ("batch", "batch", {}, "batch", "batch", PrincipalKind.SERVICE),
        ("batch", "batch", {"sub": "batch", "client_id": "batch"}, "batch", "batch", PrincipalKind.SERVICE),
        ("batch", "0815", {"sub": "0815", "gty": "client-credentials"}, "0815", "0815", PrincipalKind.SERVICE),
    ],
)
def test_a_token_that_an_mcp_sdk_has_verified_names_its_subject_on_the_request_too(
    client: str, subject: str | None, claims: dict[str, Any], identity: str, username: str, kind: PrincipalKind
) -> None:
    token = SimpleNamespace(token="a-secret", client_id=client, subject=subject, claims=claims, scopes=["read"])
    user = SimpleNamespace(username=client, scopes=["read"], access_token=token)  # as the SDK has it in the scope

    found = Principals(None, Notices()).of({"user": user, "auth": SimpleNamespace(scopes=["read"])})

    assert found is not None
    assert (found.id, found.username, found.kind) == (identity, username, kind)
    assert (found.issuer, found.roles) == (claims.get("iss"), ["read"])


def test_what_the_application_is_asked_by_counts_before_what_it_keeps_elsewhere() -> None:
    scope = {"user": "of the scope", "state": {"user": "of the state"}}

    assert named(Principals(lambda scope: "of the function", Notices()), scope) == "of the function"
    assert named(Principals(lambda scope: None, Notices()), scope) == "of the scope"
    assert named(Principals(None, Notices()), {"state": scope["state"]}) == "of the state"
    assert (
        named(Principals(None, Notices()), {**scope, "session": {"user": {"name": "of the session"}}}) == "of the scope"
    )
    assert named(Principals(None, Notices()), {"state": {}, "session": {"user": {"name": "of the session"}}}) == (
        "of the session"
    )
    assert named(Principals(None, Notices()), {"state": defaultdict(str, user="of a server's state")}) == (
        "of a server's state"
    )


def named(principals: Principals, scope: dict[str, Any]) -> str:
    found = principals.of(scope)
    assert found is not None
    return found.username


keys = st.sampled_from(["username", "sub", "roles", "id", "scopes"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner),
    max_leaves=6,
)


@given(user=values, state=values)
def test_whatever_an_application_keeps_costs_no_request(user: object, state: object) -> None:
    found = Principals(None, Notices()).of({"user": user, "state": {"user": state}, "auth": user})

    assert found is None or all(type(text) is str for text in (found.username, found.auth_type, *found.roles))
