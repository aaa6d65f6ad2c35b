"""Which names exist, and what to say about one that does not."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches

__all__ = ["PREFIX", "RESERVED", "known_names", "unknown_variables"]

PREFIX = "OTEL_AUDIT_"

# Names that our own test suite reads (a trailing `_`: all that start so). They may be set while the suite runs
# services with settings, and are no settings.
RESERVED = (
    "OTEL_AUDIT_TESTS_",
    "OTEL_AUDIT_KAFKA",
    "OTEL_AUDIT_OTELCOL",
    "OTEL_AUDIT_OTELCOL_KAFKA",
    "OTEL_AUDIT_VICTORIALOGS",
    "OTEL_AUDIT_VICTORIAMETRICS",
    "OTEL_AUDIT_VMALERT",
)


def known_names(name: str, names: Collection[str]) -> str:
    """The remedy for an unknown name: the closest valid ones, then all of them."""
    close = get_close_matches(name, names, n=2, cutoff=0.7)
    guess = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}valid names: {', '.join(sorted(names))}"


def unknown_variables(environ: Iterable[str], names: Collection[str]) -> list[str]:
    """The variables that look like ours and are none of `names`, sorted."""
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in names and not _is_reserved(name))


def _is_reserved(name: str) -> bool:
    return any(name == reserved or (reserved.endswith("_") and name.startswith(reserved)) for reserved in RESERVED)
