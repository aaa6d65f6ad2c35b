"""A client that is no SDK: lines on the pipes of a server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import SERVICE, environment_of

__all__ = ["conversation"]


def conversation(name: str, directory: Path, requests: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """What a server answers on stdout, line by line, and what it says on stderr."""
    version, info = "2025-06-18", {"name": "tests", "version": "7"}
    handshake = {"protocolVersion": version, "capabilities": {}, "clientInfo": info}
    environment = {**environment_of(directory), "OTEL_AUDIT_EXPORT": "console"}
    log = directory.parent / f"{directory.name}.stderr"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, SERVICE, name, "stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        answers = []
        for message in [{"id": 1, "method": "initialize", "params": handshake}, *requests]:
            server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
            server.stdin.flush()
            answers.append(json.loads(server.stdout.readline()))
            if message["id"] == 1:
                server.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        server.stdin.close()
        answers += [json.loads(line) for line in server.stdout]
        assert server.wait(120) == 0
    return answers, log.read_text(encoding="utf-8")
