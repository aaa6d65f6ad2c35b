"""What a process pays before it does anything: to import the package, and to look at a directory of many streams."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.measurement import Series, interleaved
from otel_audit import AuditLogger, Settings
from otel_audit.trail import Trail

__all__ = ["CPU_S", "IMPORT_ROW", "MEMORY_MB", "SERVICE_ROW", "STATUS_ROW", "commands"]

CPU_S: Final = "cpu_s"
MEMORY_MB: Final = "memory_mb"

PYTHON_ROW: Final = "python, nothing imported"
IMPORT_ROW: Final = "import otel_audit"
SERVICE_ROW: Final = "from otel_audit import AuditMiddleware, configure"
STATUS_ROW: Final = "otel-audit status"


def commands(streams: int, rounds: int, directory: Path, tell: Callable[[str], None]) -> dict[str, dict[str, Series]]:
    """Return CPU seconds and the most megabytes that a child process took, Python itself included.

    `status` looks at a directory of so many `streams`.
    """
    with tempfile.TemporaryDirectory(dir=directory) as place:
        trail = Path(place) / "trail"
        _fill(trail, streams)
        status = f"import sys; sys.argv[1:] = ['status', {str(trail)!r}]; from otel_audit.cli import main; main()"
        codes = {PYTHON_ROW: "", IMPORT_ROW: IMPORT_ROW, SERVICE_ROW: SERVICE_ROW, STATUS_ROW: status}
        environ = _with_bytecode(Path(place) / "bytecode")
        return interleaved({row: _measure(code, environ) for row, code in codes.items()}, rounds, tell)


def _with_bytecode(cache: Path) -> dict[str, str]:
    """Return an environment in which modules are compiled once, in the round that does not count, as by installers."""
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return environ


# Read in the child, since what `wait4` says is at least the memory of its parent.
_AT_END: Final = """
import atexit, sys
atexit.register(lambda: sys.stderr.write(open("/proc/self/status").read()))
"""


def _measure(code: str, environ: Mapping[str, str]) -> Callable[[], Mapping[str, float]]:
    def measured() -> Mapping[str, float]:
        command = [sys.executable, "-c", _AT_END + code]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ
        ) as child:
            assert child.stderr is not None
            told = child.stderr.read()
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        most_kb = re.search(r"VmHWM:\s+(\d+) kB", told)
        if child.returncode or most_kb is None:
            raise RuntimeError(f"expected {code!r} to end well, got exit status {child.returncode}: {told}")
        return {CPU_S: used.ru_utime + used.ru_stime, MEMORY_MB: int(most_kb[1]) / 1024}

    return measured


def _fill(directory: Path, streams: int) -> None:
    """Leave as many streams as a service has that was started so often, one event in each."""
    settings = Settings.load(
        {"OTEL_AUDIT_DIR": str(directory), "OTEL_SERVICE_NAME": "benchmark", "OTEL_AUDIT_EXPORT": "none"}
    )
    with AuditLogger(Trail(settings)) as logger:
        for _ in range(streams):
            logger.log_authn(outcome="success")
            logger.reopen()  # the next event is in a stream of its own
