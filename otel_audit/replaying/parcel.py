"""Records on their way, as one request that can be halved, each with the line that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.records import encoded_request
from otel_audit.stores.archive import halves_of, records_in

__all__ = ["JournalLine", "Parcel", "Piece", "Place", "Request", "Trouble"]


class Place(NamedTuple):
    """A line: the name of its file, and its number from 1."""

    file: str
    line: int


class Trouble(NamedTuple):
    """A line of which something could not be sent, and why."""

    place: Place
    reason: str


@dataclass(frozen=True, slots=True)
class JournalLine:
    """A line that becomes one record, with the header that says who wrote it."""

    place: Place
    header: Mapping[str, Any]
    content: bytes

    @property
    def records(self) -> int:
        """Always 1."""
        return 1

    @property
    def size_bytes(self) -> int:
        """The size of the line."""
        return len(self.content)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was sent before, as it was."""

    place: Place
    message: ExportLogsServiceRequest

    @property
    def records(self) -> int:
        """How many it holds."""
        return records_in(self.message)

    @property
    def size_bytes(self) -> int:
        """The size of the request."""
        return self.message.ByteSize()


Piece = JournalLine | Request


@dataclass(frozen=True, slots=True)
class Parcel:
    """Records that go out together: at least one."""

    pieces: Sequence[Piece]

    @property
    def records(self) -> int:
        """How many there are."""
        return sum(piece.records for piece in self.pieces)

    @property
    def place(self) -> Place:
        """The line that the first record comes from."""
        return self.pieces[0].place

    def request(self) -> bytes:
        """The serialised ExportLogsServiceRequest.

        Raises:
            UnreadableLine: no record can be made of one of the lines.
        """
        # Concatenated messages are one whose repeated fields follow each other. Source: Protocol Buffers, "Encoding".
        return b"".join(_encoded(list(group)) for _, group in groupby(self.pieces, key=_envelope))

    def halves(self) -> tuple[Parcel, Parcel]:
        """Two parcels, in order, of one that has more than one record."""
        middle = len(self.pieces) // 2
        if middle:
            return Parcel(self.pieces[:middle]), Parcel(self.pieces[middle:])
        match self.pieces[0]:
            case Request(place=place, message=message):
                first, second = halves_of(message)
                return Parcel([Request(place, first)]), Parcel([Request(place, second)])
            case JournalLine():
                raise ValueError("expected more than one record to halve, got one line")


def _envelope(piece: Piece) -> int:
    """What pieces have in common whose records share one resource and scope."""
    return id(piece.header if isinstance(piece, JournalLine) else piece.message)


def _encoded(pieces: Sequence[Piece]) -> bytes:
    match pieces[0]:
        case Request(message=message):
            return message.SerializeToString()
        case JournalLine(header=header):
            return encoded_request(header, [piece.content for piece in pieces if isinstance(piece, JournalLine)])
