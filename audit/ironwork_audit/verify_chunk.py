"""One part of a log, verified from its files: what a worker process does.

A chunk is up to 64 bundles, so 16,384 entries. It is checked by itself; what reaches beyond it (the
tree above, intents and outcomes in different chunks) is handed back.
"""

from dataclasses import dataclass, field
from typing import Final

from ironwork_audit.parse import NotAnEvent
from ironwork_audit.source import NotThere, Source, read_bundle, read_tile
from ironwork_audit.tlog.hashes import HASH_BYTES, leaf_hash
from ironwork_audit.tlog.tiles import TILE_WIDTH, BadTile, TilePath, split_bundle, tile_at
from ironwork_audit.tlog.tree import root_of
from ironwork_audit.verify_entry import EntryChecker, Facts

CHUNK_BUNDLES: Final = 64
CHUNK_ENTRIES: Final = CHUNK_BUNDLES * TILE_WIDTH
# Reasons of outcomes, see Links.
_SETTLE: Final = frozenset({"ROW_PRESENT", "ROW_ABSENT"})
_LEAVE_ROOM: Final = _SETTLE | {"STORE_UNDECIDED"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong. index: the first entry that it concerns; None for the log as a whole."""

    index: int | None
    what: str


class Found(Exception):
    """Carries a finding out of the code that met it."""

    def __init__(self, index: int | None, what: str) -> None:
        super().__init__(what)
        self.finding = Finding(index, what)


@dataclass(slots=True)
class Links:
    """Intents and outcomes. open: calls by the index of their intent. unsettled: likewise, calls
    whose outcome leaves room for another. loose: outcomes whose intent was not seen yet: their
    index, the intent's index, the call, the reason.

    A call has one outcome. After one that says STORE_UNDECIDED the service looks what the store
    holds, and puts that on record under the same intent: ROW_PRESENT or ROW_ABSENT. That may be
    there again, where it was durable although the writer was told that it was not.
    """

    open: dict[int, bytes] = field(default_factory=dict)
    unsettled: dict[int, bytes] = field(default_factory=dict)
    loose: list[tuple[int, int, bytes, str]] = field(default_factory=list)

    def add(self, index: int, facts: Facts, first: int) -> None:
        """Take one entry. first: where the part of the log that was seen begins. Raises Found."""
        if facts.is_intent:
            self.open[index] = facts.call
        elif facts.intent_index is not None:
            if facts.intent_index < first:
                self.loose.append((index, facts.intent_index, facts.call, facts.reason))
            else:
                self.settle(index, facts.intent_index, facts.call, facts.reason)

    def settle(self, index: int, intent_index: int, call: bytes, reason: str) -> None:
        """An outcome ends its intent. Raises Found where there is no such open intent."""
        if self.open.pop(intent_index, None) == call:
            if reason in _LEAVE_ROOM:
                self.unsettled[intent_index] = call
        elif reason not in _SETTLE or self.unsettled.get(intent_index) != call:
            raise Found(
                index,
                f"its intent_index {intent_index} is not an intent of the same call that has no "
                "outcome yet",
            )


@dataclass(slots=True)
class Chunk:
    """What was found in a chunk. roots: those of its full bundles. rest: the leaves of a partial
    one. times: milliseconds since 1970 of its first and last entry. finding: its first bad entry;
    then everything else reaches up to the bundle before it.
    """

    roots: list[bytes] = field(default_factory=list)
    rest: list[bytes] = field(default_factory=list)
    links: Links = field(default_factory=Links)
    times: tuple[int, int] | None = None
    finding: Finding | None = None


def check_chunk(source: Source, origin: str, size: int, number: int, pruned: int = 0) -> Chunk:
    """Verify chunk `number` of a log of `size` entries, of which the first `pruned` (full bundles)
    are left out. Raises Unreadable.
    """
    chunk = Chunk()
    checker = EntryChecker(origin)
    end = min(size, (number + 1) * CHUNK_ENTRIES)
    first = max(number * CHUNK_ENTRIES, pruned)
    bundles = range(first // TILE_WIDTH, -(-end // TILE_WIDTH))
    try:
        for bundle in bundles:
            leaves = _check_bundle(source, checker, tile_at(0, bundle, size), chunk, first)
            if len(leaves) == TILE_WIDTH:
                chunk.roots.append(root_of(leaves))
            else:
                chunk.rest = leaves
    except Found as found:
        chunk.finding = found.finding
    return chunk


def _check_bundle(
    source: Source, checker: EntryChecker, tile: TilePath, chunk: Chunk, chunk_first: int
) -> list[bytes]:
    start = tile.index * TILE_WIDTH
    try:
        hashes = read_tile(source, tile)
        data, width = read_bundle(source, tile.bundle)
    except (NotThere, BadTile) as error:
        raise Found(start, str(error)) from None
    entries, whole = split_bundle(data, width)
    leaves = [leaf_hash(entry) for entry in entries[: tile.width]]
    if not whole or b"".join(leaves) != hashes:
        raise _first_difference(leaves, hashes, tile)
    facts = []
    for index, entry in enumerate(entries[: tile.width], start):
        try:
            facts.append(checker.check(entry, index))
        except NotAnEvent as refused:
            raise Found(index, str(refused)) from None
        chunk.links.add(index, facts[-1], chunk_first)
    earliest = chunk.times[0] if chunk.times else facts[0].time_ms
    chunk.times = (earliest, facts[-1].time_ms)
    return leaves


def _first_difference(leaves: list[bytes], hashes: bytes, tile: TilePath) -> Found:
    """Where a bundle leaves its hashes: an entry that was changed, taken out or put in."""
    start = tile.index * TILE_WIDTH
    for at, leaf in enumerate(leaves):
        if leaf != hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES]:
            return Found(start + at, f"its bytes are not those of its hash in {tile.path}")
    if len(leaves) < tile.width:
        return Found(start + len(leaves), f"it is missing: {tile.bundle.path} ends before it")
    return Found(start + tile.width - 1, f"bytes follow it in {tile.bundle.path}")
