"""An open log: entries are appended durably, put into tiles, and a checkpoint is published."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from ironwork_audit.log import opening
from ironwork_audit.log.errors import LogUnusable, WriteFailed, error_name
from ironwork_audit.log.filesystem import FileSystem, OperatingSystem, sync_folder, write_file
from ironwork_audit.log.folder import CHECKPOINT
from ironwork_audit.log.growth import Tree, grow
from ironwork_audit.log.pending import NO_SPACE, pack_frame
from ironwork_audit.log.snapshot import (
    SNAPSHOT_EVERY,
    Fold,
    NoFold,
    Snapshot,
    write_snapshot,
    write_state,
)
from ironwork_audit.tlog import (
    HASH_BYTES,
    TILE_WIDTH,
    TilePath,
    TileReader,
    frontier_of,
    tile_at,
)
from ironwork_audit.tlog.tiles import MAX_ENTRY_BYTES

# An entry's bytes, once its index is known.
Render = Callable[[int], bytes]

# What `check` may find and find gone later, since nothing was tried: no room, or a read-only mount
# laid over the folder. (A file system itself is not made read-only under open files but by its own
# error, and is then not made writable again.)
_MAY_PASS: Final = NO_SPACE | {errno.EROFS}

# Entries that are durable and in no tile yet are in memory: past this, appends are refused.
MAX_WAITING_BYTES: Final = 32 << 20


class AppendLog:
    """Made by `open`, closed once. `append` and the rest may be called from different threads;
    `integrate` waits for no append longer than one commit takes.

    WriteFailed.lasting says that nothing more is written until the log is opened anew.
    """

    def __init__(self, folder: Path, origin: str, found: opening.Found, lock: int) -> None:
        self.origin = origin
        # Drawn when the folder was made: a log of the same name in another folder has another.
        self.folder_id = found.id
        self.torn_bytes = found.torn_bytes
        self._folder = folder
        self._file_system = found.file_system
        self._fold = found.fold
        self._tiles = found.tiles
        self._lock_fd = lock
        # Guards what an append changes; held while one commits.
        self._appending = threading.Lock()
        self._active, self._other = found.pending
        self._waiting_bytes = 0
        self._broken: str | None = None
        # Held while tiles are written: one at a time.
        self._integrating = threading.Lock()
        self._edge = found.edge
        self._folded_at = found.snapshot_size
        # Entries from index `base` on, in memory: those of the partial bundle, and those that wait.
        # The pair is replaced whole; the list only grows.
        self._recent = (
            found.edge.frontier.size - len(found.edge.entries),
            [*found.edge.entries, *found.waiting],
        )
        self._size = found.edge.frontier.size + len(found.waiting)
        self._tree = found.edge.tree

    @classmethod
    def open(
        cls,
        folder: Path,
        origin: str,
        *,
        fold: Fold | None = None,
        file_system: FileSystem | None = None,
    ) -> Self:
        """Open the folder's log, or make one, and put what waits into tiles.

        fold: brought to the state that the entries imply. Reads the tree's edge, not its entries,
        but for the few since the last snapshot. Raises LogError.
        """
        file_system = file_system or OperatingSystem()
        try:
            with contextlib.ExitStack() as stack:
                lock, found = opening.find(folder, origin, fold or NoFold(), file_system, stack)
                log = cls(folder, origin, found, lock)
                log._start()
                stack.pop_all()
        except OSError as error:
            raise LogUnusable(
                f"the audit log in {folder} cannot be used: {error.strerror}"
            ) from None
        except WriteFailed as failed:
            raise LogUnusable(
                f"the audit log in {folder} cannot be written: {failed.what}"
            ) from None
        return log

    @property
    def size(self) -> int:
        """How many entries are durable."""
        return self._size

    @property
    def tree(self) -> Tree:
        """The tree of the entries that are in durable tiles."""
        return self._tree

    def append(self, entries: Sequence[Render]) -> int:
        """Make them durable, in order, with one sync, all or none; the first one's index.

        Each is at most 65,535 bytes without a line feed, together at most 2 MiB (ValueError).
        Raises WriteFailed.
        """
        with self._appending:
            self._refuse_broken()
            first = self._size
            rendered = [render(index) for index, render in enumerate(entries, first)]
            if any(len(entry) > MAX_ENTRY_BYTES for entry in rendered):
                raise ValueError(f"an entry is at most {MAX_ENTRY_BYTES} bytes")
            frame = pack_frame(first, rendered)
            if self._waiting_bytes + len(frame) > MAX_WAITING_BYTES:
                raise WriteFailed("too many entries wait for their tiles", lasting=False)
            end = first + len(rendered)
            with self._noting_breaks():
                self._active.commit(frame, end)
            self._waiting_bytes += len(frame)
            self._recent[1].extend(rendered)
            self._size = end
            for index, entry in enumerate(rendered, first):
                self._fold.take(index, entry)
            return first

    def check(self) -> None:
        """Look whether an append would find its file, the tiles and room. Raises WriteFailed."""
        with self._appending, self._noting_breaks():
            self._refuse_broken()
            self._active.check_in_place()
            try:
                self._tiles.check_in_place()
                self._file_system.check_room(self._folder)
                self._active.check_takes_writes()
            except OSError as error:
                what = f"the disk takes nothing ({error_name(error)})"
                raise WriteFailed(what, lasting=error.errno not in _MAY_PASS) from None

    def integrate(self) -> Tree:
        """Put every durable entry into tiles; the tree that they are. Raises WriteFailed."""
        with self._integrating:
            return self._integrate(always=False)

    def publish(self, checkpoint: bytes) -> None:
        """Replace the checkpoint, a signed note of a tree that `integrate` gave. Raises
        WriteFailed.
        """
        with self._integrating, self._noting_breaks():
            self._refuse_broken()
            try:
                write_file(self._file_system, self._folder / CHECKPOINT, checkpoint)
            except OSError as error:
                what = f"the checkpoint cannot be written ({error_name(error)})"
                raise WriteFailed(what, lasting=False) from None
            sync_folder(self._file_system, self._folder)

    def checkpoint(self) -> bytes | None:
        """The published checkpoint; None before the first. Raises OSError."""
        return opening.read_checkpoint(self._folder)

    def read(self, start: int, limit: int) -> Sequence[bytes]:
        """Durable entries from index `start` on: at least one where there is one, at most `limit`;
        fewer at the end of a bundle. From any thread. Raises OSError, tlog.BadTile.
        """
        base, recent = self._recent
        if start >= base:
            return recent[start - base : start - base + limit]
        index, offset = divmod(start, TILE_WIDTH)
        return self._tiles.bundle(index)[offset : offset + limit]

    def first_kept(self, level: int | None) -> int:
        """The index from which on the entries (level None), or their hashes (0), are in files: 0
        but in a log whose oldest full tiles were moved to an archive. Without the newest full one
        it is no such log, and 0. From any thread.
        """
        return self._tiles.first_kept(level, self._tree.size // TILE_WIDTH) * TILE_WIDTH

    def tile(self, tile: TilePath) -> bytes:
        """A tile of the tree, as wide as asked for or, where none of that width was ever written,
        cut from a wider one. From any thread. Raises OSError, tlog.BadTile.
        """
        try:
            return self._tiles.read(tile)
        except FileNotFoundError:
            wider = tile_at(tile.level or 0, tile.index, self._tree.size)
            if tile.level is None or wider.width <= tile.width:
                raise
            return self._tiles.read(wider)[: tile.width * HASH_BYTES]

    def hashes(self, size: int) -> TileReader:
        """The hashes of the tree as it was at a size that is in tiles, for proofs."""
        return TileReader(size, self.tile)

    def tree_at(self, size: int) -> Tree | None:
        """The tree as it was at this size; None where the tiles hold fewer entries. From any
        thread. Raises OSError, tlog.BadTile.
        """
        if size > self._tree.size:
            return None
        return Tree(size, frontier_of(size, self.hashes(size)).root())

    def close(self) -> None:
        """Put what waits into tiles, where that can be done, and release the folder."""
        with self._integrating:
            with contextlib.suppress(WriteFailed):
                self._integrate(always=False, snapshot=True)
            self._broken = self._broken or "the log is closed"
            self._release()

    def _release(self) -> None:
        self._active.close()
        self._other.close()
        os.close(self._lock_fd)

    def _start(self) -> None:
        # Always, also where nothing waits: what a start found may be in the page cache alone, after
        # a sync that failed.
        with self._integrating:
            self._integrate(always=True)
            for file in (self._active, self._other):
                file.cut()

    def _integrate(self, *, always: bool, snapshot: bool = False) -> Tree:
        self._refuse_broken()
        with self._appending:
            base, recent = self._recent
            size, waiting_bytes = self._size, self._waiting_bytes
            start = self._edge.frontier.size
            entries = recent[start - base : size - base]
            due = size - self._folded_at >= SNAPSHOT_EVERY
            changed = size != start or always
            if not changed and not (snapshot and size != self._folded_at):
                return self._tree
            folded = self._fold.dump() if due or snapshot else None
            self._swap()
        edge, files = grow(self._edge, entries)
        with self._noting_breaks():
            self._write(edge.tree, files, None if folded is None else folded())
        with self._appending:
            self._edge = edge
            self._tree = edge.tree
            self._recent = (size - len(edge.entries), [*edge.entries, *recent[size - base :]])
            self._waiting_bytes -= waiting_bytes
        if folded is not None:
            self._folded_at = size
        self._tiles.drop_partial(files)
        self._cut(size)
        return edge.tree

    def _swap(self) -> None:
        """Let appends go on in the other file, where it holds nothing that is in no tile yet."""
        if self._other.empty and not self._active.empty:
            self._active, self._other = self._other, self._active

    def _cut(self, integrated: int) -> None:
        """Empty the file whose entries are all in tiles. Where that cannot be done, it is done the
        next time: until then appends stay where they are.
        """
        if not self._other.empty and self._other.end <= integrated:
            with contextlib.suppress(OSError):
                self._other.cut()

    def _write(self, tree: Tree, files: dict[TilePath, bytes], folded: bytes | None) -> None:
        try:
            self._tiles.write(files)
            if folded is not None:
                write_snapshot(self._folder, Snapshot(tree, folded), self._file_system)
            write_state(self._folder, tree, self._file_system)
        except OSError as error:
            what = f"tiles cannot be written ({error_name(error)})"
            raise WriteFailed(what, lasting=False) from None
        sync_folder(self._file_system, self._folder)

    def _refuse_broken(self) -> None:
        if self._broken is not None:
            raise WriteFailed(self._broken, lasting=True)

    @contextlib.contextmanager
    def _noting_breaks(self) -> Iterator[None]:
        """A lasting failure is the end of writing."""
        try:
            yield
        except WriteFailed as failed:
            if failed.lasting:
                self._broken = failed.what
            raise
