"""A test that starts a process is marked `processes`, so that `-m "not processes"` is what runs anywhere at once.

Hooks for `conftest.py`. A test that forgets its mark fails, with the line that started the process.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Final

import pytest

from tests.long_form import give_time

__all__ = ["pytest_itemcollected", "pytest_runtest_protocol"]

_STARTS: Final = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}
_COLLECTOR_FIXTURES: Final = {"collector", "start_collector", "victorialogs"}

# The id of the running test, if it may start no process.
_unmarked: str | None = None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse an id that differs from run to run, mark what needs a server that is no Python package, and give time."""
    if " at 0x" in item.name:  # `pytest -n` compares the ids of its processes
        raise pytest.UsageError(f"{item.nodeid}: expected the same id in each run, got an address; name its parameters")
    if _COLLECTOR_FIXTURES.intersection(getattr(item, "fixturenames", ())):
        item.add_marker("collector")
    if item.get_closest_marker("collector"):
        item.add_marker("processes")
    give_time(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """While a test without the mark runs, with its fixtures, no process can be started."""
    global _unmarked
    _unmarked = None if item.get_closest_marker("processes") else item.nodeid
    try:
        return (yield)
    finally:
        _unmarked = None


def _refuse(event: str, _: object) -> None:
    if _unmarked is not None and event in _STARTS:
        raise RuntimeError(f"{_unmarked}: expected no new process ({event}) in a test without `pytest.mark.processes`")


sys.addaudithook(_refuse)
