"""A log whose oldest entries were moved to an archive: what is there, and what holds the rest.

Pruning removes full bundles and their tiles of level 0, oldest first (docs/audit.md). The tiles
above them stay: they have one hash for each bundle, and the signed root holds them to it. So the
root is checked over the whole log, and the entries from the first one that is there.
"""

from bisect import bisect_left
from collections.abc import Iterator

from ironwork_audit.source import NotThere, Source, read_bundle, read_tile
from ironwork_audit.tlog.hashes import HASH_BYTES
from ironwork_audit.tlog.tiles import TILE_WIDTH, BadTile, TilePath, tile_at
from ironwork_audit.verify_chunk import Found


def first_kept(source: Source, size: int) -> int:
    """The first entry that is there, where only the oldest full bundles are missing, and the newest
    full one is not; else 0, as in a log that was never pruned. Raises Unreadable.
    """
    full = size // TILE_WIDTH

    def there(index: int) -> bool:
        return _missing_file(source, index) is None

    if not full or there(0) or not there(full - 1):
        return 0
    return bisect_left(range(full), True, key=there) * TILE_WIDTH


def roots_of_missing(source: Source, size: int, first: int) -> Iterator[bytes]:
    """For each bundle before entry `first`, its hash in the tile above. Raises Found and
    Unreadable.
    """
    for start in range(0, first, TILE_WIDTH**2):
        tile = tile_at(1, start // TILE_WIDTH**2, size)
        try:
            hashes = read_tile(source, tile)
        except (NotThere, BadTile) as error:
            raise Found(start, str(error)) from None
        count = min(first - start, TILE_WIDTH**2) // TILE_WIDTH
        for at in range(0, count * HASH_BYTES, HASH_BYTES):
            yield hashes[at : at + HASH_BYTES]


def missing(source: Source, size: int, first: int) -> Found:
    """The finding of a log that is not to be pruned. Raises Unreadable."""
    what = _missing_file(source, 0) or "it was there a moment ago"
    return Found(
        0,
        f"{what}; all {first} entries before entry {first} are missing. Those from there on, and "
        f"the signed root of all {size}, are good: where the others were moved to an archive, "
        "verify that, and check this with --pruned",
    )


def _missing_file(source: Source, index: int) -> str | None:
    """What is missing of a full bundle: its hashes or its entries."""
    try:
        read_tile(source, TilePath(0, index))
        read_bundle(source, TilePath(None, index))
    except NotThere as gone:
        return str(gone)
    except BadTile:
        return None  # it is there, and the check of its entries says what is wrong
    return None
