"""What the network does to an export over HTTP: time, broken connections, TLS, forks."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, get_value
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_audit.delivery.otlp.http import OtlpHttpExporter
from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Refused, RefusedFor, Unavailable, UnavailableFor
from otel_audit.errors import ConfigError
from otel_audit.settings import Compression, OtlpProtocol, OtlpSettings
from tests.servers.certificates import Authority, KeyPair
from tests.servers.otlp_server import Answer, OtlpServer, accepted

REQUEST = b"\n\x00"  # one ResourceLogs with nothing in it
PATIENCE_S = 0.6  # time-out of exports that must run into it
MUCH_LONGER_S = 30.0  # what the server would take


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[OtlpServer]:
    with OtlpServer() as running:
        yield running


def settings(endpoint: str, **values: Any) -> OtlpSettings:
    return OtlpSettings(**{"endpoint": endpoint, "protocol": OtlpProtocol.HTTP_PROTOBUF, "timeout_s": 20, **values})


def export(endpoint: str, request: bytes = REQUEST, **values: Any) -> ExportOutcome:
    with closing(OtlpHttpExporter(settings(endpoint, **values))) as exporter:
        return exporter.export(request, 1)


def timed_export(endpoint: str, request: bytes = REQUEST, **values: Any) -> tuple[ExportOutcome, float]:
    started = time.monotonic()
    outcome = export(endpoint, request, timeout_s=PATIENCE_S, **values)
    return outcome, time.monotonic() - started


def place(endpoint: str) -> str:
    return endpoint.split("/")[2]


def in_time(elapsed_s: float) -> bool:
    return elapsed_s < PATIENCE_S + 2  # a loaded machine may be late, but not by the time of the server


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, delay_s=MUCH_LONGER_S),
        Answer(200, drip_s=0.1),
        Answer(200, b"x" * 10_000, drip_s=0.1, drip_from=100),
        Answer(200, b"x" * 10_000, headers=(("Content-Encoding", "gzip"),), drip_s=0.1, drip_from=100),
    ],
    ids=["silent", "drips its headers", "drips its body", "drips a body that is packed"],
)
def test_a_slow_server_holds_an_export_no_longer_than_the_time_out(server: OtlpServer, answer: Answer) -> None:
    server.will_answer(answer)

    outcome, elapsed_s = timed_export(server.endpoint)

    assert outcome == Unavailable(f"{place(server.endpoint)}: no answer within 0.6 s", UnavailableFor.TIMEOUT)
    assert in_time(elapsed_s)


def test_a_refusal_counts_even_if_its_body_does_not_arrive_in_time(server: OtlpServer) -> None:
    server.will_answer(Answer(413, b"x" * 10_000, drip_s=0.1, drip_from=60))

    outcome, elapsed_s = timed_export(server.endpoint)

    assert isinstance(outcome, Refused)
    assert outcome.about is RefusedFor.SIZE
    assert in_time(elapsed_s)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_reads_holds_an_export_no_longer_than_the_time_out(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1/logs"

        outcome, elapsed_s = timed_export(endpoint, b"x" * 30_000_000)

    # Over TLS nothing of the request went out: the size of the batch cannot be the reason.
    missing, cause = ("answer", UnavailableFor.TIMEOUT) if scheme == "http" else ("connection", UnavailableFor.ENDPOINT)
    assert outcome == Unavailable(f"{place(endpoint)}: no {missing} within 0.6 s", cause)
    assert in_time(elapsed_s)


def test_a_server_that_reads_slowly_over_tls_holds_an_export_no_longer_than_the_time_out(ours: Authority) -> None:
    with OtlpServer(tls_of(ours.issue("localhost")), read_pause_s=0.1) as server:
        outcome, elapsed_s = timed_export(server.endpoint, b"x" * 30_000_000, certificate=ours.bundle)

    assert outcome == Unavailable(f"{place(server.endpoint)}: no answer within 0.6 s", UnavailableFor.TIMEOUT)
    assert in_time(elapsed_s)


def test_a_host_that_does_not_answer_a_connect_is_not_a_question_of_size() -> None:
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        while True:  # until the queue of connections is full, and the system drops further ones
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(0.3)
            try:
                filler.connect(listener.getsockname())
            except TimeoutError:
                break
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/logs"

        outcome, elapsed_s = timed_export(endpoint)

    assert outcome == Unavailable(f"{place(endpoint)}: no connection within 0.6 s", UnavailableFor.ENDPOINT)
    assert in_time(elapsed_s)


def test_an_endless_answer_is_read_no_further_than_a_limit(server: OtlpServer) -> None:
    server.will_answer(Answer(200, b"x" * 100_000, endless=True))

    outcome = export(server.endpoint)

    reason = "200 with a body of more than 4194304 bytes, which no answer of OTLP has"
    assert outcome == Unavailable(reason, UnavailableFor.ENDPOINT)


def test_a_port_where_nothing_listens_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert export(f"http://127.0.0.1:{port}/v1/logs") == Unavailable(f"127.0.0.1:{port}: connection refused")


def test_a_host_name_that_does_not_exist_is_unavailable() -> None:
    outcome = export("http://collector.invalid:4318/v1/logs")

    assert isinstance(outcome, Unavailable)
    assert outcome.reason.startswith("collector.invalid:4318: host name not found (")


def test_a_host_name_that_cannot_exist_is_unavailable() -> None:
    outcome = export(f"http://{'a' * 70}.invalid:4318/v1/logs")

    assert isinstance(outcome, Unavailable)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    ("cut_after_bytes", "reason"),
    [(0, "before an"), (12, "within the"), (25, "within the"), (170, "within the")],
    ids=["before the answer", "after the status", "in the headers", "in the body"],
)
def test_a_connection_that_ends_too_early_is_unavailable(
    server: OtlpServer, cut_after_bytes: int, reason: str, reset: bool
) -> None:
    # After a reset the client may lose what had come in before, hence the pause in which it reads.
    server.will_answer(
        Answer(200, b"x" * 500, cut_after_bytes=cut_after_bytes, reset=reset, linger_s=0.3),
        accepted(),
    )

    outcome = export(server.endpoint)

    broken = f"{place(server.endpoint)}: connection closed {reason} answer"
    assert outcome == Unavailable(broken, UnavailableFor.OVERLOAD)
    assert len(server.requests) == 1


def test_a_server_that_does_not_speak_http_is_unavailable(server: OtlpServer) -> None:
    server.will_answer(Answer(raw=b"SSH-2.0-OpenSSH_9.6\r\n", keep_alive=False))

    outcome = export(server.endpoint)

    assert outcome == Unavailable(f"{place(server.endpoint)}: an answer that is not HTTP")


def test_exports_share_one_connection(server: OtlpServer) -> None:
    server.will_answer(accepted(), Answer(503, b"busy"), Answer(200), Answer(204))
    with closing(OtlpHttpExporter(settings(server.endpoint))) as exporter:
        outcomes = [exporter.export(REQUEST, 1) for _ in range(5)]

    assert [type(outcome) for outcome in outcomes] == [Accepted, Unavailable, Accepted, Accepted, Accepted]
    assert len({received.connection for received in server.requests}) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_kept_connection_that_the_server_gave_up_is_replaced_at_once(
    ours: Authority, scheme: str, reset: bool
) -> None:
    tls = tls_of(ours.issue("localhost")) if scheme == "https" else None
    with OtlpServer(tls) as server:
        server.will_answer(accepted(), Answer(cut_after_bytes=0, reset=reset), accepted())
        with closing(OtlpHttpExporter(settings(server.endpoint, certificate=ours.bundle))) as exporter:
            outcomes = [exporter.export(REQUEST, 1), exporter.export(REQUEST, 1)]

    assert outcomes == [Accepted(), Accepted()]
    first, second, third = (received.connection for received in server.requests)
    assert first == second != third


def test_a_fresh_connection_that_breaks_as_well_is_a_failure(server: OtlpServer) -> None:
    server.will_answer(accepted(), Answer(cut_after_bytes=0), Answer(cut_after_bytes=0), accepted())
    with closing(OtlpHttpExporter(settings(server.endpoint))) as exporter:
        outcomes = [exporter.export(REQUEST, 1) for _ in range(3)]

    broken = Unavailable(f"{place(server.endpoint)}: connection closed before an answer", UnavailableFor.OVERLOAD)
    assert outcomes == [Accepted(), broken, Accepted()]


def test_a_kept_connection_on_which_the_server_is_slow_is_not_tried_again(server: OtlpServer) -> None:
    server.will_answer(accepted(), Answer(delay_s=MUCH_LONGER_S))
    with closing(OtlpHttpExporter(settings(server.endpoint, timeout_s=PATIENCE_S))) as exporter:
        outcomes = [exporter.export(REQUEST, 1), exporter.export(REQUEST, 1)]

    assert outcomes[1] == Unavailable(f"{place(server.endpoint)}: no answer within 0.6 s", UnavailableFor.TIMEOUT)
    assert len(server.requests) == 2


def test_a_cookie_is_sent_back_until_an_answer_is_no_success(server: OtlpServer) -> None:
    pinning = Answer(200, headers=(("Set-Cookie", "server=7"),))
    server.will_answer(pinning, Answer(503), Answer(200), Answer(200))

    with closing(OtlpHttpExporter(settings(server.endpoint))) as exporter:
        for _ in range(4):
            exporter.export(REQUEST, 1)

    assert [request.header("cookie") for request in server.requests] == [None, "server=7", None, None]


def test_a_server_that_gives_a_new_cookie_with_each_answer_does_not_get_them_all_back(server: OtlpServer) -> None:
    server.will_answer(*(Answer(200, headers=(("Set-Cookie", f"session-{number}=x"),)) for number in range(100)))

    with closing(OtlpHttpExporter(settings(server.endpoint))) as exporter:
        for _ in range(100):
            exporter.export(REQUEST, 1)

    assert max((request.header("cookie") or "").count("=") for request in server.requests) == 32


def test_an_exporter_that_was_closed_exports_over_a_new_connection(server: OtlpServer) -> None:
    exporter = OtlpHttpExporter(settings(server.endpoint))
    with closing(exporter):
        exporter.export(REQUEST, 1)
        exporter.close()
        exporter.close()
        assert exporter.export(REQUEST, 1) == Accepted()

    assert len({received.connection for received in server.requests}) == 2


FORKING = """
import os, sys
from otel_audit.delivery.otlp.http import OtlpHttpExporter
from otel_audit.settings import OtlpProtocol, OtlpSettings

exporter = OtlpHttpExporter(OtlpSettings(sys.argv[1], OtlpProtocol.HTTP_PROTOBUF))
print(exporter.export(b"", 1), flush=True)
child = os.fork()
if not child:
    print(exporter.export(b"", 2), flush=True)
    exporter.close()
    os._exit(0)
os.waitpid(child, 0)
print(exporter.export(b"", 3), flush=True)
exporter.close()
"""


@pytest.mark.processes
def test_a_forked_child_exports_over_its_own_connection(server: OtlpServer) -> None:
    # In a process of its own, which has no threads when it forks.
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING, server.endpoint], capture_output=True, text=True, timeout=60
    )

    assert (result.stdout, result.stderr) == ("Accepted(warning=None)\n" * 3, "")
    parent, child, parent_again = (received.connection for received in server.requests)
    assert parent == parent_again != child


def test_instrumented_clients_make_no_spans_of_exports(server: OtlpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(finished))
    send = requests.Session.send

    def traced_send(session: requests.Session, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """As the instrumentation of `requests` does it."""
        if get_value(_SUPPRESS_INSTRUMENTATION_KEY):
            return send(session, request, **kwargs)
        with provider.get_tracer("requests").start_as_current_span("POST"):
            return send(session, request, **kwargs)

    monkeypatch.setattr(requests.Session, "send", traced_send)
    requests.post(server.endpoint, timeout=10).close()

    assert export(server.endpoint) == Accepted()
    assert len(server.requests) == 2
    assert len(finished.get_finished_spans()) == 1  # of the request that was not ours


def tls_of(pair: KeyPair, clients_of: Authority | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients_of:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients_of.bundle)
    return context


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_certified_by_the_authority_that_is_set_gets_the_records(ours: Authority, host: str) -> None:
    with OtlpServer(tls_of(ours.issue("localhost"))) as server:
        assert export(f"https://{host}:{server.port}/v1/logs", certificate=ours.bundle) == Accepted()

    assert [received.body for received in server.requests] == [REQUEST]


def test_a_server_certified_by_another_authority_gets_nothing(ours: Authority, theirs: Authority) -> None:
    with OtlpServer(tls_of(theirs.issue("localhost"))) as server:
        outcome = export(server.endpoint, certificate=ours.bundle)

    assert isinstance(outcome, Unavailable)
    assert outcome.reason.startswith(f"{place(server.endpoint)}: TLS certificate not trusted (")
    assert outcome.cause is UnavailableFor.ENDPOINT
    assert server.requests == []


def test_a_server_with_the_certificate_of_another_host_gets_nothing(ours: Authority) -> None:
    with OtlpServer(tls_of(ours.issue("elsewhere.invalid", for_loopback=False))) as server:
        outcome = export(server.endpoint, certificate=ours.bundle)

    assert isinstance(outcome, Unavailable)
    assert outcome.reason.startswith(f"{place(server.endpoint)}: TLS ")
    assert server.requests == []


def test_a_server_that_does_not_speak_tls_gets_nothing(server: OtlpServer, ours: Authority) -> None:
    outcome = export(f"https://127.0.0.1:{server.port}/v1/logs", certificate=ours.bundle)

    assert isinstance(outcome, Unavailable)
    assert outcome.reason.startswith(f"127.0.0.1:{server.port}: TLS error (")
    assert server.requests == []


def test_the_authority_that_is_set_is_used_whatever_the_process_trusts(
    ours: Authority, theirs: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", theirs.bundle)
    with OtlpServer(tls_of(ours.issue("localhost"))) as ours_running:
        assert export(ours_running.endpoint, certificate=ours.bundle) == Accepted()
    with OtlpServer(tls_of(theirs.issue("localhost"))) as theirs_running:
        assert isinstance(export(theirs_running.endpoint, certificate=ours.bundle), Unavailable)
        assert export(theirs_running.endpoint) == Accepted()


def test_a_server_that_asks_for_a_client_certificate_gets_it(ours: Authority) -> None:
    client = ours.issue("audit-client")
    with OtlpServer(tls_of(ours.issue("localhost"), clients_of=ours)) as server:
        with_both: dict[str, Any] = {"client_certificate": client.certificate, "client_key": client.key}
        assert export(server.endpoint, certificate=ours.bundle, **with_both) == Accepted()

        in_one_file = Path(client.certificate).with_suffix(".both")
        in_one_file.write_bytes(Path(client.certificate).read_bytes() + Path(client.key).read_bytes())
        assert export(server.endpoint, certificate=ours.bundle, client_certificate=str(in_one_file)) == Accepted()


def test_a_server_that_asks_for_a_client_certificate_refuses_others(ours: Authority, theirs: Authority) -> None:
    stranger = theirs.issue("stranger")
    with OtlpServer(tls_of(ours.issue("localhost"), clients_of=ours)) as server:
        without = export(server.endpoint, certificate=ours.bundle)
        wrong = export(
            server.endpoint,
            certificate=ours.bundle,
            client_certificate=stranger.certificate,
            client_key=stranger.key,
        )

    assert isinstance(without, Unavailable)
    assert isinstance(wrong, Unavailable)
    assert server.requests == []


def test_a_tls_file_that_is_missing_is_unavailable_until_it_is_there(ours: Authority, tmp_path: Path) -> None:
    bundle = tmp_path / "rotated.pem"
    with (
        OtlpServer(tls_of(ours.issue("localhost"))) as server,
        closing(OtlpHttpExporter(settings(server.endpoint, certificate=str(bundle)))) as exporter,
    ):
        outcome = exporter.export(REQUEST, 1)
        assert isinstance(outcome, Unavailable)
        assert str(bundle) in outcome.reason

        os.link(ours.bundle, bundle)
        assert exporter.export(REQUEST, 1) == Accepted()


def test_a_large_request_arrives_whole(server: OtlpServer) -> None:
    request = os.urandom(3_000_001)

    assert export(server.endpoint, request) == Accepted()
    assert server.requests[0].body == request


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:4318", "ftp://127.0.0.1/v1/logs", "http://", "http://[::1/v1/logs", "grpc://u:hunter2@127.0.0.1:1"],
)
def test_an_endpoint_that_is_no_url_for_http_stops_the_start(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL") as caught:
        OtlpHttpExporter(settings(endpoint))

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["hunter2\r\nx: y", " hunter2", "hunter2\u20ac"], ids=["lines", "space", "not Latin-1"]
)
def test_a_header_that_cannot_be_sent_stops_the_start_without_showing_its_value(value: str) -> None:
    with pytest.raises(ConfigError, match=r"'x-token'") as caught:
        OtlpHttpExporter(settings("http://127.0.0.1:4318/v1/logs", headers=(("X-Token", value),)))

    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.DEFLATE])
def test_a_batch_that_is_sent_again_is_the_same_on_the_wire(server: OtlpServer, compression: Compression) -> None:
    for _ in range(2):
        export(server.endpoint, b"\n\x00" * 500, compression=compression)

    first, again = server.requests
    assert first.body == again.body
    assert len(first.body) < 500
