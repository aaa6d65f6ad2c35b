"""The middleware under the servers that people use, as processes that are ended in the middle of their requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.delivered import assert_archived_once, assert_streams_of_their_own
from tests.end_to_end.services import Service, served_and_ended, service_environment
from tests.servers import Collector

SERVERS = [
    "uvicorn",
    "uvicorn --workers 2",
    "gunicorn --preload, UvicornWorker",
    "gunicorn, its own asgi worker",
]


@pytest.mark.parametrize("server", SERVERS)
def test_every_answered_request_is_delivered_once_by_the_end_of_its_server_and_without_a_line_that_closes(
    server: str, collector: Collector, tmp_path: Path
) -> None:
    directory = tmp_path / "audit"
    environment = service_environment(collector.http_endpoint, directory)

    with Service(server, log=tmp_path / "log", environment=environment, variant="audited") as service:
        ended = served_and_ended(service)

    assert len(ended.acknowledged) >= 200
    assert_archived_once(collector, directory, ended.acknowledged)
    assert_streams_of_their_own(directory, ended.workers)
