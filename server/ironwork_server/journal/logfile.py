"""The open journal file: entries become durable here, or the file is not touched again.

What happens after a failure:

| failure | then |
|---|---|
| no space (ENOSPC, EDQUOT, EFBIG) while writing, and the file was cut back | may be tried again |
| any other error while writing, or the cut fails | the file is given up until a restart |
| fdatasync fails | the file is given up: the kernel may have dropped the pages and forgotten |
| the file was deleted, replaced, cut or written to by someone else | the file is given up |
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ironwork_server.journal.extent import Extent
from ironwork_server.journal.filesystem import FileSystem

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class CommitFailed(Exception):
    """Nothing of this commit is acknowledged. lasting: nothing may be written until a restart.
    what: one sentence for logs and health, without any entry's content.
    """

    def __init__(self, what: str, *, lasting: bool) -> None:
        super().__init__(what)
        self.what = what
        self.lasting = lasting


class LogFile:
    """The descriptor stays its opener's to close. Used by one thread at a time (the writer's)."""

    def __init__(self, path: Path, fd: int, extent: Extent, file_system: FileSystem) -> None:
        self._path = path
        self._fd = fd
        self._file_system = file_system
        self.extent = extent

    def commit(self, lines: Sequence[bytes]) -> None:
        """Append lines (each with its line feed) and make them durable, all or none."""
        _, offset = self.extent.end
        self._check_in_place(offset)
        try:
            self._write(b"".join(lines), offset)
        except OSError as error:
            raise self._cut_back(offset, error) from None
        try:
            self._file_system.fdatasync(self._fd)
        except OSError as error:
            raise CommitFailed(f"fdatasync failed ({_name(error)})", lasting=True) from None
        self.extent.advance(map(len, lines))

    def restore(self, length: int) -> None:
        """At a start: cut off what stands after the last whole entry, then write the last `length`
        bytes once more, in place, and sync. Raises OSError.

        The second is for a start after a failed fdatasync: the kernel may hold pages as clean that
        never reached the disk, so that what was read back is not durable.
        """
        _, end = self.extent.end
        self._file_system.ftruncate(self._fd, end)
        start = max(0, end - length)
        self._write(os.pread(self._fd, end - start, start), start)
        self._file_system.fdatasync(self._fd)

    def _check_in_place(self, offset: int) -> None:
        try:
            here, there = os.fstat(self._fd), self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            raise CommitFailed("the journal file is gone", lasting=True) from None
        except OSError as error:
            raise CommitFailed(
                f"the journal file cannot be looked at ({_name(error)})", lasting=True
            ) from None
        if here.st_nlink == 0 or (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise CommitFailed("the journal file was replaced", lasting=True)
        if here.st_size != offset:
            raise CommitFailed("the journal file was changed by someone else", lasting=True)

    def _write(self, data: bytes, offset: int) -> None:
        rest = memoryview(data)
        while rest:
            written = self._file_system.write(self._fd, rest, offset)
            if written <= 0:
                raise OSError(errno.EIO, "nothing was written")
            rest = rest[written:]
            offset += written

    def _cut_back(self, offset: int, error: OSError) -> CommitFailed:
        """Undo a partial write. What was cut had not been acknowledged."""
        what = f"writing failed ({_name(error)})"
        try:
            self._file_system.ftruncate(self._fd, offset)
        except OSError:
            return CommitFailed(what, lasting=True)
        return CommitFailed(what, lasting=error.errno not in _NO_SPACE)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown error")
