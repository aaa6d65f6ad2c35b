"""The processes that the faults happen to. Each is started again after its end, in the same place."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from tests.chaos.contenders import ContenderName
from tests.chaos.plan import WRITERS
from tests.chaos.writer import NO_JOURNAL
from tests.servers import Collector

__all__ = [
    "OTEL_AUDIT",
    "WRITER",
    "CollectorMember",
    "Member",
    "ProcessMember",
    "shipper_environment",
    "shippers",
    "writers",
]

OTEL_AUDIT: Final = Path(sys.executable).with_name("otel-audit")
WRITER: Final = "tests.chaos.writer"  # stands in the command line of each, and of its forked children

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_RESTART_AFTER_S: Final = 0.5
_END_TIMEOUT_S: Final = 120.0  # on a busy machine a process may take half a minute to begin
_SHOWN_LOG_BYTES: Final = 2000
_DELIVERED_OR_NOT: Final = frozenset({0, 1})  # exit codes of `otel-audit ship`
_NO_DIRECTORY: Final = 2  # exit code of `otel-audit ship` where its directory cannot be written

# Of the writers, in turn: how their events leave, how much a line survives, who is told of a loss.
_EXPORT: Final[Sequence[Mapping[str, str]]] = (
    {"OTEL_AUDIT_EXPORT": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
    {"OTEL_AUDIT_EXPORT": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    {"OTEL_AUDIT_EXPORT": "ship", "OTEL_AUDIT_ON_LOSS": "closed"},
    {"OTEL_AUDIT_EXPORT": "ship", "OTEL_AUDIT_DURABILITY": "fsync"},
)
# Small segments are changed often, and short waits fit much into little time. What decides over loss is as it is
# for everybody.
_HASTE: Final = {
    "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
    "OTEL_AUDIT_BACKOFF_CAP_S": "2",
    "OTEL_AUDIT_SEGMENT_BYTES": "16384",
}


class Member(Protocol):
    """A place in the crew, and how often what was done to the process in it. One thread at a time."""

    kills: int
    hangs: int

    def start(self) -> None:
        """It runs."""

    def kill(self) -> None:
        """It does not run (SIGKILL)."""

    def leave(self) -> None:
        """It was asked to end (a closed standard input, SIGTERM)."""

    def hang(self) -> None:
        """It is there, and does nothing (SIGSTOP)."""

    def resume(self) -> None:
        """It goes on (SIGCONT)."""

    def tend(self) -> None:
        """It runs again, if it ended by itself."""


class CollectorMember:
    """The collector: same ports, same archive after each start."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self.kills = 0
        self.hangs = 0

    def start(self) -> None:
        """See `Member`. Returns when it takes records."""
        self._collector.start()

    def kill(self) -> None:
        """See `Member`."""
        self._collector.kill()
        self.kills += 1

    def leave(self) -> None:
        """See `Member`."""
        self._collector.stop()

    def hang(self) -> None:
        """See `Member`."""
        os.kill(self._collector.pid, signal.SIGSTOP)
        self.hangs += 1

    def resume(self) -> None:
        """See `Member`."""
        os.kill(self._collector.pid, signal.SIGCONT)

    def tend(self) -> None:
        """See `Member`. It does not end by itself."""


class ProcessMember:
    """A writer or a shipper; each process in this place is an instance with a name of its own.

    `launch` gets its name and the file for its output. `excused` is the exit code of one that could not begin, as on a
    full disk; `in_order` are those of one that was asked to end. `surprises` says of every other end.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[str, Path], subprocess.Popen[bytes]],
        *,
        excused: int,
        in_order: frozenset[int],
        logs: Path,
    ) -> None:
        self.kills = 0
        self.hangs = 0
        self.surprises: list[str] = []
        self._name = name
        self._launch = launch
        self._excused = excused
        self._in_order = in_order
        self._leaving: subprocess.Popen[bytes] | None = None
        self._logs = logs
        self._starts = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0

    @property
    def instance(self) -> str:
        """The name of the process that runs, or ran last."""
        return f"{self._name}-{self._starts}"

    @property
    def _log(self) -> Path:
        return self._logs / f"{self.instance}.log"

    def start(self) -> None:
        """See `Member`. Nothing happens if it runs already; one that leaves is waited for."""
        self._see_off()
        if self._child is None:
            self._starts += 1
            self._child = self._launch(self.instance, self._log)

    def kill(self) -> None:
        """See `Member`. It counts only if there was something to kill."""
        if self._leaving is not None:
            self._leaving.kill()
            _let_go(self._leaving)
            self._leaving = None
        child, self._child = self._child, None
        self._again_at = 0.0
        if child is None:
            return
        if child.poll() is None:
            child.kill()
            self.kills += 1
        else:
            self._ended(child)
        _let_go(child)

    def leave(self) -> None:
        """See `Member`."""
        if self._child is None or self._child.poll() is not None:
            return  # it could not begin, and is about to try again
        self._leaving, self._child = self._child, None
        if self._leaving.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._leaving.stdin.close()
        else:
            self._leaving.terminate()

    def hang(self) -> None:
        """See `Member`."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGSTOP)
            self.hangs += 1

    def resume(self) -> None:
        """See `Member`."""
        if self._child is not None:
            self._child.send_signal(signal.SIGCONT)

    def tend(self) -> None:
        """See `Member`."""
        if self._child is not None and self._child.poll() is not None:
            self._ended(self._child)
            _let_go(self._child)
            self._child = None
            self._again_at = time.monotonic() + _RESTART_AFTER_S
        if self._again_at and time.monotonic() >= self._again_at:
            self._again_at = 0.0
            self.start()

    def end(self) -> None:
        """It was asked to end, and has."""
        if self._child is None:
            self.surprises.append(f"{self._name}: expected to run, got no process")
        self.leave()
        self._see_off()

    def _see_off(self) -> None:
        child, self._leaving = self._leaving, None
        if child is None:
            return
        try:
            code = child.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._surprise(f"no end within {_END_TIMEOUT_S:g} s")
            child.kill()
        else:
            # What has said nothing yet was still being loaded, and SIGTERM does what it does to any process.
            if code not in self._in_order and not (code == -signal.SIGTERM and self._log.stat().st_size == 0):
                self._surprise(f"exit code {code} after it was asked to end")
        _let_go(child)

    def _ended(self, child: subprocess.Popen[bytes]) -> None:
        if child.returncode != self._excused:
            self._surprise(f"exit code {child.returncode}")

    def _surprise(self, what: str) -> None:
        log = self._log.read_bytes()[-_SHOWN_LOG_BYTES:].decode(errors="replace")
        self.surprises.append(f"{self.instance}: {what}; the end of {self._log}:\n{log}")


def writers(
    contender: ContenderName,
    collector: Collector,
    *,
    journal: Path,
    ledgers: Path,
    logs: Path,
    seed: int,
    more: Mapping[str, str],
) -> list[ProcessMember]:
    """The writers of a contender; they do not run yet. `more`: further settings of the package."""
    return [
        _writer(number, contender, collector, journal=journal, ledgers=ledgers, logs=logs, seed=seed, more=more)
        for number in range(WRITERS)
    ]


def _writer(
    number: int,
    contender: ContenderName,
    collector: Collector,
    *,
    journal: Path,
    ledgers: Path,
    logs: Path,
    seed: int,
    more: Mapping[str, str],
) -> ProcessMember:
    def launch(instance: str, log: Path) -> subprocess.Popen[bytes]:
        variables = {"OTEL_SERVICE_NAME": "chaos", "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}"}
        if contender is ContenderName.OURS:
            export = _EXPORT[number % len(_EXPORT)]
            variables |= {"OTEL_AUDIT_DIR": str(journal), **export, **_HASTE, **more}
        grpc = variables.get("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc"
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.grpc_endpoint if grpc else collector.http_endpoint
        command = [sys.executable, "-m", WRITER, contender, instance, str(ledgers), str(seed)]
        return _started(command, variables, log, stdin=subprocess.PIPE)

    return ProcessMember(f"writer-{number}", launch, excused=NO_JOURNAL, in_order=frozenset({0}), logs=logs)


def shippers(
    count: int, collector: Collector, *, journal: Path, logs: Path, more: Mapping[str, str]
) -> list[ProcessMember]:
    """So many `otel-audit ship` for one directory; they do not run yet. `more`: further settings of the package."""
    return [_shipper(number, collector, journal=journal, logs=logs, more=more) for number in range(count)]


def _shipper(number: int, collector: Collector, *, journal: Path, logs: Path, more: Mapping[str, str]) -> ProcessMember:
    def launch(instance: str, log: Path) -> subprocess.Popen[bytes]:
        command = [str(OTEL_AUDIT), "ship", str(journal)]
        return _started(command, {**_shipper_variables(collector), **more}, log, stdin=subprocess.DEVNULL)

    return ProcessMember(f"shipper-{number}", launch, excused=_NO_DIRECTORY, in_order=_DELIVERED_OR_NOT, logs=logs)


def _shipper_variables(collector: Collector) -> dict[str, str]:
    return {
        **_HASTE,
        "OTEL_SERVICE_NAME": "shipper",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }


def shipper_environment(collector: Collector) -> dict[str, str]:
    """For a command of the package that delivers to this collector."""
    return _environment(_shipper_variables(collector))


def _started(command: Sequence[str], variables: Mapping[str, str], log: Path, *, stdin: int) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            env=_environment(variables),
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Nothing of what this shell says to OTel, and no proxy between here and loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return {**kept, "NO_PROXY": "*", **variables}


def _let_go(child: subprocess.Popen[bytes]) -> None:
    child.wait()
    if child.stdin is not None and not child.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
