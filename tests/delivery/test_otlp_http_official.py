"""Beside the official exporter: the same environment, the same requests."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import (
    LogRecordExportResult,
)

from otel_audit import _version
from otel_audit.delivery.otlp.http import OtlpHttpExporter
from otel_audit.delivery.outcomes import Accepted
from otel_audit.settings import Settings
from tests.servers.otlp_server import Answer, OtlpServer, Received, accepted

Batch = Sequence[ReadableLogRecord]
UNPACK: Mapping[str | None, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    None: bytes,
    "": bytes,
}


@pytest.fixture(autouse=True)
def _only_the_environment_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[OtlpServer]:
    with OtlpServer() as running:
        yield running


def sent_by_the_official_exporter(server: OtlpServer, batch: Batch) -> Received:
    exporter = OTLPLogExporter()
    try:
        assert exporter.export(batch) is LogRecordExportResult.SUCCESS
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK left it untyped
    return server.requests.pop()


def sent_by_ours(server: OtlpServer, batch: Batch, environment: Mapping[str, str]) -> Received:
    settings = Settings.load(
        {**environment, "OTEL_AUDIT_EXPORT": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    )
    assert settings.otlp is not None
    with closing(OtlpHttpExporter(settings.otlp)) as exporter:
        assert exporter.export(encode_logs(batch).SerializeToString(), len(batch)) == Accepted()
    return server.requests.pop()


def comparable(received: Received) -> tuple[str, dict[str, str], bytes]:
    """Where it went, what the headers say apart from the exporter's name and the size, and the unpacked body."""
    headers = {name.lower(): value for name, value in received.headers}
    headers.pop("user-agent")
    assert int(headers.pop("content-length")) == len(received.body)
    return received.path, headers, UNPACK[received.header("content-encoding")](received.body)


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{base}"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{base}/"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{base}/tenant/7/"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{base}", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "{base}/insert/logs?stream=a"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{base}", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{base}", "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "deflate"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "{base}",
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20abc.def,x-scope-orgid=7",
        },
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "{base}",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-of=all",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x-of=logs,accept=application/x-protobuf",
        },
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "{base}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_HEADERS": "content-type=application/protobuf",
        },
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:4318",
            "HTTP_PROXY": "{base}",
            "no_proxy": "10.0.0.1",
        },
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "{base}", "HTTP_PROXY": "http://proxy.invalid", "NO_PROXY": "127.0.0.1"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://audit:p%40ss@{place}"},
    ],
    ids=[
        "base",
        "base with a slash",
        "base with a path",
        "endpoint for logs",
        "gzip",
        "deflate",
        "headers",
        "headers for logs",
        "headers of its own",
        "proxy",
        "no proxy",
        "credentials in the URL",
    ],
)
def test_the_same_environment_makes_the_same_request(
    server: OtlpServer, batch: Batch, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"127.0.0.1:{server.port}"
    environment = {name: value.format(base=server.base_url, place=place) for name, value in variables.items()}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    official = sent_by_the_official_exporter(server, batch)
    ours = sent_by_ours(server, batch, environment)

    assert comparable(ours) == comparable(official)
    assert ours.header("user-agent") == f"otel-audit/{_version.__version__}"


def test_credentials_in_a_netrc_file_are_used_by_both(
    server: OtlpServer, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login audit password hunter2\n")
    netrc.chmod(0o600)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url, "NETRC": str(netrc)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    official = sent_by_the_official_exporter(server, batch)
    ours = sent_by_ours(server, batch, environment)

    assert comparable(ours) == comparable(official)
    assert ours.header("authorization") == "Basic YXVkaXQ6aHVudGVyMg=="


@pytest.mark.parametrize("place", ["netrc", "url"])
def test_a_header_that_is_set_is_sent_whatever_other_credentials_there_are(
    server: OtlpServer, batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login audit password hunter2\n" if place == "netrc" else "")
    netrc.chmod(0o600)
    base = server.base_url if place == "netrc" else server.base_url.replace("://", "://audit:hunter2@")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": base,
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20abc,x-tag=1%2C2",
        "NETRC": str(netrc),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    official = sent_by_the_official_exporter(server, batch)
    ours = sent_by_ours(server, batch, environment)

    assert official.header("authorization") == "Basic YXVkaXQ6aHVudGVyMg=="  # a wrong one, which costs every record
    assert ours.header("authorization") == "Bearer abc"
    assert ours.header("x-tag") == "1,2"


def test_a_cookie_that_pins_the_client_to_one_server_is_sent_back_by_both(
    server: OtlpServer, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.base_url)
    pinned = Answer(200, headers=(("Set-Cookie", "node=b; Path=/"),))
    settings = Settings.load(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": server.base_url,
            "OTEL_AUDIT_EXPORT": "otlp",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
    ).otlp
    assert settings is not None
    official = OTLPLogExporter()

    server.will_answer(pinned, accepted(), pinned, accepted())
    official.export(batch)
    official.export(batch)
    official.shutdown()  # type: ignore[no-untyped-call]  # the SDK left it untyped
    with closing(OtlpHttpExporter(settings)) as ours:
        ours.export(b"", 0)
        ours.export(b"", 0)

    assert [received.header("cookie") for received in server.requests] == [None, "node=b", None, "node=b"]
