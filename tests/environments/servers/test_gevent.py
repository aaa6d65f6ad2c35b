"""A process that gevent has patched: before anything of ours was there, after the import, or after an event."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import events, receiving, run


@pytest.mark.parametrize(
    ("order", "protocol", "durability", "init"),
    [
        ("nothing", "http", "fsync", ""),
        ("import", "https", "os", ""),
        ("event", "https", "fsync", ""),
        ("nothing", "grpc", "os", ""),
        ("nothing", "grpc", "os", "init"),
        ("import", "grpc", "fsync", "init"),
        ("event", "grpc", "os", ""),
    ],
)
def test_whatever_came_before_the_patch_everything_is_delivered_and_no_greenlet_stands_still(
    order: str, protocol: str, durability: str, init: str, tmp_path: Path
) -> None:
    with receiving(protocol, tmp_path) as (server, environ):
        run("greenlets.py", tmp_path, {**environ, "OTEL_AUDIT_DURABILITY": durability}, order, init)

        assert events(server) == 53 + (order == "event")
