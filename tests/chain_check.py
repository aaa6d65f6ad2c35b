"""An independent check of the chain: it shares no code with the package, and reads a directory as an auditor would."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

SEGMENT = re.compile(r"^([0-9a-f-]{36})\.(\d{8})\.jsonl$")


def read_streams(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The events of each stream, in order. Fails if one was changed, removed, inserted or moved."""
    streams: dict[str, list[dict[str, Any]]] = {}
    heads: dict[str, str | None] = {}
    for path in sorted(directory.iterdir()):
        if match := SEGMENT.match(path.name):
            stream_id = match[1]
            content = path.read_bytes()
            assert content.endswith(b"\n"), f"{path.name} ends in a piece of a line"
            for line in content.split(b"\n")[:-1]:
                event = json.loads(line)
                events = streams.setdefault(stream_id, [])
                assert event["stream_id"] == stream_id
                assert event["seq"] == len(events) + 1, f"{path.name}: line {len(events) + 1} says {event['seq']}"
                assert event.get("prev_hash") == heads.get(stream_id), f"{path.name}: {event['seq']} breaks the chain"
                heads[stream_id] = hashlib.sha256(line).hexdigest()
                events.append(event)
    return streams


def application_events(directory: Path) -> list[dict[str, Any]]:
    """The events of the application over all streams, after the check of their chains."""
    return [event for events in read_streams(directory).values() for event in events if "system" not in event]
