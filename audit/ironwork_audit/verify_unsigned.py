"""What a log's folder holds after its checkpoint: entries that are durable and not yet signed.

They are in tiles that no checkpoint covers yet, and in the write-ahead files (`log.pending`). Their
form, order and links are checked; that nobody changed them is not, since nothing was signed.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Final

from ironwork_audit.log.errors import LogDamaged
from ironwork_audit.log.pending import NAMES, Frame, parse_frames
from ironwork_audit.log.snapshot import STATE
from ironwork_audit.parse import NotAnEvent
from ironwork_audit.select import BadEntry, stored
from ironwork_audit.source import FolderSource, NotThere
from ironwork_audit.verify_chunk import Found, Links
from ironwork_audit.verify_entry import EntryChecker

# Twice what the engine lets wait, and a state's line.
_MAX_PENDING_BYTES: Final = 64 << 20
_MAX_STATE_BYTES: Final = 1024
# A log that is being written to may move entries from one file to another while we read.
_ATTEMPTS: Final = 5


def check_unsigned(
    source: FolderSource, origin: str, size: int, links: Links, first: int = 0
) -> int:
    """How many entries follow the `size` signed ones. links: goes on with them; of intents before
    `first` nothing is known. Raises Found, Unreadable.
    """
    checker = EntryChecker(origin)
    end = size
    for index, entry in unsigned_entries(source, size):
        try:
            facts = checker.check(entry, index)
        except NotAnEvent as refused:
            raise Found(index, f"not yet signed: {refused}") from None
        links.add(index, facts, first)
        end = index + 1
    return end - size


def unsigned_entries(source: FolderSource, size: int) -> Iterator[tuple[int, bytes]]:
    """The entries after the `size` signed ones, as they stand there. Raises Found, Unreadable."""
    for _ in range(_ATTEMPTS):
        # In this order: what is in no pending file any more is in a tile by then.
        frames = _frames(source)
        tiled = max(_tiled(source), size)
        frames = [frame for frame in frames if frame.end > tiled]
        starts = [tiled, *(frame.end for frame in frames)]
        if all(frame.first <= start for frame, start in zip(frames, starts, strict=False)):
            break
    else:
        raise Found(None, "entries are missing between the tiles and the write-ahead files")
    try:
        yield from stored(source, size, tiled)
    except BadEntry as bad:
        raise Found(size, f"not yet signed: {bad}") from None
    for frame in frames:
        for index, entry in enumerate(frame.entries, frame.first):
            if index >= tiled:
                yield index, entry


def _frames(source: FolderSource) -> Sequence[Frame]:
    """The whole frames of both files, in order; what a crash cut off is no entry."""
    frames: list[Frame] = []
    for name in NAMES:
        try:
            data = source.read(name, _MAX_PENDING_BYTES)
            frames += parse_frames(data, name)[0]
        except NotThere:
            continue
        except LogDamaged as damaged:
            raise Found(None, f"the write-ahead file is damaged: {damaged.place}") from None
    return sorted(frames, key=lambda frame: frame.first)


def _tiled(source: FolderSource) -> int:
    """How many entries are in tiles; 0 in a copy without the engine's own files."""
    try:
        size = json.loads(source.read(STATE, _MAX_STATE_BYTES))["size"]
    except NotThere:
        return 0
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Found(None, "the file `state` is not what was written there") from None
    return size if type(size) is int else 0
