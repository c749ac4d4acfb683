"""The write-ahead files: what makes an entry durable, until it is in the tree's tiles.

A commit is one frame: a header line `{"count":…,"first":…,"length":…,"sha256":"…"}` (entries, index
of the first, bytes that follow, their hash), then each entry on a line of its own. Two files take
turns: while the entries of one are put into tiles, appends go to the other; then the first is cut.

| failure | then |
|---|---|
| no space (ENOSPC, EDQUOT, EFBIG) while writing, and the file was cut back | may be tried again |
| any other error while writing, or the cut fails | the log is given up until a restart |
| fdatasync fails | given up: the kernel may have dropped the pages and forgotten |
| the file was deleted, replaced, cut or written to by someone else | given up |
"""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ironwork_audit.log.errors import LogDamaged, WriteFailed, error_name
from ironwork_audit.log.filesystem import FLAGS, FileSystem, sync, write_all

NAMES: Final = ("pending.0", "pending.1")
# One commit is at most this long, so no more than this can be there without having been synced.
MAX_COMMIT_BYTES: Final = 2 << 20
_MAX_HEADER_BYTES: Final = 256
NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Frame:
    """One commit. first: the index of its first entry."""

    first: int
    entries: Sequence[bytes]

    @property
    def end(self) -> int:
        """The index after its last entry."""
        return self.first + len(self.entries)


def pack_frame(first: int, entries: Sequence[bytes]) -> bytes:
    """A frame's bytes. ValueError for an entry with a line feed, or too much for one commit."""
    if any(b"\n" in entry for entry in entries):
        raise ValueError("an entry holds no line feed")
    body = b"\n".join(entries) + b"\n"
    if len(body) > MAX_COMMIT_BYTES:
        raise ValueError(f"a commit is at most {MAX_COMMIT_BYTES} bytes")
    return _header(first, len(entries), body) + body


def parse_frames(data: bytes, name: str) -> tuple[list[Frame], int]:
    """The whole frames of a file, and how many bytes a crash left after them: a last frame that is
    short, or has zeros, from file systems that grow a file before they fill it. Raises LogDamaged
    for anything else: a frame that is whole and wrong may have been acknowledged.
    """
    frames: list[Frame] = []
    at = 0
    while at < len(data):
        end = data.find(b"\n", at, at + _MAX_HEADER_BYTES)
        frame, after = _frame(data, at, end)
        if frame is None:
            _check_torn(data, at, after, f"{name}, frame {len(frames) + 1}")
            return frames, len(data) - at
        frames.append(frame)
        at = after
    return frames, 0


def _header(first: int, count: int, body: bytes) -> bytes:
    digest = hashlib.sha256(body).hexdigest()
    text = f'{{"count":{count:d},"first":{first:d},"length":{len(body)},"sha256":"{digest}"}}\n'
    return text.encode()


def _frame(data: bytes, at: int, line_end: int) -> tuple[Frame | None, int]:
    """The frame at `at` and the offset after it; None where there is none, with the offset up to
    which it would have gone, as far as that is known.
    """
    try:
        head = json.loads(data[at : line_end + 1])
        first, count, length = head["first"], head["count"], head["length"]
        body = data[line_end + 1 : line_end + 1 + length]
        if data[at : line_end + 1] != _header(first, count, body):
            return None, line_end + 1 + int(length)
        entries = body[:-1].split(b"\n")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, at + _MAX_HEADER_BYTES if line_end < 0 else line_end + 1
    if len(entries) != count:
        return None, line_end + 1
    return Frame(first, entries), line_end + 1 + length


def _check_torn(data: bytes, at: int, would_end: int, place: str) -> None:
    rest = data[at:]
    crashed = would_end > len(data) or b"\0" in rest
    if not crashed or len(rest.rstrip(b"\0")) > MAX_COMMIT_BYTES + _MAX_HEADER_BYTES:
        raise LogDamaged(place, "it is not what was written there")


class PendingFile:
    """One of the two, open. Used by one thread at a time. end: the index after its last entry."""

    def __init__(self, path: Path, file_system: FileSystem) -> None:
        """Opens the file, making it where there is none. Raises OSError."""
        self._path = path
        self._file_system = file_system
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | FLAGS, 0o600)
        opened = os.fstat(self._fd)
        # While it is open no other file can have them.
        self._identity = (opened.st_dev, opened.st_ino)
        self._length = opened.st_size
        self.end = 0

    @property
    def empty(self) -> bool:
        return self._length == 0

    @property
    def open_to_others(self) -> bool:
        """Whether other users of the machine may use the file."""
        return bool(os.fstat(self._fd).st_mode & 0o077)

    def read(self) -> bytes:
        """All of it. Raises OSError."""
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()

    def commit(self, frame: bytes, end: int) -> None:
        """Append a frame and make it durable, all or nothing. Raises WriteFailed."""
        self.check_in_place()
        try:
            write_all(self._file_system, self._fd, frame, self._length)
        except OSError as error:
            raise self._cut_back(error) from None
        sync(self._file_system, self._fd)
        self._length += len(frame)
        self.end = end

    def cut(self) -> None:
        """Empty it. That need not be durable: entries that are in the tree are skipped at a start.
        Raises OSError.
        """
        self._file_system.ftruncate(self._fd, 0)
        self._length = 0

    def close(self) -> None:
        os.close(self._fd)

    def check_in_place(self) -> None:
        """Raises WriteFailed (lasting) where the file is not the one that was opened, as it was."""
        try:
            found = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            raise WriteFailed("a file of the log is gone", lasting=True) from None
        except OSError as error:
            what = f"a file of the log cannot be looked at ({error_name(error)})"
            raise WriteFailed(what, lasting=True) from None
        if (found.st_dev, found.st_ino) != self._identity:
            raise WriteFailed("a file of the log was replaced", lasting=True)
        if found.st_size != self._length:
            raise WriteFailed("a file of the log was changed by someone else", lasting=True)

    def check_takes_writes(self) -> None:
        """Raises OSError where it takes no writes any more; writes nothing."""
        self._file_system.check_takes_writes(self._fd)

    def _cut_back(self, error: OSError) -> WriteFailed:
        """Undo a partial write. What was cut had not been acknowledged."""
        what = f"writing failed ({error_name(error)})"
        try:
            self._file_system.ftruncate(self._fd, self._length)
        except OSError:
            return WriteFailed(what, lasting=True)
        return WriteFailed(what, lasting=error.errno not in NO_SPACE)
