"""What a user adds to redaction: patterns, names, an allow-list, and less about the client."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from otel_audit import configure
from otel_audit.errors import ConfigError
from otel_audit.event import AuditEvent, AuditPrincipal, AuditSource
from otel_audit.redaction import Redactor, Rules
from otel_audit.redaction.patterns import REDACTED
from otel_audit.redaction.pseudonyms import PseudonymKey, Pseudonyms, network_of, product_of
from otel_audit.settings import ClientInfo, Settings
from tests.cleaning import all_texts_of
from tests.examples import examples
from tests.recording import event_of, recorder


def cleaned(rules: Rules, **fields: Any) -> dict[str, Any]:
    redactor = Redactor(rules=rules)
    once = redactor.clean({"event_type": "a", **fields})
    assert redactor.clean(once) == once
    return once


def test_a_pattern_of_the_user_counts_beside_those_of_the_table() -> None:
    rules = Rules(redact_patterns=(r"EMP-[0-9]{6}", r"ticket=(\w+)"))
    event = cleaned(rules, detail="EMP-123456 and ticket=abc and password=h2x and ümlaut EMP-12")

    assert event["detail"] == f"{REDACTED} and ticket={REDACTED} and password={REDACTED} and ümlaut EMP-12"
    assert event["redacted"] == ["$.detail"]
    assert not Redactor(rules=rules).is_clean(["a EMP-123456"])
    assert Redactor(rules=rules).is_clean(["a EMP-12345"])
    assert Redactor().is_clean(["a EMP-123456"])


@pytest.mark.parametrize(
    ("pattern", "text", "left"),
    [
        ("ü[äö]{2}", "x üäö y üä", f"x {REDACTED} y üä"),
        (".é.", "aäébc", f"a{REDACTED}c"),
        (r"[^a]+", "aaßßaa", f"aa{REDACTED}aa"),
        ("[A-Z]+", "ABC [REDACTED] d", f"{REDACTED} [REDACTED] d"),
        (r"x|\b", "ab x c", f"ab {REDACTED} c"),
        (".+", "all\nof it", f"{REDACTED}\n{REDACTED}"),
    ],
)
def test_a_pattern_of_the_user_works_on_characters_and_comes_to_an_end(pattern: str, text: str, left: str) -> None:
    assert cleaned(Rules(redact_patterns=(pattern,)), detail=text)["detail"] == left


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("a[b", "at character 2: missing ]: [b"),
        ("ab(c", "at character 1: missing ): ab(c"),
        ("a(?=b)", "at character 2: invalid perl operator: (?="),
        ("x*", "it matches the empty text"),
    ],
)
def test_a_wrong_pattern_stops_the_start_and_is_named_with_its_place(
    pattern: str, fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"client_info: drop\nredact_patterns: ['EMP-[0-9]+', '{pattern}']\n")

    with pytest.raises(ConfigError) as of_file:
        Settings.load({"OTEL_AUDIT_CONFIG": str(file)})
    with pytest.raises(ConfigError) as of_code:
        Rules(redact_patterns=("a", pattern))

    assert str(of_file.value).startswith("redact_patterns: expected RE2 patterns")
    assert f"({file}:2:1); pattern 2 of 2, {fault}" in str(of_file.value)
    assert str(of_code.value).startswith("Rules.redact_patterns[1]: ")
    assert str(of_code.value).endswith(fault)
    assert capfd.readouterr().err == ""  # RE2 logs faults by itself unless it is told not to


def test_names_of_the_user_are_compared_by_words() -> None:
    event = cleaned(
        Rules(redact_names=("employee_number", "пароль"), keep_names=("session_id", "token")),
        attributes={
            "employeeNumber": 7,
            "X-Employee-Number": "7",
            "the.employee_number.of": [7],
            "employee": 7,
            "number": 7,
            "Пароль": "x",
            "session_id": "abc",
            "sessionId": "abc",
            "session": "abc",
            "auth_session_id": "abc",
            "token": "ghp_" + "a" * 36,
        },
    )

    assert event["attributes"] == {
        "employeeNumber": REDACTED,
        "X-Employee-Number": REDACTED,
        "the.employee_number.of": REDACTED,
        "employee": 7,
        "number": 7,
        "Пароль": REDACTED,
        "session_id": "abc",
        "sessionId": "abc",
        "session": REDACTED,
        "auth_session_id": REDACTED,
        "token": REDACTED,
    }
    assert Redactor(rules=Rules(keep_names=("session_id",))).attributes_are_clean({"session_id": "abc"})
    assert not Redactor(rules=Rules(redact_names=("badge",))).attributes_are_clean({"badge": "abc"})


def test_with_an_allow_list_only_named_attributes_are_kept_and_the_others_listed() -> None:
    event = cleaned(
        Rules(keep_attributes=("rows", "http.*")),
        attributes={"rows": 3, "rows2": 3, "http.route": "/a", "http": 1, "password": "x", "ghp_" + "a" * 36: 1},
        field_of_a_subclass="x",
    )

    assert event["attributes"] == {"rows": 3, "http.route": "/a"}
    assert event["field_of_a_subclass"] == REDACTED
    assert event["redacted"] == [
        "$.attributes.[REDACTED]",
        "$.attributes.http",
        "$.attributes.password",
        "$.attributes.rows2",
        "$.field_of_a_subclass",
    ]


def test_more_attributes_than_are_looked_at_are_said_to_be_cut_with_an_allow_list_too() -> None:
    event = cleaned(Rules(keep_attributes=("a1",)), attributes={f"a{n}": n for n in range(100)})

    assert event["attributes"] == {"a1": 1}
    assert "$.attributes" in event["truncated"]


RULES = st.builds(
    Rules,
    redact_names=st.sampled_from([(), ("rows",)]),
    keep_attributes=st.sampled_from([None, (), ("rows", "client.*", "a.b", "x[0]")]),
    client_info=st.sampled_from(ClientInfo),
    pseudonyms=st.sampled_from([None, Pseudonyms((PseudonymKey.of(b"k" * 32),))]),
)
_NAMED = st.fixed_dictionaries({"username": st.text(max_size=9)}, optional={"on_behalf_of": st.text(max_size=9)})
_ATTRIBUTES = st.dictionaries(
    st.sampled_from(["rows", "client.address", "client.port", "user_agent.original", "a.b", "x[0]", "token: ", "ä"]),
    st.text(max_size=9) | st.integers() | st.booleans(),
)
_ADDRESSES = st.ip_addresses().map(str) | st.text(max_size=9)
EVENTS = st.fixed_dictionaries(
    {"event_type": st.just("a"), "principal": _NAMED | st.text(max_size=9)},
    optional={
        "source": st.fixed_dictionaries({"ip": _ADDRESSES}, optional={"user_agent": st.text(max_size=20)}),
        "detail": st.text(max_size=20),
        "attributes": _ATTRIBUTES,
        "redacted": st.just(["$.detail"]),
        "field_of_a_subclass": st.text(max_size=9),
    },
)


@given(RULES, EVENTS)
@examples(400)
def test_a_clean_event_is_rewritten_in_short_as_it_would_be_at_length(rules: Rules, event: dict[str, Any]) -> None:
    redactor = Redactor(rules=rules)
    event = {name: event[name] for name in (*AuditEvent.model_fields, "field_of_a_subclass") if name in event}
    before = copy.deepcopy(event)
    assume(redactor.is_clean(all_texts_of(event)) and redactor.attributes_are_clean(event.get("attributes", {})))

    rewritten = redactor.rewritten(event)

    assert list(rewritten.items()) == list(redactor.clean(event).items())
    assert event == before


def test_without_rules_an_event_is_not_even_copied() -> None:
    event = {"event_type": "a", "principal": {"username": "alice"}}

    assert Redactor().rewritten(event) is event
    assert Redactor(rules=Rules(redact_patterns=("x",))).rewritten(event) is event


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::ffff:192.0.2.77", "192.0.2.0"),
        ("fe80::1%eth0", "fe80::"),
        ("192.0.2.77:5000", ""),
        ("testclient", ""),
        ("", ""),
    ],
)
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_the_first_product_of_a_user_agent() -> None:
    assert product_of("Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0") == "Mozilla/5.0"
    assert product_of("curl/8.5.0") == "curl/8.5.0"
    assert product_of("(hidden) x") == ""
    assert product_of("") == ""


CLIENT = {
    "source": {"ip": "192.0.2.77", "transport": "http", "user_agent": "Mozilla/5.0 (X11) Firefox/128.0"},
    "attributes": {
        "client.address": "192.0.2.77",
        "client.port": 5000,
        "http.request.header.x-forwarded-for": ["192.0.2.77"],
        "user_agent.original": "Mozilla/5.0 (X11)",
        "rows": 3,
    },
}
_CHANGED = [
    "$.attributes.client.address",
    "$.attributes.client.port",
    "$.attributes.http.request.header.x-forwarded-for",
    "$.attributes.user_agent.original",
    "$.source.ip",
    "$.source.user_agent",
]


def test_a_truncated_client_is_its_network_and_product() -> None:
    event = cleaned(Rules(client_info=ClientInfo.TRUNCATE), **CLIENT)

    assert event["source"] == {"ip": "192.0.2.0", "transport": "http", "user_agent": "Mozilla/5.0"}
    assert event["attributes"] == {
        "client.address": "192.0.2.0",
        "client.port": "",
        "http.request.header.x-forwarded-for": "",
        "user_agent.original": "Mozilla/5.0",
        "rows": 3,
    }
    assert event["redacted"] == _CHANGED


def test_a_dropped_client_is_in_no_byte() -> None:
    event = cleaned(Rules(client_info=ClientInfo.DROP), **CLIENT)

    assert event["source"] == {"ip": "", "transport": "http"}
    assert event["redacted"] == _CHANGED
    assert "192.0.2" not in json.dumps(event)
    assert "Mozilla" not in json.dumps(event)


def test_settings_are_in_force_for_every_way_to_log(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("ab" * 32)
    keys.chmod(0o600)
    source = AuditSource(ip="192.0.2.77", transport="http", user_agent="agent-of-alice")
    principal = AuditPrincipal(username="alice", on_behalf_of="bob-the-owner")
    audit = configure(
        directory=str(tmp_path / "journal"),
        export="none",
        client_info="drop",
        pseudonym_keys=str(keys),
        redact_patterns=["EMP-[0-9]+"],
        redact_names=["badge"],
        keep_attributes=["badge", "rows"],
    )
    with audit:
        audit.log_http_request(method="GET", path="/EMP-123", principal=principal, source=source)
        audit.log_mcp_call(tool_name="EMP-123", principal=principal, source=source)
        audit.log_authn(outcome="failure", principal=principal, source=source, detail="EMP-123")
        audit.log_authz(outcome="deny", principal=principal, detail="EMP-123")
        attributes: dict[str, Any] = {"badge": "for EMP-123", "rows": 3, "other": "unlisted"}
        audit.log(AuditEvent(event_type="a", principal=principal, source=source, attributes=attributes))
        with audit.operation("b", principal=principal, source=source, attributes=attributes):
            pass
        with audit.require("c", principal=principal, source=source, attributes=attributes):
            pass

    written = b"".join(path.read_bytes() for path in (tmp_path / "journal").glob("*.jsonl"))
    lines = [json.loads(line) for line in written.split(b"\n") if line and b'"system":' not in line]
    assert len(lines) == 8
    assert {line["principal"]["username"][:3] for line in lines} == {"p1:"}
    assert len({line["principal"]["username"] for line in lines}) == 1
    for planted in (b"alice", b"bob-the-owner", b"192.0.2.", b"EMP-123", b"unlisted"):
        assert planted not in written


@pytest.mark.parametrize("on_behalf_of", [None, "bob"])
def test_a_helper_records_the_pseudonyms_that_a_model_gets(tmp_path: Path, on_behalf_of: str | None) -> None:
    keys = Pseudonyms((PseudonymKey.of(b"k" * 32),))
    principal = AuditPrincipal(username="alice", roles=["a"], on_behalf_of=on_behalf_of)
    with recorder(tmp_path, redactor=Redactor(rules=Rules(pseudonyms=keys))) as audit:
        by_helper = event_of(tmp_path, audit.log_authn(outcome="success", request_id="r", principal=principal))
        model = AuditEvent(event_type="authn.success", outcome="success", request_id="r", principal=principal)
        by_model = event_of(tmp_path, audit.log(model))

    assert by_helper["principal"] == by_model["principal"]
    assert by_helper["principal"]["username"] == keys.of("alice")
    assert by_helper["principal"].get("on_behalf_of") == (on_behalf_of and keys.of(on_behalf_of))
    assert (principal.username, principal.on_behalf_of) == ("alice", on_behalf_of)
