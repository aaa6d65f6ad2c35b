"""An exception is told by its class and place: its message may hold what must not be on stderr."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from otel_audit.errors import ConfigError, described, is_stop


class ForeignCancelled(BaseException):
    """As another library's cancellation is made."""


@pytest.mark.parametrize(
    ("error", "stopped"),
    [
        (asyncio.CancelledError(), True),
        (TimeoutError(), True),
        (KeyboardInterrupt(), True),
        (GeneratorExit(), True),
        (ForeignCancelled(), True),
        (BaseExceptionGroup("both", [TimeoutError(), asyncio.CancelledError()]), True),
        (ExceptionGroup("one of them", [TimeoutError(), ValueError()]), False),
        (SystemExit(3), False),
        (PermissionError(), False),
        (ValueError(), False),
        (None, False),
    ],
    ids=repr,
)
def test_work_was_stopped_by_a_time_out_or_a_cancellation_and_nothing_else(
    error: BaseException | None, stopped: bool
) -> None:
    assert is_stop(error) == stopped


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_a_message_of_others_is_not_told() -> None:
    said = described(raised(ValueError("password is hunter2")))

    assert said.startswith("ValueError raised at ")
    assert Path(__file__).name in said
    assert "hunter2" not in said


def test_what_the_system_says_is_told() -> None:
    said = described(OSError(errno.ENOSPC, "a text of the application", "/hunter2"))

    assert said == "OSError (No space left on device)"


def test_our_own_messages_are_told_whole() -> None:
    assert described(raised(ConfigError("expected this, got that"))) == "expected this, got that"
