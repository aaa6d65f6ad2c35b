"""`otel-audit doctor`: each line is ok or says what to do, against real servers and real faults."""

from __future__ import annotations

import json
import os
import pty
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result

from otel_audit.cli import main
from otel_audit.diagnosis.probe import PROBE_EVENT_TYPE
from tests.servers import Collector, free_port
from tests.servers.certificates import Authority
from tests.servers.otlp_grpc_server import GrpcReply, OtlpGrpcServer
from tests.servers.otlp_server import Answer, OtlpServer, login_page, partial_success, redirect

COMMAND = Path(sys.executable).with_name("otel-audit")
NAMED = {"OTEL_SERVICE_NAME": "shop", "NO_PROXY": "*"}
HTTP = {**NAMED, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
GRPC = {**NAMED, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}


def doctor(*arguments: str | Path, **variables: str) -> Result:
    """The command with these variables of OTel and no others."""
    others = {name: None for name in os.environ if name.startswith("OTEL_")}
    env = {**others, "GRPC_VERBOSITY": "NONE", **variables}
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)], env=env)


def checks(*arguments: str | Path, **variables: str) -> dict[str, dict[str, Any]]:
    """Each check of the JSON form, which agrees with the exit code."""
    result = doctor("--json", *arguments, **variables)
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert said["ok"] is all(each["ok"] for each in said["checks"])
    assert result.exit_code == (0 if said["ok"] else 1)
    assert all(each["ok"] is (each["remedy"] is None) for each in said["checks"])
    return {each["check"]: each for each in said["checks"]}


def probe(directory: Path, **variables: str) -> dict[str, Any]:
    return checks(directory, **variables)["probe"]


@pytest.mark.processes
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_accepts_an_event_is_ok_and_has_it(
    protocol: str, collector: Collector, tmp_path: Path
) -> None:
    endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [COMMAND, "doctor", tmp_path / "audit", "--json"],
        env={**kept, **NAMED, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    said = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    # What this machine's disk is does not belong to the test.
    assert {name for name, each in said.items() if not each["ok"]} <= {"file system", "space"}
    assert said["probe"]["says"].startswith("an event was accepted in ")
    assert endpoint in said["endpoint"]["says"]
    assert done.stderr == ""
    header, event = collector.wait_for_archive(2)
    assert json.loads(header.body)["event_type"] == "audit.segment"
    assert json.loads(event.body)["event_type"] == PROBE_EVENT_TYPE
    assert event.resource["service.name"] == "shop"
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize(
    ("answer", "reason", "remedy"),
    [
        (Answer(401), "401 Unauthorized", "OTEL_EXPORTER_OTLP_HEADERS"),
        (Answer(403, b"TLS and a login page"), "403 Forbidden", "OTEL_EXPORTER_OTLP_HEADERS"),
        (Answer(404, b"404 page not found"), "404 Not Found", "/v1/logs"),
        (Answer(407), "407 Proxy", "NO_PROXY"),
        (Answer(415), "415 Unsupported", "OTEL_EXPORTER_OTLP_PROTOCOL"),
        (Answer(429), "429 Too Many Requests", "limits of rate"),
        (Answer(400, b"no"), "400 Bad Request: no", "not this record"),
        (Answer(503), "503 Service Unavailable", "log of the collector"),
        (partial_success(2, "too old"), "2 of 2 records rejected: too old", "not this record"),
        (login_page(), "a login page?", "sign-in page"),
        (redirect("https://login.example/?token=s3cret"), "redirects are not followed", "sign-in page"),
        (Answer(cut_after_bytes=0), "connection closed", "OTEL_EXPORTER_OTLP_PROTOCOL"),
        (Answer(raw=b"\0\0\6\4\0\0\0\0\0\0\5\0\0\100\0", keep_alive=False), "not HTTP", "to grpc (port 4317)"),
        (Answer(delay_s=60), "no answer within 1 s", "OTEL_EXPORTER_OTLP_TIMEOUT"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_a_server_answers_over_http_has_its_reason_and_its_remedy(
    answer: Answer, reason: str, remedy: str, tmp_path: Path
) -> None:
    timeout = "1" if answer.delay_s else "30"
    with OtlpServer() as server:
        server.will_answer(answer)

        said = probe(tmp_path, **HTTP, OTEL_EXPORTER_OTLP_ENDPOINT=server.base_url, OTEL_EXPORTER_OTLP_TIMEOUT=timeout)

    assert reason in said["says"]
    assert remedy in said["remedy"]
    assert "s3cret" not in said["says"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "OTEL_EXPORTER_OTLP_HEADERS"),
        (grpc.StatusCode.PERMISSION_DENIED, "OTEL_EXPORTER_OTLP_HEADERS"),
        (grpc.StatusCode.UNIMPLEMENTED, "pipeline for logs"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "limits of rate"),
        (grpc.StatusCode.INVALID_ARGUMENT, "not this record"),
        (grpc.StatusCode.INTERNAL, "log of the collector"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_server_answers_over_grpc_has_its_reason_and_its_remedy(
    code: grpc.StatusCode, remedy: str, tmp_path: Path
) -> None:
    with OtlpGrpcServer() as server:
        server.will_answer(GrpcReply(code, "because"))

        said = probe(tmp_path, **GRPC, OTEL_EXPORTER_OTLP_ENDPOINT=server.endpoint)

    assert said["says"] == f"{code.name}: because"
    assert remedy in said["remedy"]


@pytest.mark.parametrize("variables", [HTTP, GRPC], ids=["http", "grpc"])
def test_a_port_on_which_nothing_listens_is_said_as_that(variables: dict[str, str], tmp_path: Path) -> None:
    said = probe(tmp_path, **variables, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")

    assert "connection refused" in said["says"].lower()
    assert said["remedy"].startswith("nothing listens there: start the collector")


@pytest.mark.parametrize("variables", [HTTP, GRPC], ids=["http", "grpc"])
def test_a_certificate_that_is_not_trusted_needs_the_ca(variables: dict[str, str], tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    pair = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with OtlpServer(context) as by_http, OtlpGrpcServer(pair) as by_grpc:
        endpoint = by_http.base_url if variables is HTTP else by_grpc.endpoint
        untrusted = probe(tmp_path, **variables, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        trusted = probe(
            tmp_path,
            **variables,
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_CERTIFICATE=authority.bundle,
        )

    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in untrusted["remedy"]
    assert trusted["ok"], trusted


def test_a_server_that_wants_a_client_certificate_has_a_remedy_that_names_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    with OtlpGrpcServer(authority.issue("server"), authority) as server:
        said = probe(
            tmp_path,
            **GRPC,
            OTEL_EXPORTER_OTLP_ENDPOINT=server.endpoint,
            OTEL_EXPORTER_OTLP_CERTIFICATE=authority.bundle,
        )

    assert "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" in said["remedy"]


@pytest.mark.processes
def test_the_protocols_confused_with_a_real_collector_are_said_to_be_so(collector: Collector, tmp_path: Path) -> None:
    http_to_grpc = probe(tmp_path, **HTTP, OTEL_EXPORTER_OTLP_ENDPOINT=collector.grpc_endpoint)
    grpc_to_http = probe(tmp_path, **GRPC, OTEL_EXPORTER_OTLP_ENDPOINT=collector.http_endpoint)
    wrong_path = probe(tmp_path, **HTTP, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=collector.http_endpoint)

    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in http_to_grpc["remedy"]
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in grpc_to_http["remedy"]
    assert "/v1/logs is added" in wrong_path["remedy"]


@pytest.mark.parametrize(
    ("variables", "port", "remedy"),
    [
        (GRPC, 4318, "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or port 4317 in the endpoint"),
        (NAMED, 4318, "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf, or port 4317 in the endpoint"),
        (HTTP, 4317, "set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or port 4318 in the endpoint"),
        (GRPC, 4317, None),
        (HTTP, 4318, None),
        (HTTP, 443, None),
    ],
)
def test_a_protocol_on_the_port_of_the_other_one_is_a_finding(
    variables: dict[str, str], port: int, remedy: str | None, tmp_path: Path
) -> None:
    said = checks("--no-probe", tmp_path, **variables, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://collector.test:{port}")

    assert said["protocol"]["remedy"] == remedy


def test_without_a_probe_nothing_is_sent(tmp_path: Path) -> None:
    with OtlpServer() as server:
        said = checks("--no-probe", tmp_path, **HTTP, OTEL_EXPORTER_OTLP_ENDPOINT=server.base_url)

        assert server.requests == []
    assert "probe" not in said


def test_secrets_of_the_endpoint_and_the_headers_are_not_shown(tmp_path: Path) -> None:
    with OtlpServer() as server:
        result = doctor(
            tmp_path,
            **HTTP,
            OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"http://ann:s3cret@127.0.0.1:{server.port}/v1/logs?token=s3cret",
            OTEL_EXPORTER_OTLP_HEADERS="x-key=s3cret-too",
        )

        assert server.requests[0].header("x-key") == "s3cret-too"
    assert f"http://127.0.0.1:{server.port}/v1/logs (environment OTEL_EXPORTER_OTLP_LOGS_ENDPOINT)" in result.stdout
    assert "headers: x-key" in result.stdout
    assert "s3cret" not in result.output


@pytest.mark.parametrize(
    ("variables", "ok", "words"),
    [
        ({}, False, "nothing says where events go"),
        ({"OTEL_LOGS_EXPORTER": "otlp"}, False, "nothing says where events go"),
        ({"OTEL_AUDIT_EXPORT": "none"}, True, "by environment OTEL_AUDIT_EXPORT"),
        ({"OTEL_LOGS_EXPORTER": "none"}, True, "by environment OTEL_LOGS_EXPORTER"),
        ({"OTEL_AUDIT_EXPORT": "console,jsonl"}, True, "events go to console, jsonl"),
        ({"OTEL_AUDIT_EXPORT": "ship"}, True, "otel-audit ship"),
    ],
    ids=repr,
)
def test_where_events_go_must_be_said(variables: dict[str, str], ok: bool, words: str, tmp_path: Path) -> None:
    said = checks(tmp_path, **NAMED, **variables)

    assert said["endpoint"]["ok"] is ok
    assert words in said["endpoint"]["says"]
    assert said.keys().isdisjoint({"protocol", "probe"})


def test_a_protocol_that_opentelemetry_instrument_would_change_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("endpoint: http://127.0.0.1:9\nprotocol: http/protobuf\n")
    in_file = {**NAMED, "OTEL_AUDIT_CONFIG": f"{tmp_path}/a.yaml"}

    said = checks(tmp_path / "audit", **in_file)
    mended = checks(tmp_path / "audit", **in_file, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")

    assert said["instrument"]["remedy"] == "set OTEL_EXPORTER_OTLP_PROTOCOL in the environment of the service"
    assert mended["instrument"]["ok"] is True


def test_a_service_without_a_name_is_a_finding(tmp_path: Path) -> None:
    without = checks(tmp_path, OTEL_AUDIT_EXPORT="none")
    named = checks(tmp_path, OTEL_AUDIT_EXPORT="none", OTEL_RESOURCE_ATTRIBUTES="service.name=shop")

    assert without["service name"]["remedy"] == "set OTEL_SERVICE_NAME"
    assert (named["service name"]["ok"], named["service name"]["says"]) == (True, "shop")


def test_a_variable_that_has_no_effect_is_named(tmp_path: Path) -> None:
    said = checks(tmp_path, **NAMED, OTEL_AUDIT_EXPORT="none", OTEL_SDK_DISABLED="true")

    assert said["settings"]["says"] == "all are valid; OTEL_SDK_DISABLED has no effect on audit events"


def test_the_directory_is_that_of_the_settings_unless_one_is_given(tmp_path: Path) -> None:
    by_setting = doctor("--json", **NAMED, OTEL_AUDIT_DIR=str(tmp_path / "a"))
    by_argument = doctor("--json", tmp_path / "b", **NAMED, OTEL_AUDIT_DIR=str(tmp_path / "a"))

    assert json.loads(by_setting.stdout)["directory"] == str(tmp_path / "a")
    assert json.loads(by_argument.stdout)["directory"] == str(tmp_path / "b")


def test_a_directory_that_cannot_be_made_is_shown_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = doctor(tmp_path / "file" / "audit", **NAMED, OTEL_AUDIT_EXPORT="none")

    lines = result.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FIX  directory"))
    assert lines[at + 1].startswith("     -> mount a writable volume at ")
    assert lines[0] == "ok   settings      all are valid"
    assert result.exit_code == 1


def test_what_would_move_a_cursor_is_shown_escaped(tmp_path: Path) -> None:
    with OtlpServer() as server:
        server.will_answer(Answer(400, b"\x1b[2Jno"))
        result = doctor(tmp_path / "\x1b[2J", **HTTP, OTEL_EXPORTER_OTLP_ENDPOINT=server.base_url)

    assert "\\x1b[2J does not exist yet" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.processes
def test_on_a_terminal_what_to_do_stands_out(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "NO_COLOR"))}
    done = subprocess.run(
        [COMMAND, "doctor", tmp_path, "--no-probe"],
        env={**kept, **NAMED, "TERM": "xterm-256color"},
        stdout=theirs,
        timeout=100,
        check=False,
    )
    os.close(theirs)
    written = os.read(ours, 1 << 16).decode()  # the terminal keeps what a command of some lines has said
    os.close(ours)

    assert done.returncode == 1
    assert "\x1b[32mok" in written
    assert "\x1b[1;31mFIX" in written


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_AUDIT_DRI": "/x"}, "did you mean OTEL_AUDIT_DIR"),
        ({"OTEL_AUDIT_BATCH_COUNT": "many"}, "OTEL_AUDIT_BATCH_COUNT: expected"),
        ({"OTEL_AUDIT_POLICY": "/no/such/file"}, "OTEL_AUDIT_POLICY: expected the path of a readable YAML file"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://"}, "OTEL_EXPORTER_OTLP_ENDPOINT: expected"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ann:s3cret@localhost:4317"},
            "OTEL_EXPORTER_OTLP_ENDPOINT: expected http://host:port",
        ),
    ],
    ids=repr,
)
def test_settings_that_stop_start_up_are_wrong_usage(variables: dict[str, str], words: str, tmp_path: Path) -> None:
    result = doctor("--json", tmp_path, **NAMED, **variables)

    assert result.exit_code == 2
    assert result.stderr.startswith("otel-audit doctor: ")
    assert words in result.stderr
    assert "s3cret" not in result.stderr
    assert result.stdout == ""


def test_a_service_in_memory_is_probed_without_a_disk(
    tmp_path: Path, memory_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))  # no temporary directory can be made
    with OtlpServer() as server:
        said = checks(
            memory_disk / "audit",
            **HTTP,
            OTEL_AUDIT_DURABILITY="memory",
            OTEL_EXPORTER_OTLP_ENDPOINT=server.base_url,
        )

        (request,) = server.requests
    assert said["probe"]["says"].startswith("an event was accepted in ")
    assert {name for name, each in said.items() if not each["ok"]} == set()
    assert PROBE_EVENT_TYPE.encode() in request.body
    assert b"audit.segment" in request.body
