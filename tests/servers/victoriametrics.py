"""A real store of metrics that takes OTLP, scrapes, and answers PromQL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import requests
import yaml

from tests.servers.binaries import VICTORIAMETRICS
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess, answers

__all__ = ["VictoriaMetrics"]


class VictoriaMetrics:
    """A store with its own port and data directory. It scrapes, each second, the targets that `scrape` is given."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self._scraped = data_dir / "scrape.yaml"
        self._scraped.write_text("{}")
        self._process = ServerProcess(
            [
                VICTORIAMETRICS.path(),
                f"-httpListenAddr={LOOPBACK}:{self._port}",
                f"-storageDataPath={data_dir / 'storage'}",
                f"-promscrape.config={self._scraped}",
                "-opentelemetry.usePrometheusNaming",
                "-search.latencyOffset=0s",  # by default an answer ends 30 s ago
            ],
            log=data_dir / "victoria-metrics.log",
            ready=lambda: answers(f"{self.base_url}/health"),
        )

    def __enter__(self) -> VictoriaMetrics:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def otlp_endpoint(self) -> str:
        """For PROMETHEUS_OTLP_ENDPOINT: the base URL, to which an OTLP exporter appends `/v1/metrics`."""
        return f"{self.base_url}/opentelemetry"

    def scrape(self, urls: Sequence[str]) -> None:
        """Read these pages of metrics each second from now on."""
        targets = [urlsplit(url) for url in urls]
        jobs = [
            {
                "job_name": target.netloc,
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "metrics_path": target.path,
                "static_configs": [{"targets": [target.netloc]}],
            }
            for target in targets
        ]
        self._scraped.write_text(yaml.safe_dump({"scrape_configs": jobs}))
        requests.post(f"{self.base_url}/-/reload", timeout=30).raise_for_status()

    def take(self, exposition: str) -> None:
        """Keep what a page of metrics said, as of now."""
        requests.post(f"{self.base_url}/api/v1/import/prometheus", data=exposition, timeout=30).raise_for_status()

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The series that an instant query answers with now, each with its labels and its value."""
        requests.get(f"{self.base_url}/internal/force_flush", timeout=30).raise_for_status()
        answer = requests.get(f"{self.base_url}/api/v1/query", params={"query": promql, "nocache": "1"}, timeout=30)
        if answer.status_code != 200:
            raise AssertionError(f"expected an answer to {promql!r}, got {answer.status_code}: {answer.text[:500]}")
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found
