"""C2SP tlog-tiles: paths, hash tiles and entry bundles (c2sp.org/tlog-tiles).

A tile holds up to 256 hashes of one tile level: level L's hashes are the tree's nodes at level
8·L. A partial tile holds fewer and says how many in its path. Parsing is strict: what a log of
this format would not write is refused.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from ironwork_audit.tlog.hashes import HASH_BYTES
from ironwork_audit.tlog.tree import root_of

TILE_WIDTH: Final = 256
TILE_HEIGHT: Final = 8
FULL_TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
MAX_LEVEL: Final = 63
MAX_ENTRY_BYTES: Final = 65535
MAX_BUNDLE_BYTES: Final = TILE_WIDTH * (2 + MAX_ENTRY_BYTES)
# A tree of 2**63 - 1 entries is the largest that anything here takes.
MAX_SIZE: Final = 2**63 - 1

ENTRIES: Final = "entries"

_PATH: Final = re.compile(
    r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?"
)


class BadTile(ValueError):
    """A path, tile or bundle that is not of the format. Its text names the rule."""


@dataclass(frozen=True, slots=True, order=True)
class TilePath:
    """Where a tile is. level: None for an entry bundle. width: 256 for a full one."""

    level: int | None
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        if self.level is not None and not 0 <= self.level <= MAX_LEVEL:
            raise BadTile("tile: the level is not from 0 to 63")
        if self.index < 0:
            raise BadTile("tile: the index is negative")
        if not 1 <= self.width <= TILE_WIDTH:
            raise BadTile("tile: the width is not from 1 to 256")

    @property
    def path(self) -> str:
        """`tile/<L>/<N>[.p/<W>]`, relative to the log's prefix, with `/` between the parts."""
        level = ENTRIES if self.level is None else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{_encode_index(self.index)}{partial}"

    @property
    def full(self) -> "TilePath":
        """The full tile in the same place."""
        return TilePath(self.level, self.index)

    @property
    def bundle(self) -> "TilePath":
        """The entry bundle beside a tile of level 0. BadTile for another level."""
        if self.level != 0:
            raise BadTile("tile: only level 0 has entry bundles")
        return TilePath(None, self.index, self.width)

    @classmethod
    def parse(cls, path: str) -> Self:
        """The path's tile; BadTile unless `.path` gives the same text."""
        match = _PATH.fullmatch(path)
        if match is None:
            raise BadTile("tile: not a path of tlog-tiles")
        level = None if match[1] == ENTRIES else int(match[1])
        index = int(match[2].replace("x", "").replace("/", ""))
        tile = cls(level, index, int(match[3] or TILE_WIDTH))
        if tile.path != path:
            raise BadTile("tile: not the one path of its index and width")
        return tile


def _encode_index(index: int) -> str:
    *groups, last = _groups(index)
    return "".join(f"x{group:03}/" for group in groups) + f"{last:03}"


def _groups(index: int) -> list[int]:
    groups = [index % 1000]
    while index := index // 1000:
        groups.append(index % 1000)
    return groups[::-1]


def tile_at(level: int, index: int, size: int) -> TilePath:
    """The tile at this place in a tree of `size` entries, partial where it must be. BadTile where
    the tree has none there.
    """
    width = min((size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH, TILE_WIDTH)
    return TilePath(level, index, width)


def tiles_between(old_size: int, new_size: int) -> Iterator[TilePath]:
    """The hash tiles that a tree of new_size has and one of old_size had not: level by level, left
    to right. Entry bundles are those of level 0 (`TilePath.bundle`).
    """
    if not 0 <= old_size <= new_size <= MAX_SIZE:
        raise BadTile("tiles: the sizes are reversed or too large")
    level = 0
    while nodes := new_size >> (TILE_HEIGHT * level):
        old_nodes = old_size >> (TILE_HEIGHT * level)
        if nodes != old_nodes:
            for index in range(old_nodes // TILE_WIDTH, -(-nodes // TILE_WIDTH)):
                yield tile_at(level, index, new_size)
        level += 1


def pack_tile(hashes: Sequence[bytes]) -> bytes:
    """A tile's bytes, from 1 to 256 hashes."""
    if not 1 <= len(hashes) <= TILE_WIDTH or any(len(item) != HASH_BYTES for item in hashes):
        raise BadTile("tile: takes 1 to 256 hashes of 32 bytes")
    return b"".join(hashes)


def parse_tile(data: bytes, width: int) -> list[bytes]:
    """The hashes of a tile of this width."""
    if not 1 <= width <= TILE_WIDTH or len(data) != width * HASH_BYTES:
        raise BadTile(f"tile: is not {width} hashes of 32 bytes")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def pack_bundle(entries: Sequence[bytes]) -> bytes:
    """An entry bundle: each entry after its length, a big-endian uint16."""
    if not 1 <= len(entries) <= TILE_WIDTH:
        raise BadTile("bundle: takes 1 to 256 entries")
    if any(len(entry) > MAX_ENTRY_BYTES for entry in entries):
        raise BadTile("bundle: an entry is longer than 65535 bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def parse_bundle(data: bytes, width: int) -> list[bytes]:
    """The entries of a bundle of this width."""
    entries, whole = split_bundle(data, width)
    if not whole:
        raise BadTile(f"bundle: is not {width} entries, each after its length")
    return entries


def split_bundle(data: bytes, width: int) -> tuple[list[bytes], bool]:
    """The entries that can be told apart, at most `width`, and whether they are all that a bundle
    of this width holds.
    """
    entries: list[bytes] = []
    at, end = 0, len(data)
    while len(entries) < width and at + 2 <= end:
        start = at + 2
        at = start + (data[at] << 8 | data[at + 1])
        if at > end:
            return entries, False
        entries.append(data[start:at])
    return entries, len(entries) == width and at == end


class TileReader:
    """A HashReader over the tiles of a tree of `size` entries. Keeps the last tiles that it read
    (at most 64, so 512 KiB). Tiles are not checked against each other: a proof made from
    them is checked against a signed root.
    """

    def __init__(self, size: int, read: Callable[[TilePath], bytes], keep: int = 64) -> None:
        """read: gives a tile's bytes, of exactly its path's width. Its errors pass through."""
        self._size = size
        self._read = read
        self._keep = keep
        self._cache: dict[TilePath, list[bytes]] = {}

    def node(self, level: int, index: int) -> bytes:
        """See HashReader. BadTile for a node that is not whole in this tree."""
        if level < 0 or index < 0 or (index + 1) << level > self._size:
            raise BadTile("node: not within the tree")
        tile_level, up = divmod(level, TILE_HEIGHT)
        first = index << up
        tile = tile_at(tile_level, first // TILE_WIDTH, self._size)
        start = first % TILE_WIDTH
        return root_of(self._hashes(tile)[start : start + (1 << up)])

    def _hashes(self, tile: TilePath) -> list[bytes]:
        hashes = self._cache.pop(tile, None)
        if hashes is None:
            hashes = parse_tile(self._read(tile), tile.width)
            if len(self._cache) >= self._keep:
                del self._cache[next(iter(self._cache))]
        self._cache[tile] = hashes
        return hashes
