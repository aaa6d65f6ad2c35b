"""An exporter is called by one thread, one call at a time, whoever is in a hurry.

Source: OpenTelemetry specification, Logs SDK, "LogRecordExporter": `Export` is never called concurrently.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult

from otel_audit.delivery.sdk_exporter import SdkExporter
from otel_audit.delivery.worker import BatchLimits
from tests.delivery.processor.delivered import SHOP, Deliver, Delivered, is_drained, left_behind
from tests.servers import poll

STREAMS, LINES, INSISTENT = 12, 10, 4


class Guarded(LogRecordExporter):
    """Notes which calls overlap and which threads make them; no export ends before the test lets it."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.exports = self.shut_down = self.most_inside = 0
        self.threads: set[int] = set()
        self.may_end = threading.Event()
        self._inside = 0
        self._lock = threading.Lock()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
            self.threads.add(threading.get_ident())
            if self._inside > 1:
                self.may_end.set()  # it is known, and nobody waits for a test that has failed
        yield
        with self._lock:
            self._inside -= 1

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        with self._entered():
            self.exports += 1
            assert self.may_end.wait(60)
            time.sleep(0.001)  # gives the others the processor, in the middle of an export
            bodies = [json.loads(str(record.log_record.body)) for record in batch]
            self.ids += [body["event_id"] for body in bodies if "system" not in body]
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        with self._entered():
            self.shut_down += 1

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        with self._entered():
            return True


def insist(delivered: Delivered, numbers: range) -> None:
    """Threads that do all that asks for an export: write, wake, flush, look for streams of others."""

    def insist_once(who: int) -> None:
        for number in numbers:
            delivered.write(*(f"live-{who}-{number}-{line}" for line in range(5)))
            delivered.processor.wake()
            delivered.processor.flush(delivered.seqs, timeout_s=0.01)
            delivered.processor.adopt()

    threads = [threading.Thread(target=insist_once, args=(who,)) for who in range(INSISTENT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_an_export_is_never_called_while_another_one_of_the_same_exporter_is_under_way(
    tmp_path: Path, deliver: Deliver
) -> None:
    backlog = [[f"old-{stream}-{line}" for line in range(LINES)] for stream in range(STREAMS)]
    for names in backlog:
        left_behind(tmp_path / "audit", names)
    exporter = Guarded()
    delivered = deliver(SdkExporter(exporter, delay_s=0.01), adoption=SHOP, limits=BatchLimits(count=4))
    delivered.processor.start()
    poll(lambda: exporter.exports, what="the first export")

    insist(delivered, range(10))
    assert (exporter.exports, exporter.most_inside) == (1, 1)  # it is still under way
    exporter.may_end.set()
    insist(delivered, range(10, 30))
    poll(lambda: is_drained(delivered.files.directory, "Guarded (unconfirmed)"), what="everything to be delivered")
    delivered.journal.close()
    assert delivered.processor.close(timeout_s=20)

    assert exporter.most_inside == 1
    assert len(exporter.threads) == 1
    assert exporter.shut_down == 1
    assert len(exporter.ids) == len(set(exporter.ids)) == STREAMS * LINES + INSISTENT * 30 * 5
    assert exporter.exports > len(exporter.ids) / 4


def test_an_exporter_is_not_shut_down_while_an_export_is_under_way(deliver: Deliver) -> None:
    exporter = Guarded()
    delivered = deliver(SdkExporter(exporter, delay_s=0.01))
    delivered.write("a")
    poll(lambda: exporter.exports, what="the export")

    assert not delivered.processor.close(timeout_s=0.2)

    assert exporter.shut_down == 0
    exporter.may_end.set()
    poll(lambda: exporter.shut_down, what="its end")
    assert (exporter.ids, exporter.most_inside, len(exporter.threads)) == (["a"], 1, 1)
