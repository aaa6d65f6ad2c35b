"""Merkle trees over the lines of a log: one root for all of them, and proofs about single lines and earlier roots.

Source: RFC 6962, section 2.1 (hashes, paths and consistency proofs), RFC 9162, sections 2.1.3.2 and 2.1.4.2 (how
both are verified). Indices count from 0 and sizes are numbers of leaves. A tree without leaves proves nothing, so size
0 is refused in proofs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final

from otel_audit.errors import ProofInvalid

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "Edge",
    "check_consistency",
    "check_inclusion",
    "consistency_ranges",
    "inclusion_ranges",
    "leaf_hash",
    "path_behind",
    "paths_behind",
    "root_of_inclusion",
    "roots_of",
]

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()
# No log of ours grows longer, and the integers of a proof stay within 64 bits for verifiers in other languages.
_MOST_LEAVES: Final = 2**63


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf. Source: RFC 6962, section 2.1: the prefix 0x00 keeps leaves and nodes apart."""
    return sha256(b"\x00" + entry).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Edge:
    """The roots of the perfect subtrees of a tree, from left to right: all that is needed to let it grow.

    Whoever holds the edge appends leaves and computes roots without an earlier leaf. It has as many nodes as its size
    has bits set, at most 63.
    """

    __slots__ = ("_nodes", "_size")

    def __init__(self, size: int = 0, nodes: Sequence[bytes] = ()) -> None:
        """Continue a tree of `size` leaves at its `nodes`, as `nodes` gave them.

        Raises:
            ProofInvalid: these cannot be the nodes of a tree of that size.
        """
        if not 0 <= size < _MOST_LEAVES or len(nodes) != size.bit_count():
            raise ProofInvalid(
                f"edge of a tree: expected {max(size, 0).bit_count()} nodes at size {size}, got {len(nodes)}"
            )
        if wrong := [node for node in nodes if len(node) != HASH_BYTES]:
            raise ProofInvalid(f"edge of a tree: expected nodes of {HASH_BYTES} bytes, got one of {len(wrong[0])}")
        self._size = size
        self._nodes = list(nodes)

    @property
    def size(self) -> int:
        """The number of leaves."""
        return self._size

    @property
    def nodes(self) -> tuple[bytes, ...]:
        """The roots of the perfect subtrees, the largest first."""
        return tuple(self._nodes)

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        nodes, full = self._nodes, self._size
        while full & 1:
            leaf = sha256(b"\x01" + nodes.pop() + leaf).digest()
            full >>= 1
        nodes.append(leaf)
        self._size += 1

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add the hashes of the next leaves. Level by level, which takes less time than one by one."""
        before, level = self._size, list(leaves)
        left = iter(self._nodes[::-1])  # the smallest subtree first, one for each bit that is set
        nodes = []
        while before or level:
            if before & 1:
                level.insert(0, next(left))
            if len(level) & 1:
                nodes.append(level.pop())
            pairs = iter(level)
            level = [sha256(b"\x01" + node + right).digest() for node, right in zip(pairs, pairs, strict=True)]
            before >>= 1
        self._nodes = nodes[::-1]
        self._size += len(leaves)

    def root(self) -> bytes:
        """Return the root. Source: RFC 6962, section 2.1: without leaves it is the hash of the empty string."""
        if not self._nodes:
            return EMPTY_ROOT
        root = self._nodes[-1]
        for node in reversed(self._nodes[:-1]):
            root = _node_hash(node, root)
        return root


def inclusion_ranges(index: int, size: int) -> list[range]:
    """Return which leaves each hash of an inclusion path stands for, the sibling of the leaf first.

    Source: RFC 6962, section 2.1.1 (`PATH`), of which each element is the root of one such range; `roots_of` computes
    them all in one pass over the leaves.

    Raises:
        ProofInvalid: the tree has no such leaf.
    """
    _check_index(index, size)
    path: list[range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _largest_power_below(end - start)
        if index < middle:
            path.append(range(middle, end))
            end = middle
        else:
            path.append(range(start, middle))
            start = middle
    return path[::-1]


def consistency_ranges(old_size: int, size: int) -> list[range]:
    """Return which leaves each hash of a consistency proof stands for, in the order of the proof.

    Source: RFC 6962, section 2.1.2 (`PROOF`). Equal sizes need no hash.

    Raises:
        ProofInvalid: the old size is 0 or the larger one.
    """
    _check_sizes(old_size, size)
    proof: list[range] = []
    start, end = 0, size
    while old_size != end:
        middle = start + _largest_power_below(end - start)
        if old_size <= middle:
            proof.append(range(middle, end))
            end = middle
        else:
            proof.append(range(start, middle))
            start = middle
    if start:  # the old tree is no subtree of its own: its last part is needed to compute both roots
        proof.append(range(start, end))
    return proof[::-1]


def path_behind(edge: Edge, size: int, leaves: Iterable[bytes]) -> list[bytes]:
    """Return the inclusion path of the leaf that follows an edge, in a tree of `size` leaves. Constant memory.

    What stands before the leaf is in the edge. `leaves` are the hashes of the leaf and of those that follow it; none is
    read behind the size.

    Raises:
        ProofInvalid: the tree has no such leaf, or there are fewer leaves.
    """
    index = edge.size
    ranges = inclusion_ranges(index, size)
    behind = [range(part.start - index, part.stop - index) for part in ranges if part.start > index]
    right = iter(roots_of(behind, leaves))
    left = iter(reversed(edge.nodes))
    return [next(right) if part.start > index else next(left) for part in ranges]


_Part = tuple[int, bytes, list[int]]  # the size and root of a subtree, and the leaves in it whose paths are wanted


def paths_behind(edge: Edge, size: int, indexes: Iterable[int], leaves: Iterable[bytes]) -> dict[int, list[bytes]]:
    """Return the inclusion paths of several leaves behind an edge, in a tree of `size` leaves, in one pass.

    `leaves` are the hashes of all leaves behind the edge; none is read behind the size.

    Raises:
        ProofInvalid: the tree has no such leaf, or there are fewer leaves.
    """
    paths: dict[int, list[bytes]] = {index: [] for index in indexes}
    for index in paths:
        _check_index(index, size)
    bits = (1 << bit for bit in reversed(range(edge.size.bit_length())) if edge.size >> bit & 1)
    parts: list[_Part] = [(bit, node, []) for bit, node in zip(bits, edge.nodes, strict=True)]
    reached = edge.size
    for index, leaf in zip(range(edge.size, size), leaves, strict=False):
        part: _Part = (1, leaf, [index] if index in paths else [])
        while parts and parts[-1][0] == part[0]:
            part = _joined(parts.pop(), part, paths)
        parts.append(part)
        reached = index + 1
    if reached < size or any(index < edge.size for index in paths):
        raise ProofInvalid(f"proof: expected the leaves from {edge.size} to {size}, got them up to {reached}")
    whole = parts.pop() if parts else (0, b"", [])
    while parts:
        whole = _joined(parts.pop(), whole, paths)
    return paths


def _joined(left: _Part, right: _Part, paths: Mapping[int, list[bytes]]) -> _Part:
    for wanted, sibling in ((left[2], right[1]), (right[2], left[1])):
        for index in wanted:
            paths[index].append(sibling)
    return left[0] + right[0], _node_hash(left[1], right[1]), [*left[2], *right[2]]


def roots_of(ranges: Sequence[range], leaves: Iterable[bytes]) -> list[bytes]:
    """Return the root of each range of leaves, in one pass and constant memory.

    `leaves` are the hashes of all leaves from the first on; none is read behind the last range. The ranges do not
    overlap, as those of one proof never do.

    Raises:
        ProofInvalid: there are fewer leaves than the ranges ask for.
    """
    stream = enumerate(leaves)
    roots: dict[range, bytes] = {}
    for part in sorted(ranges, key=lambda part: part.start):
        roots[part] = _root_of(part, stream)
    return [roots[part] for part in ranges]


def _root_of(part: range, stream: Iterator[tuple[int, bytes]]) -> bytes:
    edge = Edge()
    for index, leaf in stream:
        if index >= part.start:
            edge.append(leaf)
        if index == part.stop - 1:
            return edge.root()
    raise ProofInvalid(
        f"proof: expected leaves up to index {part.stop - 1}, got only {edge.size} of the last {len(part)}"
    )


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Return if the path leads from the leaf at this index to the root of a tree of this size.

    Raises:
        ProofInvalid: it does not.
    """
    found = root_of_inclusion(leaf, index, size, path)
    if found != root:
        raise ProofInvalid(f"inclusion proof: expected the root {root.hex()} at size {size}, got {found.hex()}")


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that a tree of this size must have if this leaf is at this index.

    Source: RFC 9162, section 2.1.3.2.

    Raises:
        ProofInvalid: the tree has no such leaf, or the path is not as long as it is in every tree of this size.
    """
    _check_index(index, size)
    _check_hashes("inclusion proof", [leaf, *path])
    place, last, root = index, size - 1, leaf
    for node in path:
        if last == 0:
            raise ProofInvalid(_length("inclusion proof", len(inclusion_ranges(index, size)), path))
        if place & 1 or place == last:
            root = _node_hash(node, root)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            root = _node_hash(root, node)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofInvalid(_length("inclusion proof", len(inclusion_ranges(index, size)), path))
    return root


def check_consistency(old_size: int, size: int, proof: Sequence[bytes], old_root: bytes, root: bytes) -> None:
    """Return if the tree of `old_size` leaves and this root is the beginning of the larger one.

    Source: RFC 9162, section 2.1.4.2.

    Raises:
        ProofInvalid: it is not, or the proof does not show it.
    """
    _check_sizes(old_size, size)
    _check_hashes("consistency proof", [old_root, root, *proof])
    if old_size == size:
        if proof:
            raise ProofInvalid(_length("consistency proof", 0, proof))
        _check_roots(size, old_root, root)
        return
    # A perfect old tree is a node of the new one, and is not written into the proof again.
    hashes = list(proof) if old_size.bit_count() > 1 else [old_root, *proof]
    if not hashes:
        raise ProofInvalid(_length("consistency proof", len(consistency_ranges(old_size, size)), proof))
    place, last = old_size - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old = new = hashes[0]
    for node in hashes[1:]:
        if last == 0:
            raise ProofInvalid(_length("consistency proof", len(consistency_ranges(old_size, size)), proof))
        if place & 1 or place == last:
            old, new = _node_hash(node, old), _node_hash(node, new)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            new = _node_hash(new, node)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofInvalid(_length("consistency proof", len(consistency_ranges(old_size, size)), proof))
    _check_roots(old_size, old_root, old)
    _check_roots(size, root, new)


def _largest_power_below(size: int) -> int:
    """Return the largest power of two that is smaller than `size`, the split of RFC 6962. `size` is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size < _MOST_LEAVES:
        raise ProofInvalid(f"inclusion proof: expected an index below the size of the tree, got {index} of {size}")


def _check_sizes(old_size: int, size: int) -> None:
    if not 0 < old_size <= size < _MOST_LEAVES:
        raise ProofInvalid(
            f"consistency proof: expected sizes from 1 on, the older one first, got {old_size} and {size}"
        )


def _check_hashes(what: str, hashes: Sequence[bytes]) -> None:
    if wrong := [each for each in hashes if len(each) != HASH_BYTES]:
        raise ProofInvalid(f"{what}: expected hashes of {HASH_BYTES} bytes, got one of {len(wrong[0])}")


def _check_roots(size: int, expected: bytes, found: bytes) -> None:
    if expected != found:
        raise ProofInvalid(f"consistency proof: expected the root {expected.hex()} at size {size}, got {found.hex()}")


def _length(what: str, expected: int, proof: Sequence[bytes]) -> str:
    return f"{what}: expected {expected} hashes, got {len(proof)}"
