"""However a server ends: every request that it answered is in the collector's archive, once, and in an intact chain."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_audit.journal.census import census
from tests.chain_check import application_events
from tests.end_to_end.delivered import assert_archived, assert_archived_once, assert_streams_of_their_own, ship, writers
from tests.end_to_end.services import (
    SERVERS,
    Callers,
    Ended,
    Service,
    events_in_archive,
    served_and_ended,
    service_environment,
)
from tests.servers import Collector, free_port, poll
from tests.servers.otlp_server import Answer, OtlpServer

pytestmark = pytest.mark.processes

# Of what a signal starts: the last requests, the close of the logger (5 s at most by default), the end of the workers.
# A busy machine takes several times as long; an end that waits for the collector takes two minutes, or does not come.
BOUND_S = 60.0
HASTY = "gunicorn --graceful-timeout 3, UvicornWorker"
# uvicorn sends itself the signal again after its graceful stop, so that no exit handler runs: only the lifespan does.
BY_LIFESPAN = ["uvicorn", "uvicorn --workers 2", "gunicorn, UvicornWorker"]
BY_EXIT_HANDLER = [name for name in SERVERS if "uvicorn" not in name.lower()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


class HangingServer(OtlpServer):
    """It takes what it is sent and does not answer."""

    def next_answer(self) -> Answer:
        return Answer(delay_s=120)


@pytest.fixture
def hanging() -> Iterator[HangingServer]:
    with HangingServer() as server:
        yield server
        server.stopping.set()


def nobody() -> str:
    """An endpoint where no collector is."""
    return f"http://127.0.0.1:{free_port()}"


def ended(
    server: str,
    directory: Path,
    endpoint: str,
    *,
    variant: str = "closes",
    number: signal.Signals = signal.SIGTERM,
    **more: str,
) -> Ended:
    environment = service_environment(endpoint, directory, **more)
    with Service(server, log=directory.parent / "log", environment=environment, variant=variant) as service:
        return served_and_ended(service, number)


def assert_nothing_left(collector: Collector) -> None:
    assert events_in_archive(collector) == Counter()


@pytest.mark.parametrize("server", [name for name in SERVERS if name != HASTY])
def test_sigterm_in_the_middle_of_requests_delivers_every_answered_one_in_time(
    server: str, collector: Collector, directory: Path
) -> None:
    service = ended(server, directory, collector.http_endpoint)

    delivered_s = service.delivered_s(collector)
    assert delivered_s is not None
    assert delivered_s < BOUND_S
    assert_archived_once(collector, directory, service.acknowledged)
    assert_streams_of_their_own(directory, service.workers)
    assert list(directory.glob("*-*.lock")) == []


@pytest.mark.parametrize("server", BY_LIFESPAN)
def test_a_service_that_never_closes_its_logger_leaves_its_events_to_the_next_owner(
    server: str, collector: Collector, directory: Path
) -> None:
    service = ended(server, directory, collector.http_endpoint, variant="careless")
    assert service.ended_s < BOUND_S
    assert_nothing_left(collector)

    ship(directory, collector)

    assert_archived_once(collector, directory, service.acknowledged)
    assert_streams_of_their_own(directory, service.workers)


def test_a_master_that_has_begun_nothing_delivers_at_its_end_what_its_workers_left(
    collector: Collector, directory: Path
) -> None:
    service = ended("gunicorn --preload, UvicornWorker", directory, collector.http_endpoint, variant="careless")
    assert service.ended_s < BOUND_S
    if sys.version_info >= (3, 12):  # starts no thread at its exit
        ship(directory, collector)

    assert_archived_once(collector, directory, service.acknowledged)
    assert_streams_of_their_own(directory, service.workers)


def test_the_next_start_of_a_service_delivers_what_the_last_one_left(collector: Collector, directory: Path) -> None:
    left = ended("uvicorn", directory, collector.http_endpoint, variant="careless")
    assert_nothing_left(collector)
    environment = service_environment(collector.http_endpoint, directory)

    with Service("uvicorn", log=directory.parent / "log", environment=environment, variant="audited"):
        poll(
            lambda: left.found_in(collector),
            until=lambda found: found == len(left.acknowledged),
            what=f"{len(left.acknowledged)} events of the former process",
        )
        poll(lambda: census(directory).totals.pending, until=lambda pending: pending == 0, what="nothing pending")

    assert_archived_once(collector, directory, left.acknowledged)


def test_a_service_that_its_own_exit_handlers_close_needs_no_lifespan(collector: Collector, directory: Path) -> None:
    service = ended("gunicorn, its own asgi worker", directory, collector.http_endpoint, variant="careless")

    assert_archived_once(collector, directory, service.acknowledged)


@pytest.mark.parametrize("server", ["uvicorn --workers 2", "gunicorn --preload, UvicornWorker", *BY_EXIT_HANDLER[-1:]])
def test_with_a_dead_collector_the_end_is_quick_and_everything_is_left_in_the_journal(
    server: str, collector: Collector, directory: Path
) -> None:
    service = ended(server, directory, nobody())
    assert service.ended_s < BOUND_S
    assert census(directory).totals.pending == len(application_events(directory))

    ship(directory, collector)

    assert_archived_once(collector, directory, service.acknowledged)


def test_a_collector_that_does_not_answer_holds_up_the_end_for_the_close_timeout_only(
    hanging: HangingServer, collector: Collector, directory: Path
) -> None:
    service = ended("uvicorn", directory, hanging.base_url, OTEL_AUDIT_CLOSE_TIMEOUT_S="2")
    assert hanging.requests
    assert 2.0 <= service.ended_s < 2.0 + BOUND_S

    ship(directory, collector)

    assert_archived_once(collector, directory, service.acknowledged)


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn, its own asgi worker"])
def test_ctrl_c_delivers_like_sigterm(server: str, collector: Collector, directory: Path) -> None:
    service = ended(server, directory, collector.http_endpoint, number=signal.SIGINT)

    assert service.delivered_s(collector) is not None
    assert_archived_once(collector, directory, service.acknowledged)


def test_workers_that_gunicorn_kills_after_ctrl_c_leave_their_events_to_the_next_owner(
    collector: Collector, directory: Path
) -> None:
    # gunicorn asks them by SIGQUIT, which UvicornWorker does not act on.
    service = ended(HASTY, directory, collector.http_endpoint, number=signal.SIGINT)

    ship(directory, collector)

    assert_archived(collector, directory, service.acknowledged)


@pytest.mark.parametrize("server", ["gunicorn, UvicornWorker", "gunicorn --preload, sync worker"])
def test_the_stream_of_a_killed_worker_is_delivered_while_the_service_goes_on(
    server: str, collector: Collector, directory: Path
) -> None:
    environment = service_environment(collector.http_endpoint, directory)
    with Service(server, log=directory.parent / "log", environment=environment) as service:
        service.wait_until_ready()
        with Callers(service.url) as callers:
            poll(lambda: callers.workers, until=lambda pids: len(pids) == 2, what="answers of two workers")
            callers.wait_for(100)
            victim = min(callers.workers)
            os.kill(victim, signal.SIGKILL)
            poll(lambda: callers.workers, until=lambda pids: len(pids) == 3, what="answers of a new worker")
        acknowledged = callers.acknowledged
        of_the_victim = {event_id for pid, ids in writers(directory) if pid == victim for event_id in ids}
        assert of_the_victim
        poll(
            lambda: len(of_the_victim - events_in_archive(collector).keys()),
            until=lambda missing: missing == 0,
            what="every event of the killed worker",
        )
        service.end()
        service.wait()

    assert_archived_once(collector, directory, acknowledged)


@pytest.mark.parametrize("server", ["gunicorn --preload, UvicornWorker", "gunicorn --preload, sync worker"])
def test_a_parent_that_logs_while_it_forks_its_workers_and_while_it_ends_stops_nobody(
    server: str, collector: Collector, directory: Path, tmp_path: Path
) -> None:
    in_background = tmp_path / "acknowledged"

    service = ended(server, directory, collector.http_endpoint, SERVICE_LOGS_TO=str(in_background))
    ship(directory, collector)  # what the thread logged after the exit handlers

    of_the_parent = in_background.read_text().split()
    assert len(of_the_parent) > 100
    assert_archived_once(collector, directory, [*service.acknowledged, *of_the_parent])


def acknowledged_by_a_failed_start(server: str, place: str, directory: Path, endpoint: str) -> list[str]:
    environment = service_environment(endpoint, directory, SERVICE_FAILS_AT=place)
    with Service(server, log=directory.parent / "log", environment=environment) as service:
        assert service.wait() != 0
    acknowledged = [line.split()[1] for line in service.said() if line.startswith("acknowledged ")]
    assert acknowledged
    return acknowledged


@pytest.mark.parametrize("place", ["import", "startup"])
def test_a_service_that_fails_at_its_start_delivers_what_it_logged(
    place: str, collector: Collector, directory: Path
) -> None:
    acknowledged = acknowledged_by_a_failed_start("uvicorn", place, directory, collector.http_endpoint)

    assert_archived_once(collector, directory, acknowledged)


@pytest.mark.parametrize("place", ["import", "startup"])
def test_workers_that_gunicorn_stops_because_one_failed_at_its_start_lose_nothing(
    place: str, collector: Collector, directory: Path
) -> None:
    # The first to fail ends by itself; gunicorn ends the others wherever they are.
    acknowledged = acknowledged_by_a_failed_start("gunicorn, UvicornWorker", place, directory, collector.http_endpoint)

    ship(directory, collector)

    assert_archived(collector, directory, acknowledged)
