"""Inclusion and consistency proofs: RFC 9162, sections 2.1.3 and 2.1.4."""

from collections.abc import Iterator, Sequence

from ironwork_audit.tlog.hashes import EMPTY_ROOT, HASH_BYTES, node_hash
from ironwork_audit.tlog.tree import HashReader, range_root

# A tree of 2**63 - 1 leaves has paths of at most 63 hashes; a consistency proof one more.
MAX_PROOF_HASHES = 64


class ProofRefused(ValueError):
    """The proof does not prove what it was given for. Its text says at which check it failed."""


def inclusion_proof(index: int, size: int, reader: HashReader) -> list[bytes]:
    """The path from leaf `index` to the root of the tree of `size` leaves, the leaf's sibling
    first. ValueError for an index that is not in the tree.
    """
    if not 0 <= index < size:
        raise ValueError("proof: the index is not in the tree")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return [range_root(*part, reader.node) for part in reversed(path)]


def consistency_proof(old_size: int, size: int, reader: HashReader) -> list[bytes]:
    """That the tree of old_size leaves is a prefix of that of size; empty where there is nothing to
    prove (equal sizes, or an empty old tree). ValueError for old_size > size.
    """
    if not 0 <= old_size <= size:
        raise ValueError("proof: the old tree is larger than the new one")
    if old_size in {0, size}:
        return []
    parts = []
    start, end = 0, size
    whole = True  # the old tree's part is still all that lies left of it
    while old_size != end:
        middle = start + _split(end - start)
        if old_size <= middle:
            parts.append((middle, end))
            end = middle
        else:
            parts.append((start, middle))
            start, whole = middle, False
    if not whole:
        parts.append((start, end))
    return [range_root(*part, reader.node) for part in reversed(parts)]


def verify_inclusion(
    index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes
) -> None:
    """RFC 9162, 2.1.3.2. leaf: the leaf's hash. ProofRefused unless the proof leads to the root."""
    if not 0 <= index < size:
        raise ProofRefused("inclusion: the index is not in the tree")
    _check_hashes([leaf, root, *proof])
    node = leaf
    for sibling, is_left in _steps(index, size - 1, proof):
        node = node_hash(sibling, node) if is_left else node_hash(node, sibling)
    if node != root:
        raise ProofRefused("inclusion: the proof does not lead to the root")


def verify_consistency(
    old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]
) -> None:
    """RFC 9162, 2.1.4.2. An empty old tree is a prefix of every tree, and has an empty proof.
    ProofRefused unless the proof leads to both roots.
    """
    if not 0 <= old_size <= size:
        raise ProofRefused("consistency: the old tree is larger than the new one")
    _check_hashes([old_root, root, *proof])
    if old_size in {0, size}:
        expected = root if old_size == size else EMPTY_ROOT
        if proof or old_root != expected:
            raise ProofRefused("consistency: the roots differ, or a proof where none is needed")
        return
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofRefused("consistency: the proof is too short")
    # Up to the largest subtree that both trees end with, which the proof begins with.
    shift = (~(old_size - 1) & old_size).bit_length() - 1
    old = new = path[0]
    for sibling, is_left in _steps((old_size - 1) >> shift, (size - 1) >> shift, path[1:]):
        if is_left:
            old = node_hash(sibling, old)
        new = node_hash(sibling, new) if is_left else node_hash(new, sibling)
    if old != old_root:
        raise ProofRefused("consistency: the proof does not lead to the old root")
    if new != root:
        raise ProofRefused("consistency: the proof does not lead to the new root")


def _steps(position: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each hash of a proof and whether it stands on the left, on the way up from the node at
    `position` to the root of a tree whose last node on that level is `last`.
    """
    for sibling in proof:
        if last == 0:
            raise ProofRefused("proof: too long")
        is_left = bool(position & 1) or position == last
        yield sibling, is_left
        # The last node of an uneven level goes up as it is, without a hash in the proof.
        while is_left and position and not position & 1:
            position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ProofRefused("proof: too short")


def _split(width: int) -> int:
    """The largest power of two below width (RFC 9162, 2.1.1), for width > 1."""
    return 1 << ((width - 1).bit_length() - 1)


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if len(hashes) > MAX_PROOF_HASHES + 2:
        raise ProofRefused("proof: too many hashes")
    if any(len(item) != HASH_BYTES for item in hashes):
        raise ProofRefused("proof: a hash is not 32 bytes long")
