"""Where an export goes on after an owner that stopped, was killed, hangs, or could not read its file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from otel_audit.delivery.destination import Destination
from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.delivery.outcomes import Batch, ExportOutcome
from otel_audit.delivery.stream_export import Idle
from otel_audit.journal.journal import Journal
from otel_audit.settings import OtlpProtocol, OtlpSettings
from tests.delivery.audited_server import AuditedServer, exporter_to
from tests.delivery.stream_export.exporting import Clock, Open, export_of, run, write

ROOT = Path(__file__).parents[3]


def test_an_export_that_does_not_come_back_is_said_to_be_under_way(
    journal: Journal, server: AuditedServer, clock: Clock
) -> None:
    write(journal, "a")
    told: list[str] = []

    class Late(OtlpExporter):
        def export(self, batch: Batch) -> ExportOutcome:
            for _ in range(2):
                clock.now += 45
                told.append(destination.stuck)
            return super().export(batch)

    with closing(Late(OtlpSettings(server.endpoint, OtlpProtocol.HTTP_PROTOBUF))) as exporter:
        destination = Destination(exporter, clock=clock)
        with export_of(journal, destination, 512) as export:
            export.step()

    assert told == ["", "an export has been under way for 90 s"]
    assert destination.stuck == ""


def test_a_file_that_cannot_be_read_costs_nothing_once_it_is_back(
    tmp_path: Path, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, "a")
    export = exporting(journal)
    (segment,) = tmp_path.glob("*-*.jsonl")
    away = segment.rename(tmp_path / "away")
    segment.symlink_to(away)  # a link is never followed
    with pytest.raises(OSError, match="symbolic link"):
        export.step()
    export.hold("cannot be read")
    assert export.step() == Idle()

    segment.unlink()
    away.rename(segment)
    clock.now += 120
    run(export, clock)

    assert server.accepted == ["header", "a"]
    assert not export.blocked


def test_progress_continues_where_the_last_owner_stopped(
    journal: Journal, server: AuditedServer, clock: Clock, exporting: Open
) -> None:
    exporter = exporter_to(server)
    write(journal, *range(10))
    with export_of(journal, Destination(exporter), 4) as first:
        first.step()
    exporter.close()

    run(exporting(journal), clock)

    assert server.batches == [["header", "0", "1", "2"], ["3", "4", "5", "6", "7", "8", "9"]]


KILLED_BEFORE_THE_CURSOR = """
    import os, signal, sys
    from pathlib import Path
    from otel_audit.delivery.destination import Destination
    from otel_audit.delivery.otlp.exporter import OtlpExporter
    from otel_audit.delivery.stream_export import StreamExport
    from otel_audit.journal.files import streams_in
    from otel_audit.journal.shipment import take
    from otel_audit.settings import OtlpProtocol, OtlpSettings

    class DiesAfterTheAnswer(OtlpExporter):
        def export(self, batch):
            outcome = super().export(batch)
            os.kill(os.getpid(), signal.SIGKILL)
            return outcome

    shipment = take(streams_in(Path(sys.argv[1]))[0])
    exporter = DiesAfterTheAnswer(OtlpSettings(sys.argv[2], OtlpProtocol.HTTP_PROTOBUF))
    StreamExport(shipment, Destination(exporter)).step()
"""


@pytest.mark.processes
def test_a_kill_between_answer_and_cursor_sends_the_same_records_again(
    tmp_path: Path, journal: Journal, server: AuditedServer, exporting: Open, clock: Clock
) -> None:
    write(journal, "a", "b")

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_BEFORE_THE_CURSOR), str(tmp_path), server.endpoint],
        cwd=ROOT,
        env={**os.environ, "NO_PROXY": "*"},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    run(exporting(journal), clock)

    first, second = server.requests
    assert first.body == second.body
    assert server.batches[0] == ["header", "a", "b"]
