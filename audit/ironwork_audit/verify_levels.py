"""The tiles above the leaves, held against what the leaves give."""

from ironwork_audit.source import NotThere, Source, read_tile
from ironwork_audit.tlog.hashes import HASH_BYTES
from ironwork_audit.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, BadTile, tile_at
from ironwork_audit.tlog.tree import root_of
from ironwork_audit.verify_chunk import Found


class Levels:
    """Takes the roots of full bundles in order, and reads each tile of the levels above when it is
    full. Holds at most 255 hashes a level.
    """

    def __init__(self, source: Source, size: int) -> None:
        """size: entries of the signed tree, which says what tiles there are."""
        self._source = source
        self._size = size
        # For each level from 1: how many full tiles are behind, and the hashes since.
        self._rows: list[tuple[int, list[bytes]]] = []

    def add(self, root: bytes) -> None:
        """The next full bundle's root. Raises Found, Unreadable."""
        at = 0
        while True:
            if at == len(self._rows):
                self._rows.append((0, []))
            index, row = self._rows[at]
            row.append(root)
            if len(row) < TILE_WIDTH:
                return
            self._check(at + 1, index, row)
            self._rows[at] = (index + 1, [])
            root = root_of(row)
            at += 1

    def finish(self) -> None:
        """Check what is not checked yet, from the lowest level: at the log's end the partial tiles,
        before it the part of each tile that was reached. Raises Found, Unreadable.
        """
        for at, (index, row) in enumerate(self._rows):
            if row:
                self._check(at + 1, index, row)

    def _check(self, level: int, index: int, row: list[bytes]) -> None:
        tile = tile_at(level, index, self._size)
        width = 1 << (TILE_HEIGHT * level)
        start = index * TILE_WIDTH * width
        try:
            data = read_tile(self._source, tile)
        except (NotThere, BadTile) as error:
            raise Found(start, str(error)) from None
        for at, computed in enumerate(row):
            if data[at * HASH_BYTES : (at + 1) * HASH_BYTES] != computed:
                raise Found(
                    start + at * width,
                    f"hash {at} of {tile.path}, over the {width} entries from here, is not theirs",
                )
