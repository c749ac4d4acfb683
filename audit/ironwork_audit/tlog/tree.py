"""Merkle roots, and a tree that grows by its right edge alone (RFC 9162, section 2.1).

A node is named by its level (0 is a leaf) and its index from the left: it covers the leaves
[index << level, (index + 1) << level).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ironwork_audit.tlog.hashes import EMPTY_ROOT, HASH_BYTES, node_hash


class HashReader(Protocol):
    """Gives the hashes of nodes whose leaves are all in the tree."""

    def node(self, level: int, index: int) -> bytes:
        """The node's 32 bytes."""


class Frontier:
    """The compact range of a tree: the roots of its perfect subtrees, left to right, largest first.

    All that is needed to append and to give the root; at most 63 hashes. Not for concurrent use.
    """

    __slots__ = ("_hashes", "_size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """A tree of `size` leaves: one hash for each bit set in size. ValueError for others."""
        if size < 0 or len(hashes) != size.bit_count():
            raise ValueError("frontier: needs one hash for each bit that is set in the size")
        if any(len(item) != HASH_BYTES for item in hashes):
            raise ValueError("frontier: a hash is not 32 bytes long")
        self._size = size
        self._hashes = list(hashes)

    @property
    def size(self) -> int:
        """How many leaves."""
        return self._size

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """What the constructor takes."""
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf by its hash."""
        size, hashes = self._size, self._hashes
        while size & 1:
            leaf = node_hash(hashes.pop(), leaf)
            size >>= 1
        hashes.append(leaf)
        self._size += 1

    def append_subtree(self, level: int, root: bytes) -> None:
        """Add 2**level leaves at once, by the root of their perfect subtree. ValueError unless the
        size is a multiple of 2**level.
        """
        if self._size & ((1 << level) - 1):
            raise ValueError("frontier: the subtree does not start at a multiple of its width")
        size = self._size >> level
        while size & 1:
            root = node_hash(self._hashes.pop(), root)
            size >>= 1
        self._hashes.append(root)
        self._size += 1 << level

    def root(self) -> bytes:
        """The tree's root: the subtrees joined from the right. The empty tree's is SHA-256()."""
        if not self._hashes:
            return EMPTY_ROOT
        *rest, root = self._hashes
        for left in reversed(rest):
            root = node_hash(left, root)
        return root

    def copy(self) -> "Frontier":
        """One that grows on its own."""
        return Frontier(self._size, self._hashes)


def perfect_subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The nodes (level, index) that together cover [start, end), left to right, each as large as
    its place allows.
    """
    while start < end:
        level = (end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        yield level, start >> level
        start += 1 << level


def range_root(start: int, end: int, node: Callable[[int, int], bytes]) -> bytes:
    """MTH(D[start:end]), where [start, end) is a subtree of some tree: start is a multiple of the
    smallest power of two that is not below end - start. ValueError for another range.
    """
    if not 0 <= start < end:
        raise ValueError("range: empty or reversed")
    if start & ((1 << (end - start - 1).bit_length()) - 1):
        raise ValueError("range: not a subtree")
    *rest, root = [node(level, index) for level, index in perfect_subtrees(start, end)]
    for left in reversed(rest):
        root = node_hash(left, root)
    return root


def frontier_of(size: int, reader: HashReader) -> Frontier:
    """The frontier of a stored tree."""
    return Frontier(size, [reader.node(*place) for place in perfect_subtrees(0, size)])


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over nodes of one level that stand side by side; 256 of them are one tile."""
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        odd = level[-1:] if len(level) & 1 else []
        level = [node_hash(a, b) for a, b in zip(level[::2], level[1::2], strict=False)] + odd
    return level[0]
