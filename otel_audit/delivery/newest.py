"""The newest line of a stream: the one to ask a destination with whether it takes anything at all."""

from __future__ import annotations

import os
from collections.abc import Sequence

from otel_audit.delivery.batch import Batch
from otel_audit.journal.cursor import Position
from otel_audit.journal.exportable import Exportable
from otel_audit.journal.reader import Line
from otel_audit.journal.recovery import Shipment

__all__ = ["newest_of"]

_TAIL_BYTES = 256 * 1024  # a few of the longest lines
_LINES_MAX = 1 << 16


def newest_of(shipment: Exportable, after: Position) -> Batch | None:
    """The last line that may be exported now, alone; None when there is none behind the position.

    Raises:
        OSError: it cannot be read.
    """
    durable = shipment.durable()
    position = max(after, _near_the_end(shipment, durable))
    reader = shipment.reader()
    newest: Sequence[Line] = ()
    header = None
    try:
        while (chunk := reader.read(position, max_lines=_LINES_MAX, max_bytes=_TAIL_BYTES, until=durable)).lines:
            newest, header, position = chunk.lines[-1:], chunk.header, chunk.end
        if durable is None and header is not None and header.get("durability") == "fsync":
            reader.sync()  # its writer is another process, and may not have come to it
    finally:
        reader.close()
    return None if header is None else Batch(header, newest)


def _near_the_end(shipment: Exportable, end: Position | None) -> Position:
    """A place not far before the end, also inside of a line: what is left of that is passed over."""
    if end is None and isinstance(shipment, Shipment):
        last = shipment.files.segments()[-1]
        end = Position(last, os.stat(shipment.files.segment(last)).st_size, 0)
    return Position() if end is None else Position(end.segment, max(0, end.offset - _TAIL_BYTES), 0)
