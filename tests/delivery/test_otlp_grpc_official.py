"""Beside the official exporter: the same environment, the same calls."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import (
    LogRecordExportResult,
)

from otel_audit import _version
from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter
from otel_audit.delivery.outcomes import Accepted
from otel_audit.settings import Settings
from tests.delivery.relay import Relay
from tests.servers.certificates import Authority
from tests.servers.otlp_grpc_server import GrpcReceived, OtlpGrpcServer

Batch = Sequence[ReadableLogRecord]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP2_DATA, PADDED = 0, 0x8


@pytest.fixture(autouse=True)
def _only_the_environment_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def message_on_the_wire(sent: bytes) -> tuple[bool, bytes]:
    """Whether the one message of a connection is compressed, and its bytes.

    Source: RFC 9113, 4.1 and 6.1; gRPC over HTTP/2, "Length-Prefixed-Message".
    """
    assert sent.startswith(PREFACE)
    data, position = bytearray(), len(PREFACE)
    while position + 9 <= len(sent):
        length, kind, flags = int.from_bytes(sent[position : position + 3]), sent[position + 3], sent[position + 4]
        if kind == HTTP2_DATA:
            assert not flags & PADDED
            data += sent[position + 9 : position + 9 + length]
        position += 9 + length
    assert len(data) == 5 + int.from_bytes(data[1:5])
    return bool(data[0]), bytes(data[5:])


def sent_by_the_official_exporter(batch: Batch) -> bool:
    exporter = OTLPLogExporter()
    try:
        return exporter.export(batch) is LogRecordExportResult.SUCCESS
    finally:
        exporter.shutdown()


def sent_by_ours(batch: Batch, environment: Mapping[str, str]) -> bool:
    settings = Settings.load({**environment, "OTEL_AUDIT_EXPORT": "otlp"})
    assert settings.otlp is not None
    with closing(OtlpGrpcExporter(settings.otlp)) as exporter:
        return exporter.export(encode_logs(batch).SerializeToString(), len(batch)) == Accepted()


def comparable(received: GrpcReceived) -> tuple[str, dict[str, str | bytes], bytes]:
    """The method, the metadata apart from the exporter's name, and the message."""
    metadata = dict(received.metadata)
    metadata.pop("user-agent")
    return received.method, metadata, received.message


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"},
        {"OTEL_EXPORTER_OTLP_LOGS_COMPRESSION": "gzip"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20abc.def,x-scope-orgid=7"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "x-of=all", "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x-of=logs"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "content-type=text/plain,user-agent=mine,te=x,host=elsewhere,grpc-timeout=5S"},
    ],
    ids=["plain", "gzip", "gzip for logs", "headers", "headers for logs", "headers of the protocol's own"],
)
def test_the_same_environment_makes_the_same_call(
    batch: Batch, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with OtlpGrpcServer() as server, Relay(server.port) as relay:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": relay.endpoint, **variables}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        assert sent_by_the_official_exporter(batch)
        official, official_message = server.requests.pop(), message_on_the_wire(bytes(relay.sent))
        assert sent_by_ours(batch, environment)
        ours, our_message = server.requests.pop(), message_on_the_wire(bytes(relay.sent))

    assert comparable(ours) == comparable(official)
    assert our_message == official_message
    compressed, content = our_message
    assert compressed == ("gzip" in variables.values())
    assert (gzip.decompress(content) if compressed else content) == ours.message
    agent = ours.metadatum("user-agent")
    assert isinstance(agent, str)
    assert agent.startswith(f"otel-audit/{_version.__version__} ")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.mark.parametrize(
    ("variables", "works"),
    [
        ({"ENDPOINT": "https://{place}", "CERTIFICATE": "{ca}"}, True),
        ({"ENDPOINT": "{place}", "LOGS_CERTIFICATE": "{ca}"}, True),
        ({"ENDPOINT": "https://{place}", "INSECURE": "true", "CERTIFICATE": "{ca}"}, True),
        ({"ENDPOINT": "https://{place}", "CERTIFICATE": "{other}"}, False),
        ({"ENDPOINT": "https://{place}"}, False),
        ({"ENDPOINT": "http://{place}", "CERTIFICATE": "{ca}"}, False),
        ({"ENDPOINT": "{place}", "INSECURE": "true"}, False),
    ],
    ids=["CA", "CA for logs", "https wins", "wrong CA", "no CA", "plain to TLS", "insecure to TLS"],
)
def test_the_same_environment_trusts_the_same_servers(
    batch: Batch,
    authority: Authority,
    stranger: Authority,
    variables: Mapping[str, str],
    works: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with OtlpGrpcServer(authority.issue("localhost")) as server:
        environment = {
            f"OTEL_EXPORTER_OTLP_{name}": value.format(
                place=f"127.0.0.1:{server.port}", ca=authority.bundle, other=stranger.bundle
            )
            for name, value in {**variables, "TIMEOUT": "20" if works else "1"}.items()
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        assert (sent_by_the_official_exporter(batch), sent_by_ours(batch, environment)) == (works, works)

    assert len(server.requests) == 2 * works


@pytest.mark.parametrize(("issuer", "works"), [("authority", True), ("stranger", False)])
def test_the_same_environment_shows_the_same_client_certificate(
    batch: Batch,
    authority: Authority,
    stranger: Authority,
    issuer: str,
    works: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = {"authority": authority, "stranger": stranger}[issuer].issue("client")
    with OtlpGrpcServer(authority.issue("localhost"), clients_of=authority) as server:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": server.endpoint,
            "OTEL_EXPORTER_OTLP_CERTIFICATE": authority.bundle,
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": client.certificate,
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": client.key,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "20" if works else "1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        assert (sent_by_the_official_exporter(batch), sent_by_ours(batch, environment)) == (works, works)

    assert len(server.requests) == 2 * works


SHOWING = """
import logging, sys
logging.disable()
if sys.argv[1] == "ours":
    import os
    from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter
    from otel_audit.settings import Settings

    exporter = OtlpGrpcExporter(Settings.load(os.environ).otlp)
    print(exporter.export(b"", 0))
    exporter.close()
else:
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter

    exporter = OTLPLogExporter()
    print(exporter.export([]))
    exporter.shutdown()
"""


@pytest.mark.processes
def test_a_client_certificate_is_shown_also_when_no_ca_is_set(authority: Authority) -> None:
    # A difference: to the official exporter it counts only beside a CA. In processes of their own, since gRPC's
    # library reads once whom it trusts by default.
    client = authority.issue("client-alone")
    with OtlpGrpcServer(authority.issue("localhost"), clients_of=authority) as server:
        environment = {
            **os.environ,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": authority.bundle,
            "OTEL_EXPORTER_OTLP_ENDPOINT": server.endpoint,
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": client.certificate,
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": client.key,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
        }
        said = {
            who: subprocess.run(
                [sys.executable, "-c", SHOWING, who], env=environment, capture_output=True, text=True, timeout=60
            ).stdout
            for who in ("official", "ours")
        }

    assert said == {"official": "LogRecordExportResult.FAILURE\n", "ours": "Accepted(warning=None)\n"}
