"""Lines that were released from quarantine count as exported, whoever ships the stream, and once only."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from otel_audit.journal.cursor import Cursor, Progress, Quarantined, read_cursor
from otel_audit.journal.released import Released, read_released, release

SYSTEM = frozenset({3, 4, 11})  # the journal's own lines in these tests
seqs = st.sets(st.integers(1, 24))


def ranges_of(lines: set[int]) -> list[tuple[int, int]]:
    """The lines as ranges of neighbours of one kind."""
    found: list[tuple[int, int]] = []
    for seq in sorted(lines):
        if found and found[-1][1] == seq - 1 and (seq in SYSTEM) == (seq - 1 in SYSTEM):
            found[-1] = (found[-1][0], seq)
        else:
            found.append((seq, seq))
    return found


def released(lines: set[int]) -> list[Released]:
    return [Released("otlp", first, last, first in SYSTEM) for first, last in ranges_of(lines)]


def quarantined(lines: set[int]) -> Progress:
    progress = Progress(exported=100, quarantined=len(lines - SYSTEM))
    for seq in sorted(lines):
        progress = progress.with_quarantined(seq, "400")
    return progress


def lines_of(ranges: tuple[Quarantined, ...]) -> list[int]:
    return [seq for each in ranges for seq in range(each.first_seq, each.last_seq + 1)]


@given(seqs, seqs, seqs)
def test_what_was_released_is_exported_and_the_rest_stays_in_quarantine(
    lines: set[int], first: set[int], second: set[int]
) -> None:
    seen = quarantined(lines).without([*released(first), *released(second)])

    left = lines - first - second
    assert lines_of(seen.quarantine) == sorted(left)
    assert seen.quarantined == len(left - SYSTEM)
    assert seen.exported == 100 + len(lines - SYSTEM) - seen.quarantined


def test_whoever_reads_a_cursor_sees_what_was_released_and_its_owner_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "stream.cursor"
    cursor = Cursor(path)
    cursor.advance("otlp", quarantined({5, 6, 9}))
    cursor.advance("jsonl", quarantined({5}))

    release(path, released({5, 6}), mode=0o640)

    assert read_cursor(path)[0] == {"otlp": quarantined({5, 6, 9}).without(released({5, 6})), "jsonl": quarantined({5})}
    assert cursor.seen("otlp") == read_cursor(path)[0]["otlp"]
    assert cursor.progress("otlp") == quarantined({5, 6, 9})
    cursor.advance("otlp", cursor.progress("otlp").with_quarantined(12, "400"))
    assert lines_of(read_cursor(path)[0]["otlp"].quarantine) == [9, 12]
    assert (path.with_suffix(".released").stat().st_mode & 0o777) == 0o640


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "stream.cursor"
    release(path, released({5}), mode=0o600)
    with path.with_suffix(".released").open("ab") as file:
        file.write(b'["otlp",6')

    release(path, released({7}), mode=0o600)

    assert read_released(path) == released({5}) + released({7})


def test_nothing_is_released_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_released(tmp_path / "stream.cursor") == []
