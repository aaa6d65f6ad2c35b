"""What the network does to an export over gRPC: time, broken connections, TLS, renewed certificates, forks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter
from otel_audit.delivery.outcomes import Accepted, ExportOutcome, Fault, Unavailable, UnavailableFor
from otel_audit.settings import Compression, OtlpSettings
from tests.servers.certificates import Authority, KeyPair
from tests.servers.otlp_grpc_server import GrpcReply, OtlpGrpcServer, refusal
from tests.servers.otlp_server import OtlpServer
from tests.servers.polling import poll

REQUEST = b"\n\x00"  # one ResourceLogs with nothing in it
PATIENCE_S = 0.6  # time-out of exports that must run into it
MUCH_LONGER_S = 30.0  # what the server would take


@pytest.fixture
def server() -> Iterator[OtlpGrpcServer]:
    with OtlpGrpcServer() as running:
        yield running


def settings(endpoint: str, **values: Any) -> OtlpSettings:
    insecure = not endpoint.startswith("https:")
    return OtlpSettings(**{"endpoint": endpoint, "insecure": insecure, "timeout_s": 20, **values})


def export(endpoint: str, request: bytes = REQUEST, **values: Any) -> ExportOutcome:
    with closing(OtlpGrpcExporter(settings(endpoint, **values))) as exporter:
        return exporter.export(request, 1)


def timed_export(endpoint: str, request: bytes = REQUEST, **values: Any) -> tuple[ExportOutcome, float]:
    started = time.monotonic()
    outcome = export(endpoint, request, timeout_s=PATIENCE_S, **values)
    return outcome, time.monotonic() - started


def in_time(elapsed_s: float) -> bool:
    return elapsed_s < PATIENCE_S + 2  # a loaded machine may be late, but not by the time of the server


def is_endpoints_fault(outcome: ExportOutcome, *words: str) -> bool:
    return (
        isinstance(outcome, Unavailable)
        # A server that hangs up, also for want of a client certificate, may have been sent too much.
        and outcome.cause is (UnavailableFor.OVERLOAD if outcome.fault is Fault.CLOSED else UnavailableFor.ENDPOINT)
        and all(word.lower() in outcome.reason.lower() for word in words)
    )


def test_a_slow_server_holds_an_export_no_longer_than_the_time_out(server: OtlpGrpcServer) -> None:
    server.will_answer(GrpcReply(delay_s=MUCH_LONGER_S))

    outcome, elapsed_s = timed_export(server.endpoint)

    assert outcome == Unavailable("DEADLINE_EXCEEDED: no answer within 0.6 s", UnavailableFor.TIMEOUT)
    assert in_time(elapsed_s)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_says_a_word_is_not_a_question_of_size(scheme: str, ours: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"

        outcome, elapsed_s = timed_export(endpoint, b"x" * 3_000_000, certificate=ours.bundle)

    assert is_endpoints_fault(outcome, "UNAVAILABLE: ")
    assert in_time(elapsed_s)


def test_a_port_where_nothing_listens_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    outcome = export(f"http://127.0.0.1:{port}")

    assert is_endpoints_fault(outcome, f"UNAVAILABLE: ipv4:127.0.0.1:{port}: ", "connection refused")


def test_a_host_name_that_does_not_exist_is_unavailable() -> None:
    outcome, elapsed_s = timed_export("http://collector.invalid:4317")

    assert isinstance(outcome, Unavailable)
    assert in_time(elapsed_s)


def test_a_server_of_http_is_unavailable() -> None:
    with OtlpServer() as server:
        outcome, elapsed_s = timed_export(server.base_url)

    assert is_endpoints_fault(outcome, "UNAVAILABLE: ")
    assert in_time(elapsed_s)


def test_exports_share_one_connection(server: OtlpGrpcServer) -> None:
    server.will_answer(GrpcReply(), refusal(StatusCode.INVALID_ARGUMENT, "no"), GrpcReply())
    with closing(OtlpGrpcExporter(settings(server.endpoint))) as exporter:
        for _ in range(4):
            exporter.export(REQUEST, 1)

    assert len(server.requests) == 4
    assert len({received.connection for received in server.requests}) == 1


def test_two_exporters_to_one_place_do_not_share_a_connection(server: OtlpGrpcServer) -> None:
    with (
        closing(OtlpGrpcExporter(settings(server.endpoint))) as one,
        closing(OtlpGrpcExporter(settings(server.endpoint))) as other,
    ):
        one.export(REQUEST, 1)
        other.export(REQUEST, 1)

    assert len({received.connection for received in server.requests}) == 2


@pytest.mark.parametrize("code", [StatusCode.UNAVAILABLE, StatusCode.UNAUTHENTICATED])
def test_a_new_connection_is_made_where_the_old_one_may_be_at_fault(server: OtlpGrpcServer, code: StatusCode) -> None:
    server.will_answer(refusal(code, "no"), GrpcReply())
    with closing(OtlpGrpcExporter(settings(server.endpoint))) as exporter:
        outcomes = [exporter.export(REQUEST, 1) for _ in range(2)]

    assert outcomes == [Unavailable(f"{code.name}: no"), Accepted()]
    assert len({received.connection for received in server.requests}) == 2


def test_a_server_that_comes_back_is_reached_at_the_next_export() -> None:
    server = OtlpGrpcServer()
    with server:
        exporter = OtlpGrpcExporter(settings(server.endpoint))
        assert exporter.export(REQUEST, 1) == Accepted()
    with closing(exporter):
        for _ in range(5):  # gRPC's library would leave it alone for longer and longer
            assert is_endpoints_fault(exporter.export(REQUEST, 1), "UNAVAILABLE: ")
        with server:
            started = time.monotonic()
            assert exporter.export(REQUEST, 1) == Accepted()
            assert time.monotonic() - started < 5

    assert len(server.requests) == 2


def test_a_server_that_ended_and_came_back_between_two_exports_is_reached() -> None:
    server = OtlpGrpcServer()
    with server:
        exporter = OtlpGrpcExporter(settings(server.endpoint))
        assert exporter.export(REQUEST, 1) == Accepted()
    with server, closing(exporter):
        poll(lambda: exporter.export(REQUEST, 1), until=lambda seen: seen == Accepted(), what="an answer")


def test_an_exporter_that_was_closed_exports_over_a_new_connection(server: OtlpGrpcServer) -> None:
    exporter = OtlpGrpcExporter(settings(server.endpoint))
    with closing(exporter):
        exporter.export(REQUEST, 1)
        exporter.close()
        exporter.close()
        assert exporter.export(REQUEST, 1) == Accepted()

    assert len({received.connection for received in server.requests}) == 2


@pytest.mark.parametrize("compression", [Compression.NONE, Compression.GZIP])
def test_a_large_request_arrives_whole(server: OtlpGrpcServer, compression: Compression) -> None:
    request = os.urandom(3_000_001)

    assert export(server.endpoint, request, compression=compression) == Accepted()
    assert server.requests[0].message == request


def test_a_socket_of_the_host_can_be_the_endpoint(tmp_path: Path) -> None:
    with OtlpGrpcServer(address=f"unix:{tmp_path}/otlp.sock") as server:
        assert export(f"unix:{tmp_path}/otlp.sock") == Accepted()

    assert len(server.requests) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_certified_by_the_authority_that_is_set_gets_the_records(ours: Authority, host: str) -> None:
    with OtlpGrpcServer(ours.issue("localhost")) as server:
        assert export(f"https://{host}:{server.port}", certificate=ours.bundle) == Accepted()

    assert [received.message for received in server.requests] == [REQUEST]


def test_a_server_certified_by_another_authority_gets_nothing(ours: Authority, theirs: Authority) -> None:
    with OtlpGrpcServer(theirs.issue("localhost")) as server:
        outcome = export(server.endpoint, certificate=ours.bundle)
        by_default = export(server.endpoint)

    assert is_endpoints_fault(outcome, "CERTIFICATE_VERIFY_FAILED")
    assert is_endpoints_fault(by_default, "CERTIFICATE_VERIFY_FAILED")
    assert server.requests == []


def test_a_server_with_the_certificate_of_another_host_gets_nothing(ours: Authority) -> None:
    with OtlpGrpcServer(ours.issue("elsewhere.invalid", for_loopback=False)) as server:
        outcome = export(server.endpoint, certificate=ours.bundle)

    assert is_endpoints_fault(outcome, "UNAVAILABLE: ")
    assert server.requests == []


def test_a_server_that_does_not_speak_tls_gets_nothing(server: OtlpGrpcServer, ours: Authority) -> None:
    outcome = export(f"https://127.0.0.1:{server.port}", certificate=ours.bundle)

    assert is_endpoints_fault(outcome, "UNAVAILABLE: ")
    assert server.requests == []


def test_a_server_that_asks_for_a_client_certificate_gets_it(ours: Authority) -> None:
    client = ours.issue("audit-client")
    in_one_file = Path(client.certificate).with_suffix(".both")
    in_one_file.write_bytes(Path(client.certificate).read_bytes() + Path(client.key).read_bytes())
    with OtlpGrpcServer(ours.issue("localhost"), clients_of=ours) as server:
        with_both: dict[str, Any] = {"client_certificate": client.certificate, "client_key": client.key}
        assert export(server.endpoint, certificate=ours.bundle, **with_both) == Accepted()
        assert export(server.endpoint, certificate=ours.bundle, client_certificate=str(in_one_file)) == Accepted()


def test_a_server_that_asks_for_a_client_certificate_refuses_others(ours: Authority, theirs: Authority) -> None:
    stranger = theirs.issue("stranger")
    with OtlpGrpcServer(ours.issue("localhost"), clients_of=ours) as server:
        without = export(server.endpoint, certificate=ours.bundle)
        wrong = export(
            server.endpoint,
            certificate=ours.bundle,
            client_certificate=stranger.certificate,
            client_key=stranger.key,
        )

    assert is_endpoints_fault(without, "UNAVAILABLE: ")
    assert is_endpoints_fault(wrong, "UNAVAILABLE: ")
    assert server.requests == []


def test_a_client_certificate_without_its_key_is_unavailable(ours: Authority) -> None:
    client = ours.issue("keyless")
    with OtlpGrpcServer(ours.issue("localhost"), clients_of=ours) as server:
        outcome = export(server.endpoint, certificate=ours.bundle, client_certificate=client.certificate)

    assert is_endpoints_fault(outcome, "UNAVAILABLE: ")


def test_a_tls_file_that_is_missing_or_broken_is_unavailable_until_it_is_right(ours: Authority, tmp_path: Path) -> None:
    bundle = tmp_path / "rotated.pem"
    with (
        OtlpGrpcServer(ours.issue("localhost")) as server,
        closing(OtlpGrpcExporter(settings(server.endpoint, certificate=str(bundle)))) as exporter,
    ):
        assert exporter.export(REQUEST, 1) == Unavailable(f"{bundle}: No such file or directory")
        bundle.write_text("not a certificate")
        assert is_endpoints_fault(exporter.export(REQUEST, 1), "UNAVAILABLE: ")
        bundle.write_bytes(Path(ours.bundle).read_bytes())
        assert exporter.export(REQUEST, 1) == Accepted()


def test_certificates_that_are_renewed_on_both_sides_are_used_at_the_next_export(
    ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    paths = {name: tmp_path / name for name in ("ca", "client.crt", "client.key")}

    def renew(authority: Authority, pair: KeyPair) -> None:
        for path, source in zip(paths.values(), (authority.bundle, pair.certificate, pair.key), strict=True):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(Path(source).read_bytes())
            fresh.replace(path)

    renew(ours, ours.issue("client-before"))
    server = OtlpGrpcServer(ours.issue("server-before"), clients_of=ours)
    with server:
        exporter = OtlpGrpcExporter(
            settings(
                server.endpoint,
                certificate=str(paths["ca"]),
                client_certificate=str(paths["client.crt"]),
                client_key=str(paths["client.key"]),
            )
        )
        assert exporter.export(REQUEST, 1) == Accepted()
    renewed = OtlpGrpcServer(theirs.issue("server-after"), clients_of=theirs, port=server.port)
    with renewed, closing(exporter):
        assert is_endpoints_fault(exporter.export(REQUEST, 1), "UNAVAILABLE: ")
        renew(theirs, theirs.issue("client-after"))
        assert exporter.export(REQUEST, 1) == Accepted()

    assert len(renewed.requests) == 1


def test_a_client_certificate_that_is_renewed_is_shown_to_a_server_that_runs_on(ours: Authority) -> None:
    client = ours.issue("renewed-client")
    mutual: dict[str, Any] = {"client_certificate": client.certificate, "client_key": client.key}
    with (
        OtlpGrpcServer(ours.issue("localhost"), clients_of=ours) as server,
        closing(OtlpGrpcExporter(settings(server.endpoint, certificate=ours.bundle, **mutual))) as exporter,
    ):
        exporter.export(REQUEST, 1)
        exporter.export(REQUEST, 1)
        ours.issue("renewed-client")  # writes the same files
        assert exporter.export(REQUEST, 1) == Accepted()

    before, again, after = (received.connection for received in server.requests)
    assert before == again != after


FORKING = """
import os, sys, threading
from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter
from otel_audit.settings import OtlpSettings

def say(outcome):  # not print, whose lock another thread may hold in the moment of the fork
    os.write(1, f"{outcome}\\n".encode())

exporter = OtlpGrpcExporter(OtlpSettings(sys.argv[1], insecure=True))
beside = OtlpGrpcExporter(OtlpSettings(sys.argv[1], insecure=True))
say(exporter.export(b"", 1))
if sys.argv[2] == "busy":  # a call of another thread is under way in the moment of the fork
    threading.Thread(target=lambda: say(beside.export(b"beside", 1))).start()
    sys.stdin.readline()
child = os.fork()
if not child:
    say(exporter.export(b"", 1))
    say(exporter.export(b"", 1))
    exporter.close()
    sys.exit()
if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
    say("the child failed")
say(exporter.export(b"", 1))
exporter.close()
"""


def forked_run(server: OtlpGrpcServer, *, busy: bool, support: str | None) -> list[str]:
    """What a process and its child say."""
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    environment |= {} if support is None else {"GRPC_ENABLE_FORK_SUPPORT": support}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FORKING, server.endpoint, "busy" if busy else "idle"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            if busy:
                poll(lambda: [each for each in server.requests if each.message], what="the call beside the fork")
            out, _ = process.communicate("fork now\n", timeout=120)
        except BaseException:
            os.killpg(process.pid, 9)  # a child that hangs would keep the pipe open
            raise
    assert process.returncode == 0
    return out.splitlines()


@pytest.mark.processes
@pytest.mark.parametrize("support", [None, "1"])
def test_a_forked_child_exports_over_its_own_connection(server: OtlpGrpcServer, support: str | None) -> None:
    assert forked_run(server, busy=False, support=support) == ["Accepted(warning=None)"] * 4

    parent, child, child_again, parent_again = (received.connection for received in server.requests)
    assert parent == parent_again
    assert child == child_again
    assert parent != child


@pytest.mark.processes
@pytest.mark.parametrize("support", [None, "1"])
def test_a_fork_waits_for_a_call_that_is_under_way(server: OtlpGrpcServer, support: str | None) -> None:
    server.will_answer(GrpcReply(), GrpcReply(delay_s=0.3))

    assert forked_run(server, busy=True, support=support) == ["Accepted(warning=None)"] * 5


@pytest.mark.processes
@pytest.mark.parametrize("support", [None, "1"])
def test_a_fork_ends_a_call_that_takes_long(server: OtlpGrpcServer, support: str | None) -> None:
    server.will_answer(GrpcReply(), GrpcReply(delay_s=MUCH_LONGER_S))

    said = forked_run(server, busy=True, support=support)

    assert sorted(said)[:4] == ["Accepted(warning=None)"] * 4
    assert sorted(said)[4:] == [repr(Unavailable("CANCELLED: Channel closed!", fault=Fault.SERVER))]


@pytest.mark.processes
def test_a_child_in_which_grpc_cannot_work_says_so_instead_of_hanging(server: OtlpGrpcServer) -> None:
    parent, child, child_again, parent_again = forked_run(server, busy=False, support="0")

    assert parent == parent_again == "Accepted(warning=None)"
    assert child == child_again
    assert child.startswith(
        "Unavailable(reason='gRPC does not work in a forked process with GRPC_ENABLE_FORK_SUPPORT=0"
    )


ENDING = """
import sys, threading
from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter
from otel_audit.settings import OtlpSettings

exporter = OtlpGrpcExporter(OtlpSettings(sys.argv[1], insecure=True, timeout_s=60))
threading.Thread(target=exporter.export, args=(b"", 1), daemon=True).start()
sys.stdin.readline()
"""


@pytest.mark.processes
def test_a_process_can_end_during_a_call(server: OtlpGrpcServer) -> None:
    server.will_answer(GrpcReply(delay_s=MUCH_LONGER_S))
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", ENDING, server.endpoint], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        poll(lambda: server.requests, what="the call")
        _, said = process.communicate(b"end\n", timeout=120)

    assert (process.returncode, said) == (0, b"")


INSTRUMENTED = """
import sys, warnings
warnings.simplefilter("ignore")  # of the instrumentation itself
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

finished = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(finished))
trace.set_tracer_provider(provider)
GrpcInstrumentorClient().instrument()

import grpc
from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter
from otel_audit.settings import OtlpSettings

with grpc.insecure_channel(sys.argv[1].removeprefix("http://")) as channel:
    channel.unary_unary("/test.Other/Call")(b"", timeout=20)
exporter = OtlpGrpcExporter(OtlpSettings(sys.argv[1], insecure=True))
print(exporter.export(b"", 1))
exporter.close()
print([span.name for span in finished.get_finished_spans()])
"""


@pytest.mark.processes
def test_instrumented_clients_make_no_spans_of_exports(server: OtlpGrpcServer) -> None:
    # In a process of its own: the instrumentation takes the tracer provider of the process.
    result = subprocess.run(
        [sys.executable, "-c", INSTRUMENTED, server.endpoint], capture_output=True, text=True, timeout=60
    )

    assert result.stdout == "Accepted(warning=None)\n['/test.Other/Call']\n", result.stderr
    assert [received.metadatum("traceparent") is None for received in server.requests] == [False, True]


@pytest.mark.processes
def test_grpc_is_loaded_only_by_those_who_use_it() -> None:
    script = "import sys, otel_audit, otel_audit.cli; print('grpc' in sys.modules)"

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)

    assert result.stdout == "False\n"
