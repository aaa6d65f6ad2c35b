"""The whole way of a trail that a stranger checks: journal, collector, archive and store say the same of it.

Four services of eight threads; two of them are killed, and one forks. 4 000 events; 100 000 with
OTEL_AUDIT_TESTS_LONG=1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chain_check import read_streams
from tests.end_to_end.test_main_path import COMMAND, ROOT, environment, otel_audit
from tests.long_form import LONG
from tests.servers import Collector, StartCollector, VictoriaLogs, poll
from tests.verification.verifiers import of_go, of_python_command

pytestmark = [pytest.mark.processes, pytest.mark.collector]

EVENTS = 25_000 if LONG else 1000  # of each process
PATIENCE_S = 1200 if LONG else 120

Streams = dict[str, list[dict[str, Any]]]


@dataclass
class Kept:
    """A trail, and where it lies."""

    journal: Path
    archive: Path
    store_url: str
    vkey: str
    streams: Streams

    def verified(self, *arguments: str) -> dict[str, Any]:
        """What `verify` says when nothing is excused for being young."""
        done = subprocess.run(
            [COMMAND, "verify", "--json", "--settle", "0s", *arguments],
            env=environment(NO_PROXY="*"),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode in (0, 1), done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report


@pytest.fixture
def kept(tmp_path: Path, start_collector: StartCollector, victorialogs: VictoriaLogs) -> Kept:
    collector = start_collector(loki_endpoint=victorialogs.otlp_endpoint)
    journal, key = tmp_path / "journal", tmp_path / "identity.key"
    otel_audit("keygen", str(key), env=environment())
    variables = environment(
        OTEL_SERVICE_NAME="shop",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.http_endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_AUDIT_DIR=str(journal),
        OTEL_AUDIT_IDENTITY_KEY=str(key),
        OTEL_AUDIT_SEGMENT_BYTES="200000",
        OTEL_AUDIT_HEAD_LINES="500",
        OTEL_AUDIT_RETENTION_DAYS="30",
        OTEL_AUDIT_CLOSE_TIMEOUT_S="60",
        NO_PROXY="*",
    )
    run_services(variables)
    otel_audit("ship", "--once", str(journal), env=variables)  # the killed ones are taken over, if nobody has yet
    streams = read_streams(journal)
    ledger_lines = sum(path.read_bytes().count(b"\n") for path in journal.glob("ledger.0*.jsonl"))
    wait_until_delivered(streams, ledger_lines, collector, victorialogs)
    vkey = otel_audit("vkey", str(key), str(journal), env=environment()).strip()
    return Kept(journal, collector.archive_path.parent, victorialogs.base_url, vkey, streams)


def run_services(variables: dict[str, str]) -> None:
    with ExitStack() as running:

        def start(ending: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "tests.end_to_end.proven_service", str(EVENTS), ending]
            service = running.enter_context(subprocess.Popen(command, cwd=ROOT, env=variables))
            running.callback(service.kill)
            return service

        ending = [start("well"), start("forked")]
        killed = [start("killed"), start("killed")]
        poll(
            lambda: signed_lines(Path(variables["OTEL_AUDIT_DIR"])),
            until=lambda signed: all(signed.get(service.pid, 0) >= EVENTS for service in killed),
            timeout_s=PATIENCE_S,
            what="heads over all events of those that are to be killed",
        )
        for service in killed:
            service.kill()
        assert [service.wait(PATIENCE_S) for service in ending] == [0, 0]


def signed_lines(journal: Path) -> dict[int, int]:
    """By process, how many lines of its stream the ledger knows so far."""
    raw = b"".join(path.read_bytes() for path in sorted(journal.glob("ledger.0*.jsonl")))
    entries = [json.loads(line)["ledger"] for line in raw.split(b"\n")[:-1] if line.startswith(b'{"system":"ledger"')]
    sizes = {entry["stream"]: entry["size"] for entry in entries if entry["kind"] == "head"}
    return {entry["pid"]: sizes.get(entry["stream"], 0) for entry in entries if entry["kind"] == "open"}


def wait_until_delivered(streams: Streams, ledger_lines: int, collector: Collector, store: VictoriaLogs) -> None:
    expected = sum(map(len, streams.values())) + ledger_lines

    def archived() -> int:
        attributes = [record.attributes for record in collector.archive()]
        return len({(each["audit.sequence.stream_id"], each["audit.sequence.number"]) for each in attributes})

    poll(archived, until=lambda count: count >= expected, timeout_s=PATIENCE_S, what="all lines in the archive")
    count = "* | count_uniq(audit.sequence.stream_id, audit.sequence.number) lines"
    poll(
        lambda: int(store.query(count)[0]["lines"]),
        until=lambda count: count >= expected,
        timeout_s=PATIENCE_S,
        what="all lines in the store",
    )


def test_journal_archive_and_store_agree_and_one_event_is_proven_to_strangers(kept: Kept, tmp_path: Path) -> None:
    journal, archive, store = str(kept.journal), str(kept.archive), kept.store_url
    alone = kept.verified(journal, "--key", kept.vkey)
    print(alone["verdict"], alone["streams"])

    assert len(kept.streams) == 5
    assert sum("system" not in line for lines in kept.streams.values() for line in lines) >= 5 * EVENTS
    lengths = {stream_id: len(lines) for stream_id, lines in kept.streams.items()}
    assert (alone["verdict"], kinds(alone)) == ("proven", {("notice", "adopted")})
    assert places(alone, "signed_to") == places(alone, "anchored_to") == places(alone, "chain_to") == lengths
    assert len(list(kept.journal.glob("*-*.0*.jsonl"))) > 2 * len(lengths)

    for side in (["--archive", archive], ["--victorialogs", store]):
        beside, by_itself = kept.verified(journal, *side), kept.verified(*side, "--key", kept.vkey)

        for report in (beside, by_itself):
            assert (report["verdict"], kinds(report)) == ("proven", {("notice", "adopted")})
            assert places(report, "signed_to") == places(report, "chain_to") == places(report, "lines") == lengths
        assert beside["ledger"]["root"] == by_itself["ledger"]["root"] == alone["ledger"]["root"]

    for number, lines in enumerate(kept.streams.values()):
        proof = tmp_path / f"{number}.tlog-proof"
        event = next(line for line in lines[len(lines) // 2 :] if "system" not in line)
        otel_audit("prove", event["event_id"], journal, "--out", str(proof), env=environment())
        scratch = tmp_path / str(number)
        scratch.mkdir()
        by_python = of_python_command(proof.read_bytes(), kept.vkey, scratch)
        by_go = of_go(proof.read_bytes(), kept.vkey, scratch)

        assert by_python.event is not None, by_python.why
        assert by_python == by_go
        assert json.loads(by_python.event) == event


def kinds(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(each["class"], each["kind"]) for each in report["findings"]}


def places(report: dict[str, Any], name: str) -> dict[str, int]:
    return {stream["stream_id"]: stream[name] for stream in report["streams"]}
