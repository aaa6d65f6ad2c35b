"""A trail of any length is verified in the same memory: 400 000 lines, ten million with OTEL_AUDIT_TESTS_LONG=1.

`pytest -s` prints what the process held after a quarter, a half and all of them, and the lines per second of its CPU.
"""

from __future__ import annotations

import os
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from otel_audit.signing.tree import Edge, leaf_hash
from otel_audit.verification.verify import verify_directory
from tests.long_form import LONG
from tests.verification.forge import NOW_NS, Forge

LINES = 10_000_000 if LONG else 400_000
SEGMENTS = 20
GROWTH_MAX_BYTES = 24 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def held_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def long_stream(forge: Forge) -> int:
    """Write a stream of many lines and its `end`. Return its bytes."""
    stream = forge.stream()
    own, edge, digest, seq, size = stream.stream_id, Edge(), b"", 0, 0
    for number in range(1, SEGMENTS + 1):
        with open(stream.path(number), "wb") as file:
            for place in range(LINES // SEGMENTS):
                seq += 1
                kind = (
                    f'"system":"segment","segment":{{"format":1,"number":{number}}}'
                    if not place
                    else '"detail":"an order"'
                )
                before = f',"prev_hash":"{digest.hex()}"' if digest else ""
                tail = f'"time_ns":{NOW_NS},"observed_ns":{NOW_NS},"stream_id":"{own}","seq":{seq}{before}'
                line = f'{{{kind},"event_type":"order.placed","outcome":"success",{tail}}}'.encode()
                digest = sha256(line).digest()
                edge.append(leaf_hash(digest))
                size += file.write(line + b"\n")
    root = b64encode(edge.root()).decode()
    stream.log(1)
    end = {"stream": own, "size": seq, "root": root, "hash": digest.hex()}
    forge.ledger.turn(("open", stream.opening()), ("end", end))
    forge.ledger.write()
    return size


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_memory_of_a_verification_does_not_grow_with_the_trail(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    size = long_stream(forge)
    held: list[int] = []
    places = [size // 4, size // 2, size - 1]
    passed = 0

    def look(portion: int) -> None:
        nonlocal passed
        passed += portion
        while len(held) < len(places) and passed >= places[len(held)]:
            held.append(held_bytes())

    begun_s = time.process_time()
    report = verify_directory(tmp_path, passed=look)
    used_s = time.process_time() - begun_s

    print(f"{LINES} lines, {LINES / used_s:.0f} a second; held:", *(f"{each >> 20} MiB" for each in held))
    assert report.all_findings == []
    assert [each.signed_to for each in report.streams] == [LINES]
    assert held[-1] - held[0] < GROWTH_MAX_BYTES
