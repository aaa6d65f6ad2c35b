"""The tree of a stream is that of its lines, whatever the writer left out of the list."""

from __future__ import annotations

import random
import time
from hashlib import sha256
from pathlib import Path

import pytest

from otel_audit.journal.segment import Head
from otel_audit.journal.stream import Limits
from otel_audit.journal.stream_tree import StreamTree, TreeBroken
from otel_audit.settings import Durability
from otel_audit.signing.tree import Edge, leaf_hash
from tests.journal.writing import a_journal, append, the_writer
from tests.stepping import Interrupt, interrupted

BURST = 5000  # more than the list takes


def lines_in(directory: Path) -> list[bytes]:
    """The lines of the only stream, in the order of its segments."""
    return [line for path in sorted(directory.glob("*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]]


def root_over(lines: list[bytes]) -> bytes:
    edge = Edge()
    for line in lines:
        edge.append(leaf_hash(sha256(line).digest()))
    return edge.root()


def test_every_line_is_a_leaf_headers_gaps_and_events(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=4096))
    for name in range(100):
        append(journal, name)
    stream = the_writer(journal)
    stream.write_system("gap", {"count": 1}, time.time_ns())
    tree = StreamTree(stream.files, stream.leaves)

    head = tree.reach(stream.head)

    lines = lines_in(tmp_path)
    assert len(list(tmp_path.glob("*.jsonl"))) > 3
    assert (head.size, head.root, head.hash.encode()) == (len(lines), root_over(lines), stream.head.hash)
    journal.close()


def test_at_the_end_of_each_segment_the_tree_is_kept_for_the_head_of_the_rotation(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=4096))
    for name in range(100):
        append(journal, name)
    stream = the_writer(journal)
    behind, beside = StreamTree(stream.files, stream.leaves), StreamTree(stream.files)

    behind.reach(stream.head)
    beside.read()

    size, expected = 0, []
    for path in sorted(tmp_path.glob("*.jsonl"))[:-1]:
        size += path.read_bytes().count(b"\n")
        expected.append((size, root_over(lines_in(tmp_path)[:size])))
    assert [(each.size, each.root) for each in behind.borders] == expected
    assert list(beside.borders) == list(behind.borders)
    journal.close()


def test_a_burst_that_is_longer_than_the_list_is_read_back(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=100_000))
    for name in range(BURST):
        append(journal, name)
    stream = the_writer(journal)

    head = StreamTree(stream.files, stream.leaves).reach(stream.head)

    assert head.root == root_over(lines_in(tmp_path))
    journal.close()


@pytest.mark.parametrize("seed", range(5))
def test_many_leaves_at_once_give_the_tree_of_the_file_and_of_each_segment(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=chance.randrange(3000, 400_000)))
    append(journal, "first")
    stream = the_writer(journal)
    behind, beside = StreamTree(stream.files, stream.leaves), StreamTree(stream.files)
    for name in range(3000):
        append(journal, name)
        if chance.random() < 0.002:
            behind.grow(chance.randrange(1, stream.head.seq + 1))

    head = behind.reach(stream.head)
    beside.read()

    assert head.root == root_over(lines_in(tmp_path))
    assert (head, behind.place, list(behind.borders)) == (beside.head(), beside.place, list(beside.borders))
    journal.close()


@pytest.mark.parametrize("seed", range(20))
def test_leaves_that_an_asynchronous_exception_left_out_are_read_back(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=4096))
    stream = tree = None
    for name in range(300):
        append(journal, name)
        stream = the_writer(journal)
        tree = tree or StreamTree(stream.files, stream.leaves)
        if chance.random() < 0.3:
            del stream.leaves[chance.randrange(len(stream.leaves))]
        if chance.random() < 0.1:
            tree.grow(stream.head.seq)
    assert stream is not None
    assert tree is not None

    assert tree.reach(stream.head).root == root_over(lines_in(tmp_path))
    journal.close()


def test_a_line_is_in_the_tree_wherever_an_exception_interrupts_the_append(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=2048))
    append(journal, "first")
    stream = the_writer(journal)
    tree = StreamTree(stream.files, stream.leaves)
    at = 0
    while True:
        at += 1
        try:
            step = interrupted(lambda: append(journal, "next"), at)
        except Interrupt:
            continue
        if step is None:
            break
        if at % 7 == 0:
            tree.grow(the_writer(journal).head.seq)
    append(journal, "last")
    assert the_writer(journal) is stream

    assert tree.reach(stream.head).root == root_over(lines_in(tmp_path))
    journal.close()


def test_a_line_that_is_nowhere_any_more_breaks_the_tree_and_is_named(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    for name in range(10):
        append(journal, name)
    stream = the_writer(journal)
    del stream.leaves[4]
    path = stream.files.segment(1)
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:4]) + b"\n")

    with pytest.raises(TreeBroken, match="line 5 "):
        StreamTree(stream.files, stream.leaves).reach(stream.head)
    journal.close()


def test_a_tree_that_does_not_end_with_the_line_it_should_is_never_used(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    append(journal, "a")
    stream = the_writer(journal)
    last = stream.leaves.pop()
    stream.leaves.append(Head(last.seq, b"0" * 64, last.offset, last.system))

    with pytest.raises(TreeBroken, match="line 2"):
        StreamTree(stream.files, stream.leaves).reach(stream.head)
    journal.close()


def test_a_tree_goes_on_from_its_edge_when_the_segments_before_are_gone(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, limits=Limits(segment_bytes=4096))
    for name in range(100):
        append(journal, name)
    stream = the_writer(journal)
    whole = StreamTree(stream.files, stream.leaves)
    head = whole.reach(stream.head)
    begin = whole.borders[1]
    for number in (1, 2):
        stream.files.segment(number).unlink()

    tree = StreamTree(stream.files, begin=begin)
    tree.read()

    assert tree.head() == head
    journal.close()


def test_in_memory_mode_nothing_is_left_for_a_tree(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, durability=Durability.MEMORY)
    append(journal, "a")

    assert not the_writer(journal).leaves
    journal.close()
