"""Two small files: how far the tiles go, and a snapshot of what the entries imply.

`state` is one line of JSON, replaced whenever tiles were written. `snapshot` spares a start the
reading of every entry: it is used only where its root is the tree's at its size.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ironwork_audit.log.errors import LogDamaged
from ironwork_audit.log.filesystem import FileSystem, write_file
from ironwork_audit.log.growth import Tree
from ironwork_audit.tlog import EMPTY_ROOT

STATE: Final = "state"
SNAPSHOT: Final = "snapshot"
_MAX_LINE: Final = 1024
# A start reads at most this many entries more than those that wait in the write-ahead files.
SNAPSHOT_EVERY: Final = 16_384


# Makes the bytes of a state that was taken before. Called without the log's lock.
Dump = Callable[[], bytes]


class Fold(Protocol):
    """State that follows from the entries alone. Called under the log's lock, in order."""

    def take(self, index: int, entry: bytes) -> None:
        """Add what this entry says. Raises ValueError for bytes that cannot be one."""

    def dump(self) -> Dump:
        """The state as it is now, for a snapshot. Quick: what takes long is the Dump's."""

    def load(self, data: bytes) -> None:
        """The state whose bytes these are. Raises ValueError for what it did not."""

    def reset(self) -> None:
        """The state before the first entry."""


class NoFold:
    """For a log of which nothing is derived."""

    def take(self, index: int, entry: bytes) -> None:
        """Nothing."""

    def dump(self) -> Dump:
        """Nothing."""
        return bytes

    def load(self, data: bytes) -> None:
        """Nothing."""

    def reset(self) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """tree: the tree of the entries that were folded."""

    tree: Tree
    data: bytes


def read_state(folder: Path) -> Tree:
    """How far the tiles go. Raises LogDamaged, OSError."""
    try:
        line = (folder / STATE).read_bytes()
        tree = _parse_tree(json.loads(line))
        if line != _state_line(tree):
            raise LogDamaged(STATE, "it is not what was written there")
    except FileNotFoundError:
        raise LogDamaged(STATE, "the file is missing") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise LogDamaged(STATE, "it is not what was written there") from None
    return tree


def write_state(folder: Path, tree: Tree, file_system: FileSystem) -> None:
    """Replace it; durable once the folder is synced."""
    write_file(file_system, folder / STATE, _state_line(tree))


def read_snapshot(folder: Path) -> Snapshot:
    """The snapshot; one of no entries where there is none that can be used."""
    try:
        line, _, data = (folder / SNAPSHOT).read_bytes().partition(b"\n")
        document = json.loads(line[:_MAX_LINE])
        tree = _parse_tree(document)
        if document["sha256"] == hashlib.sha256(data).hexdigest():
            return Snapshot(tree, data)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return Snapshot(Tree(0, EMPTY_ROOT), b"")


def write_snapshot(folder: Path, snapshot: Snapshot, file_system: FileSystem) -> None:
    """Replace it."""
    digest = hashlib.sha256(snapshot.data).hexdigest()
    line = json.dumps(_tree_document(snapshot.tree) | {"sha256": digest}).encode()
    write_file(file_system, folder / SNAPSHOT, line + b"\n" + snapshot.data)


def _state_line(tree: Tree) -> bytes:
    return json.dumps(_tree_document(tree)).encode() + b"\n"


def _tree_document(tree: Tree) -> dict[str, str | int]:
    return {"root": tree.root.hex(), "size": tree.size}


def _parse_tree(document: dict[str, object]) -> Tree:
    size, root = document["size"], bytes.fromhex(str(document["root"]))
    if type(size) is not int or size < 0 or len(root) != len(EMPTY_ROOT):
        raise ValueError("not a tree head")
    return Tree(size, root)
