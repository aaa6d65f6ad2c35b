"""A trail whose ledger went out with it: archive and store are verified alone, and hold what nobody can take back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import otel_audit
from otel_audit.cli import main
from otel_audit.logger import AuditLogger
from tests.servers import VictoriaLogs, poll
from tests.servers.collector import StartCollector

pytestmark = [pytest.mark.processes, pytest.mark.collector]


def a_service(directory: Path, endpoint: str) -> AuditLogger:
    return otel_audit.configure(
        directory=directory,
        export="otlp",
        endpoint=endpoint,
        protocol="http/protobuf",
        retention_days=0,
        close_timeout_s=60,
    )


def logged(directory: Path, endpoint: str, count: int) -> None:
    audit = a_service(directory, endpoint)
    for _ in range(count):
        audit.log_authn(outcome="success")
    audit.close()


def verify(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["verify", "--json", *map(str, arguments)])
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def lines_of(directory: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in directory.glob("*.jsonl"))


def test_the_collectors_archive_holds_the_anchor(tmp_path: Path, start_collector: StartCollector) -> None:
    journal, collector = tmp_path / "journal", start_collector()
    logged(journal, collector.http_endpoint, 20)
    shutil.copytree(journal, tmp_path / "before")
    logged(journal, collector.http_endpoint, 20)
    poll(lambda: len(collector.archive()), until=lambda n: n >= lines_of(journal), what="all lines")
    archive = collector.archive_path.parent

    alone = verify("--archive", archive)
    assert alone["verdict"] == "consistent", alone
    assert {each["signed_to"] for each in alone["streams"]} == {21}
    assert alone["ledger"]["size"] == verify(journal)["ledger"]["size"]

    both = verify("--archive", archive, journal)
    assert both["verdict"] == "proven", both
    assert {each["anchored_to"] for each in both["streams"]} == {21}
    assert verify("--archive", archive, "--anchored-within", "1h", journal)["verdict"] == "proven"

    # Ledger and streams rolled back together look whole to whoever has nothing else.
    assert verify(tmp_path / "before")["verdict"] == "consistent"
    assert verify("--archive", archive, tmp_path / "before")["verdict"] == "broken"

    # So does a trail that was written anew, of which the archive has nothing.
    shutil.rmtree(journal)
    logged(journal, "http://127.0.0.1:9", 40)
    assert verify(journal)["verdict"] == "consistent"
    report = verify("--archive", archive, journal)
    assert report["verdict"] == "consistent"
    assert "store_notes" in {each["kind"] for each in report["findings"]}
    assert verify("--archive", archive, "--anchored-within", "1h", journal)["verdict"] == "broken"


def test_a_store_holds_the_anchor(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with VictoriaLogs(tmp_path / "store") as store:
        logged(journal, store.otlp_endpoint, 20)
        store.wait_for("*", lines_of(journal))

        alone = verify("--victorialogs", store.base_url)
        assert alone["verdict"] == "consistent", alone
        assert [each["signed_to"] for each in alone["streams"]] == [21]
        both = verify("--victorialogs", store.base_url, journal)
        assert both["verdict"] == "proven", both
