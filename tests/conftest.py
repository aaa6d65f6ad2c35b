"""Fixtures for every test: real servers, ended with the test."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.delivery.audited_server import AuditedServer
from tests.journal.disks import Unmountable, ext4
from tests.marking import pytest_itemcollected, pytest_runtest_protocol
from tests.no_skip import pytest_make_collect_report, pytest_runtest_makereport
from tests.servers import AGENT_CONFIG, OWN_VARIABLES, Collector, StartCollector, VictoriaLogs, VictoriaMetrics
from tests.servers.otlp_server import OtlpServer

__all__ = [
    "pytest_collection_finish",
    "pytest_itemcollected",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
]

# A test that does something odd is told from one that waits for its turn by its answer, not by its time.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
# For `--hypothesis-profile=quick`; see tests/examples.py.
settings.register_profile("quick", settings.get_profile("busy machine"), max_examples=10)


def pytest_collection_finish() -> None:
    """Leave what was collected out of all later searches for garbage, each of which took a third of a second for it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _with_the_signals_of_a_terminal() -> Iterator[None]:
    """Let Ctrl-C and SIGHUP end what a test starts, even if the tests run in the background or under `nohup`."""
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _without_the_variables_of_the_tests() -> Iterator[None]:
    """What a test starts sees an environment that the package accepts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OWN_VARIABLES:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def otlp_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpServer]:
    """Where the service `shop` of the environment delivers to."""
    with OtlpServer() as server:
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.base_url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        yield server


@pytest.fixture
def ext4_disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 of 4 MiB.

    Skipped where the kernel has no loop devices, as in many containers: nothing can be installed for that.
    """
    try:
        with ext4(tmp_path / "disk", 4096) as mounted:
            yield mounted
    except Unmountable as error:
        pytest.skip(f"a small ext4 cannot be mounted (needs root and loop devices): {error}")


@pytest.fixture
def memory_disk() -> Iterator[Path]:
    """A directory on a file system that is not that of a local disk, on every machine."""
    with TemporaryDirectory(dir="/dev/shm", prefix="otel-audit-test-") as made:
        yield Path(made)


@pytest.fixture
def named_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTel's environment holds the name of the service and nothing else."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "audited")


@pytest.fixture
def start_collector(tmp_path: Path) -> Iterator[StartCollector]:
    """Starts collectors, each with its own ports and data directory."""
    numbers = count(1)
    with ExitStack() as running:

        def start(
            *,
            loki_endpoint: str | None = None,
            tempo_endpoint: str | None = None,
            prometheus_endpoint: str | None = None,
            config: Path = AGENT_CONFIG,
            variants: Sequence[str] = (),
            variables: Mapping[str, str] | None = None,
            overrides: Sequence[str] = (),
        ) -> Collector:
            collector = Collector(
                tmp_path / f"collector-{next(numbers)}",
                loki_endpoint=loki_endpoint,
                tempo_endpoint=tempo_endpoint,
                prometheus_endpoint=prometheus_endpoint,
                config=config,
                variants=variants,
                variables=variables,
                overrides=overrides,
            )
            return running.enter_context(collector)

        yield start


@pytest.fixture
def collector(start_collector: StartCollector) -> Collector:
    """A running collector with the shipped agent.yaml. Its Loki is down."""
    return start_collector()


@pytest.fixture
def server() -> Iterator[AuditedServer]:
    """A destination that answers as a test says, and knows what it accepted."""
    with AuditedServer() as running:
        yield running


@pytest.fixture
def victorialogs(tmp_path: Path) -> Iterator[VictoriaLogs]:
    """A running store."""
    with VictoriaLogs(tmp_path / "victorialogs") as store:
        yield store


@pytest.fixture
def victoriametrics(tmp_path: Path) -> Iterator[VictoriaMetrics]:
    """A running store of metrics."""
    with VictoriaMetrics(tmp_path / "victoriametrics") as store:
        yield store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mounted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted (needs root): {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)
