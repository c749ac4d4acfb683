"""How a tree's tiles grow by new entries: pure, over hashes and bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

from ironwork_audit.tlog import (
    TILE_WIDTH,
    Frontier,
    TilePath,
    leaf_hash,
    pack_bundle,
    pack_tile,
    root_of,
)


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree head. size: entries. root: 32 bytes (RFC 9162, section 2.1)."""

    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Edge:
    """A tree's right edge. levels: for each tile level, the hashes of its partial tile (none where
    the last one is full). entries: those of the partial bundle.
    """

    frontier: Frontier
    levels: Sequence[Sequence[bytes]] = ()
    entries: Sequence[bytes] = ()

    @property
    def tree(self) -> Tree:
        """The tree's head."""
        return Tree(self.frontier.size, self.frontier.root())


def grow(edge: Edge, entries: Sequence[bytes]) -> tuple[Edge, dict[TilePath, bytes]]:
    """The edge with these entries, and every tile and bundle that is new, full or partial."""
    files: dict[TilePath, bytes] = {}
    frontier = edge.frontier.copy()
    nodes = [leaf_hash(entry) for entry in entries]
    for leaf in nodes:
        frontier.append(leaf)
    rest = _fill_bundles(edge, entries, files)
    levels: list[Sequence[bytes]] = []
    count = edge.frontier.size
    for level in range(max(len(edge.levels), 1) + 8):
        old = edge.levels[level] if level < len(edge.levels) else ()
        if not nodes and level >= len(edge.levels):
            break
        kept, nodes = _fill_tiles(level, count // TILE_WIDTH, old, nodes, files)
        levels.append(kept)
        count //= TILE_WIDTH
    return Edge(frontier, levels, rest), files


def _fill_tiles(
    level: int,
    index: int,
    old: Sequence[bytes],
    new: Sequence[bytes],
    files: dict[TilePath, bytes],
) -> tuple[Sequence[bytes], list[bytes]]:
    """The level's new partial tile, and the roots of the tiles that became full."""
    if not new:
        return old, []
    hashes = [*old, *new]
    full = []
    for start in range(0, len(hashes) - TILE_WIDTH + 1, TILE_WIDTH):
        tile = hashes[start : start + TILE_WIDTH]
        files[TilePath(level, index)] = pack_tile(tile)
        full.append(root_of(tile))
        index += 1
    rest = hashes[len(full) * TILE_WIDTH :]
    if rest:
        files[TilePath(level, index, len(rest))] = pack_tile(rest)
    return rest, full


def _fill_bundles(
    edge: Edge, entries: Sequence[bytes], files: dict[TilePath, bytes]
) -> Sequence[bytes]:
    together = [*edge.entries, *entries]
    index = edge.frontier.size // TILE_WIDTH
    whole = len(together) // TILE_WIDTH * TILE_WIDTH
    for start in range(0, whole, TILE_WIDTH):
        bundle = together[start : start + TILE_WIDTH]
        files[TilePath(None, index + start // TILE_WIDTH)] = pack_bundle(bundle)
    rest = together[whole:]
    if rest and entries:
        last = TilePath(None, index + whole // TILE_WIDTH, len(rest))
        files[last] = pack_bundle(rest)
    return rest
