"""Following a log as it grows, with every step checked: nothing is shown that is not in the tree.

Without a key, the checkpoint's signature is not looked at; the tree still is.
"""

from collections.abc import Iterator

from ironwork_audit.select import BadEntry, stored
from ironwork_audit.source import Source, read_checkpoint, read_tile
from ironwork_audit.tlog.checkpoint import Checkpoint
from ironwork_audit.tlog.hashes import leaf_hash
from ironwork_audit.tlog.note import VerifierKey, parse_note
from ironwork_audit.tlog.signed import SignatureRefused, open_checkpoint
from ironwork_audit.tlog.tiles import BadTile, TileReader
from ironwork_audit.tlog.tree import frontier_of


class Follower:
    """Reads what is new since the last time. Not for concurrent use."""

    def __init__(self, source: Source, key: VerifierKey | None, last: int) -> None:
        """last: how many of the entries that are there already are given too."""
        self._source = source
        self._key = key
        self._last = last
        self._seen: Checkpoint | None = None
        self._next = 0

    def news(self) -> Iterator[tuple[int, bytes]]:
        """The next entries by index. Raises BadEntry where the log does not fit what was seen of
        it, Unreadable, BadNote; where reading was interrupted, the next call goes on.
        """
        checkpoint = self._checkpoint()
        reader = TileReader(checkpoint.size, lambda tile: read_tile(self._source, tile))
        try:
            if checkpoint != self._seen:
                self._check_grown(checkpoint, reader)
            for index, entry in stored(self._source, self._next, checkpoint.size):
                if leaf_hash(entry) != reader.node(0, index):
                    raise BadEntry(f"entry {index}: its bytes are not those of its hash")
                self._next = index + 1
                yield index, entry
        except BadTile as bad:
            raise BadEntry(str(bad)) from None

    def _checkpoint(self) -> Checkpoint:
        data = read_checkpoint(self._source)
        if self._key is None:
            return Checkpoint.parse(parse_note(data).text)
        try:
            return open_checkpoint(data, self._key).checkpoint
        except SignatureRefused as refused:
            raise BadEntry(str(refused)) from None

    def _check_grown(self, new: Checkpoint, reader: TileReader) -> None:
        seen = self._seen
        if seen is None:
            self._next = max(new.size - self._last, 0)
        elif new.size < seen.size:
            raise BadEntry(f"rolled back: from {seen.size} entries to {new.size}")
        elif frontier_of(seen.size, reader).root() != seen.root:
            raise BadEntry(f"rewritten: the first {seen.size} entries are not what they were")
        if frontier_of(new.size, reader).root() != new.root:
            raise BadEntry(f"the tiles do not have the checkpoint's root of {new.size} entries")
        self._seen = new
