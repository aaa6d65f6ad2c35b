"""Where the programs under test are: named by a variable, on PATH, or built before into the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.no_skip import NO_SKIP

__all__ = [
    "COLLECTOR",
    "OWN_VARIABLES",
    "VERIFY_PROOF",
    "VICTORIALOGS",
    "VICTORIAMETRICS",
    "VMALERT_TOOL",
    "Binary",
]

_REPOSITORY = Path(__file__).resolve().parents[2]

# As the run was started: `conftest.py` takes the tests' own variables out of `os.environ`.
_AT_START = dict(os.environ)


@dataclass(frozen=True, slots=True)
class Binary:
    """A program that a test starts, and the script that installs it."""

    name: str
    variable: str
    script: tuple[str, ...]  # relative to the repository; with `--cached` it prints a path and installs nothing

    def path(self, environment: Mapping[str, str] = _AT_START) -> Path:
        """The program to run. Where it is missing the test is skipped, with the way to get it."""
        found = self._named(environment.get(self.variable)) or self._on_path(environment) or self._in_cache(environment)
        if found is None:
            pytest.skip(f"needs {self.name}: run `{' '.join(self.script)}`, or set {self.variable} to its path")
        return found

    def _named(self, value: str | None) -> Path | None:
        if not value:
            return None
        if not os.access(value, os.X_OK):
            pytest.fail(f"{self.variable}: expected the path of an executable {self.name}, got {value!r}")
        return Path(value)

    def _on_path(self, environment: Mapping[str, str]) -> Path | None:
        found = shutil.which(self.name, path=environment.get("PATH"))
        return Path(found) if found else None

    def _in_cache(self, environment: Mapping[str, str]) -> Path | None:
        script, *arguments = self.script
        command = [str(_REPOSITORY / script), *arguments, "--cached"]
        answer = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
        return Path(answer.stdout.strip()) if answer.returncode == 0 else None


COLLECTOR = Binary("otelcol-audit", "OTEL_AUDIT_OTELCOL", ("collector-config/build-collector.sh",))
VICTORIALOGS = Binary("victoria-logs", "OTEL_AUDIT_VICTORIALOGS", ("tests/servers/install.sh", "victoria-logs"))
VICTORIAMETRICS = Binary(
    "victoria-metrics", "OTEL_AUDIT_VICTORIAMETRICS", ("tests/servers/install.sh", "victoria-metrics")
)
VMALERT_TOOL = Binary("vmalert-tool", "OTEL_AUDIT_VMALERT_TOOL", ("tests/servers/install.sh", "vmalert-tool"))
VERIFY_PROOF = Binary("verify-proof", "OTEL_AUDIT_VERIFY_PROOF", ("verifiers/go/build.sh",))

# What only the tests know. The package refuses to start with an OTEL_AUDIT_ name that is none of its settings.
_BINARIES = (COLLECTOR, VICTORIALOGS, VICTORIAMETRICS, VMALERT_TOOL, VERIFY_PROOF)
OWN_VARIABLES = (*(binary.variable for binary in _BINARIES), NO_SKIP)
