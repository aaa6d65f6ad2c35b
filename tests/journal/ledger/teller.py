"""A process that takes turns at a ledger: `python -m tests.journal.ledger.teller DIRECTORY NAME TURNS`.

Prints the size that each turn has signed, once it is durable.
"""

from __future__ import annotations

import sys
from pathlib import Path

from otel_audit.errors import LedgerBusy
from otel_audit.journal.ledger.entries import Kind
from tests.journal.ledger.telling import a_ledger


def main(directory: Path, name: str, turns: int) -> None:
    ledger = a_ledger(directory, segment_bytes=20_000)
    number = 0
    while number < turns:
        try:
            written = ledger.tell([(Kind.RETAIN, {"name": name, "number": number})])
        except LedgerBusy:
            continue
        print(written.checkpoint.size, flush=True)
        number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
