"""A small FastAPI application under uvicorn with httptools, in a process of its own: `python -m benchmarks.served`.

It is audited when the environment names a directory, as any service would be. It says its port, and ends with its
standard input.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import uvicorn
from fastapi import Depends, FastAPI
from pydantic import BaseModel

import otel_audit
from otel_audit import AuditPrincipal

__all__ = ["PATH", "Served", "served"]

PATH: Final = "/feature-views/driver_stats"
_ALICE: Final = AuditPrincipal(username="alice", roles=["reader"], auth_type="oidc")


@dataclass(frozen=True, slots=True)
class Served:
    """A running server on loopback."""

    port: int
    pid: int

    @property
    def cpu_s(self) -> float:
        """Return the seconds of CPU that all threads of it have taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(environment: Mapping[str, str]) -> Iterator[Served]:
    """Give the application in a child process with these variables too, ended with the block.

    Raises:
        RuntimeError: it did not start, or did not end well.
    """
    command = [sys.executable, "-m", "benchmarks.served"]
    root = Path(__file__).resolve().parents[1]
    variables = {**os.environ, **environment}
    with subprocess.Popen(
        command, cwd=root, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            port = child.stdout.readline()
            if not port:
                raise RuntimeError(f"expected the server to say its port, got its end: exit status {child.wait()}")
            yield Served(int(port), child.pid)
        finally:
            child.stdin.close()
    if child.returncode:
        raise RuntimeError(f"expected the server to end with status 0, got {child.returncode}")


class _View(BaseModel):
    name: str
    features: list[str]
    rows: int


async def _user() -> AuditPrincipal:
    return _ALICE


def _application() -> FastAPI:
    app = FastAPI()

    @app.get("/feature-views/{name}")
    async def read(name: str, user: Annotated[AuditPrincipal, Depends(_user)]) -> _View:
        return _View(name=name, features=["conv_rate", "acc_rate", "avg_daily_trips"], rows=len(user.roles))

    if "OTEL_AUDIT_DIR" in os.environ:
        app.add_middleware(otel_audit.AuditMiddleware, audit=otel_audit.configure())
    return app


class _Server(uvicorn.Server):
    """Binds its socket by itself: to one that it is given, asyncio would set no TCP_NODELAY."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)
        threading.Thread(target=self._end_with_input, daemon=True).start()

    def _end_with_input(self) -> None:
        sys.stdin.read()
        self.should_exit = True


def _serve() -> None:
    _Server(
        uvicorn.Config(_application(), port=0, http="httptools", loop="asyncio", log_level="warning", access_log=False)
    ).run()


if __name__ == "__main__":
    _serve()
