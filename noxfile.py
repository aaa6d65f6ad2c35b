"""Run the tests in every environment. `nox` runs all but `benchmark` and `quick`, and `nox -l` lists them.

Arguments after `--` go to pytest: `nox -s tests -- -k journal`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "uv|venv"
nox.options.sessions = ["lint", "tests", "pythons", "oldest", "feast", "mcp1", "mcp2", "servers", "spans", "docs"]

# Compile at installation, as pip does. Compiling at the first import would happen under `-W error`.
os.environ.setdefault("UV_COMPILE_BYTECODE", "1")
# Four processes on two cores: most tests wait for servers and timers. Each has its own files and ports.
TOGETHER = ("-n", "4", "--dist", "worksteal")
# A tenth of Hypothesis' examples. The session `tests` tries all of them: see tests/examples.py.
FEW_EXAMPLES = "--hypothesis-profile=quick"
QUICK = ("-m", "not processes and not slow", FEW_EXAMPLES, "-n", "3", "--dist", "worksteal")


def interpreter(version: str) -> str | None:
    """Return the path of a Python that starts, on PATH or where pyenv installs them."""
    of_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *map(str, of_pyenv.glob(f"{version}.*/bin/python{version}"))]
    # A shim of pyenv may be on PATH and start nothing.
    starts = (
        path
        for path in candidates
        if path and subprocess.run([path, "-c", ""], check=False, stderr=subprocess.DEVNULL).returncode == 0
    )
    return next(starts, None)


# The other sessions run on 3.11. These are the newer versions that `pythons` looks for, and those that it found.
LATER = ("3.12", "3.13", "3.14")
NEWER_PYTHONS = {version: path for version in LATER if (path := interpreter(version)) is not None}
# The lowest releases that pyproject.toml allows: a user may be held back by another package.
DEPENDENCIES = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["project"]["dependencies"]
OLDEST = [each.partition(",")[0].replace(">=", "==") for each in DEPENDENCIES]
# Tested in this session only. Its releases come later than those of the SDK, and would hold back the newest SDK.
OLDEST_URLLIB3 = "opentelemetry-instrumentation-urllib3==0.61b0"
# Not run with the oldest OpenTelemetry. Journal, redaction and policy do not import it (tests/test_imports.py checks
# that), an older release has fewer keys, and the documentation shows the output of the newest. Below 8.2, click's
# runner for tests mixes stderr into the output; test_command.py runs the commands as processes. The others use nothing
# of OpenTelemetry that other tests do not use, and take minutes.
NEWEST_ONLY = (
    "tests/chaos",
    "tests/cli",
    "tests/compose",
    "tests/journal",
    "tests/end_to_end/test_bad_collectors.py",
    "tests/end_to_end/test_load.py",
    "tests/end_to_end/test_namespaces.py",
    "tests/end_to_end/test_process_ends.py",
    "tests/end_to_end/test_server_ends.py",
    "tests/end_to_end/test_side_car.py",
    "tests/end_to_end/test_truth.py",
    "tests/end_to_end/test_worker_ends.py",
    "tests/policy",
    "tests/records/test_attributes.py",
    "tests/query/test_packing.py",
    "tests/redaction",
    "tests/stores",
    "tests/test_access.py",
    "tests/test_documentation.py",
    "tests/test_licences.py",
    "tests/test_no_skip.py",
    "tests/test_public_names.py",
    "tests/test_wheel.py",
    "tests/testing/test_plugin.py",
    "tests/verification/test_proof.py",
    "tests/verification/test_proof_commands.py",
    "tests/verification/test_proving.py",
    "tests/verification/test_proving_from_stores.py",
    "tests/viewing",
)
# The release whose audit logger this package replaces; docs/integrations.md names it too.
FEAST = "feast==0.67.0"
FEAST_SERVER = "feast[mcp]==0.67.0"
# Installs opentelemetry-instrumentation, its command and the SDK's configurator.
OTEL_DISTRO = "opentelemetry-distro>=0.61b0"
# The official MCP SDK in both of its major releases, which no environment can have at once. docs/integrations.md too.
MCP1 = ("mcp==1.29.1", "fastmcp==3.4.11")
MCP2 = ("mcp==2.3.0", "fastmcp==4.2.3")
# The instrumentations of web frameworks, each of which needs one release of the SDK, and the frameworks.
SPANS = (
    "opentelemetry-sdk==1.45.1",
    "opentelemetry-distro==0.66b1",
    "opentelemetry-instrumentation-asgi==0.66b1",
    "opentelemetry-instrumentation-django==0.66b1",
    "opentelemetry-instrumentation-fastapi==0.66b1",
    "opentelemetry-instrumentation-starlette==0.66b1",
    "django==5.2.19",
    "fastapi==0.165.0",
    "litestar==2.25.0",
    "quart==0.22.0",
    "starlette==1.10.0",
)
# Servers that replace Python's threads, or fork without its hooks; docs/delivery.md names them too.
SERVERS = ("gevent>=26", "gunicorn>=27", "uwsgi>=2.0.31")
# Server spans of the requests that carry calls. That of Starlette has no release for the API that fastmcp needs.
OTEL_ASGI = "opentelemetry-instrumentation-asgi>=0.61b0"
OTEL_STARLETTE = "opentelemetry-instrumentation-starlette>=0.61b0"
OTEL_FASTAPI = "opentelemetry-instrumentation-fastapi>=0.61b0"


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest with a cache for each environment, so that `--last-failed` means the failures in that environment."""
    cache = Path(session.virtualenv.location) / "pytest-cache"
    session.run("python", "-m", "pytest", "-o", f"cache_dir={cache}", *arguments)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the suite with the newest release of every dependency."""
    session.install("-e", ".[test]")
    run_pytest(session, *TOGETHER, *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """Run the tests that start no process and are not slow, with a tenth of the examples: a minute on two cores."""
    session.install("-e", ".[test]")
    run_pytest(session, *QUICK, *session.posargs)


@nox.session(python=list(NEWER_PYTHONS.values()) or None)
def pythons(session: nox.Session) -> None:
    """Run the quick tests on each newer Python on the machine, or on this one if there is none."""
    session.install("-e", ".[test]")
    session.run("python", "--version")
    run_pytest(session, *QUICK, *session.posargs)
    session.log(f"not on this machine, and not run: {[version for version in LATER if version not in NEWER_PYTHONS]}")


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the suite with the oldest supported dependencies, except tests that need none of OpenTelemetry."""
    session.install("-e", ".[test-any-otel]", *OLDEST, OLDEST_URLLIB3)
    run_pytest(session, *TOGETHER, "-m", "processes", "tests/cli/test_command.py")  # commands, on the oldest click
    ignored = (f"--ignore-glob={path}" for path in NEWEST_ONLY)
    run_pytest(session, *TOGETHER, FEW_EXAMPLES, *ignored, *session.posargs)


@nox.session
def feast(session: nox.Session) -> None:
    """Compare calls and bytes with Feast's. The pytest settings are in tests/environments/feast."""
    session.install("-e", ".", FEAST_SERVER, "httpx", "hypothesis", OTEL_DISTRO, OTEL_FASTAPI, "pytest")
    run_pytest(session, "tests/environments/feast", *session.posargs)


@nox.session
def mcp1(session: nox.Session) -> None:
    """Test servers of the official MCP SDK 1.x and of FastMCP 3. The pytest settings are in tests/environments/mcp."""
    session.install("-e", ".", *MCP1, "httpx", OTEL_STARLETTE, "pytest", "uvicorn")
    run_pytest(session, "tests/environments/mcp", *session.posargs)


@nox.session
def mcp2(session: nox.Session) -> None:
    """Test servers of the official MCP SDK 2.x and of FastMCP 4."""
    session.install("-e", ".", *MCP2, "httpx", OTEL_ASGI, "pytest", "uvicorn")
    run_pytest(session, "tests/environments/mcp", *session.posargs)


@nox.session
def spans(session: nox.Session) -> None:
    """Test alongside OpenTelemetry's own instrumentations, and in frameworks other than Starlette.

    The pytest settings are in tests/environments/spans.
    """
    session.install("-e", ".", *SPANS, "httpx", "pytest", "uvicorn", "websockets")
    run_pytest(session, "tests/environments/spans", *session.posargs)


@nox.session
def servers(session: nox.Session) -> None:
    """Test under gevent, and in workers that uWSGI forks in C code. Compiling uWSGI needs gcc."""
    session.install(
        "-e", ".", *SERVERS, OTEL_DISTRO, "cryptography", "googleapis-common-protos", "pytest", "pytest-timeout"
    )
    run_pytest(session, "tests/environments/servers", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types of package and tests."""
    session.install("-e", ".[test]", "nox")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site of docs/ into site/. A link to a missing page or heading fails the session."""
    session.install("zensical==0.0.73")  # pinned, since before 1.0 any release may change the meaning of zensical.toml
    session.run("zensical", "build", "--strict")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure the cost of a call here, in Feast, in structlog and in the SDK, side by side."""
    session.install("-e", ".[test]", FEAST, "structlog")
    session.run("python", "-m", "benchmarks", *session.posargs)
