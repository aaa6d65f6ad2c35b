"""An asynchronous exception inside of a flush or a close stops neither the delivery nor the next close."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.journal.keeping import Keeping
from tests.journal.writing import append
from tests.stepping import Step, interrupted

pytestmark = pytest.mark.slow

CLOSE_S = 2.0  # all of it passes where the exception left a thread of Python's that can be waited for no more
LONG_S = 30.0


def flush(trail: Trail) -> None:
    trail.flush(LONG_S)


def close(trail: Trail) -> None:
    trail.close(CLOSE_S)


def in_a_thread(do: Callable[[], object], where: Step) -> None:
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(LONG_S)
    assert not thread.is_alive(), f"stands still: {where}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python tells of one in a `__del__`
@pytest.mark.parametrize("do", [flush, close])
def test_whatever_step_is_interrupted_what_was_logged_is_delivered(tmp_path: Path, do: Callable[[Trail], None]) -> None:
    for step in itertools.count(1):
        exporter = Keeping()
        settings = Settings.load({}, {"directory": str(tmp_path / str(step)), "export": "none"})
        trail = Trail(settings, exporters=[exporter])
        append(trail.journal, "before")

        where = interrupted(partial(do, trail), step)

        if where is None:
            trail.close()
            assert step > 10, "or nothing was shown"
            return
        if do is flush:
            append(trail.journal, "after")
            in_a_thread(partial(flush, trail), where)
            assert exporter.ids == ["before", "after"], where
        in_a_thread(partial(close, trail), where)
        assert "before" in exporter.ids, where
