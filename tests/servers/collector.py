"""The real collector with the shipped configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import requests

from tests.servers.archive import Record, read_archive
from tests.servers.binaries import COLLECTOR
from tests.servers.polling import PATIENCE_S, poll
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess, answers

__all__ = ["AGENT_CONFIG", "VARIANTS", "Collector", "StartCollector"]

AGENT_CONFIG = Path(__file__).resolve().parents[2] / "collector-config" / "agent.yaml"
VARIANTS = AGENT_CONFIG.parent / "variants"


class Collector:
    """An agent with its own ports and data directory, which stay the same when it is started again.

    `loki_endpoint` is what it delivers to when it is next started; by default a port on which nothing listens. The
    same is true of `tempo_endpoint` and `prometheus_endpoint`.
    `variants` are names of files in `collector-config/variants`, and `variables` what these
    read when it is next started.
    `overrides` are merged over the file: `exporters::file/archive::rotation::max_megabytes: 1`.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        loki_endpoint: str | None = None,
        tempo_endpoint: str | None = None,
        prometheus_endpoint: str | None = None,
        config: Path = AGENT_CONFIG,
        variants: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        self.loki_endpoint = loki_endpoint or f"http://{LOOPBACK}:{free_port()}/otlp"
        self.tempo_endpoint = tempo_endpoint or f"http://{LOOPBACK}:{free_port()}"
        self.prometheus_endpoint = prometheus_endpoint or f"http://{LOOPBACK}:{free_port()}/api/v1/otlp"
        self._grpc, self._http, self._health, self._metrics, self._counts = (free_port() for _ in range(5))
        self.variables = dict(variables or {})
        configs = [config, *(VARIANTS / f"{name}.yaml" for name in variants)]
        merged = [*configs, *(f"yaml:{override}" for override in overrides)]
        self._process = ServerProcess(
            [COLLECTOR.path(), *(f"--config={each}" for each in merged)],
            log=data_dir / "collector.log",
            ready=lambda: answers(self.health_endpoint),
        )

    def __enter__(self) -> Collector:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def grpc_endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT with the protocol grpc."""
        return f"http://{LOOPBACK}:{self._grpc}"

    @property
    def http_endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT with the protocol http/protobuf: the base, to which `/v1/logs` is added."""
        return f"http://{LOOPBACK}:{self._http}"

    @property
    def logs_url(self) -> str:
        """For OTEL_EXPORTER_OTLP_LOGS_ENDPOINT with the protocol http/protobuf, and for a plain POST."""
        return f"{self.http_endpoint}/v1/logs"

    @property
    def health_endpoint(self) -> str:
        """Answers 200 once the receivers listen."""
        return f"http://{LOOPBACK}:{self._health}"

    @property
    def metrics_endpoint(self) -> str:
        """The collector's own metrics."""
        return f"http://{LOOPBACK}:{self._metrics}/metrics"

    @property
    def counts_endpoint(self) -> str:
        """The events that it took, by service, type and outcome."""
        return f"http://{LOOPBACK}:{self._counts}/metrics"

    @property
    def archive_path(self) -> Path:
        """The file that is written now; the files it was rotated into lie beside it."""
        return self.data_dir / "archive" / "audit.jsonl"

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        return self._process.pid

    def environment(self) -> Mapping[str, str]:
        """The variables of the shipped configuration that have another value than its default."""
        return {
            "AUDIT_GRPC_ENDPOINT": f"{LOOPBACK}:{self._grpc}",
            "AUDIT_HTTP_ENDPOINT": f"{LOOPBACK}:{self._http}",
            "AUDIT_HEALTH_ENDPOINT": f"{LOOPBACK}:{self._health}",
            "AUDIT_METRICS_HOST": LOOPBACK,
            "AUDIT_METRICS_PORT": str(self._metrics),
            "AUDIT_COUNTS_ENDPOINT": f"{LOOPBACK}:{self._counts}",
            "AUDIT_QUEUE_DIR": str(self.data_dir / "queue"),
            "AUDIT_ARCHIVE_DIR": str(self.archive_path.parent),
            "LOKI_OTLP_ENDPOINT": self.loki_endpoint,
            "TEMPO_OTLP_ENDPOINT": self.tempo_endpoint,
            "PROMETHEUS_OTLP_ENDPOINT": self.prometheus_endpoint,
            **self.variables,
        }

    def start(self) -> Collector:
        """Return once it accepts records. Also after `stop` or `kill`: same ports, same data directory."""
        self._process.start(self.environment())
        return self

    def stop(self) -> None:
        """End it as a service manager does (SIGTERM)."""
        self._process.stop()

    def kill(self) -> None:
        """End it as a power cut does for a process (SIGKILL)."""
        self._process.kill()

    def archive(self) -> list[Record]:
        """Every record that is in the archive now, in the order of arrival."""
        return read_archive(self.archive_path)

    def application_records(self) -> list[Record]:
        """What is in the archive of the application's own, by place in the stream."""
        records = [record for record in self.archive() if not record.event_name.startswith("audit.")]
        return sorted(records, key=lambda record: record.attributes["audit.sequence.number"])

    def wait_for_archive(self, count: int, *, timeout_s: float = PATIENCE_S) -> list[Record]:
        """The archive once it holds at least `count` records."""
        return poll(
            self.archive,
            until=lambda records: len(records) >= count,
            timeout_s=timeout_s,
            what=f"at least {count} records in the archive",
        )

    def log_tail(self) -> str:
        """The end of what it said about itself."""
        return self._process.log_tail()

    def metrics(self) -> str:
        """Its own metrics now, in Prometheus' text format."""
        return _text(self.metrics_endpoint)

    def counts(self) -> str:
        """The counts of events now, in Prometheus' text format."""
        return _text(self.counts_endpoint)


def _text(url: str) -> str:
    with requests.get(url, timeout=5) as answer:
        answer.raise_for_status()
        return answer.text


class StartCollector(Protocol):
    """Starts one more collector, which is killed at the end of the test."""

    def __call__(
        self,
        *,
        loki_endpoint: str | None = None,
        tempo_endpoint: str | None = None,
        prometheus_endpoint: str | None = None,
        config: Path = AGENT_CONFIG,
        variants: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        overrides: Sequence[str] = (),
    ) -> Collector: ...
