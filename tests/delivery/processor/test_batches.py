"""When a batch goes out, and how much is in it: what the variables of the SDK's batch processor ask for.

Source: OpenTelemetry specification, Logs SDK, "Batching processor".
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from otel_audit.settings import Settings
from otel_audit.trail import Trail
from tests.delivery.audited_server import AuditedServer
from tests.metrics.reader import emit
from tests.servers import poll

LONG_MS, SHORT_MS = "600000", "300"
BATCH = 8


def a_trail(directory: Path, server: AuditedServer, durability: str = "os", **variables: str) -> Trail:
    destination = {"endpoint": server.endpoint, "protocol": "http/protobuf"}
    return Trail(Settings.load(variables, {"directory": str(directory), "durability": durability, **destination}))


@pytest.mark.parametrize("durability", ["os", "fsync", "memory"])
def test_a_full_batch_goes_out_before_its_delay_is_over_and_none_is_larger(
    durability: str, tmp_path: Path, server: AuditedServer
) -> None:
    names = [str(number) for number in range(5 * BATCH)]
    limits = {"OTEL_BLRP_SCHEDULE_DELAY": LONG_MS, "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": str(BATCH)}
    with closing(a_trail(tmp_path, server, durability, **limits)) as trail:
        emit(trail, *names)

        # The header is a line too: of the events, one at most is left over.
        poll(lambda: server.accepted, until=lambda sent: sent[: 5 * BATCH] == ["header", *names[:-1]], what="5 batches")

    assert server.accepted == ["header", *names]
    assert max(map(len, server.batches)) <= BATCH


def test_what_is_less_than_a_batch_goes_out_once_in_each_delay(tmp_path: Path, server: AuditedServer) -> None:
    names = [str(number) for number in range(100)]
    with closing(a_trail(tmp_path, server, OTEL_BLRP_SCHEDULE_DELAY=SHORT_MS)) as trail:
        began = time.monotonic()
        for name in names:
            emit(trail, name)
            time.sleep(0.01)  # one after the other, over some delays
        poll(lambda: server.accepted, until=lambda sent: sent == ["header", *names], what="all of them")
        took_s = time.monotonic() - began

    assert 2 <= len(server.requests) <= took_s / 0.3 + 2
