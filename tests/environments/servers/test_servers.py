"""Servers that patch the standard library, or fork in C code: their workers answer, deliver and end.

Each is called by eight clients at once. With OTEL_AUDIT_TESTS_LONG=1 uWSGI is started forty times with threads.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
from serving import Served, events, receiving

from tests.long_form import LONG
from tests.servers.otlp_server import OtlpServer, accepted
from tests.servers.polling import poll

GUNICORN = "gunicorn --no-control-socket -w 1 -k gevent -b {address}"
UWSGI = "uwsgi --http-socket {address} --master --processes 2 --die-on-term --home {prefix} --pythonpath . --module"
GREEN = "--gevent 20 --gevent-monkey-patch"


def assert_served(command: str, protocol: str, directory: Path, **environ: str) -> None:
    with (
        receiving(protocol, directory) as (server, endpoint),
        Served(command, directory, {**endpoint, **environ}) as it,
    ):
        assert it.answers_all(8) == 8
        if "audited_app" in command:
            assert it.threads_of_master() == 1  # none that could hold something at the fork
        poll(lambda: events(server), until=lambda count: count >= 8, what="8 events")
        assert it.ended() == 0
        assert events(server) == 8


@pytest.mark.parametrize(
    ("command", "protocol"),
    [
        (f"{GUNICORN} audited_app", "grpc"),
        (f"{GUNICORN} --preload audited_app", "https"),
        (f"{GUNICORN} --preload audited_app", "grpc"),
        (f"{UWSGI} audited_app {GREEN}", "https"),
        (f"{UWSGI} audited_app {GREEN}", "grpc"),
        # One process: uWSGI does not end while a worker is still loading such an application, whatever it is.
        (f"{UWSGI} audited_app {GREEN} --lazy-apps --processes 1", "https"),
    ],
)
def test_workers_under_gevent_answer_deliver_and_end(command: str, protocol: str, tmp_path: Path) -> None:
    assert_served(command, protocol, tmp_path)


@pytest.mark.parametrize(("preload", "protocol"), [("", "grpc"), ("--preload ", "http")])
def test_the_plain_otel_api_under_gevent_is_journalled_and_delivered(
    preload: str, protocol: str, tmp_path: Path
) -> None:
    assert_served(
        f"opentelemetry-instrument {GUNICORN} {preload}plain_app",
        protocol,
        tmp_path,
        OTEL_LOGS_EXPORTER="otel_audit",
        OTEL_TRACES_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
    )


def test_a_greenlet_that_flushes_does_not_stop_the_others(tmp_path: Path) -> None:
    command = f"{GUNICORN} --preload audited_app"
    with receiving("http", tmp_path) as (server, environ), Served(command, tmp_path, environ) as it:
        assert isinstance(server, OtlpServer)
        assert it.answers("/flush")
        server.will_answer(dataclasses.replace(accepted(), delay_s=20))
        seen = len(server.requests)
        flushing = threading.Thread(target=it.answers, args=("/flush",))
        flushing.start()
        poll(lambda: len(server.requests) > seen, what="the export that is not answered")

        assert it.answers()

        assert flushing.is_alive()
        server.stopping.set()
        flushing.join()


@pytest.mark.timeout(4 * 3600 if LONG else 600)
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_workers_that_uwsgi_forks_in_c_code_answer_deliver_and_end(protocol: str, tmp_path: Path) -> None:
    for start in range(40 if LONG and protocol == "http" else 1):
        directory = tmp_path / str(start)
        directory.mkdir()
        assert_served(f"{UWSGI} audited_app --enable-threads", protocol, directory)
