"""The tags of a rule are in the event, in the record and in what is exported, and cost nothing where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otel_audit import AuditAction, AuditEvent, AuditLogger, AuditPrincipal, AuditSource, fast_line
from otel_audit.errors import ConfigError
from otel_audit.policy import read_policy
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters
from otel_audit.records.ocsf import ocsf_event
from otel_audit.reporting.activity import activity_in
from otel_audit.stores.location import open_store
from tests.journal_lines import HEADER
from tests.record_lines import export_request, value_of
from tests.recording import a_trail, event_of

ALICE = AuditPrincipal(username="alice", id="u-1")
RULES = """\
rules:
  - {type: http.request, route: "/admin/*", tags: [privileged, admin]}
  - {type: http.request, outcome: denied, level: metadata, tags: refused}
  - {type: table.drop, outcome: success, tags: [privileged]}
  - {type: table.drop, outcome: error, tags: [broken], on_loss: closed}
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def logger(journal: Path, rules: str = RULES) -> AuditLogger:
    path = journal.with_name("policy.yaml")
    path.write_text(rules)
    return AuditLogger(a_trail(journal), policy=read_policy(path))


def request(audit: AuditLogger, path: str, outcome: str = "success") -> Any:
    return audit.log_http_request(method="GET", path=path, outcome=outcome, principal=ALICE)


def lines_of(journal: Path) -> list[bytes]:
    lines = [line for path in sorted(journal.glob("*-*.jsonl")) for line in path.read_bytes().splitlines()]
    return [line for line in lines if not line.startswith(b'{"system"')]


def test_an_event_has_the_tags_of_the_rule_that_decides_and_of_no_other(journal: Path) -> None:
    with logger(journal) as audit:
        admin = event_of(journal, request(audit, "/admin/users?x=1", "denied"))
        refused = event_of(journal, request(audit, "/orders", "denied"))
        plain = event_of(journal, request(audit, "/orders"))

    assert admin["tags"] == ["privileged", "admin"]
    assert admin["detail"] == "GET /admin/users?x=1 -> 200"
    assert refused["tags"] == ["refused"]
    assert refused["detail"] == ""
    assert "tags" not in plain


def test_a_helper_and_a_model_give_the_same_tagged_event(journal: Path) -> None:
    model = AuditEvent(
        event_type="http.request",
        principal=ALICE,
        source=AuditSource(transport="http"),
        action=AuditAction(path="/admin/users"),
        outcome="success",
        detail="GET /admin/users -> 200",
    )
    with logger(journal) as audit:
        by_helper = event_of(journal, request(audit, "/admin/users"))
        by_model = event_of(journal, audit.log(model))

    own = {"timestamp", "request_id", "event_id", "time_ns", "observed_ns", "seq", "prev_hash"}
    assert {name: by_helper[name] for name in by_helper if name not in own} == {
        name: by_model[name] for name in by_model if name not in own
    }
    assert list(by_helper) == list(by_model)


def test_the_tags_of_an_application_stay_and_none_is_there_twice(journal: Path) -> None:
    event = AuditEvent(event_type="table.drop", outcome="success", tags=["mine", "privileged"])
    with logger(journal) as audit:
        tagged = event_of(journal, audit.log(event))
        own = event_of(journal, audit.log(AuditEvent(event_type="other", tags=["mine"])))

    assert tagged["tags"] == ["mine", "privileged"]
    assert own["tags"] == ["mine"]
    assert event.tags == ["mine", "privileged"]


def test_a_secret_among_the_tags_of_an_application_is_removed(journal: Path) -> None:
    secret = "AKIA" + "IOSFODNN7EXAMPL3"
    with logger(journal) as audit:
        event = event_of(journal, audit.log(AuditEvent(event_type="other", tags=[secret])))

    assert secret not in json.dumps(event)
    assert event["redacted"] == ["$.tags[0]"]


def test_an_operation_begins_with_every_tag_that_it_may_end_with(journal: Path) -> None:
    with logger(journal) as audit, audit.operation("table.drop") as operation:
        pass

    begun, ended = (json.loads(line) for line in lines_of(journal))
    assert operation.begun is not None
    assert begun["tags"] == ["privileged", "broken"]
    assert ended["tags"] == ["privileged"]


def test_records_of_one_kind_have_each_their_own_tags(journal: Path) -> None:
    with logger(journal) as audit:
        audit.log(AuditEvent(event_type="other", tags=["one"]))
        audit.log(AuditEvent(event_type="other", tags=["two", "three"]))
        audit.log(AuditEvent(event_type="other"))

    sent = export_request(HEADER, lines_of(journal)).resource_logs[0].scope_logs[0].log_records

    attributes = [{each.key: value_of(each.value) for each in record.attributes} for record in sent]
    assert [each.get("audit.tags") for each in attributes] == [["one"], ["two", "three"], None]
    assert [ocsf_event(line, "shop")["metadata"].get("labels") for line in lines_of(journal)] == [
        ["one"],
        ["two", "three"],
        None,
    ]


def test_tagged_events_are_found_and_the_privileged_ones_reported(journal: Path) -> None:
    with logger(journal) as audit:
        request(audit, "/admin/users")
        last = request(audit, "/admin/users", "denied")
        request(audit, "/orders", "denied")
        request(audit, "/orders")
        audit.log(AuditEvent(event_type="other", tags=["privileged-not"]))

    with open_store(journal) as store, TrailDatabase([store]) as database:
        by_word = {
            word: len(list(database.find(Filters({"tag": [word]}))))
            for word in ("privileged", "admin", "priv*", "refused", "*", "nobody", '["privileged","admin"]')
        }
        activity = activity_in(database, Filters(), rows_max=10)

    assert by_word == {
        "privileged": 2,
        "admin": 2,
        "priv*": 3,
        "refused": 1,
        "*": 4,
        "nobody": 0,
        '["privileged","admin"]': 0,
    }
    assert activity.totals["privileged"] == 2
    assert [(row["actor"], row["what"], row["result"], row["events"]) for row in activity.privileged.rows] == [
        ("u-1", "GET /admin/users", "denied", 1),
        ("u-1", "GET /admin/users", "success", 1),
    ]
    assert activity.privileged.rows[0]["last_event_id"] == last.event_id


def test_without_tags_in_the_rules_a_helper_still_makes_no_model(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts: list[object] = []

    class Counted(fast_line.Draft, frozen=True, gc=False):
        def __post_init__(self) -> None:
            drafts.append(self)

    monkeypatch.setattr("otel_audit.recorder.Draft", Counted)
    with logger(journal, RULES.replace(", tags: [privileged, admin]", "")) as audit:
        request(audit, "/admin/users")
        request(audit, "/orders")
        request(audit, "/orders", "denied")  # of a rule with a level

    assert len(drafts) == 2


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("tags: []", "$.rules[0].tags: expected 1 to 8 words, got 0"),
        ("tags: [a, b, c, d, e, f, g, h, i]", "$.rules[0].tags: expected 1 to 8 words, got 9"),
        ("tags: [a, Privileged]", "$.rules[0].tags[1]: expected a word of up to 32 of a-z, 0-9, . _ and -"),
        ("tags: 'two words'", "$.rules[0].tags: expected a word of up to 32 of"),
        (f"tags: {'x' * 33}", "$.rules[0].tags: expected a word of up to 32 of"),
        ("tags: [a, [b]]", "$.rules[0].tags[1]: expected a word of up to 32 of"),
        ("tags: {a: b}", "$.rules[0].tags: expected a word of up to 32 of"),
        ("tags: ~", "$.rules[0].tags: expected a word of up to 32 of"),
        ("tags: [a, b, a]", "$.rules[0].tags: expected each word once, got 'a' twice"),
        ("keep: false, tags: [a]", "$.rules[0].tags: expected them for events that are kept, got them for one that"),
        ("level: none, tags: [a]", "$.rules[0].tags: expected them for events that are kept, got them for one that"),
    ],
)
def test_tags_that_are_wrong_stop_the_start_at_their_place(tmp_path: Path, rule: str, said: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"rules:\n  - {{type: x, {rule}}}\n")

    with pytest.raises(ConfigError) as raised:
        read_policy(path)

    assert said in str(raised.value)
    assert f"{path}:2:" in str(raised.value)
