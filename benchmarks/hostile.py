"""What a request with a hostile text takes more than the same one with `a` in its place."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import contenders
from benchmarks.measurement import Series, interleaved
from benchmarks.middleware import application, no_more, taken
from otel_audit import AuditMiddleware

__all__ = ["CPU_MS", "hostile"]

CPU_MS: Final = "cpu_ms"
_REPEATS: Final = 3
# The second is what uvicorn with httptools accepts of a header; of a path it takes 64 KiB.
_SIZES: Final = {"8 kB": (8_000, 8_000), "the largest that uvicorn takes": (1_000_000, 60_000)}
_ZERO_WIDTH: Final = "\u200b"
_WORDS: Final = """
    token:_ password=a, {"password": cookie:_x; authorization:_digest_a= 4111_1111_1111_1111_ curl_-u_a: eyJeyJeyJ.
    sk-ant- ://a:b@ [[ %70 &#97;
"""
_PIECES: Final = (
    *(word.replace("_", " ") for word in _WORDS.split()),
    *(_ZERO_WIDTH, f"a{_ZERO_WIDTH}", f"{_ZERO_WIDTH}password=a ", f"a{_ZERO_WIDTH}pass=a1,"),
    *("\\", "\u0430", "\u0430b"),
)


def hostile(rounds: int, directory: Path, tell: Callable[[str], None]) -> dict[str, dict[str, Series]]:
    """CPU milliseconds of the request that takes most, that of the same request without such a text taken off."""
    rows: dict[str, Callable[[], Mapping[str, float]]] = {}
    for size, (header_bytes, path_bytes) in _SIZES.items():
        rows |= {
            f"user agent, {size}": _most(directory, header_bytes, 0),
            f"path, {size}": _most(directory, 0, path_bytes),
            f"user agent and path, {size}": _most(directory, header_bytes, path_bytes),
        }
    return interleaved(rows, rounds, tell)


def _most(directory: Path, header_bytes: int, path_bytes: int) -> Callable[[], Mapping[str, float]]:
    def measured() -> Mapping[str, float]:
        with (
            tempfile.TemporaryDirectory(dir=directory) as place,
            contenders.ours(Path(place), ()) as (_, logger),
        ):
            app = AuditMiddleware(application, audit=logger)

            def cpu_ms(piece: str) -> float:
                agent, path = _of_bytes(piece, header_bytes), _of_bytes(piece, path_bytes)
                return min(asyncio.run(_cpu_ms(app, agent.encode(), f"/{path}")) for _ in range(_REPEATS))

            plain = cpu_ms("a")
            return {CPU_MS: max(cpu_ms(piece) for piece in _PIECES) - plain}

    return measured


def _of_bytes(piece: str, count: int) -> str:
    return piece * (count // len(piece.encode()))


async def _cpu_ms(app: Any, agent: bytes, path: str) -> float:
    scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"user-agent", agent)]}
    started_ns = time.process_time_ns()
    await app({**scope, "client": ("10.0.0.7", 5000)}, no_more, taken)
    return (time.process_time_ns() - started_ns) / 1e6
