"""Which streams of other processes are taken over, and how many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_audit.journal.files import StreamFiles
from otel_audit.journal.recovery import Shipment, adopt

__all__ = ["Adoption"]

_STREAMS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Adoption:
    """Which streams of other processes are taken over: those whose header is `wanted` and whose writer is gone.

    `live`: of those whose writer lives, which. `foreign`: also those whose writer may live on another host. `at_once`:
    how many are held at most; each takes about five descriptors.
    """

    wanted: Callable[[Mapping[str, Any]], bool]
    live: Callable[[Mapping[str, Any]], bool] | None = None
    foreign: bool = False
    at_once: int = _STREAMS_AT_ONCE

    def take(
        self,
        directory: Path,
        *,
        known: set[str],
        held: int,
        file_mode: int,
        failed: Callable[[StreamFiles, Exception], None],
        left: Callable[[StreamFiles], None] = lambda files: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Shipment]:
        """Take what may be taken now, one by one, beside the `held` ones. See `otel_audit.journal.recovery.adopt`."""
        live = {} if self.live is None else {"live": self.live}
        return adopt(
            directory,
            wanted=self.wanted,
            known=known,
            foreign=self.foreign,
            most=self.at_once - held,
            file_mode=file_mode,
            failed=failed,
            left=left,
            stopped=stopped,
            **live,
        )
