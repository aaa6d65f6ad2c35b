"""Events that are not wanted are counted apart, each once, and by the process that they came from."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_audit.event import AuditResource
from otel_audit.logger import AuditLogger
from tests.recording import recorder

THREADS, CALLS = 8, 500
READ = AuditResource(type="feature_view", name="a", actions=["READ_ONLINE"])


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path, log_successful_reads=False) as made:
        yield made


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def read(logger: AuditLogger, times: int = 1) -> None:
    for _ in range(times):
        assert logger.log_mcp_call(tool_name="any", resource=READ) is None


@pytest.mark.usefixtures("_hasty_threads")
def test_no_thread_is_left_out_of_the_count(logger: AuditLogger) -> None:
    threads = [threading.Thread(target=read, args=(logger, CALLS)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert logger.stats().filtered == THREADS * CALLS


@pytest.mark.processes
def test_a_forked_child_counts_its_own(logger: AuditLogger) -> None:
    read(logger, 3)
    child = os.fork()
    if child == 0:
        before = logger.stats().filtered
        read(logger, 2)
        os._exit(0 if (before, logger.stats().filtered) == (0, 2) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert logger.stats().filtered == 3
