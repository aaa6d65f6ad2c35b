"""One server process: started until it is ready, stopped or killed by its own pid."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import requests

from tests.servers.polling import PATIENCE_S, poll

__all__ = ["ServerProcess", "answers", "kill_with_workers"]

_SHOWN_LOG_BYTES = 4000


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200 now."""
    try:
        with requests.get(url, timeout=2) as answer:
            return answer.status_code == 200
    except requests.RequestException:
        return False


def kill_with_workers(server: subprocess.Popen[bytes]) -> None:
    """Kill a server that was started in a session of its own, and every worker that it has (SIGKILL)."""
    for _ in range(2):  # a supervisor may start a worker while it is killed
        try:
            os.killpg(server.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
    server.wait()


class ServerProcess:
    """A child process whose output goes to `log`. It may be started again after its end."""

    def __init__(self, command: Sequence[str | Path], *, log: Path, ready: Callable[[], bool]) -> None:
        self._command = [str(part) for part in command]
        self._log = log
        self._ready = ready
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Return once the server is ready. `environment` is added to the test's own.

        Raises:
            AssertionError: it ended or did not become ready; says the end of its log. It does not run.
        """
        if self._child is not None:
            raise AssertionError(f"expected {self._command[0]} to be stopped, got a running one: pid {self._child.pid}")
        with self._log.open("ab") as output:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        try:
            poll(self._ready_or_ended, what=f"{self._command[0]} to be ready")
        except BaseException as error:
            self.kill()
            error.add_note(self.log_tail())
            raise

    def stop(self) -> None:
        """Ask it to end (SIGTERM), and return once it has.

        Raises:
            AssertionError: it was still there after 30 s, or ended with an error. It does not run.
        """
        child = self._running()
        child.terminate()
        try:
            status = child.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"expected an end within {PATIENCE_S:g} s\n{self.log_tail()}") from None
        self._child = None
        if status != 0:
            raise AssertionError(f"expected exit status 0, got {status}\n{self.log_tail()}")

    def kill(self) -> None:
        """End it at once (SIGKILL). Nothing happens when it does not run."""
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        self._child = None

    def log_tail(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        return self._log.read_bytes()[-_SHOWN_LOG_BYTES:].decode(errors="replace")

    def _ready_or_ended(self) -> bool:
        status = self._running().poll()
        if status is not None:
            raise AssertionError(f"expected a running server, got exit status {status}")
        return self._ready()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise AssertionError(f"expected {self._command[0]} to run, got a stopped one")
        return self._child
