"""What each answer over HTTP means for the records: every row of the table of outcomes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate

import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # it ships no types

from otel_audit.delivery.otlp.http import OtlpHttpExporter
from otel_audit.delivery.outcomes import (
    Accepted,
    ExportOutcome,
    Refused,
    RefusedFor,
    Unavailable,
    UnavailableFor,
)
from otel_audit.settings import OtlpProtocol, OtlpSettings
from tests.servers.otlp_server import Answer, OtlpServer, accepted, login_page, partial_success, redirect

REQUEST = b"\n\x00"  # one ResourceLogs with nothing in it
JSON = ("Content-Type", "application/json")
PROTOBUF = ("Content-Type", "application/x-protobuf")
HTML = ("Content-Type", "text/html")
TEXT = ("Content-Type", "text/plain; charset=utf-8")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[OtlpServer]:
    with OtlpServer() as running:
        yield running


def outcome_of(server: OtlpServer, answer: Answer, *, records: int = 3, token: str = "unused") -> ExportOutcome:
    server.will_answer(answer)
    headers = (("authorization", f"Bearer {token}"),)
    settings = OtlpSettings(server.endpoint, OtlpProtocol.HTTP_PROTOBUF, headers=headers, timeout_s=20)
    with closing(OtlpHttpExporter(settings)) as exporter:
        return exporter.export(REQUEST, records)


def status_message(message: str) -> bytes:
    return bytes(Status(code=3, message=message).SerializeToString())


def as_json(**content: object) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "answer",
    [
        accepted(),
        Answer(200),
        Answer(200, headers=(HTML,)),
        Answer(202),
        Answer(204),
        Answer(200, b"{}", (JSON,)),
        Answer(200, as_json(partialSuccess={}), (("Content-Type", "application/json; charset=utf-8"),)),
        Answer(200, as_json(partialSuccess={"rejectedLogRecords": "0"}, later="fields"), (JSON,)),
        Answer(200, b"\x52\x02ok", (PROTOBUF,)),
        Answer(200, b"\n\x00"),
        Answer(200, b"{}", (TEXT,)),
        Answer(200, b"{}", (PROTOBUF,)),
        Answer(200, b"{}"),
        Answer(200, as_json(partialSuccess={}), (TEXT,)),
        Answer(200, b'{"partialSuccess":null}', (TEXT,)),
        Answer(200, b" \r\n", (TEXT,)),
        Answer(200, b"\n", (JSON,)),
    ],
    ids=[
        "the collector's own",
        "200 without a body",
        "200 without a body of HTML",
        "202",
        "204",
        "empty JSON",
        "JSON with an empty partial success",
        "JSON of a later version",
        "protobuf of a later version",
        "protobuf without a content type",
        "empty JSON as text",
        "empty JSON as protobuf",
        "empty JSON without a content type",
        "JSON with an empty partial success as text",
        "JSON with no partial success as text",
        "blank text",
        "blank JSON",
    ],
)
def test_a_2xx_with_an_empty_or_an_otlp_body_is_accepted(server: OtlpServer, answer: Answer) -> None:
    assert outcome_of(server, answer) == Accepted()
    assert [received.body for received in server.requests] == [REQUEST]


@pytest.mark.parametrize(
    "answer",
    [
        partial_success(0, "use a newer\nprotocol"),
        Answer(200, as_json(partialSuccess={"errorMessage": "use a newer protocol"}), (JSON,)),
    ],
    ids=["protobuf", "JSON"],
)
def test_a_partial_success_that_rejects_nothing_is_accepted_with_a_warning(server: OtlpServer, answer: Answer) -> None:
    assert outcome_of(server, answer) == Accepted(warning="use a newer protocol")


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_a_success_is_believed_however_long_its_warning_is(server: OtlpServer, kind: tuple[str, str]) -> None:
    warning = "w" * 3_000_000
    body = partial_success(0, warning).body if kind is PROTOBUF else as_json(partialSuccess={"errorMessage": warning})

    outcome = outcome_of(server, Answer(200, body, (kind,)))

    assert isinstance(outcome, Accepted)
    assert outcome.warning == "w" * 199 + "…"


def test_a_success_longer_than_any_of_otlp_accepts_nothing(server: OtlpServer) -> None:
    outcome = outcome_of(server, partial_success(0, "w" * 4 * 1024 * 1024))

    assert outcome == Unavailable("200 with a body of more than 4194304 bytes, which no answer of OTLP has")


@pytest.mark.parametrize("statuses", [[100], [102], [103], [199], [100, 103, 103]], ids=repr)
def test_what_a_server_says_before_its_answer_is_passed_over(server: OtlpServer, statuses: list[int]) -> None:
    before = b"".join(b"HTTP/1.1 %d Wait\r\nLink: </style.css>\r\n\r\n" % status for status in statuses)

    assert outcome_of(server, Answer(raw=before + accepted().on_the_wire())) == Accepted()
    assert outcome_of(server, Answer(raw=before + Answer(503).on_the_wire())) == Unavailable("503 Service Unavailable")


def test_an_answer_that_ends_with_what_comes_before_it_accepts_nothing(server: OtlpServer) -> None:
    outcome = outcome_of(server, Answer(raw=b"HTTP/1.1 103 Early Hints\r\n\r\n", keep_alive=False))

    assert isinstance(outcome, Unavailable)
    assert outcome.reason.endswith("connection closed within the answer")


@pytest.mark.parametrize(
    "answer",
    [
        partial_success(1, "too old"),
        Answer(200, as_json(partialSuccess={"rejectedLogRecords": "1", "errorMessage": "too old"}), (JSON,)),
        Answer(200, as_json(partial_success={"rejected_log_records": 1, "error_message": "too old"}), (JSON,)),
    ],
    ids=["protobuf", "JSON", "JSON with the names of the protocol file"],
)
def test_a_partial_success_that_rejects_records_is_a_refusal_of_a_record(server: OtlpServer, answer: Answer) -> None:
    assert outcome_of(server, answer, records=3) == Refused("1 of 3 records rejected: too old", RefusedFor.RECORD)


def test_a_rejection_without_a_reason_says_so(server: OtlpServer) -> None:
    outcome = outcome_of(server, partial_success(2, ""), records=2)

    assert outcome == Refused("2 of 2 records rejected: no reason given", RefusedFor.RECORD)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (login_page(), "text/html"),
        (Answer(200, b"OK", (TEXT,)), "text/plain"),
        (Answer(200, b"accepted ", (TEXT,)), "text/plain"),
        (Answer(200, b"OK"), "no content type"),
        (Answer(200, b"\n\xff\xff", (PROTOBUF,)), "application/x-protobuf"),
        (Answer(200, as_json(error="sign in first"), (JSON,)), "application/json"),
        (Answer(200, b"[]", (JSON,)), "application/json"),
        (Answer(200, b"[" * 60_000, (JSON,)), "application/json"),
        (Answer(200, b"\xff{", (JSON,)), "application/json"),
        (Answer(200, as_json(partialSuccess={"rejectedLogRecords": "many"}), (JSON,)), "application/json"),
        (partial_success(-1, "odd"), "application/x-protobuf"),
        (Answer(200, b"\n\x00" * 40_000, (HTML,)), "text/html"),
        (Answer(201, b"<html>", (HTML,)), "text/html"),
        (Answer(200, b"{}", (HTML,)), "text/html"),
        (Answer(200, b" \n", (HTML,)), "text/html"),
        (Answer(200, as_json(error="sign in first"), (TEXT,)), "text/plain"),
    ],
    ids=[
        "login page",
        "text",
        "text that happens to be protobuf with an unknown field",
        "text without a content type",
        "protobuf cut short",
        "JSON error",
        "JSON list",
        "JSON nested without end",
        "JSON not in UTF-8",
        "JSON with a word for a number",
        "less than none rejected",
        "long page",
        "201 with a page",
        "page of empty JSON",
        "blank page",
        "JSON error as text",
    ],
)
def test_a_2xx_with_any_other_body_accepts_nothing(server: OtlpServer, answer: Answer, kind: str) -> None:
    reason = f"{answer.status} with a body that is not OTLP ({kind}): a login page?"

    assert outcome_of(server, answer) == Unavailable(reason, UnavailableFor.ENDPOINT)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "401 Unauthorized: not now"),
        (403, "403 Forbidden: not now"),
        (404, "404 Not Found: not now"),
        (405, "405 Method Not Allowed: not now"),
        (407, "407 Proxy Authentication Required: not now"),
        (408, "408 Request Timeout: not now"),
        (415, "415 Unsupported Media Type: not now"),
        (431, "431 Request Header Fields Too Large: not now"),
        (499, "499: not now"),
        (501, "501 Not Implemented: not now"),
        (502, "502 Bad Gateway: not now"),
        (503, "503 Service Unavailable: not now"),
        (599, "599: not now"),
    ],
)
def test_an_endpoint_that_cannot_take_records_now_is_unavailable(server: OtlpServer, status: int, reason: str) -> None:
    outcome = outcome_of(server, Answer(status, b"not now", (TEXT,)))

    assert outcome == Unavailable(reason, UnavailableFor.ENDPOINT)


@pytest.mark.parametrize(
    ("status", "reason"), [(429, "429 Too Many Requests: not now"), (504, "504 Gateway Timeout: not now")]
)
def test_an_endpoint_that_may_have_too_much_is_unavailable_for_overload_unless_it_says_when_to_come_back(
    server: OtlpServer, status: int, reason: str
) -> None:
    assert outcome_of(server, Answer(status, b"not now", (TEXT,))) == Unavailable(reason, UnavailableFor.OVERLOAD)

    later = outcome_of(server, Answer(status, b"not now", (TEXT, ("Retry-After", "3"))))

    assert later == Unavailable(reason, UnavailableFor.ENDPOINT, 3.0)


def test_a_500_is_unavailable_for_a_server_error(server: OtlpServer) -> None:
    outcome = outcome_of(server, Answer(500, status_message("downstream said 413"), (PROTOBUF,)))

    assert outcome == Unavailable("500 Internal Server Error: downstream said 413", UnavailableFor.SERVER_ERROR)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_accepts_nothing(server: OtlpServer, status: int) -> None:
    outcome = outcome_of(server, redirect(f"{server.base_url}/login?next=secret", status))

    assert isinstance(outcome, Unavailable)
    assert outcome.reason.endswith(f": redirects are not followed, here to {server.base_url}/login")
    assert [received.path for received in server.requests] == ["/v1/logs"]


@pytest.mark.parametrize("location", ["http://[", "", "//user:pass@[::1"], ids=["broken", "empty", "broken with user"])
def test_a_redirect_to_nowhere_is_unavailable_all_the_same(server: OtlpServer, location: str) -> None:
    outcome = outcome_of(server, redirect(location))

    assert outcome == Unavailable("302 Found: redirects are not followed")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(413),
        Answer(413, b"<html><h1>413</h1> too large</html>", (HTML,)),
        Answer(400, status_message("http: request body too large"), (PROTOBUF,)),
        Answer(400, as_json(code=3, message="http: request body too large"), (JSON,)),
    ],
    ids=["413", "413 with a page", "the collector's 400", "the collector's 400 in JSON"],
)
def test_a_request_that_is_too_large_is_refused_for_its_size(server: OtlpServer, answer: Answer) -> None:
    outcome = outcome_of(server, answer)

    assert isinstance(outcome, Refused)
    assert outcome.about is RefusedFor.SIZE
    assert outcome.reason.startswith(str(answer.status))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(400), "400 Bad Request"),
        (Answer(400, status_message("bad key"), (PROTOBUF,)), "400 Bad Request: bad key"),
        (Answer(400, as_json(code=3, message="bad key"), (JSON,)), "400 Bad Request: bad key"),
        (Answer(400, as_json(message=["bad", "key"]), (JSON,)), '400 Bad Request: {"message": ["bad", "key"]}'),
        (Answer(400, b"{bad key", (JSON,)), "400 Bad Request: {bad key"),
        (Answer(400, b"\n\xff", (PROTOBUF,)), "400 Bad Request"),
        (Answer(422, b"<h1>bad</h1>\r\n<p>key</p>", (HTML,)), "422 {phrase}: bad key"),
    ],
    ids=["no body", "protobuf", "JSON", "JSON without text", "broken JSON", "broken protobuf", "page"],
)
def test_a_bad_request_is_a_refusal_of_a_record(server: OtlpServer, answer: Answer, reason: str) -> None:
    outcome = outcome_of(server, answer)

    assert isinstance(outcome, Refused)
    assert outcome.about is RefusedFor.RECORD
    # Python 3.13 renamed the phrase of 422.
    assert outcome.reason in {
        reason.format(phrase=phrase) if "{phrase}" in reason else reason
        for phrase in ("Unprocessable Entity", "Unprocessable Content")
    }


@pytest.mark.parametrize("status", [429, 503, 502, 401, 500, 302])
def test_the_wait_that_the_server_asks_for_is_passed_on(server: OtlpServer, status: int) -> None:
    outcome = outcome_of(server, Answer(status, headers=(("Retry-After", "17"),)))

    assert isinstance(outcome, Unavailable)
    assert outcome.retry_after_s == 17


def test_the_wait_may_be_given_as_a_date(server: OtlpServer) -> None:
    date = formatdate(time.time() + 100, usegmt=True)

    outcome = outcome_of(server, Answer(503, headers=(("Retry-After", date),)))

    assert isinstance(outcome, Unavailable)
    assert outcome.retry_after_s is not None
    assert 90 < outcome.retry_after_s <= 100


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("301", 300),
        ("inf", 300),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300),
        ("Thu, 01 Jan 1970 00:00:00 -0000", 0),
        ("-5", 0),
        ("nan", None),
        ("soon", None),
        ("Fri, 99 Dec 9999 23:59:59 GMT", None),
        ("", None),
    ],
)
def test_a_wait_is_at_most_five_minutes_and_nonsense_is_none(
    server: OtlpServer, value: str, wait_s: float | None
) -> None:
    outcome = outcome_of(server, Answer(503, headers=(("Retry-After", value),)))

    assert outcome == Unavailable("503 Service Unavailable", UnavailableFor.ENDPOINT, wait_s)


def test_a_message_is_one_line_of_200_characters_without_control_characters(server: OtlpServer) -> None:
    body = "stop\x1b[31m \u202eright\tto\n\nleft\x00 ".encode() + b"x" * 500

    outcome = outcome_of(server, Answer(503, body, (TEXT,)))

    assert isinstance(outcome, Unavailable)
    message = outcome.reason.removeprefix("503 Service Unavailable: ")
    assert message.startswith("stop [31m right to left x")
    assert message.isprintable()
    assert len(message) == 200


@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, b"bad token: Bearer k3y-of-the-audit-service", (TEXT,)),
        Answer(400, as_json(message="bad token k3y-of-the-audit-service"), (JSON,)),
        redirect("/login/k3y-of-the-audit-service"),
        partial_success(1, "k3y-of-the-audit-service may not write"),
        partial_success(0, "k3y-of-the-audit-service ends soon"),
        Answer(200, b"?", (("Content-Type", "text/k3y-of-the-audit-service"),)),
    ],
    ids=["text", "JSON", "redirect", "partial success", "warning", "content type"],
)
def test_a_token_that_the_server_repeats_is_masked(server: OtlpServer, answer: Answer) -> None:
    outcome = outcome_of(server, answer, token="k3y-of-the-audit-service")

    assert "***" in repr(outcome) or "[REDACTED]" in repr(outcome)
    assert "k3y" not in repr(outcome)


def test_credentials_in_the_url_are_sent_and_masked(server: OtlpServer) -> None:
    server.will_answer(Answer(401, b"who is YXVkaXQ6aHVudGVyMg==?", (TEXT,)))
    endpoint = server.endpoint.replace("http://", "http://audit:hunter2@")
    with closing(OtlpHttpExporter(OtlpSettings(endpoint, OtlpProtocol.HTTP_PROTOBUF))) as exporter:
        outcome = exporter.export(REQUEST, 1)

    assert server.requests[0].header("authorization") == "Basic YXVkaXQ6aHVudGVyMg=="
    assert outcome == Unavailable("401 Unauthorized: who is ***?")
