"""The two tables of docs/integrity.md, and the tests that hold each of their rows: none can be without one.

`journal`: what the directory alone shows. `kept`: what an archive or a store shows, alone or beside the journal; those
tests run on both. `why`: where a side has no test, the reason.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrity.md"


@dataclass(frozen=True)
class Row:
    """Names of tests of this folder, `module.test` without their `test_`."""

    journal: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    why: str = ""


ATTACKS = {
    "edit, insert, delete, swap, splice a line at or below the last head": Row(
        (
            "classes.a_changed_line_is_a_finding",
            "classes.an_inserted_line_is_a_finding",
            "classes.a_missing_line_is_a_finding",
            "classes.two_lines_that_changed_places_are_findings",
            "classes.lines_of_another_stream_are_a_finding",
        ),
        (
            "archive.a_changed_line_in_an_archive_is_found",
            "archive.a_line_that_was_put_into_an_archive_is_found",
            "archive.each_deleted_line_of_an_archive_is_named",
            "attacks_on_store.lines_of_another_stream_that_are_spliced_in_are_found",
        ),
    ),
    "the same, with numbers and chain computed anew": Row(
        (
            "attacks.a_change_that_is_chained_anew_is_found_before_the_next_head",
            "attacks.a_change_behind_a_head_is_found_between_that_one_and_the_next",
            "attacks.lines_of_another_stream_that_are_spliced_in_are_found",
        ),
        (
            "attacks_on_store.a_change_that_is_chained_anew_is_found",
            "archive.a_journal_that_was_rewritten_is_found_by_the_archive",
        ),
    ),
    "cut the tail before a head": Row(
        ("attacks.a_tail_that_was_cut_before_a_head_is_found",),
        ("archive.a_tail_that_was_deleted_from_an_archive_is_found",),
    ),
    "delete a segment or a stream": Row(
        ("attacks.a_deleted_segment_is_found", "attacks.a_deleted_stream_is_found"),
        (
            "attacks_on_store.a_deleted_segment_is_found",
            "archive.a_stream_that_was_deleted_from_an_archive_is_found",
        ),
    ),
    "overwrite a line as erased, without an entry": Row(
        ("classes.a_tombstone_without_its_entry_is_a_finding",),
        ("attacks_on_store.a_line_that_is_overwritten_as_erased_is_found",),
    ),
    "rewrite the ledger before this epoch": Row(
        ("attacks.a_ledger_that_was_rewritten_before_the_epoch_is_found",),
        ("attacks_on_store.a_ledger_that_was_rewritten_before_the_epoch_is_found",),
    ),
    "cut the ledger in an earlier epoch, and go on": Row(
        ("attacks.a_ledger_that_was_cut_in_an_earlier_epoch_and_continued_is_found",),
        ("attacks_on_store.a_ledger_that_was_cut_in_an_earlier_epoch_and_continued_is_found",),
    ),
    "change or cut behind the last head": Row(
        ("attacks.what_is_changed_behind_the_last_head_is_not_found_in_the_journal_alone",),
        ("archive.a_tail_that_was_cut_behind_the_last_head_is_found_by_the_archive",),
    ),
    "rewrite the ledger's current epoch, and the streams with it": Row(
        ("attacks.a_ledger_of_which_this_epoch_was_rewritten_is_found_by_what_was_kept_and_not_alone",),
        ("attacks_on_store.an_epoch_that_was_rewritten_with_both_keys_is_found_by_a_note_in_what_was_kept",),
    ),
    "roll ledger and streams back together": Row(
        ("attacks.a_ledger_and_streams_that_were_rolled_back_are_found_by_what_was_kept_and_not_alone",),
        (
            "archive.a_journal_that_was_rolled_back_is_found_by_the_archive",
            "attacks_on_store.an_archive_that_was_rolled_back_is_found_by_what_was_kept_and_not_alone",
        ),
    ),
    "two clones of a directory that both go on": Row(
        (),
        ("archive.two_clones_that_went_on_are_found_by_the_archive",),
        "each of the two directories is whole",
    ),
    "a new ledger under the stolen identity key": Row(
        ("attacks.a_new_ledger_under_the_stolen_identity_key_is_found_by_what_was_kept_and_not_alone",),
        (
            "attacks_on_store.a_new_ledger_under_the_stolen_identity_key_is_found_by_what_was_kept",
            "attacks_on_store.a_new_ledger_of_another_directory_id_is_vouched_for_by_nothing_that_was_kept",
        ),
    ),
    "forge an `end` or a `retain`": Row(
        ("attacks.a_forged_end_and_a_forged_removal_are_listed",),
        (
            "attacks_on_store.a_removal_that_was_not_declared_is_found",
            "attacks_on_store.a_removal_of_unsigned_lines_is_found",
            "archive.what_retention_removed_from_the_journal_is_a_notice_beside_the_archive",
        ),
    ),
    "remove the ledger's first lines, and forge its own `retain`": Row(
        ("pruning.a_forged_removal_is_listed_and_hides_no_stream_from_an_archive",),
        ("pruning.a_forged_removal_is_listed_and_hides_no_stream_from_an_archive",),
    ),
    "delete, edit or insert in the archive": Row(
        (),
        (
            "archive.each_deleted_line_of_an_archive_is_named",
            "archive.a_changed_line_in_an_archive_is_found",
            "archive.a_line_that_was_put_into_an_archive_is_found",
            "log_stores.what_was_deleted_in_loki_is_named_line_by_line",
            "log_stores.what_the_delete_api_of_victorialogs_took_is_named_line_by_line",
        ),
        "the journal is as it was",
    ),
    "delete the oldest lines of the archive, the ledger's with them": Row(
        (),
        ("classes_off_host.what_a_store_has_let_go_of_is_unproven_and_the_rest_is_checked",),
        "the journal is as it was",
    ),
    "delete in the archive what retention had removed from the journal": Row(
        (),
        ("classes_off_host.lines_that_are_neither_there_nor_in_the_journal_are_unproven",),
        "the journal is as it was",
    ),
    "log new lies from now on": Row((), (), "a lie is written and signed like the truth"),
}

CLASSES = {
    "chain or number wrong, a head's root or hash differs, a stream shorter than signed": Row(
        (
            "classes.a_changed_line_is_a_finding",
            "classes.a_missing_line_is_a_finding",
            "classes.several_missing_lines_are_one_finding",
            "classes.a_stream_that_is_shorter_than_signed_is_a_finding",
            "attacks.a_change_that_is_chained_anew_is_found_before_the_next_head",
        ),
        (
            "archive.a_changed_line_in_an_archive_is_found",
            "attacks_on_store.a_change_that_is_chained_anew_is_found",
            "archive.a_tail_that_was_deleted_from_an_archive_is_found",
        ),
    ),
    "opened, but no file, and not removed as a whole": Row(
        ("classes.a_stream_that_is_gone_is_a_finding_unless_it_was_removed_whole",),
        (
            "archive.a_stream_that_was_deleted_from_an_archive_is_found",
            "classes_off_host.what_is_young_is_not_there_yet",
        ),
    ),
    "a stream not opened: lives or is under a minute old / is older than the ledger or was killed at once / else": Row(
        (
            "classes.a_stream_that_was_not_opened_yet_is_a_notice_while_it_is_young_or_its_writer_lives",
            "classes.a_stream_that_is_older_than_the_ledger_is_unproven",
            "living_trail.a_stream_whose_writer_was_killed_before_the_ledger_knew_it_is_unproven",
            "classes.a_stream_that_was_not_opened_is_a_finding",
        ),
        (
            "classes_off_host.what_is_young_is_not_there_yet",
            "classes_off_host.a_stream_that_is_older_than_the_ledger_is_unproven",
            "classes_off_host.a_stream_that_was_taken_over_before_it_was_opened_is_unproven",
            "attacks_on_store.a_stream_that_names_the_ledger_and_was_not_opened_is_found",
        ),
    ),
    "lines behind the last head: the writer lives / it died, and nobody took over": Row(
        (
            "classes.lines_behind_the_last_head_are_a_notice_while_the_writer_lives_and_unproven_once_it_died",
            "classes.a_dead_stream_that_was_adopted_is_a_notice",
        ),
        ("classes_off_host.lines_behind_the_last_head_are_a_notice_while_they_are_young",),
    ),
    "lines behind `end`; behind `adopt` without an `end` by the opener": Row(
        (
            "classes.lines_behind_the_end_are_a_finding",
            "classes.lines_behind_an_adoption_are_a_finding_unless_the_opener_ended_the_stream",
        ),
        (
            "attacks_on_store.lines_behind_the_end_are_found",
            "attacks_on_store.lines_behind_an_adoption_are_found",
            "classes_off_host.an_opener_that_ends_its_stream_after_an_adoption_is_a_notice",
        ),
    ),
    "a start behind line 1: signed `retain` / unsigned ledger, or a store whose ledger begins later / neither": Row(
        (
            "classes.a_start_behind_removed_lines_is_a_notice_and_one_without_a_reason_a_finding",
            "classes.a_changed_line_behind_removed_ones_is_a_finding",
            "classes.a_start_behind_lines_that_an_unsigned_ledger_removed_is_unproven",
        ),
        (
            "classes_off_host.lines_that_retention_removed_from_the_journal_are_still_there",
            "classes_off_host.a_start_behind_lines_that_an_unsigned_ledger_removed_is_unproven",
            "classes_off_host.what_a_store_has_let_go_of_is_unproven_and_the_rest_is_checked",
            "classes_off_host.a_hole_beside_removed_lines_is_a_finding",
        ),
    ),
    "a `retain` of unsigned lines, or of lines younger than `open` declared": Row(
        (
            "classes.removing_unsigned_lines_is_a_finding",
            "classes.removing_lines_before_the_declared_days_is_a_finding",
            "classes.removing_young_lines_is_allowed_where_the_limit_of_bytes_was_declared",
        ),
        (
            "attacks_on_store.a_removal_of_unsigned_lines_is_found",
            "attacks_on_store.a_removal_that_was_not_declared_is_found",
        ),
    ),
    "a matching `retain` or `adopt`, a gap that the writer tells of": Row(
        (
            "classes.a_start_behind_removed_lines_is_a_notice_and_one_without_a_reason_a_finding",
            "classes.a_dead_stream_that_was_adopted_is_a_notice",
            "classes.a_gap_that_the_writer_tells_of_is_a_notice",
        ),
        (
            "classes_off_host.lines_that_retention_removed_from_the_journal_are_still_there",
            "classes_off_host.an_opener_that_ends_its_stream_after_an_adoption_is_a_notice",
            "attacks_on_store.a_gap_and_lines_behind_the_last_head_are_said_and_no_finding",
        ),
    ),
    "a tombstone without its entry": Row(
        ("classes.a_tombstone_without_its_entry_is_a_finding",),
        ("attacks_on_store.a_line_that_is_overwritten_as_erased_is_found",),
    ),
    "damage that a later header names, a torn end / other damage": Row(
        (
            "classes.damage_that_a_later_line_names_is_a_notice_and_any_other_a_finding",
            "classes.a_dead_stream_that_was_adopted_is_a_notice",
        ),
        (
            "classes_off_host.damage_that_a_later_header_names_was_never_sent_and_nothing_of_it_is_missing",
            "classes_off_host.an_archive_that_breaks_off_says_where_and_names_the_lines_that_lack",
        ),
    ),
    "ledger: hash, root or signature wrong; an entry without a note that is not the last turn": Row(
        (
            "ledger_rows.a_note_with_a_root_that_is_not_that_of_its_lines_is_a_finding",
            "attacks.a_ledger_that_was_rewritten_before_the_epoch_is_found",
            "classes.an_entry_without_a_note_is_a_finding_if_the_ledger_goes_on_without_it",
        ),
        (
            "ledger_rows.a_line_of_the_ledger_that_was_changed_or_deleted_is_a_finding",
            "ledger_rows.a_note_with_a_root_that_is_not_that_of_its_lines_is_a_finding",
            "attacks_on_store.a_ledger_that_was_rewritten_before_the_epoch_is_found",
            "ledger_rows.two_notes_of_one_size_are_a_finding",
            "ledger_rows.an_entry_without_a_note_is_a_notice_if_it_is_the_last_and_a_finding_before_others",
        ),
    ),
    "the ledger's first lines are gone: its own `retain` says so / its keys are not archived / no entry, or another "
    "one": Row(
        (
            "classes.a_ledger_of_which_the_first_lines_were_removed_goes_on_by_its_archive_of_keys",
            "classes.a_ledger_of_which_first_lines_are_gone_that_no_entry_tells_of_is_cut",
            "pruning.a_forged_entry_of_other_lines_is_a_finding",
            "pruning.more_than_what_is_said_to_be_removed_is_a_finding",
        ),
        ("pruning.an_archive_that_has_the_whole_ledger_vouches_for_what_was_removed",),
    ),
    "a stream in the store only, named by removed ledger lines: these say there that it was removed / are not whole / "
    "say otherwise": Row(
        (),
        (
            "pruning.an_archive_that_has_the_whole_ledger_vouches_for_what_was_removed",
            "pruning.lines_that_were_removed_before_an_archive_had_them_are_unproven",
            "pruning.a_forged_removal_is_listed_and_hides_no_stream_from_an_archive",
        ),
        "a matter of two sides",
    ),
    "the ledger before this one: verifies / cannot be read / is not what this one says": Row(
        (
            "ledger_rows.a_ledger_that_follows_another_one_is_a_notice_if_that_one_verifies",
            "ledger_rows.a_ledger_whose_former_one_is_gone_is_unproven",
            "ledger_rows.a_ledger_whose_former_one_is_not_what_it_says_is_a_finding",
            "ledger_rows.a_former_ledger_that_is_shorter_than_when_its_note_was_kept_is_a_finding",
        ),
        (
            "ledger_rows.a_ledger_that_follows_another_one_is_a_notice_if_that_one_verifies",
            "ledger_rows.a_ledger_whose_former_one_is_gone_is_unproven",
            "ledger_rows.a_ledger_whose_former_one_is_not_what_it_says_is_a_finding",
            "ledger_rows.a_former_ledger_that_is_shorter_than_when_its_note_was_kept_is_a_finding",
        ),
    ),
    "`--key`: no note is signed by it / a later one by another identity, or its newest is over an hour behind": Row(
        (
            "attacks.a_ledger_of_another_identity_is_found_by_the_key",
            "pins.the_key_of_a_replaced_identity_vouches_for_what_it_signed",
            "ledger_rows.a_ledger_that_the_key_signed_more_than_an_hour_ago_is_unproven",
        ),
        (
            "ledger_rows.a_ledger_that_the_key_did_not_sign_is_a_finding",
            "pins.the_key_of_a_replaced_identity_vouches_for_what_it_signed",
            "ledger_rows.a_ledger_that_the_key_signed_more_than_an_hour_ago_is_unproven",
        ),
    ),
    "`--known`: equal root or a key of the ledger / of another ledger / differs, or larger than the ledger": Row(
        (
            "classes.an_honest_trail_is_consistent_and_with_a_pin_proven",
            "attacks.a_new_ledger_of_another_origin_says_nothing_to_what_was_kept",
            "attacks.a_ledger_of_which_this_epoch_was_rewritten_is_found_by_what_was_kept_and_not_alone",
            "attacks.a_ledger_and_streams_that_were_rolled_back_are_found_by_what_was_kept_and_not_alone",
        ),
        (
            "ledger_rows.an_earlier_note_and_an_earlier_key_are_known_there",
            "classes_off_host.a_key_that_signed_no_note_in_a_store_is_unproven",
            "attacks_on_store.an_archive_that_was_rolled_back_is_found_by_what_was_kept_and_not_alone",
        ),
    ),
    "in the store only: retention removed it / durability `os`, and another boot since / else": Row(
        (),
        (
            "classes_off_host.lines_that_retention_removed_from_the_journal_are_still_there",
            "archive.lines_that_a_loss_of_power_may_have_taken_are_unproven_beside_the_archive",
            "archive.a_tail_that_was_cut_behind_the_last_head_is_found_by_the_archive",
        ),
        "about the two beside each other",
    ),
    "in the journal only: pending, quarantined, young, of the plain logs API / older than all in the store / else": Row(
        (),
        (
            "archive.lines_that_are_not_delivered_yet_are_a_notice_beside_the_archive",
            "classes_off_host.lines_in_quarantine_are_a_notice",
            "classes_off_host.what_is_young_is_not_there_yet",
            "foreign.their_lines_are_a_notice_beside_the_journal",
            "classes_off_host.what_a_store_has_let_go_of_is_unproven_and_the_rest_is_checked",
            "archive.each_deleted_line_of_an_archive_is_named",
        ),
        "about the two beside each other",
    ),
    "neither in the journal, by retention, nor in the store": Row(
        (),
        ("classes_off_host.lines_that_are_neither_there_nor_in_the_journal_are_unproven",),
        "about the two beside each other",
    ),
    "in a store alone: no lines of records of the plain logs API": Row(
        (), ("foreign.their_lines_are_unproven_in_an_archive_alone",), "the journal has the lines"
    ),
    "a copy: same bytes / cut short, or a tombstone of it / other bytes": Row(
        (),
        (
            "archive.journal_and_archive_that_agree_are_proven_by_each_other",
            "archive.a_body_that_a_store_cut_short_is_unproven_alone_and_a_notice_beside_the_journal",
            "classes_off_host.a_tombstone_of_a_line_is_a_notice_beside_the_line",
            "archive.a_line_that_was_put_into_an_archive_is_found",
        ),
        "about the two beside each other",
    ),
    "no note of this directory's ledger in the store": Row(
        (),
        ("attacks_on_store.a_new_ledger_of_another_directory_id_is_vouched_for_by_nothing_that_was_kept",),
        "about the two beside each other",
    ),
    "another directory's ledger in the store: names no stream of this one / names one": Row(
        (),
        ("archive.the_ledger_of_another_directory_is_a_notice_unless_it_speaks_of_a_stream_of_this_one",),
        "about the two beside each other",
    ),
    "durability `memory`, older than the ledger, an unknown format": Row(
        (
            "classes.memory_and_an_unknown_format_are_unproven",
            "classes.a_stream_that_is_older_than_the_ledger_is_unproven",
            "classes.a_stream_that_was_found_is_held_to_what_it_was_then",
        ),
        (
            "classes_off_host.memory_and_an_unknown_format_are_unproven",
            "classes_off_host.a_stream_that_is_older_than_the_ledger_is_unproven",
        ),
    ),
    "`--anchored-within` is not met": Row(
        ("ledger_rows.an_anchor_that_is_too_old_is_a_finding",),
        ("ledger_rows.an_anchor_that_is_too_old_is_a_finding",),
    ),
}


def rows_under(heading: str) -> list[str]:
    """The first cells of the table in a section of the page."""
    section = PAGE.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]]


@pytest.mark.parametrize(("heading", "rows"), [("Attacks", ATTACKS), ("Findings by class", CLASSES)])
def test_the_rows_of_the_page_are_the_rows_that_have_tests(heading: str, rows: dict[str, Row]) -> None:
    assert list(rows) == rows_under(heading)


def test_every_test_of_a_row_exists_and_a_side_without_one_has_a_reason() -> None:
    for name, row in {**ATTACKS, **CLASSES}.items():
        assert (row.journal and row.kept) or row.why, name
        for each in (*row.journal, *row.kept):
            module, _, test = each.partition(".")
            found = importlib.import_module(f"tests.verification.test_{module}")
            assert callable(getattr(found, f"test_{test}", None)), (
                f"{name}: no test_{test} in {Path(found.__file__ or '')}"
            )
