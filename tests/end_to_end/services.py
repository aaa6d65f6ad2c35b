"""Services under the servers that people use, called from several threads until the server is gone.

`python -m tests.end_to_end.services` ends each of them in the middle of its traffic and prints what became of the
events, as the table of docs/delivery.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import requests

from tests.chain_check import application_events
from tests.end_to_end.test_main_path import ROOT, environment, otel_audit
from tests.servers import Collector, free_port, poll
from tests.servers.process import answers, kill_with_workers

__all__ = ["SERVERS", "Callers", "Ended", "Service", "events_in_archive", "served_and_ended", "service_environment"]

_CALLERS = 4
_CALLS = 200
_ENDING_S = 60.0
_LOOKING_S = 2.0

_UVICORN = ["-m", "uvicorn", "--no-access-log", "--host", "127.0.0.1", "--port", "{port}"]
_GUNICORN = ["-m", "gunicorn", "--no-control-socket", "--workers", "2", "--bind", "127.0.0.1:{port}"]
_UVICORN_WORKER = [*_GUNICORN, "--worker-class", "uvicorn_worker.UvicornWorker"]
_HASTY_UVICORN_WORKER = [*_UVICORN_WORKER, "--graceful-timeout", "3"]
_ASGI_WORKER = [*_GUNICORN, "--worker-class", "asgi"]
_ASGI = "tests.end_to_end.asgi_service:{variant}"
_WSGI = "tests.end_to_end.wsgi_service:application"

SERVERS = {
    "uvicorn": [*_UVICORN, _ASGI],
    "uvicorn --workers 2": [*_UVICORN, "--workers", "2", _ASGI],
    "gunicorn, UvicornWorker": [*_UVICORN_WORKER, _ASGI],
    "gunicorn --preload, UvicornWorker": [*_UVICORN_WORKER, "--preload", _ASGI],
    "gunicorn --graceful-timeout 3, UvicornWorker": [*_HASTY_UVICORN_WORKER, _ASGI],
    "gunicorn, its own asgi worker": [*_ASGI_WORKER, _ASGI],
    "gunicorn, sync worker": [*_GUNICORN, _WSGI],
    "gunicorn --preload, sync worker": [*_GUNICORN, "--preload", _WSGI],
}


def service_environment(endpoint: str, directory: Path, **more: str) -> dict[str, str]:
    """What a service is started with. No batch is ever due, so that what arrives was sent by the end itself."""
    return environment(
        **{
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_AUDIT_DIR": str(directory),
            "OTEL_AUDIT_BATCH_DELAY_S": "600",
            "OTEL_AUDIT_BATCH_COUNT": "10000",
            "NO_PROXY": "*",
            **more,
        }
    )


class Service:
    """A server with its workers, from `start` until `end` or the end of the `with` block. `log` has what it said.

    `inside` are the words before the command: what makes the namespaces that it lives in.
    """

    def __init__(
        self,
        server: str,
        *,
        log: Path,
        environment: dict[str, str],
        variant: str = "closes",
        inside: Sequence[str] = (),
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*inside, sys.executable, *(part.format(port=port, variant=variant) for part in SERVERS[server])],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its workers can be found when it is gone
            )

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill_with_workers(self._process)
        if error is not None:
            error.add_note("\n".join(self.said()[-40:]))

    def wait_until_ready(self) -> Service:
        """It answers."""
        poll(self._answers, what=f"{self.url} to answer")
        return self

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"ended with {self._process.returncode}"
        return answers(f"{self.url}/ready")

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, by its first process as a service manager does; see `wait`."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it and all its workers are gone."""
        status = self._process.wait(_ENDING_S)
        poll(lambda: not self._lives(), timeout_s=_ENDING_S, what="every worker to be gone")
        return status

    def said(self) -> list[str]:
        """The lines that it wrote to stdout and stderr."""
        return self.log.read_text(errors="replace").splitlines()

    def _lives(self) -> bool:
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True


class Callers:
    """Threads that call a service until the end of the `with` block, whatever becomes of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._answered: list[tuple[str, str]] = []
        self._threads = [threading.Thread(target=self._call, args=(index,)) for index in range(_CALLERS)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def acknowledged(self) -> list[str]:
        """The ids of the events whose request was answered with 200."""
        return [event_id for event_id, _ in list(self._answered)]

    @property
    def workers(self) -> set[int]:
        """The pids of the processes that answered."""
        return {int(pid) for _, pid in list(self._answered)}

    def wait_for(self, count: int) -> None:
        """So many requests are answered."""
        poll(lambda: len(self._answered), until=lambda answered: answered >= count, what=f"{count} answers")

    def _call(self, index: int) -> None:
        path = "/task" if index % 2 else "/thread"
        while not self._stop.wait(0.002):
            # A connection each time: so every worker gets its share.
            try:
                answer = requests.get(self._url + path, headers={"connection": "close"}, timeout=10)
            except requests.RequestException:
                continue  # the server is ending: this request was not acknowledged
            if answer.status_code == 200:
                self._answered.append((answer.headers["event-id"], answer.text))


@dataclass(frozen=True, slots=True)
class Ended:
    """What is known about a service that was asked to end. Times in seconds from the signal."""

    status: int
    acknowledged: list[str]
    workers: set[int]
    ended_s: float
    signalled_at: float  # time.monotonic()

    def delivered_s(self, collector: Collector) -> float | None:
        """When all of it was in the archive, looked at after the end; None when it is not two seconds later."""
        while time.monotonic() < self.signalled_at + self.ended_s + _LOOKING_S:
            if self.found_in(collector) == len(self.acknowledged):
                return time.monotonic() - self.signalled_at
            time.sleep(0.02)
        return None

    def found_in(self, collector: Collector) -> int:
        """How many of the events that were acknowledged are in the archive."""
        return len(events_in_archive(collector).keys() & set(self.acknowledged))


def served_and_ended(service: Service, number: signal.Signals = signal.SIGTERM, *, calls: int = _CALLS) -> Ended:
    """Ask a service to end in the middle of its traffic."""
    service.wait_until_ready()
    with Callers(service.url) as callers:
        callers.wait_for(calls)
        signalled_at = time.monotonic()
        service.end(number)
        status = service.wait()
        ended_s = time.monotonic() - signalled_at
    return Ended(status, callers.acknowledged, callers.workers, ended_s, signalled_at)


def events_in_archive(collector: Collector) -> Counter[str]:
    """How often each event of an application is in the archive."""
    return Counter(
        record.attributes["audit.record.id"]
        for record in collector.archive()
        if record.event_name not in ("audit.segment", "audit.gap", "audit.ledger", "audit.note")
    )


@dataclass(frozen=True, slots=True)
class _Row:
    server: str
    variant: str
    number: signal.Signals

    def title(self) -> str:
        signalled = "" if self.number is signal.SIGTERM else f" ({self.number.name})"
        return f"{self.server}{signalled}"


def _rows() -> Iterator[_Row]:
    for server, command in SERVERS.items():
        if "--graceful-timeout" in command:
            continue
        for variant in ("closes", "careless") if _ASGI in command else ("-",):
            yield _Row(server, variant, signal.SIGTERM)
    yield _Row("uvicorn", "closes", signal.SIGINT)
    yield _Row("gunicorn --graceful-timeout 3, UvicornWorker", "closes", signal.SIGINT)
    yield _Row("gunicorn, its own asgi worker", "closes", signal.SIGINT)


@contextmanager
def _collector() -> Iterator[tuple[Collector, Path]]:
    with tempfile.TemporaryDirectory() as place, Collector(Path(place) / "collector") as collector:
        yield collector, Path(place)


def _measured(row: _Row) -> Sequence[str]:
    with _collector() as (collector, place):
        directory = place / "audit"
        started = service_environment(collector.http_endpoint, directory)
        with Service(row.server, log=place / "log", environment=started, variant=row.variant) as service:
            ended = served_and_ended(service, row.number)
        delivered_s = ended.delivered_s(collector)
        by_itself = ended.found_in(collector)
        otel_audit("ship", "--once", str(directory), env=started)
        collector.wait_for_archive(len(application_events(directory)))
        events = len(ended.acknowledged)
        return [
            row.title(),
            {"closes": "yes", "careless": "no"}.get(row.variant, row.variant),
            f"{ended.ended_s:.1f} s",
            f"{by_itself} of {events}" + ("" if delivered_s is None else f" after {delivered_s:.1f} s"),
            f"{ended.found_in(collector)} of {events}",
        ]


def _print_table() -> None:
    heads = [
        "SIGTERM in the middle of requests",
        "closes its logger",
        "gone after",
        "delivered by its end",
        "and by the next owner",
    ]
    for cells in (heads, ["---"] * len(heads)):
        print("|", " | ".join(cells), "|", flush=True)
    for row in _rows():
        print("|", " | ".join(_measured(row)), "|", flush=True)


if __name__ == "__main__":
    _print_table()
