"""Merkle trees against public vectors, and against the definition of RFC 6962 written down once more."""

from __future__ import annotations

import base64
import json
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import ProofInvalid
from otel_audit.signing.tree import (
    EMPTY_ROOT,
    Edge,
    check_inclusion,
    inclusion_ranges,
    leaf_hash,
    paths_behind,
    root_of_inclusion,
)

VECTORS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / "merkle.json").read_text())
# The entries and roots that the first implementations of RFC 6962 were tested with.
ENTRIES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
# The tree of seven leaves in RFC 6962, section 2.1.3, by the names that its nodes have there.
NODES = {
    "a": range(1), "b": range(1, 2), "c": range(2, 3), "d": range(3, 4), "e": range(4, 5), "f": range(5, 6),
    "j": range(6, 7), "g": range(2), "h": range(2, 4), "i": range(4, 6), "k": range(4), "l": range(4, 7),
}  # fmt: skip

sizes = st.integers(1, 300)


@cache
def leaf(index: int) -> bytes:
    return leaf_hash(index.to_bytes(4))


@cache
def tree_hash(start: int, end: int) -> bytes:
    """The definition: RFC 6962, section 2.1."""
    if end - start == 1:
        return leaf(start)
    split = 1
    while split * 2 < end - start:
        split *= 2
    return sha256(b"\x01" + tree_hash(start, start + split) + tree_hash(start + split, end)).digest()


def edge_of(size: int) -> Edge:
    edge = Edge()
    for index in range(size):
        edge.append(leaf(index))
    return edge


def path(index: int, size: int) -> list[bytes]:
    return [tree_hash(part.start, part.stop) for part in inclusion_ranges(index, size)]


def from_base64(text: str | None) -> bytes:
    return base64.b64decode(text or "")


@pytest.mark.parametrize("size", range(1, 9))
def test_the_root_is_that_of_the_first_implementations(size: int) -> None:
    edge = Edge()
    for entry in ENTRIES[:size]:
        edge.append(leaf_hash(entry))

    assert edge.root().hex() == ROOTS[size - 1]


def test_a_tree_without_leaves_has_the_hash_of_nothing() -> None:
    assert Edge().root() == EMPTY_ROOT == sha256().digest()


@pytest.mark.parametrize(("index", "nodes"), [(0, "bhl"), (3, "cgl"), (4, "fjk"), (6, "ik")])
def test_an_inclusion_path_is_that_of_the_rfc(index: int, nodes: str) -> None:
    assert inclusion_ranges(index, 7) == [NODES[name] for name in nodes]


@pytest.mark.parametrize("name", VECTORS["inclusion"])
def test_an_inclusion_proof_is_judged_as_others_judge_it(name: str) -> None:
    case = VECTORS["inclusion"][name]
    arguments = (
        from_base64(case["leafHash"]),
        case["leafIdx"],
        case["treeSize"],
        [from_base64(node) for node in case["proof"] or ()],
        from_base64(case["root"]),
    )

    if case["wantErr"]:
        with pytest.raises(ProofInvalid):
            check_inclusion(*arguments)
    else:
        check_inclusion(*arguments)


@given(size=sizes)
def test_the_edge_has_the_root_of_the_definition(size: int) -> None:
    assert edge_of(size).root() == tree_hash(0, size)


@given(size=st.integers(0, 300), more=st.integers(0, 100))
def test_a_tree_is_continued_at_its_edge(size: int, more: int) -> None:
    edge = edge_of(size)
    continued = Edge(edge.size, edge.nodes)
    for index in range(size, size + more):
        continued.append(leaf(index))

    assert continued.root() == edge_of(size + more).root()


@given(size=st.integers(0, 300), counts=st.lists(st.integers(0, 70), max_size=5))
def test_leaves_that_are_added_together_give_the_edge_of_those_that_are_added_one_by_one(
    size: int, counts: list[int]
) -> None:
    edge = edge_of(size)
    for count in counts:
        edge.extend([leaf(index) for index in range(edge.size, edge.size + count)])

    assert (edge.size, edge.nodes) == (size + sum(counts), edge_of(size + sum(counts)).nodes)


@given(st.data(), sizes)
def test_a_path_needs_no_more_of_the_leaves_before_it_than_their_edge(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    edge = edge_of(index)

    found = paths_behind(edge, size, [index], map(leaf, range(index, size)))

    assert found == {index: path(index, size)}
    assert edge.size == index


@given(st.data(), sizes)
def test_each_leaf_is_proven_under_the_root_and_no_other_is(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda other: size == 1 or other != index))

    check_inclusion(leaf(index), index, size, path(index, size), tree_hash(0, size))
    if other != index:
        for place, value in ((other, index), (index, other)):
            with pytest.raises(ProofInvalid):
                check_inclusion(leaf(value), place, size, path(index, size), tree_hash(0, size))


@given(st.data(), st.integers(2, 300))
def test_a_changed_proof_proves_nothing(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    hashes = path(index, size)
    place = data.draw(st.integers(0, len(hashes) - 1))
    bit = data.draw(st.integers(0, 255))
    changed = (int.from_bytes(hashes[place]) ^ 1 << bit).to_bytes(32)

    for wrong in (
        [*hashes[:place], changed, *hashes[place + 1 :]],
        hashes[:place] + hashes[place + 1 :],
        [*hashes[:place], changed, *hashes[place:]],
    ):
        with pytest.raises(ProofInvalid):
            check_inclusion(leaf(index), index, size, wrong, tree_hash(0, size))


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 4), (4, 4), (5, 4), (0, -1), (0, 2**63)])
def test_a_leaf_that_is_not_in_the_tree_is_refused(index: int, size: int) -> None:
    with pytest.raises(ProofInvalid, match=f"got {index} of {size}"):
        root_of_inclusion(leaf(0), index, size, [])


@pytest.mark.parametrize(
    ("size", "nodes"), [(3, [leaf(0)]), (0, [leaf(0)]), (-1, []), (1, [b"short"]), (2**63, [leaf(0)])]
)
def test_an_edge_that_cannot_be_is_refused(size: int, nodes: list[bytes]) -> None:
    with pytest.raises(ProofInvalid, match="edge of a tree: expected"):
        Edge(size, nodes)


def test_too_few_leaves_for_a_proof_are_said() -> None:
    with pytest.raises(ProofInvalid, match="expected the leaves from 0 to 7, got them up to 5"):
        paths_behind(Edge(), 7, [0], map(leaf, range(5)))
