"""What is said to do about an export that failed."""

from __future__ import annotations

import pytest

from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.delivery.outcomes import Accepted, Fault, Refused, RefusedFor, Unavailable
from otel_audit.diagnosis.findings import remedy_for
from otel_audit.settings import OtlpProtocol, OtlpSettings
from tests.servers.otlp_server import Answer, OtlpServer


@pytest.mark.parametrize("fault", Fault, ids=str)
def test_every_fault_has_a_remedy(fault: Fault) -> None:
    assert remedy_for(Unavailable("because", fault=fault))


def test_a_refusal_is_about_the_size_or_the_record() -> None:
    assert "limits of rate, size" in remedy_for(Refused("too large", RefusedFor.SIZE))
    assert "not this record" in remedy_for(Refused("bad record"))


def test_the_name_of_a_host_is_not_taken_for_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")

    remedy = remedy_of("http://404.invalid:4318/v1/logs")

    assert remedy.startswith("correct the host in OTEL_EXPORTER_OTLP_ENDPOINT")


def test_the_words_of_a_server_are_not_taken_for_a_fault_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with OtlpServer() as server:
        server.will_answer(Answer(425, b"TLS timed out, connection refused: proxy: HTTP/2"))

        remedy = remedy_of(server.endpoint)

    assert remedy.startswith("check the log of the collector")


def remedy_of(endpoint: str) -> str:
    exporter = OtlpExporter(OtlpSettings(endpoint, OtlpProtocol.HTTP_PROTOBUF, timeout_s=10))
    outcome = exporter.send(b"", 0)
    exporter.close()
    assert not isinstance(outcome, Accepted)
    return remedy_for(outcome)
