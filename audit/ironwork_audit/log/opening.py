"""Opening a log: what a crash, or a hand, left behind is put right or refused here."""

import contextlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ironwork_audit.log import folder as folders
from ironwork_audit.log.errors import LogDamaged, LogUnusable, OriginDiffers
from ironwork_audit.log.filesystem import FileSystem
from ironwork_audit.log.growth import Edge, Tree, grow
from ironwork_audit.log.pending import NAMES, Frame, PendingFile, parse_frames
from ironwork_audit.log.snapshot import Fold, Snapshot, read_snapshot, read_state, write_state
from ironwork_audit.log.tilefiles import TileFiles
from ironwork_audit.tlog import (
    EMPTY_ROOT,
    TILE_WIDTH,
    BadNote,
    BadTile,
    Checkpoint,
    TilePath,
    leaf_hash,
    parse_note,
    parse_tile,
)

_EMPTY: Final = Tree(0, EMPTY_ROOT)


@dataclass(frozen=True, slots=True)
class Found:
    """What the folder holds. id: its own. edge: of the tree that the write-ahead files go on from.
    waiting: the entries after it. torn_bytes: what a crash left after the last whole commit.
    snapshot_size: of the entries, how many need not be folded again at the next start.
    """

    id: str
    file_system: FileSystem
    fold: Fold
    tiles: TileFiles
    pending: tuple[PendingFile, PendingFile]
    edge: Edge
    waiting: Sequence[bytes]
    torn_bytes: int
    snapshot_size: int


def find(
    folder: Path, origin: str, fold: Fold, file_system: FileSystem, stack: ExitStack
) -> tuple[int, Found]:
    """The lock's descriptor and what was found; what is opened is put on the stack. Raises
    LogError, OSError, WriteFailed.
    """
    folders.prepare(folder, file_system)
    lock = folders.lock(folder)
    stack.callback(os.close, lock)
    tiles = TileFiles(folder, file_system)
    new = folders.is_new(folder)
    if new:
        folders.sync_parent(folder, file_system)
        tiles.make_folders()
        write_state(folder, _EMPTY, file_system)
    else:
        folders.check_origin(folder, origin)
    folder_id = folders.own_id(folder, file_system)
    pending = _open_pending(folder, file_system, stack)
    if new:
        folders.write_origin(folder, origin, file_system)
    state = read_state(folder)
    frames, torn_bytes = _read_pending(pending)
    waiting_from, waiting = _waiting(frames, state.size)
    edge = tiles.edge(waiting_from)
    _check_state(edge, state, waiting)
    _check_checkpoint(folder, origin, tiles, edge, waiting)
    snapshot_size = _fold_all(folder, fold, tiles, edge, waiting)
    found = Found(
        folder_id, file_system, fold, tiles, pending, edge, waiting, torn_bytes, snapshot_size
    )
    return lock, found


def read_checkpoint(folder: Path) -> bytes | None:
    """The published checkpoint; None where there is none. Raises OSError."""
    try:
        return (folder / folders.CHECKPOINT).read_bytes()
    except FileNotFoundError:
        return None


def _open_pending(
    folder: Path, file_system: FileSystem, stack: ExitStack
) -> tuple[PendingFile, PendingFile]:
    opened = []
    for name in NAMES:
        file = PendingFile(folder / name, file_system)
        stack.callback(file.close)
        if file.open_to_others:
            raise LogUnusable(
                f"the audit log's {folder / name} is open to other users: chmod 600 it"
            )
        opened.append(file)
    # Each time: the start that made the files may have been cut short before they had names.
    file_system.sync_folder(folder)
    return opened[0], opened[1]


def _read_pending(pending: Sequence[PendingFile]) -> tuple[list[Frame], int]:
    frames: list[Frame] = []
    torn_bytes = 0
    for name, file in zip(NAMES, pending, strict=True):
        found, torn = parse_frames(file.read(), name)
        frames += found
        torn_bytes += torn
    return sorted(frames, key=lambda frame: frame.first), torn_bytes


def _waiting(frames: Sequence[Frame], size: int) -> tuple[int, list[bytes]]:
    """The entries that the write-ahead files hold up to their end, and the first one's index. What
    they hold besides is in the tiles since long: a cut that was undone by a crash.
    """
    start, waiting = size, list[bytes]()
    for frame in frames:
        end = start + len(waiting)
        if frame.first != end:
            # A gap is one of cut files, below the tiles' end; above it, something is missing.
            if max(frame.first, end) > size:
                raise LogDamaged("the write-ahead files", "entries are missing")
            start, waiting = frame.first, []
        waiting += frame.entries
    return (start, waiting) if start + len(waiting) >= size else (size, [])


def _check_state(edge: Edge, state: Tree, waiting: Sequence[bytes]) -> None:
    """The tiles, with what waits, hold the tree that the state file names."""
    grown, _ = grow(edge, waiting[: state.size - edge.frontier.size])
    if grown.tree != state:
        raise LogDamaged(folders.TILES, f"it is not the tree of {state.size} entries that was here")


def _check_checkpoint(
    folder: Path, origin: str, tiles: TileFiles, edge: Edge, waiting: Sequence[bytes]
) -> None:
    """The published checkpoint is of this log, and this log is not shorter. The signature is for
    whoever holds the key to check.
    """
    data = read_checkpoint(folder)
    if data is None:
        return
    try:
        checkpoint = Checkpoint.parse(parse_note(data).text)
    except BadNote as bad:
        raise LogDamaged(folders.CHECKPOINT, str(bad)) from None
    if checkpoint.origin != origin:
        raise OriginDiffers(
            f"the checkpoint is of the origin {checkpoint.origin!r}, not {origin!r}"
        )
    start = edge.frontier.size
    if checkpoint.size > start + len(waiting):
        raise LogDamaged(
            folders.CHECKPOINT,
            f"it was signed for {checkpoint.size} entries, and {start + len(waiting)} are here",
        )
    root = _root(tiles, edge, waiting, checkpoint.size)
    if root != checkpoint.root:
        raise LogDamaged(folders.CHECKPOINT, "it was signed for other entries than those here")


def _root(tiles: TileFiles, edge: Edge, waiting: Sequence[bytes], size: int) -> bytes:
    """The root as it was at a size that is here, in the tiles or with what waits; nothing that
    could be one where tiles are missing.
    """
    if size >= edge.frontier.size:
        return grow(edge, waiting[: size - edge.frontier.size])[0].tree.root
    try:
        return tiles.frontier(size).root()
    except (FileNotFoundError, BadTile):
        return b""


def _fold_all(
    folder: Path, fold: Fold, tiles: TileFiles, edge: Edge, waiting: Sequence[bytes]
) -> int:
    """Bring the fold to the end; how much of it came from the snapshot."""
    start, size = _load(fold, read_snapshot(folder), tiles, edge, waiting), edge.frontier.size
    for first in range(start - start % TILE_WIDTH, size, TILE_WIDTH):
        width = min(size - first, TILE_WIDTH)
        _take(fold, first, _checked(tiles, first // TILE_WIDTH, width), start)
    _take(fold, size, waiting, start)
    return start


def _load(
    fold: Fold, snapshot: Snapshot, tiles: TileFiles, edge: Edge, waiting: Sequence[bytes]
) -> int:
    """Load the snapshot where it is of this log; how many entries it covers. Write-ahead files
    that a power loss left uncut begin below it.
    """
    tree = snapshot.tree
    if (
        0 < tree.size <= edge.frontier.size + len(waiting)
        and _root(tiles, edge, waiting, tree.size) == tree.root
    ):
        with contextlib.suppress(ValueError):
            fold.load(snapshot.data)
            return tree.size
    fold.reset()
    return 0


def _checked(tiles: TileFiles, index: int, width: int) -> Sequence[bytes]:
    """A bundle whose entries are what the tree's hashes say."""
    place = TilePath(None, index, width)
    try:
        entries = tiles.bundle(index, width)
        data = tiles.read(TilePath(0, index, width))
        if b"".join(map(leaf_hash, entries)) == data:
            return entries
        hashes = parse_tile(data, width)
    except FileNotFoundError:
        raise LogDamaged(place.path, "the file is missing") from None
    except BadTile as bad:
        raise LogDamaged(place.path, str(bad)) from None
    for offset, (entry, expected) in enumerate(zip(entries, hashes, strict=True)):
        if leaf_hash(entry) != expected:
            number = index * TILE_WIDTH + offset
            raise LogDamaged(place.path, f"entry {number} is not what its hash says")
    return entries


def _take(fold: Fold, first: int, entries: Sequence[bytes], start: int) -> None:
    """Fold the entries, of which the first is `first`, from index `start` on."""
    index, take = first, fold.take
    try:
        for index, entry in enumerate(entries, first):
            if index >= start:
                take(index, entry)
    except ValueError:
        raise LogDamaged(f"entry {index}", "it is none of this log") from None
