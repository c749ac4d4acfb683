"""Tiles and entry bundles as files below a log's folder."""

import os
import shutil
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path

from ironwork_audit.log.errors import LogDamaged, WriteFailed
from ironwork_audit.log.filesystem import FileSystem, sync_folder, write_file
from ironwork_audit.log.folder import TILES
from ironwork_audit.log.growth import Edge
from ironwork_audit.tlog import (
    TILE_WIDTH,
    BadTile,
    Frontier,
    TilePath,
    TileReader,
    frontier_of,
    leaf_hash,
    parse_bundle,
    parse_tile,
)


class TileFiles:
    """Reads and writes them. Readers are many; the writer is one."""

    def __init__(self, folder: Path, file_system: FileSystem) -> None:
        self._folder = folder
        self._file_system = file_system
        # Folders whose names this process has synced. Others may be those of one that was killed,
        # or of a try that failed, before it could.
        self._named: set[Path] = set()

    def make_folders(self) -> None:
        """For a new log. Raises OSError."""
        (self._folder / TILES).mkdir(mode=0o700, exist_ok=True)
        (self._folder / TILES / "entries").mkdir(mode=0o700, exist_ok=True)
        sync_folder(self._file_system, self._folder / TILES)

    def read(self, tile: TilePath) -> bytes:
        """A tile's bytes, of its width: of a partial tile that is gone, from the full one. Raises
        OSError, BadTile.
        """
        try:
            return (self._folder / tile.path).read_bytes()
        except FileNotFoundError as missing:
            try:
                data = (self._folder / tile.full.path).read_bytes()
            except FileNotFoundError:
                raise missing from None
        if tile.level is not None:
            return b"".join(parse_tile(data, TILE_WIDTH)[: tile.width])
        entries = parse_bundle(data, TILE_WIDTH)[: tile.width]
        return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)

    def first_kept(self, level: int | None, full: int) -> int:
        """Which of the `full` full tiles or bundles is the oldest that is there, where only the
        oldest were removed; 0 where the newest is missing too.
        """

        def there(index: int) -> bool:
            return (self._folder / TilePath(level, index).path).exists()

        if not full or not there(full - 1):
            return 0
        return bisect_left(range(full), True, key=there)

    def bundle(self, index: int, width: int = TILE_WIDTH) -> list[bytes]:
        """The entries of a bundle. Raises OSError, BadTile."""
        return parse_bundle(self.read(TilePath(None, index, width)), width)

    def frontier(self, size: int) -> Frontier:
        """The frontier of the tree as it was at this size. Raises OSError, BadTile."""
        return frontier_of(size, TileReader(size, self.read))

    def edge(self, size: int) -> Edge:
        """The right edge of the tree as it was at this size. Raises LogDamaged, OSError."""
        levels: list[list[bytes]] = []
        nodes = size
        try:
            frontier = self.frontier(size)
            while nodes:
                index, width = divmod(nodes, TILE_WIDTH)
                data = self.read(TilePath(len(levels), index, width)) if width else b""
                levels.append(parse_tile(data, width) if width else [])
                nodes = index
            index, width = divmod(size, TILE_WIDTH)
            entries = self.bundle(index, width) if width else []
        except FileNotFoundError as missing:
            raise LogDamaged(self._relative(missing.filename), "the file is missing") from None
        except BadTile as bad:
            raise LogDamaged(TILES, str(bad)) from None
        if entries and [leaf_hash(entry) for entry in entries] != levels[0]:
            raise LogDamaged(
                TilePath(None, index, width).path, "an entry is not what its hash says"
            )
        return Edge(frontier, levels, entries)

    def write(self, files: Mapping[TilePath, bytes]) -> None:
        """Write, sync and name them, and then their folders. Raises OSError, WriteFailed."""
        self.check_in_place()
        touched: dict[Path, None] = {}
        for tile, data in files.items():
            path = self._folder / tile.path
            self._make_parents(path, touched)
            write_file(self._file_system, path, data)
            touched[path.parent] = None
        # Deepest first: a name is durable before the one that leads to it.
        for folder in sorted(touched, key=lambda path: -len(path.parts)):
            sync_folder(self._file_system, folder)
        self._named.update(folder for folder in touched if folder.parent in touched)

    def check_in_place(self) -> None:
        """Raises WriteFailed (lasting) where the tiles' folders are gone."""
        if not (self._folder / TILES / "entries").is_dir():
            raise WriteFailed("the log's tiles are gone", lasting=True)

    def drop_partial(self, files: Mapping[TilePath, bytes]) -> None:
        """Remove the partial tiles of those that are full now: who wants one of them takes it from
        the full one (tlog-tiles, "Partial Tiles"). What cannot be removed stays; it does no harm.
        """
        for tile in files:
            if tile.width == TILE_WIDTH:
                path = self._folder / tile.path
                partial = path.with_name(path.name + ".p")
                shutil.rmtree(partial, ignore_errors=True)
                self._named.discard(partial)

    def _make_parents(self, path: Path, touched: dict[Path, None]) -> None:
        """Make the folders that the path needs; those whose names are to be synced are touched."""
        top = self._folder / TILES
        for folder in reversed(path.relative_to(top).parents):
            place = top / folder
            if place == top or place in self._named:
                continue
            place.mkdir(mode=0o700, exist_ok=True)
            touched[place.parent] = None

    def _relative(self, path: str | None) -> str:
        return os.path.relpath(path or TILES, self._folder)
