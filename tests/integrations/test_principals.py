"""Whom a value names: what applications keep their users in, and nothing that a client merely claims."""

from __future__ import annotations

import functools
from collections import defaultdict
from enum import Enum, StrEnum
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit import AuditPrincipal
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
        (SimpleNamespace(username="ann", scope={"type": "http"}), "ann", []),
        (SimpleNamespace(username="ann", roles=[Role.WRITER, Plain.READER]), "ann", ["writer", "reader"]),
    ],
    ids=repr,
)
def test_a_value_names_its_user_and_roles(value: object, username: str, roles: list[str]) -> None:
    found = principal_of(value)

    assert found is not None
    assert (found.username, found.roles) == (username, roles)


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
        object(),
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


def test_what_the_application_is_asked_by_counts_before_what_it_keeps_elsewhere() -> None:
    scope = {"user": "of the scope", "state": {"user": "of the state"}}

    assert named(Principals(lambda scope: "of the function", Notices()), scope) == "of the function"
    assert named(Principals(lambda scope: None, Notices()), scope) == "of the scope"
    assert named(Principals(None, Notices()), {"state": scope["state"]}) == "of the state"
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
