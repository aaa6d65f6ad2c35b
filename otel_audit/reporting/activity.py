"""Summarise a period: events by type, day and actor, denials, failed logins, new actors, and the coverage.

Each table is the answer to a question to DuckDB. It has a bounded number of rows, and the number of all of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from otel_audit.event_schema import Outcome
from otel_audit.journal.line import GAP
from otel_audit.journal.room import TRUNCATED
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters

__all__ = ["PRIVILEGED", "SILENCE_S", "Activity", "Table", "activity_in"]

PRIVILEGED: Final = "privileged"
"""The tag of the events that a report lists as privileged. Policy rules add it."""
SILENCE_S: Final = 3600  # shorter times without an event are not listed

# As in `audit.actor.id`: the id identifies an actor, or the name if there is no id.
_ACTOR: Final = "coalesce(nullif(actor_id, ''), nullif(actor_name, ''))"
_ISSUER: Final = "nullif(actor_issuer, '')"
_LOST: Final = (
    f"CASE WHEN json_extract_string(gap, '$.reason') = '{TRUNCATED}' THEN 0 "
    "ELSE coalesce(TRY_CAST(json_extract_string(gap, '$.lines') AS BIGINT), 0) END"
)
# What the questions below need of a line, taken out of it once.
_KEPT: Final = {
    "time_ns": "time_ns",
    "day": "strftime(time, '%Y-%m-%d')",
    "service": "service",
    "stream_id": "stream_id",
    "seq": "seq",
    "event_id": "event_id",
    "event_type": "event_type",
    "outcome": "outcome",
    "result": "result",
    "actor": _ACTOR,
    "issuer": _ISSUER,
    "actor_name": "nullif(actor_name, '')",
    "actor_kind": "nullif(actor_kind, '')",
    "on_behalf_of": "nullif(on_behalf_of, '')",
    "client": "nullif(client, '')",
    "what": "coalesce(nullif(tool, ''), nullif(concat_ws(' ', method, nullif(path, '')), ''), nullif(verb, ''))",
    "target": "nullif(concat_ws('/', nullif(target_type, ''), nullif(target, '')), '')",
    "reason": "left(coalesce(nullif(reason, ''), nullif(detail, '')), 1000)",
    "is_event": "system IS NULL",
    "is_privileged": f"list_contains(json_extract_string(tags, '$[*]'), '{PRIVILEGED}')",
    "is_failed_login": (
        "event_type = 'authn.failure' OR starts_with(event_type, 'authn.') AND result IN ('failure', 'denied', 'error')"
    ),
    "gap": f"CASE WHEN system = '{GAP}' THEN json_extract(line, '$.gap') END",
}
_WHO: Final = "actor, issuer, max(actor_name) AS name, max(actor_kind) AS kind"
_SPAN: Final = "count(*) AS events, min(time_ns) AS first_ns, max(time_ns) AS last_ns"
# With it `otel-audit prove` gives the proof of the last event of a row.
_LAST: Final = "max_by(event_id, time_ns) AS last_event_id"
_TOTAL: Final = "rows_in_all"
_LOSSES: Final = f"count(gap) AS gaps, coalesce(TRY_CAST(sum({_LOST}) FILTER (gap IS NOT NULL) AS BIGINT), 0) AS lost"
_BY_RESULT: Final = ", ".join(f"count(*) FILTER (result = '{each}') AS \"{each}\"" for each in Outcome)


@dataclass(frozen=True, slots=True)
class Table:
    """The first rows of an answer. `total` is the number of all rows."""

    rows: Sequence[Mapping[str, Any]]
    total: int

    @property
    def more(self) -> int:
        """The number of rows that are left out."""
        return self.total - len(self.rows)

    def as_json(self) -> dict[str, Any]:
        """Return the table in the form of `report --json`."""
        return {"rows": list(self.rows), "more": self.more}


@dataclass(frozen=True, slots=True)
class Activity:
    """The facts of a period, from its events. Times are in nanoseconds since 1970.

    `begins_ns` is the time of the first event that the trail still has, even before the period, or None if there is
    none. `new_actors` is None if no event precedes the period, so that nobody can be called new. `services`, `streams`,
    `gaps` and `silences` cover all actors.
    """

    totals: Mapping[str, int]
    days: Table
    types: Table
    actors: Table
    denied: Table
    failed_logins: Table
    privileged: Table
    new_actors: Table | None
    begins_ns: int | None
    services: Table
    streams: Table
    gaps: Table
    silences: Table

    def as_json(self) -> dict[str, Any]:
        """Return the facts in the form of `report --json`."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value.as_json() if isinstance(value, Table) else value for name, value in values.items()}


def activity_in(database: TrailDatabase, asked: Filters, *, rows_max: int) -> Activity:
    """Return the facts of the period, for the actors and services in the filters.

    Raises:
        QueryUnanswered: DuckDB cannot answer.
    """
    return _Questions(database, asked, rows_max).answered()


class _Questions:
    """The questions of one report. Questions about the period use a table that is made once."""

    def __init__(self, database: TrailDatabase, asked: Filters, rows_max: int) -> None:
        self._database = database
        self._asked = asked
        self._rows_max = rows_max
        # Events of any actor cover a time: a silent actor does not mean that events are missing.
        self._of_all = replace(asked, words={name: each for name, each in asked.words.items() if name == "service"})

    def answered(self) -> Activity:
        self._keep_period()
        begins_ns = self._begins_ns()
        return Activity(
            totals=self._totals(),
            days=self._days(),
            types=self._table("event_type, outcome, result, count(*) AS events", "events DESC, event_type, outcome"),
            actors=self._table(
                f"{_WHO}, on_behalf_of, {_SPAN}, count(*) FILTER (result = 'denied') AS denied, "
                "count(*) FILTER (result IN ('failure', 'error')) AS failed",
                "events DESC, actor, issuer, on_behalf_of",
            ),
            denied=self._table(
                f"{_WHO}, on_behalf_of, event_type, what, target, max_by(reason, time_ns) AS reason, {_SPAN}, {_LAST}",
                "events DESC, last_ns DESC, actor, what, target",
                "result = 'denied'",
            ),
            failed_logins=self._table(
                f"{_WHO}, client, {_SPAN}, {_LAST}", "events DESC, last_ns DESC, actor, client", "is_failed_login"
            ),
            privileged=self._table(
                f"{_WHO}, on_behalf_of, event_type, what, target, result, {_SPAN}, {_LAST}",
                "last_ns DESC, events DESC, actor, what, target, result",
                "is_privileged",
            ),
            new_actors=self._new_actors(begins_ns),
            begins_ns=begins_ns,
            services=self._coverage("service, count(DISTINCT stream_id) AS streams", "service"),
            streams=self._coverage("service, stream_id", "last_ns DESC, stream_id"),
            gaps=self._gaps(),
            silences=self._silences(),
        )

    def _keep_period(self) -> None:
        is_asked, values = replace(self._asked, since_ns=None, until_ns=None).where()
        in_period, values_of_period = self._of_all.where()
        columns = ", ".join(f"{sql} AS {name}" for name, sql in _KEPT.items())
        self._database.keep(
            f"SELECT {columns}, {is_asked} AS is_asked FROM events WHERE {in_period}", [*values, *values_of_period]
        )

    def _totals(self) -> Mapping[str, int]:
        events = self._one(
            f"SELECT count(*) AS events, count(DISTINCT actor) AS actors, {_BY_RESULT}, "
            "count(*) FILTER (is_failed_login) AS failed_logins, count(*) FILTER (is_privileged) AS privileged "
            "FROM kept WHERE is_asked AND is_event"
        )
        return {**events, **self._one(f"SELECT {_LOSSES} FROM kept")}

    def _begins_ns(self) -> int | None:
        condition, values = replace(self._of_all, since_ns=None, until_ns=None).where()
        begins = self._one(f"SELECT min(time_ns) AS begins_ns FROM sought WHERE {condition}", values)
        return begins.get("begins_ns")

    def _days(self) -> Table:
        """Return the last days with an event, the oldest first."""
        days = self._table(f"day, count(*) AS events, {_BY_RESULT}", "day DESC")
        return Table(days.rows[::-1], days.total)

    def _table(self, columns: str, order: str, condition: str = "true") -> Table:
        question = f"SELECT {columns} FROM kept WHERE is_asked AND is_event AND {condition} GROUP BY ALL"
        return self._answer(question, order)

    def _new_actors(self, begins_ns: int | None) -> Table | None:
        since_ns = self._asked.since_ns
        if since_ns is None or begins_ns is None or begins_ns >= since_ns:
            return None
        earlier, values = replace(self._asked, since_ns=None, until_ns=since_ns).where()
        return self._answer(
            f"SELECT {_WHO}, {_SPAN}, min_by(client, time_ns) AS client, min_by(event_id, time_ns) AS first_event_id "
            "FROM kept WHERE is_asked AND is_event AND actor IS NOT NULL AND NOT EXISTS ("
            f"SELECT 1 FROM (SELECT DISTINCT {_ACTOR} AS known, {_ISSUER} AS known_by FROM sought WHERE {earlier}) "
            "WHERE known = actor AND known_by IS NOT DISTINCT FROM issuer) GROUP BY ALL",
            "first_ns, actor, issuer",
            values,
        )

    def _coverage(self, columns: str, order: str) -> Table:
        counts = "count(*) FILTER (is_event) AS events, min(time_ns) AS first_ns, max(time_ns) AS last_ns"
        return self._answer(f"SELECT {columns}, {counts}, {_LOSSES} FROM kept GROUP BY ALL", order)

    def _gaps(self) -> Table:
        return self._answer(
            f"SELECT time_ns, service, stream_id, seq, {_LOST} AS lost, "
            "json_extract_string(gap, '$.reason') AS reason, "
            "json_keys(CASE WHEN json_type(gap, '$.by_reason') = 'OBJECT' "
            "THEN json_extract(gap, '$.by_reason') ELSE '{}' END) AS reasons FROM kept WHERE gap IS NOT NULL",
            "time_ns DESC, stream_id, seq DESC",
        )

    def _silences(self) -> Table:
        """Return the longest times between two events of a service, including the edges of the period."""
        now_ns = time.time_ns()
        since_ns, until_ns = self._asked.since_ns, self._asked.until_ns
        edges_ns = [min(now_ns, until_ns) if until_ns is not None else now_ns]
        if since_ns is not None:
            edges_ns.append(since_ns)
        edge = "SELECT DISTINCT service, ?::BIGINT AS time_ns FROM kept"
        moments = " UNION ALL ".join(["SELECT service, time_ns FROM kept", *(edge for _ in edges_ns)])
        before = "lag(time_ns) OVER (PARTITION BY service ORDER BY time_ns)"
        return self._answer(
            "SELECT service, since_ns, until_ns, TRY_CAST(silent_ns // 1000000000 AS BIGINT) AS seconds "
            "FROM (SELECT *, until_ns::HUGEINT - since_ns AS silent_ns "
            f"FROM (SELECT service, time_ns AS until_ns, {before} AS since_ns FROM ({moments}))) WHERE silent_ns >= ?",
            "seconds DESC, service, since_ns",
            [*edges_ns, SILENCE_S * 10**9],
        )

    def _answer(self, question: str, order: str, values: Sequence[object] = ()) -> Table:
        rows = [
            json.loads(each)
            for each in self._database.objects(
                f"SELECT *, count(*) OVER () AS {_TOTAL} FROM ({question}) ORDER BY {order} LIMIT {self._rows_max}",
                values,
            )
        ]
        total = rows[0][_TOTAL] if rows else 0
        return Table([{name: value for name, value in row.items() if name != _TOTAL} for row in rows], total)

    def _one(self, question: str, values: Sequence[object] = ()) -> Mapping[str, Any]:
        return next(map(json.loads, self._database.objects(question, values)), {})
