"""Merkle trees over the lines of a log: one root for all of them, and proofs that a single line is among them.

Source: RFC 6962, section 2.1 (hashes and paths), and RFC 9162, section 2.1.3.2 (how a path is verified). Indices count
from 0, and sizes are numbers of leaves. A tree without leaves proves nothing, so size 0 is refused in proofs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final

from otel_audit.errors import ProofInvalid

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "Edge",
    "check_inclusion",
    "inclusion_ranges",
    "leaf_hash",
    "paths_behind",
    "root_of_inclusion",
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
    """The roots of the perfect subtrees of a tree, from left to right.

    They are enough to append leaves and to compute the root without any earlier leaf. An edge has as many nodes as its
    size has bits set, at most 63.
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

    def copy(self) -> Edge:
        """Return an edge that grows independently of this one."""
        return Edge(self._size, self._nodes)

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        nodes, full = self._nodes, self._size
        while full & 1:
            leaf = sha256(b"\x01" + nodes.pop() + leaf).digest()
            full >>= 1
        nodes.append(leaf)
        self._size += 1

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add the hashes of the next leaves. Working level by level takes less time than adding one by one."""
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

    Source: RFC 6962, section 2.1.1 (`PATH`), of which each element is the root of one such range.

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


_Part = tuple[int, bytes, list[int]]  # the size and root of a subtree, and the leaves in it whose paths are wanted


def paths_behind(edge: Edge, size: int, indexes: Iterable[int], leaves: Iterable[bytes]) -> dict[int, list[bytes]]:
    """Return the inclusion paths of leaves after an edge, in a tree of `size` leaves, in one pass and constant memory.

    `leaves` are the hashes of all leaves after the edge. No leaf beyond the size is read.

    Raises:
        ProofInvalid: the tree has no such leaf, or `leaves` has too few.
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
    _check_hashes([leaf, *path])
    place, last, root = index, size - 1, leaf
    for node in path:
        if last == 0:
            raise ProofInvalid(_length(index, size, path))
        if place & 1 or place == last:
            root = _node_hash(node, root)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            root = _node_hash(root, node)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofInvalid(_length(index, size, path))
    return root


def _largest_power_below(size: int) -> int:
    """Return the largest power of two that is smaller than `size`, the split of RFC 6962. `size` is at least 2."""
    return 1 << (size - 1).bit_length() - 1


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size < _MOST_LEAVES:
        raise ProofInvalid(f"inclusion proof: expected an index below the size of the tree, got {index} of {size}")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if wrong := [each for each in hashes if len(each) != HASH_BYTES]:
        raise ProofInvalid(f"inclusion proof: expected hashes of {HASH_BYTES} bytes, got one of {len(wrong[0])}")


def _length(index: int, size: int, path: Sequence[bytes]) -> str:
    return f"inclusion proof: expected {len(inclusion_ranges(index, size))} hashes, got {len(path)}"
