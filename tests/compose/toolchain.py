"""The two foreign programs these tests stand on, built once into a cache outside the checkout.

`compose_loader` is the library behind `docker compose config`; `parsers` are the grammars of Grafana's query editors.
The cache key is the content of what is built, so a changed pin is built anew and never mixed with an older one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Parsed", "compose_loader", "parse_queries"]

HERE = Path(__file__).parent
BUILD_TIMEOUT_S = 170  # a cold build takes 20 s; the limit is for a registry that does not answer


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a grammar made of a query: the spans that do not parse, and the source text of each kind of node."""

    text: str
    errors: tuple[tuple[int, int], ...]
    nodes: dict[str, list[str]]


def compose_loader() -> Path:
    """The program that prints a compose file as Docker Compose understands it."""
    go = shutil.which("go") or pytest.skip("Go is not on PATH: install it to check docker-compose.yml")
    source = HERE / "compose_loader"

    def build(target: Path) -> None:
        command = [go, "build", "-mod=readonly", "-trimpath", "-o", str(target / "compose_loader"), "."]
        _run(command, cwd=source, env={"CGO_ENABLED": "0"})

    return _cached("compose-loader", sorted(source.iterdir()), build) / "compose_loader"


def parse_queries(language: str, texts: list[str]) -> list[Parsed]:
    """Each text parsed by the grammar of `logql` or `promql`."""
    node = shutil.which("node") or pytest.skip("Node.js is not on PATH: install it to parse the dashboards' queries")
    requests = json.dumps([{"language": language, "text": text} for text in texts])
    done = subprocess.run(
        [node, "parse.mjs"], cwd=_parsers(), input=requests, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return [
        Parsed(text, tuple((start, end) for start, end in answer["errors"]), answer["nodes"])
        for text, answer in zip(texts, json.loads(done.stdout), strict=True)
    ]


def _parsers() -> Path:
    npm = shutil.which("npm") or pytest.skip("npm is not on PATH: install it to parse the dashboards' queries")
    sources = [HERE / "parsers" / "package.json", HERE / "parsers" / "parse.mjs"]

    def build(target: Path) -> None:
        for source in sources:
            shutil.copy(source, target)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
        _run([npm, "install", *options], cwd=target, env={})

    return _cached("query-parsers", sources, build)


def _cached(name: str, sources: list[Path], build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for these sources. It fills another, which is renamed: two runs do no harm."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-audit"
    key = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()
    folder = root / f"{name}-{key}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f"{name}-") as scratch:
        target = Path(scratch) / "built"
        target.mkdir()
        build(target)
        try:
            target.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster, and built the same
                raise
    return folder


def _run(command: list[str], *, cwd: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"`{' '.join(command[:2])}` failed, so its checks cannot run: {done.stderr.strip()[-500:]}")
