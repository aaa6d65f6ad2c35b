"""What each answer over gRPC means for the records: every row of the table of outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from grpc import StatusCode

from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter
from otel_audit.delivery.outcomes import (
    Accepted,
    ExportOutcome,
    Refused,
    RefusedFor,
    Unavailable,
    UnavailableFor,
)
from otel_audit.errors import ConfigError
from otel_audit.settings import OtlpSettings
from tests.servers.otlp_grpc_server import GrpcReply, OtlpGrpcServer, error_info, partly, refusal, retry_info

REQUEST = b"\n\x00"  # one ResourceLogs with nothing in it
ENDPOINT, SERVER_ERROR = UnavailableFor.ENDPOINT, UnavailableFor.SERVER_ERROR


@pytest.fixture
def server() -> Iterator[OtlpGrpcServer]:
    with OtlpGrpcServer() as running:
        yield running


def settings(endpoint: str, **values: Any) -> OtlpSettings:
    return OtlpSettings(**{"endpoint": endpoint, "insecure": True, "timeout_s": 20, **values})


def outcome_of(server: OtlpGrpcServer, reply: GrpcReply, *, records: int = 3, token: str = "unused") -> ExportOutcome:
    server.will_answer(reply)
    headers = (("authorization", f"Bearer {token}"),)
    with closing(OtlpGrpcExporter(settings(server.endpoint, headers=headers))) as exporter:
        return exporter.export(REQUEST, records)


@pytest.mark.parametrize(
    "reply", [GrpcReply(), partly(0, ""), GrpcReply(message=b"\x52\x02ok")], ids=["empty", "none rejected", "later"]
)
def test_an_ok_with_an_otlp_message_is_accepted(server: OtlpGrpcServer, reply: GrpcReply) -> None:
    assert outcome_of(server, reply) == Accepted()
    assert [received.message for received in server.requests] == [REQUEST]


def test_a_partial_success_that_rejects_nothing_is_accepted_with_a_warning(server: OtlpGrpcServer) -> None:
    assert outcome_of(server, partly(0, "use a newer\nprotocol")) == Accepted(warning="use a newer protocol")


def test_a_partial_success_that_rejects_records_is_a_refusal_of_a_record(server: OtlpGrpcServer) -> None:
    assert outcome_of(server, partly(1, "too old")) == Refused("1 of 3 records rejected: too old", RefusedFor.RECORD)


@pytest.mark.parametrize(
    "reply", [GrpcReply(message=b"\n\xff\xff"), GrpcReply(message=b"<html>"), partly(-1, "odd")], ids=repr
)
def test_an_ok_with_another_message_accepts_nothing(server: OtlpGrpcServer, reply: GrpcReply) -> None:
    assert outcome_of(server, reply) == Unavailable("OK with a message that is not OTLP", ENDPOINT)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (StatusCode.CANCELLED, Unavailable("CANCELLED: not now", ENDPOINT)),
        (StatusCode.UNKNOWN, Unavailable("UNKNOWN: not now", SERVER_ERROR)),
        (StatusCode.INVALID_ARGUMENT, Refused("INVALID_ARGUMENT: not now", RefusedFor.RECORD)),
        (StatusCode.NOT_FOUND, Unavailable("NOT_FOUND: not now", ENDPOINT)),
        (StatusCode.ALREADY_EXISTS, Unavailable("ALREADY_EXISTS: not now", ENDPOINT)),
        (StatusCode.PERMISSION_DENIED, Unavailable("PERMISSION_DENIED: not now", ENDPOINT)),
        (StatusCode.RESOURCE_EXHAUSTED, Refused("RESOURCE_EXHAUSTED: not now", RefusedFor.SIZE)),
        (StatusCode.FAILED_PRECONDITION, Unavailable("FAILED_PRECONDITION: not now", ENDPOINT)),
        (StatusCode.ABORTED, Unavailable("ABORTED: not now", ENDPOINT)),
        (StatusCode.OUT_OF_RANGE, Unavailable("OUT_OF_RANGE: not now", ENDPOINT)),
        (StatusCode.UNIMPLEMENTED, Unavailable("UNIMPLEMENTED: not now", ENDPOINT)),
        (StatusCode.INTERNAL, Unavailable("INTERNAL: not now", SERVER_ERROR)),
        (StatusCode.UNAVAILABLE, Unavailable("UNAVAILABLE: not now", ENDPOINT)),
        (StatusCode.DATA_LOSS, Unavailable("DATA_LOSS: not now", ENDPOINT)),
        (StatusCode.UNAUTHENTICATED, Unavailable("UNAUTHENTICATED: not now", ENDPOINT)),
    ],
    ids=lambda value: value.name if isinstance(value, StatusCode) else "",
)
def test_each_status_has_its_outcome(server: OtlpGrpcServer, code: StatusCode, expected: ExportOutcome) -> None:
    assert outcome_of(server, refusal(code, "not now")) == expected


def test_a_server_that_gives_up_in_time_is_as_one_that_does_not_answer(server: OtlpGrpcServer) -> None:
    outcome = outcome_of(server, refusal(StatusCode.DEADLINE_EXCEEDED, "downstream"))

    assert outcome == Unavailable("DEADLINE_EXCEEDED: no answer within 20 s", UnavailableFor.TIMEOUT)


@pytest.mark.parametrize(
    ("asked_s", "obeyed_s"), [((7, 500_000_000), 7.5), ((0, 0), 0.0), ((301, 0), 300.0), ((-5, 0), 0.0)]
)
def test_a_server_that_says_when_to_come_back_is_obeyed_up_to_five_minutes(
    server: OtlpGrpcServer, asked_s: tuple[int, int], obeyed_s: float
) -> None:
    outcome = outcome_of(server, refusal(StatusCode.UNAVAILABLE, "busy", error_info(), retry_info(*asked_s)))

    assert outcome == Unavailable("UNAVAILABLE: busy", ENDPOINT, obeyed_s)


@pytest.mark.parametrize("status", [b"\n\xff\xff", b""], ids=["broken", "empty"])
def test_details_that_cannot_be_read_are_as_if_they_were_not_there(server: OtlpGrpcServer, status: bytes) -> None:
    reply = GrpcReply(StatusCode.UNAVAILABLE, "busy", trailers=(("grpc-status-details-bin", status),))

    assert outcome_of(server, reply) == Unavailable("UNAVAILABLE: busy", ENDPOINT)


def test_an_exhausted_server_that_says_when_to_come_back_has_no_quarrel_with_the_size(server: OtlpGrpcServer) -> None:
    outcome = outcome_of(server, refusal(StatusCode.RESOURCE_EXHAUSTED, "slow down", retry_info(3)))

    assert outcome == Unavailable("RESOURCE_EXHAUSTED: slow down", ENDPOINT, 3.0)


def test_a_rate_limit_does_not_refuse_a_single_record(server: OtlpGrpcServer) -> None:
    outcome = outcome_of(server, refusal(StatusCode.RESOURCE_EXHAUSTED, "429 downstream"), records=1)

    assert outcome == Unavailable("RESOURCE_EXHAUSTED: 429 downstream", UnavailableFor.OVERLOAD)


def test_a_single_record_over_the_limit_is_refused_for_its_size(server: OtlpGrpcServer) -> None:
    details = "grpc: received message larger than max (70000 vs. 65536)"

    outcome = outcome_of(server, refusal(StatusCode.RESOURCE_EXHAUSTED, details), records=1)

    assert outcome == Refused(f"RESOURCE_EXHAUSTED: {details}", RefusedFor.SIZE)


@pytest.mark.parametrize("records", [1, 2])
def test_a_message_that_is_out_of_the_range_of_a_server_of_tonic_is_refused_for_its_size(
    records: int, server: OtlpGrpcServer
) -> None:
    details = "Error, decoded message length too large: found 5242880 bytes, the limit is: 4194304 bytes"

    outcome = outcome_of(server, refusal(StatusCode.OUT_OF_RANGE, details), records=records)

    assert outcome == Refused(f"OUT_OF_RANGE: {details}", RefusedFor.SIZE)


def test_a_request_over_the_limit_of_the_server_is_refused_for_its_size() -> None:
    with (
        OtlpGrpcServer(options=[("grpc.max_receive_message_length", 1000)]) as server,
        closing(OtlpGrpcExporter(settings(server.endpoint))) as exporter,
    ):
        outcome = exporter.export(b"x" * 5000, 2)

    assert isinstance(outcome, Refused)
    assert outcome.about is RefusedFor.SIZE
    assert "larger than max (5000 vs. 1000)" in outcome.reason


def test_a_request_over_a_limit_of_the_client_is_refused_for_its_size(server: OtlpGrpcServer) -> None:
    options = [("grpc.max_send_message_length", 1000)]
    with closing(OtlpGrpcExporter(settings(server.endpoint), options=options)) as exporter:
        outcome = exporter.export(b"x" * 5000, 1)

    assert isinstance(outcome, Refused)
    assert outcome.about is RefusedFor.SIZE
    assert server.requests == []


def test_a_reason_is_one_short_line_without_any_token(server: OtlpGrpcServer) -> None:
    details = "no access for\r\nBearer \x1b[31mhunter2hunter2: " + "x" * 500

    outcome = outcome_of(server, refusal(StatusCode.UNAUTHENTICATED, details), token="hunter2hunter2")

    assert isinstance(outcome, Unavailable)
    assert outcome.reason.startswith("UNAUTHENTICATED: no access for Bearer [31m***: xxx")
    assert len(outcome.reason) < 230
    assert outcome.reason.isprintable()


def test_headers_go_out_as_metadata(server: OtlpGrpcServer) -> None:
    headers = (("Authorization", "Bearer abc.def"), ("x-scope-orgid", "7"), ("x-trace-bin", "AP8"), ("x-none", ""))
    with closing(OtlpGrpcExporter(settings(server.endpoint, headers=headers))) as exporter:
        assert exporter.export(REQUEST, 1) == Accepted()

    (received,) = server.requests
    assert tuple(pair for pair in received.metadata if pair[0] != "user-agent") == (
        ("authorization", "Bearer abc.def"),
        ("x-scope-orgid", "7"),
        ("x-trace-bin", b"\x00\xff"),
        ("x-none", ""),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("x-token", "hunter2\r\nx: y"), ("x-token", "hunter2é"), ("x!token", "hunter2"), ("x-token-bin", "hunter2!")],
    ids=["lines", "not ASCII", "odd name", "not base64"],
)
def test_a_header_that_cannot_be_sent_stops_the_start_without_showing_its_value(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        OtlpGrpcExporter(settings("http://127.0.0.1:4317", headers=((name, value),)))

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("endpoint", ["http://audit:hunter2@127.0.0.1:4317", "http://"])
def test_an_endpoint_that_grpc_cannot_reach_stops_the_start(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT: expected http://host:port") as caught:
        OtlpGrpcExporter(settings(endpoint))

    assert "hunter2" not in str(caught.value)
