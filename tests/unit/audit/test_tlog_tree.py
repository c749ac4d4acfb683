"""The Merkle tree: known vectors, and every shape against a tree written as RFC 9162 words it."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ironwork_audit.tlog import (
    EMPTY_ROOT,
    Frontier,
    ProofRefused,
    consistency_proof,
    frontier_of,
    inclusion_proof,
    leaf_hash,
    node_hash,
    range_root,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The inputs and roots of the certificate-transparency project's own tests of RFC 6962.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]

leaf_lists = st.integers(1, 70).map(lambda n: [leaf_hash(b"%d" % i) for i in range(n)])


def mth(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 9162, section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162, section 2.1.4.1."""
    n = len(leaves)
    if m == n:
        return [] if whole else [mth(leaves)]
    k = 1
    while k * 2 < n:
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], whole=False), mth(leaves[:k])]


class Leaves:
    """A reader over leaves in memory."""

    def __init__(self, leaves: list[bytes]) -> None:
        self.leaves = leaves

    def node(self, level: int, index: int) -> bytes:
        part = self.leaves[index << level : (index + 1) << level]
        assert len(part) == 1 << level
        return mth(part)


def grown(leaves: list[bytes]) -> Frontier:
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier


def test_the_known_roots() -> None:
    """Roots of the published vectors come out, and the empty tree's is SHA-256 of nothing."""
    frontier = Frontier()
    assert frontier.root() == EMPTY_ROOT == root_of([])
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        frontier.append(leaf_hash(leaf))
        assert frontier.root() == root
    assert root_of([leaf_hash(leaf) for leaf in LEAVES]) == ROOTS[-1]


def test_known_proofs() -> None:
    """A published inclusion and a published consistency proof come out (RFC 6962 test data)."""
    reader = Leaves([leaf_hash(leaf) for leaf in LEAVES])
    assert [item.hex()[:8] for item in inclusion_proof(5, 8, reader)] == [
        "bc1a0643",
        "ca854ea1",
        "d37ee418",
    ]
    assert [item.hex()[:8] for item in consistency_proof(6, 8, reader)] == [
        "0ebc5d34",
        "ca854ea1",
        "d37ee418",
    ]


@settings(deadline=None)  # a slow machine is no failure
@given(leaf_lists)
def test_every_way_to_a_root_agrees(leaves: list[bytes]) -> None:
    """A frontier, the root over a row of nodes and the recursive definition give one root, and a
    frontier can be kept, read from the tree, and continued.
    """
    frontier = grown(leaves)
    assert frontier.size == len(leaves)
    assert frontier.root() == root_of(leaves) == mth(leaves)
    kept = frontier_of(len(leaves), Leaves(leaves))
    assert (kept.size, kept.hashes) == (frontier.size, frontier.hashes)
    other = kept.copy()
    other.append(leaves[0])
    assert kept.root() == mth(leaves)
    assert other.root() == mth([*leaves, leaves[0]])


@settings(deadline=None)  # a slow machine is no failure
@given(leaf_lists, st.integers(0, 4))
def test_a_subtree_is_appended_whole(leaves: list[bytes], level: int) -> None:
    """Appending a perfect subtree by its root is appending its leaves; elsewhere it is refused."""
    frontier, slow = grown(leaves), grown(leaves)
    more = [leaf_hash(b"more %d" % i) for i in range(1 << level)]
    if len(leaves) % (1 << level):
        with pytest.raises(ValueError, match="multiple"):
            frontier.append_subtree(level, mth(more))
        return
    frontier.append_subtree(level, mth(more))
    for leaf in more:
        slow.append(leaf)
    assert (frontier.size, frontier.hashes) == (slow.size, slow.hashes)


@pytest.mark.parametrize(
    ("size", "hashes"), [(-1, []), (1, []), (2, [b"x" * 32] * 2), (1, [b"short"])]
)
def test_a_wrong_frontier_is_refused(size: int, hashes: list[bytes]) -> None:
    """A frontier has one 32-byte hash for each bit of its size."""
    with pytest.raises(ValueError, match="frontier"):
        Frontier(size, hashes)


@settings(deadline=None)  # a slow machine is no failure
@given(leaf_lists, st.data())
def test_inclusion(leaves: list[bytes], data: st.DataObject) -> None:
    """A proof is the RFC's, leads to the root, and for nothing else."""
    size = len(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, Leaves(leaves))
    root = mth(leaves)
    assert proof == path(index, leaves)
    verify_inclusion(index, size, leaves[index], proof, root)
    changed = data.draw(st.sampled_from(["leaf", "root", "index", "short", "long", "hash", "size"]))
    bad = [bytes(32), *proof[1:]]
    other = (index + 1) % size
    arguments = {
        "leaf": (index, size, bytes(32), proof, root),
        "root": (index, size, leaves[index], proof, bytes(32)),
        "index": (other if other != index else size, size, leaves[index], proof, root),
        "short": (index, size, leaves[index], proof[:-1], root) if proof else None,
        "long": (index, size, leaves[index], [*proof, bytes(32)], root),
        "hash": (index, size, leaves[index], bad, root),
        "size": (index, index, leaves[index], proof, root),
    }[changed]
    if arguments is not None:
        with pytest.raises(ProofRefused):
            verify_inclusion(*arguments)


@settings(deadline=None)  # a slow machine is no failure
@given(leaf_lists, st.data())
def test_consistency(leaves: list[bytes], data: st.DataObject) -> None:
    """A proof is the RFC's, leads to both roots, and a changed one leads nowhere."""
    size = len(leaves)
    old = data.draw(st.integers(0, size))
    proof = consistency_proof(old, size, Leaves(leaves))
    roots = mth(leaves[:old]), mth(leaves)
    assert proof == (subproof(old, leaves, whole=True) if old else [])
    verify_consistency(old, size, *roots, proof)
    with pytest.raises(ProofRefused):
        verify_consistency(old, size, bytes(32), roots[1], proof)
    with pytest.raises(ProofRefused):
        verify_consistency(old, size, *roots, [*proof, bytes(32)])
    if 0 < old < size:
        with pytest.raises(ProofRefused):
            verify_consistency(old, size, roots[0], bytes(32), proof)
        at = data.draw(st.integers(0, len(proof) - 1))
        with pytest.raises(ProofRefused):
            verify_consistency(old, size, *roots, [*proof[:at], *proof[at + 1 :]])
        with pytest.raises(ProofRefused):
            verify_consistency(old, size, *roots, [*proof[:at], bytes(32), *proof[at + 1 :]])


def test_proofs_outside_the_tree_are_refused() -> None:
    """No proof is made, or believed, for what is not in the tree, nor with hashes of other lengths
    or without end.
    """
    reader = Leaves([leaf_hash(b"a")])
    for index, size in ((1, 1), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="not in the tree"):
            inclusion_proof(index, size, reader)
    for old, size in ((2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="larger"):
            consistency_proof(old, size, reader)
        with pytest.raises(ProofRefused):
            verify_consistency(old, size, EMPTY_ROOT, EMPTY_ROOT, [])
    with pytest.raises(ProofRefused, match="32 bytes"):
        verify_inclusion(0, 2, bytes(32), [b"short"], bytes(32))
    with pytest.raises(ProofRefused, match="too many"):
        verify_inclusion(0, 2**62, bytes(32), [bytes(32)] * 100, bytes(32))


@settings(deadline=None)  # a slow machine is no failure
@given(leaf_lists, st.data())
def test_roots_over_ranges(leaves: list[bytes], data: st.DataObject) -> None:
    """A range that is a subtree has its own root; any other range is refused."""
    end = data.draw(st.integers(1, len(leaves)))
    start = data.draw(st.integers(0, end - 1))
    width = 1
    while width < end - start:
        width *= 2
    if start % width:
        with pytest.raises(ValueError, match="subtree"):
            range_root(start, end, Leaves(leaves).node)
    else:
        assert range_root(start, end, Leaves(leaves).node) == mth(leaves[start:end])
    with pytest.raises(ValueError, match="empty"):
        range_root(end, end, Leaves(leaves).node)
