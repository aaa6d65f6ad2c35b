"""A real log store that takes OTLP and answers queries."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

from tests.servers.binaries import VICTORIALOGS
from tests.servers.polling import PATIENCE_S, poll
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess, answers

__all__ = ["VictoriaLogs"]


class VictoriaLogs:
    """A store with its own port and data directory, which stay the same when it is started again. `flags`: more."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        self._port = free_port()
        self._process = ServerProcess(
            [
                VICTORIALOGS.path(),
                f"-httpListenAddr={LOOPBACK}:{self._port}",
                f"-storageDataPath={data_dir / 'storage'}",
                # By default it refuses what is older than a week or two days ahead, and tests use fixed times.
                "-retentionPeriod=100y",
                "-futureRetention=100y",
                *flags,
            ],
            log=data_dir / "victoria-logs.log",
            ready=lambda: answers(f"{self.base_url}/health"),
        )

    def __enter__(self) -> VictoriaLogs:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def base_url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def otlp_endpoint(self) -> str:
        """For LOKI_OTLP_ENDPOINT: the base URL, to which an OTLP exporter appends `/v1/logs`."""
        return f"{self.base_url}/insert/opentelemetry"

    def start(self) -> VictoriaLogs:
        """Return once it accepts records. Also after `stop` or `kill`: same port, same data."""
        self._process.start()
        return self

    def stop(self) -> None:
        """End it as a service manager does (SIGTERM)."""
        self._process.stop()

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.kill()

    def query(self, logsql: str) -> list[dict[str, Any]]:
        """What is stored now and matches: `_msg` is the body, attributes keep their dotted names, all values are text.

        In no particular order, unless the query sorts. Source: LogsQL, HTTP query API.
        """
        # Fresh records are searchable only after about a second; this makes them so.
        self._get("/internal/force_flush")
        answer = self._get("/select/logsql/query", query=logsql)
        # Only `\n` ends a line: `splitlines` would also cut a body at U+2028.
        return [json.loads(line) for line in answer.split(b"\n") if line]

    def wait_for(self, logsql: str, count: int, *, timeout_s: float = PATIENCE_S) -> list[dict[str, Any]]:
        """The answer once it holds at least `count` records."""
        return poll(
            lambda: self.query(logsql),
            until=lambda rows: len(rows) >= count,
            timeout_s=timeout_s,
            what=f"at least {count} records for {logsql!r}",
        )

    def _get(self, path: str, **parameters: str) -> bytes:
        with requests.get(self.base_url + path, params=parameters, timeout=30) as answer:
            answer.raise_for_status()
            return answer.content
