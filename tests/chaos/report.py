"""The results side by side: a table for people and for the README, and one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from tests.chaos.contenders import ContenderName
from tests.chaos.plan import Role
from tests.chaos.run import Result

__all__ = ["as_json", "as_markdown"]

_TITLES: Final = {
    ContenderName.OURS: "otel-audit",
    ContenderName.STOCK: "`BatchLogRecordProcessor` + `OTLPLogExporter`",
}
_NONE: Final = "-"


def as_markdown(results: Sequence[Result]) -> str:
    """The table."""
    columns = [_column(result) for result in results]
    rows = [
        f"| {' | '.join(['', *(_TITLES[result.contender] for result in results)])} |",
        f"|{'---|' * (1 + len(results))}",
        *(f"| {' | '.join([name, *(column.get(name, _NONE) for column in columns)])} |" for name in columns[0]),
    ]
    return "\n".join(rows)


def _column(result: Result) -> Mapping[str, str]:
    ours = result.contender is ContenderName.OURS
    delivery = result.delivery
    share = f" ({delivery.lost / delivery.acknowledged:.1%})" if delivery.lost else ""
    return {
        "writers killed (SIGKILL)": f"{result.kills[Role.WRITER]}",
        "children that writers forked": f"{result.forks}" if ours else _NONE,
        "shippers killed": f"{result.kills[Role.SHIPPER]}" if ours else _NONE,
        "writers + shippers ended and started again in order": f"{result.leaves}",
        "collector killed; of these, away for long": f"{result.kills[Role.COLLECTOR]}; {result.outages}",
        "any of them hung (SIGSTOP)": f"{sum(result.hangs.values())}",
        "disk full": _NONE if result.fills is None else f"{result.fills}",
        **({"lines that retention removed": f"{result.removed:,}"} if result.removed else {}),
        "events refused, and said so": f"{delivery.refused:,}",
        "events acknowledged": f"{delivery.acknowledged:,}",
        "of these, in the collector's archive": f"{delivery.delivered:,}",
        "**lost**": f"**{delivery.lost:,}**{share}",
        "sent more than once": f"{delivery.duplicates:,}",
        "in the archive, but never logged": f"{delivery.invented:,}",
    }


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every number of every result."""
    return [_json_of(result) for result in results]


def _json_of(result: Result) -> dict[str, Any]:
    numbers = asdict(result)
    numbers["delivery"].pop("problems")
    return {**numbers, "problems": list(result.problems), "kept_its_word": result.kept_its_word}
