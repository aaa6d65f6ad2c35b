"""The journal line that nearly every event is: its grammar as one regular expression, whose groups are its raw values.

A line that the logger wrote has its keys in one order, and few of its texts need an escape. Where that holds, a record
is put together of slices of the line, and nothing is parsed. Any other line, such as one of another program, one with
attributes of its own or with a quote in a text, is read as JSON: see `encoding`. What matches is JSON, and says to a
reader of JSON what its groups say; a property test holds that both ways make the same record.
"""

from __future__ import annotations

import re
from typing import Final

from otel_audit.records.mapping import KEPT, MCP_METHODS

__all__ = ["GROUPS", "USUAL_LINE"]

# A text without an escape: its bytes are its value. Control characters have to be escaped in JSON.
_TEXT: Final = r'[^"\\\x00-\x1f]*'
_SOME_TEXT: Final = _TEXT[:-1] + "+"
_WORD: Final = r'[^" \\\x00-\x1f]+'
_LIST: Final = rf'\[(?:"{_TEXT}"(?:,"{_TEXT}")*)?\]'
_INT64: Final = r"(?:0|[1-8][0-9]{0,18}|9[0-9]{0,17})"  # from 0 up, and none that OTLP cannot hold
_BYTE: Final = r"(?:0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
# An integer has no more digits than a double holds exactly. JSON's -0 would be an integer that has no sign.
_DECIMAL: Final = r"(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,20})?(?:e[-+]?[0-9]{1,2})?"
_KEPT: Final = "|".join(map(re.escape, KEPT))
# Their record has more than the attributes of the fields.
_WITH_MORE: Final = "|".join(re.escape(name) for name in MCP_METHODS if name != "mcp.tools.call")
_KEPT_PAIR: Final = rf'"(?:{_KEPT})":"{_SOME_TEXT}"'


def _optional(key: str, group: str) -> str:
    return rf'(?:,"{key}":"(?P<{group}>{_TEXT})")?'


_PATTERN: Final = "".join(
    (
        rf'\{{"event_type":"(?!(?:{_WITH_MORE})")(?P<event_type>{_TEXT})","timestamp":"{_TEXT}"',
        rf',"request_id":"(?P<request_id>{_TEXT})"',
        r'(?:,"trace_id":"(?!0{32})(?P<trace_id>[0-9a-f]{32})","span_id":"(?!0{16})(?P<span_id>[0-9a-f]{16})")?',
        _optional("jsonrpc_id", "jsonrpc_id"),
        rf',"principal":(?P<principal>\{{"username":"{_TEXT}","roles":{_LIST},"auth_type":"{_TEXT}"',
        *(rf'(?:,"{name}":"{_TEXT}")?' for name in ("id", "issuer", "kind", "on_behalf_of")),
        rf'\}}),"source":\{{"ip":"(?P<source_ip>{_TEXT})","transport":"(?P<transport>{_TEXT})"',
        _optional("user_agent", "source_user_agent"),
        rf'\}},"action":\{{"mcp_tool":"(?P<tool>{_TEXT})","path":"(?P<path>{_TEXT})"',
        _optional("method", "method"),
        rf'\}},"resource":\{{"type":"(?P<target_type>{_TEXT})","name":"(?P<resource_name>{_TEXT})"',
        rf',"actions":(?P<actions>{_LIST})\}},"outcome":"(?P<outcome>{_TEXT})"',
        rf'(?:,"duration_ms":(?P<duration_ms>{_DECIMAL}))?',
        # What `log_http_request` writes there: METHOD path -> status.
        rf',"detail":"(?P<detail>(?P<said_method>{_WORD}) {_TEXT} -> (?P<said_status>[0-9]{{3}})|{_TEXT})"',
        rf',"event_id":"(?P<event_id>{_SOME_TEXT})"',
        rf'(?:,"trace_flags":(?P<flags>{_BYTE}))?(?:,"status_code":(?P<status_code>[1-5][0-9]{{2}}))?',
        _optional("error_type", "error_type"),
        _optional("parent_id", "parent_id"),
        rf'(?:,"attributes":(?P<attributes>\{{{_KEPT_PAIR}(?:,{_KEPT_PAIR})*\}}))?',
        rf',"time_ns":(?P<time_ns>{_INT64}),"observed_ns":(?P<observed_ns>{_INT64})',
        rf',"stream_id":"(?P<stream_id>{_TEXT})","seq":(?P<seq>{_INT64})(?:,"prev_hash":"[0-9a-f]{{64}}")?\}}',
    )
).encode()

USUAL_LINE: Final = re.compile(_PATTERN)
"""Matches the whole of a usual line, without its newline."""

GROUPS: Final = tuple(USUAL_LINE.groupindex)
"""The names of the groups, in their order. One named as a part and its field, such as `source_ip`, holds that field."""
