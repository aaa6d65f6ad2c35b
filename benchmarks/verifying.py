"""`python -m benchmarks.verifying`: lines a second that `verify` reads, beside a plain SHA-256 of the same bytes.

One stream of usual lines, in the page cache, on one core. By the chain: numbers and hashes. With the tree: also the
Merkle root that a head has signed. The plain hash is what no verifier can do without. A goal counts on a core that does
nothing else; on a busy machine look at the ratio.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

import click

from benchmarks.measurement import Series, interleaved
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line_file import blocks, opened
from otel_audit.signing.tree import Edge, leaf_hash
from otel_audit.verification.anchors import Anchor
from otel_audit.verification.directory import read_stream

__all__ = ["CHAIN_ROW", "GOALS", "PER_SECOND", "PLAIN_ROW", "TREE_ROW", "verifying"]

PLAIN_ROW: Final = "SHA-256 of each line"
CHAIN_ROW: Final = "verify, by the chain"
TREE_ROW: Final = "verify, with the tree"
PER_SECOND: Final = "lines_per_second"
GOALS: Final = {CHAIN_ROW: 400_000, TREE_ROW: 150_000}  # lines a second at least
_STREAM_ID: Final = "0199aabb-ccdd-7eef-8011-223344556677"
_SEGMENT_LINES: Final = 100_000
_BODY: Final = (
    b'{"event_type":"http.request","timestamp":"2026-11-29T08:00:00.000Z","request_id":"0199aabb-ccdd-7eef-8011-00000000'
    b'0001","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7","principal":{"username":"alice",'
    b'"roles":["reader"],"auth_type":"oidc"},"source":{"ip":"192.0.2.7","transport":"http"},"action":{"mcp_tool":"",'
    b'"path":"/orders","method":"GET"},"resource":{"type":"","name":"","actions":[]},"outcome":"success","duration_ms":'
    b'1.25,"detail":"GET /orders -> 200","event_id":"0199aabb-ccdd-7eef-8011-%012d"'
)


def verifying(lines: int, rounds: int, directory: Path, tell: Callable[[str], None]) -> dict[str, dict[str, Series]]:
    """Return lines a second of each way, in alternating rounds."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        files = StreamFiles(Path(place), _STREAM_ID)
        anchor = _fill(files, lines)

        def plain() -> None:
            for number in files.segments():
                with opened(files.segment(number)) as descriptor:
                    for block in blocks(descriptor):
                        for line in block.data[:-1].split(b"\n"):
                            sha256(line).digest()

        def verified(anchors: list[Anchor]) -> None:
            reading = read_stream(files, None, lambda size_bytes: None, anchors=anchors)
            if reading.chain.chain_to != lines or reading.findings.has_broken:
                raise RuntimeError(f"expected {lines} lines that verify, got {reading.findings.all}")

        ways: dict[str, Callable[[], None]] = {
            PLAIN_ROW: plain,
            CHAIN_ROW: lambda: verified([]),
            TREE_ROW: lambda: verified([anchor]),
        }
        return interleaved({row: _rate(way, lines) for row, way in ways.items()}, rounds, tell)


def _rate(way: Callable[[], None], lines: int) -> Callable[[], dict[str, float]]:
    def measured() -> dict[str, float]:
        begin = time.process_time()
        way()
        return {PER_SECOND: lines / (time.process_time() - begin)}

    return measured


def _fill(files: StreamFiles, lines: int) -> Anchor:
    """Write a stream, and return what a head would say of it."""
    edge, last = Edge(), b""
    made = _lines(lines)
    for number in range(1, -(-lines // _SEGMENT_LINES) + 1):
        with files.segment(number).open("wb") as file:
            for _, line in zip(range(_SEGMENT_LINES), made, strict=False):
                file.write(line + b"\n")
                last = sha256(line).digest()
                edge.append(leaf_hash(last))
    return Anchor(edge.size, last.hex(), edge.root())


def _lines(count: int) -> Iterator[bytes]:
    chained = b""
    for seq in range(1, count + 1):
        tail = b',"time_ns":1790000000000000000,"observed_ns":1790000000000000000,"stream_id":"%b","seq":%d%b}'
        line = _BODY % seq + tail % (_STREAM_ID.encode(), seq, chained)
        yield line
        chained = b',"prev_hash":"%b"' % sha256(line).hexdigest().encode()


@click.command()
@click.option("--lines", type=click.IntRange(min=1), default=300_000, show_default=True, help="Lines of the stream.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="How often each is measured.")
def main(lines: int, rounds: int) -> None:
    """Measure how fast a trail is verified, in lines a second of CPU time."""
    with tempfile.TemporaryDirectory() as place:
        found = verifying(lines, rounds, Path(place), lambda said: click.echo(said, err=True))
    plain = found[PLAIN_ROW][PER_SECOND]
    for row, numbers in found.items():
        rates = numbers[PER_SECOND]
        ratio = statistics.median(one / other for one, other in zip(rates.values, plain.values, strict=True))
        goal = f"  goal >= {GOALS[row]:,}" if row in GOALS else ""
        click.echo(
            f"{row:22} {rates.median:11,.0f} lines/s ({rates.most:,.0f} at best)  {ratio:5.2f} of the plain hash{goal}"
        )


if __name__ == "__main__":
    main()
