"""The code blocks of a page, run as a reader would: a section at a time, in order, in one directory.

A comment above a block says how it is meant:

* `<!-- file: NAME -->`: saved under this name.
* `<!-- server -->`, `<!-- server: PORT -->`: a command that stays, until the section is over. The port is 8000 unless
  the comment says another one.
* `<!-- prints -->`: each line is among what the block before it printed, but for numbers and the width of columns.
* `<!-- not run: WHY -->`: needs what a test machine lacks.
* `<!-- run by: SESSION -->`, below a heading: the section needs packages that only this session has.

What a block exports counts for those behind it. Ports are replaced by free ones.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

from tests.servers.polling import poll
from tests.servers.ports import LOOPBACK, free_port

__all__ = ["ROOT", "RUNNABLE", "Block", "Section", "sections_of", "walk"]

ROOT = Path(__file__).parents[1]
RUNNABLE = {"sh", "python"}
_COMMENT = re.compile(r"<!-- (?P<kind>[a-z ]+?)(?:: (?P<value>.+))? -->")
_TEXTS = {"paragraph_open", "inline", "paragraph_close"}
_START_S = 90
_BLOCK_S = 180


@dataclass(frozen=True)
class Block:
    """A fenced block, and what the comment above it says: a kind, and a value."""

    place: str
    language: str
    text: str
    kind: str = ""
    value: str = ""

    @property
    def is_run(self) -> bool:
        return self.language in RUNNABLE and self.kind in {"", "server"}


@dataclass
class Section:
    """A heading of the second level and the blocks below it; `run_by` is a session of nox."""

    page: Path
    title: str
    run_by: str = ""
    blocks: list[Block] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.title}"

    @property
    def is_walk(self) -> bool:
        return any(block.kind in {"file", "server", "prints"} for block in self.blocks)


def sections_of(page: Path) -> list[Section]:
    """The sections of a page; what stands before the first heading of the second level has no title."""
    found = [Section(page, "")]
    tokens = MarkdownIt().parse(page.read_text())
    comment = None
    for index, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            found.append(Section(page, tokens[index + 1].content))
            comment = None
        elif token.type == "html_block":
            comment = _COMMENT.match(token.content.strip())
            if comment is not None and comment["kind"] == "run by":
                found[-1].run_by = comment["value"]
        elif token.type == "fence":
            kind, value = (comment["kind"], comment["value"] or "") if comment is not None else ("", "")
            place = f"{page.relative_to(ROOT)}:{(token.map or [0])[0] + 1}"
            found[-1].blocks.append(Block(place, token.info.strip(), token.content, kind, value))
            comment = None
        elif token.type not in _TEXTS:
            comment = None
    return found


def walk(section: Section, directory: Path) -> None:
    """Do what the section says, in an empty directory. It stands in a checkout: `collector-config` is there.

    Raises:
        AssertionError: a command failed, or what a block promises was not printed.
    """
    (directory / "collector-config").symlink_to(ROOT / "collector-config")
    _Walk(directory).run(section)


class _Walk:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports: dict[str, int] = {}
        self._own_ports = {name: free_port() for name in ("GRPC", "HEALTH", "METRICS")}
        self._servers: list[subprocess.Popen[bytes]] = []
        self._printed = ""

    def run(self, section: Section) -> None:
        for block in section.blocks:
            port = block.value or "8000"
            if block.kind == "server":
                self._ports.setdefault(port, free_port())
        try:
            for block in section.blocks:
                self._do(block)
        finally:
            for server in self._servers:
                _end(server)

    def _do(self, block: Block) -> None:
        text = self._with_free_ports(block.text)
        if block.kind == "file":
            (self._directory / block.value).write_text(text)
        elif block.kind == "prints":
            printed = set(_shapes(self._printed))
            missing = [line for line in _shapes(text) if line not in printed]
            assert not missing, f"{block.place}: expected {missing} in\n{self._printed}"
        elif block.kind == "server":
            self._serve(text, self._ports[block.value or "8000"], block.place)
        elif block.is_run:
            self._printed = self._run(block, text)

    def _with_free_ports(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        return text

    def _run(self, block: Block, text: str) -> str:
        script = f"[ ! -e .exports ] || . ./.exports\n{text}\nexport -p > .exports"
        if block.language == "python":
            (self._directory / ".block.py").write_text(text)
            script = f'[ ! -e .exports ] || . ./.exports\n"{sys.executable}" -W error .block.py'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self._directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=_BLOCK_S,
            check=False,
        )
        assert done.returncode == 0, f"{block.place}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _serve(self, text: str, port: int, place: str) -> None:
        server = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"[ ! -e .exports ] || . ./.exports\n{text}"],
            cwd=self._directory,
            env=self._environment(),
            start_new_session=True,
        )
        self._servers.append(server)
        poll(
            lambda: _listens(port) or server.poll() is not None, timeout_s=_START_S, what=f"{place} to listen on {port}"
        )
        assert server.poll() is None, f"{place}: ended with {server.returncode}"

    def _environment(self) -> Mapping[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDIT_"))}
        own = self._own_ports
        return {
            **kept,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "no_proxy": LOOPBACK,
            "AUDIT_GRPC_ENDPOINT": f"{LOOPBACK}:{own['GRPC']}",
            "AUDIT_HTTP_ENDPOINT": f"{LOOPBACK}:{self._ports.get('4318', 4318)}",
            "AUDIT_HEALTH_ENDPOINT": f"{LOOPBACK}:{own['HEALTH']}",
            "AUDIT_METRICS_PORT": str(own["METRICS"]),
        }


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((LOOPBACK, port)) == 0


def _end(server: subprocess.Popen[bytes]) -> None:
    """By SIGTERM, as a reader's Ctrl-C would; with all that it started."""
    try:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _shapes(text: str) -> Iterator[str]:
    """Each line with every number and id as 0, and every gap between columns as one space."""
    for line in text.splitlines():
        yield re.sub(r"\s+", " ", re.sub(r"\b[0-9a-f]{8}\b|[\d.]+", "0", line)).strip()
