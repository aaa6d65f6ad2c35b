"""A recording OTLP server that keeps which lines came, when and from whom, and nothing of what is in them."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.servers.otlp_server import Answer, OtlpServer, Received

__all__ = ["SENDER", "Arrival", "SequenceServer", "seqs_by_stream"]

SENDER = "x-sender"  # a header in which a process says who it is

_PLACE = re.compile(r',"stream_id":"(?P<stream_id>[0-9a-f-]{36})","seq":(?P<seq>[0-9]+)[,}]')
_TAIL_CHARS = 200


@dataclass(frozen=True, slots=True)
class Arrival:
    """The lines of one stream in one request, in their order. `at`: `time.monotonic()`."""

    stream_id: str
    seqs: Sequence[int]
    sender: str
    at: float


class SequenceServer(OtlpServer):
    """Accepts everything, after `delay_s` seconds. A request that its client did not finish never came."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        super().__init__()
        self.arrivals: list[Arrival] = []
        self._delay_s = delay_s
        self._keeping = threading.Lock()

    def received(self, request: Received) -> Answer:
        """Keep which lines are in the request."""
        if len(request.body) == int(request.header("Content-Length") or 0):
            arrived = _arrivals(request)
            with self._keeping:
                self.arrivals += arrived
        self.stopping.wait(self._delay_s)
        return self.next_answer()

    def arrived(self) -> list[Arrival]:
        """What came so far, in its order."""
        with self._keeping:
            return list(self.arrivals)


def _arrivals(request: Received) -> list[Arrival]:
    message = ExportLogsServiceRequest.FromString(request.body)
    seqs: dict[str, list[int]] = defaultdict(list)
    for logs in message.resource_logs:
        for scope in logs.scope_logs:
            for record in scope.log_records:
                place = _PLACE.search(record.body.string_value[-_TAIL_CHARS:])
                assert place is not None, record.body.string_value
                seqs[place["stream_id"]].append(int(place["seq"]))
    now = time.monotonic()
    sender = request.header(SENDER) or ""
    return [Arrival(stream_id, tuple(numbers), sender, now) for stream_id, numbers in seqs.items()]


def seqs_by_stream(arrivals: Sequence[Arrival]) -> dict[str, list[int]]:
    """For each stream the numbers of its lines, as they came."""
    found: dict[str, list[int]] = defaultdict(list)
    for arrival in arrivals:
        found[arrival.stream_id] += arrival.seqs
    return dict(found)
