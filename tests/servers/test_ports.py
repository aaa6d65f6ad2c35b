"""A port is given to one test process at a time: with `pytest -n` several look for one at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ports
from tests.servers.ports import free_port

ROOT = Path(__file__).parents[2]


@pytest.mark.processes
@pytest.mark.processes
def test_a_port_that_another_process_was_given_is_free_again_when_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = "from tests.servers.ports import free_port; print(free_port(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        monkeypatch.setattr(ports, "_FIRST", port)
        monkeypatch.setattr(ports, "_LAST", port)
        with pytest.raises(RuntimeError, match="expected a free port"):
            free_port()
        other.communicate("\n")

    assert free_port() == port


def test_no_port_is_given_twice() -> None:
    given = [free_port() for _ in range(100)]

    assert len(set(given)) == 100
