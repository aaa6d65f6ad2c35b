"""Servers that are started with an application, called and ended, and the collectors that they deliver to."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import requests
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.servers.certificates import Authority
from tests.servers.otlp_grpc_server import OtlpGrpcServer
from tests.servers.otlp_server import OtlpServer
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import kill_with_workers

__all__ = ["Served", "environment_of", "events", "receiving", "run"]

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
BIN = Path(sys.executable).parent

Server = OtlpServer | OtlpGrpcServer


@contextmanager
def receiving(protocol: str, directory: Path) -> Iterator[tuple[Server, dict[str, str]]]:
    """A collector for `http`, `https` or `grpc`, and the variables that name it."""
    authority, tls = None, None
    if protocol == "https":
        authority = Authority(directory, "authority")
        pair = authority.issue("collector")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pair.certificate, pair.key)
    with OtlpGrpcServer() if protocol == "grpc" else OtlpServer(tls) as server:
        yield (
            server,
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc" if protocol == "grpc" else "http/protobuf",
                "OTEL_EXPORTER_OTLP_ENDPOINT": server.endpoint if protocol == "grpc" else server.base_url,
                **({} if authority is None else {"OTEL_EXPORTER_OTLP_CERTIFICATE": authority.bundle}),
            },
        )


def environment_of(directory: Path, **more: str) -> dict[str, str]:
    """What a process is started with; its journal is in the directory."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "GRPC_"))}
    return {
        **plain,
        "OTEL_AUDIT_DIR": str(directory / "audit"),
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_BLRP_SCHEDULE_DELAY": "50",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(REPOSITORY)]),
        **more,
    }


def events(server: Server) -> int:
    """How many records of the application the collector has."""
    bodies = [request.message if isinstance(server, OtlpGrpcServer) else request.body for request in server.requests]
    return sum(
        record.event_name not in ("audit.segment", "audit.gap", "audit.ledger", "audit.note")
        for body in bodies
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    )


class Served:
    """A server while the block runs; then it is killed with all its workers, if it has not ended."""

    def __init__(self, command: str, directory: Path, environ: dict[str, str]) -> None:
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        self._log = directory / "log"
        program, *words = command.format(address=f"{LOOPBACK}:{port}", prefix=sys.prefix).split()
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(BIN / program), *words],
                cwd=HERE,
                env=environment_of(directory, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}", **environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        kill_with_workers(self._process)
        if error is not None:
            error.add_note(self._log.read_text(errors="replace")[-4000:])

    def answers(self, path: str = "/") -> bool:
        """Whether a request is answered with 200. The first ones wait until the server listens."""
        session = requests.Session()
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=_UNTIL_IT_LISTENS))
        with session, session.get(self.url + path, timeout=60) as answer:
            return answer.status_code == 200

    def answers_all(self, count: int) -> int:
        """How many of so many requests at once are answered with 200."""
        with ThreadPoolExecutor(count) as callers:
            return sum(callers.map(lambda _: self.answers(), range(count)))

    def threads_of_master(self) -> int:
        """How many threads the first process has, of any library."""
        return len(os.listdir(f"/proc/{self._process.pid}/task"))

    def ended(self) -> int:
        """The exit status, after SIGTERM. A failure if it is not obeyed."""
        self._process.terminate()
        return self._process.wait(120)


_UNTIL_IT_LISTENS = requests.adapters.Retry(total=None, connect=60, backoff_factor=0.05, backoff_max=0.5)


def run(program: str, directory: Path, environ: dict[str, str], *arguments: str) -> None:
    """Run a program of this folder to its end, which must be a success."""
    done = subprocess.run(
        [sys.executable, str(HERE / program), *arguments],
        env=environment_of(directory, **environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
