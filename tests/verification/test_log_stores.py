"""A journal beside the log store that it was delivered to: the same trail, and every event that is missing there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.cli import main
from otel_audit.records.encoding import encoded_request
from otel_audit.signing.keys import SigningKey
from tests.journal_lines import HEADER
from tests.servers import VictoriaLogs
from tests.servers.loki import LokiDouble
from tests.servers.polling import poll
from tests.verification.forge import Forge
from tests.verification.kept import all_lines, delivered


@pytest.fixture
def journal(tmp_path: Path) -> Forge:
    forge = Forge(tmp_path / "journal", identity=SigningKey.generate())
    forge.honest_stream(segments=2)
    forge.honest_stream(segments=2)
    forge.write()
    delivered(forge)
    return forge


@pytest.fixture
def loki() -> Iterator[LokiDouble]:
    with LokiDouble() as running:
        yield running


def verify(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["verify", "--json", *arguments])
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def wrong(report: dict[str, Any]) -> set[tuple[str, int]]:
    return {(each["stream_id"], each["seq"]) for each in report["findings"] if each["seq"] is not None}


def test_what_was_deleted_in_loki_is_named_line_by_line(journal: Forge, loki: LokiDouble) -> None:
    loki.put(ExportLogsServiceRequest.FromString(encoded_request(HEADER, all_lines(journal))))
    whole = verify("--loki", loki.base_url, str(journal.directory))
    assert whole["verdict"] != "broken", whole

    stream = journal.streams[0]
    deleted = {stream.lines[4].decode(), stream.lines[7].decode()}
    loki.entries = [entry for entry in loki.entries if entry.body not in deleted]
    report = verify("--loki", loki.base_url, str(journal.directory))

    assert report["verdict"] == "broken"
    assert {(stream.stream_id, 5), (stream.stream_id, 8)} <= wrong(report)
    assert verify("--loki", loki.base_url)["verdict"] == "broken"


@pytest.mark.processes
@pytest.mark.collector
def test_what_the_delete_api_of_victorialogs_took_is_named_line_by_line(journal: Forge, tmp_path: Path) -> None:
    with VictoriaLogs(tmp_path / "victorialogs", "-delete.enable") as store:
        requests.post(
            f"{store.otlp_endpoint}/v1/logs",
            data=encoded_request(HEADER, all_lines(journal)),
            headers={"Content-Type": "application/x-protobuf"},
            timeout=30,
        ).raise_for_status()
        store.wait_for("*", len(all_lines(journal)))
        whole = verify("--victorialogs", store.base_url, str(journal.directory))
        assert whole["verdict"] != "broken", whole
        assert verify("--victorialogs", store.base_url)["verdict"] != "broken"

        stream = journal.streams[1]
        taken = f'"audit.sequence.stream_id":="{stream.stream_id}" "audit.sequence.number":in(3,6)'
        requests.get(f"{store.base_url}/delete/run_task", params={"filter": taken}, timeout=30).raise_for_status()
        poll(lambda: store.query(taken), until=lambda rows: not rows, what="the end of the deletion")
        report = verify("--victorialogs", store.base_url, str(journal.directory))

    assert report["verdict"] == "broken"
    assert {(stream.stream_id, 3), (stream.stream_id, 6)} <= wrong(report)
