"""The calls that make a log durable, behind a seam through which tests let a disk fail."""

import errno
import os
from pathlib import Path
from typing import Final, Protocol

from ironwork_audit.log.errors import WriteFailed, error_name

FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_NEW: Final = ".new"


class FileSystem(Protocol):
    """Raises OSError as the operating system does; calls may block for as long as the disk does."""

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """pwrite(2): how many bytes were written, possibly fewer than given."""

    def fdatasync(self, fd: int) -> None:
        """fdatasync(2)."""

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate(2)."""

    def rename(self, source: Path, target: Path) -> None:
        """rename(2)."""

    def sync_folder(self, folder: Path) -> None:
        """Make the folder's names durable: fsync(2) on it."""

    def check_room(self, folder: Path) -> None:
        """Raises ENOSPC or EROFS where the file system can take nothing: statvfs(3)."""

    def check_takes_writes(self, fd: int) -> None:
        """Raises EROFS where a file that was opened for writing takes none any more: write(2) of
        nothing. An ext4 that stopped at an error of its own says it here and not by statvfs.
        """


class OperatingSystem:
    """The real one."""

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def sync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def check_room(self, folder: Path) -> None:
        found = os.statvfs(folder)
        if found.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        # A file system that does not count its blocks has none at all.
        if found.f_blocks and not found.f_bavail:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def check_takes_writes(self, fd: int) -> None:
        os.write(fd, b"")


def write_all(file_system: FileSystem, fd: int, data: bytes, offset: int) -> None:
    """Write all of it. Raises OSError."""
    rest = memoryview(data)
    while rest:
        written = file_system.write(fd, rest, offset)
        if written <= 0:
            raise OSError(errno.EIO, "nothing was written")
        rest = rest[written:]
        offset += written


def write_file(file_system: FileSystem, path: Path, data: bytes) -> None:
    """Put a file in its place, whole or not at all; its name is durable once its folder is synced.

    Raises OSError where that may be tried again, WriteFailed (lasting) where the sync failed:
    after that the kernel may take pages for clean that never reached the disk.
    """
    new = path.with_name(path.name + _NEW)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | FLAGS, 0o600)
    try:
        write_all(file_system, fd, data, 0)
        sync(file_system, fd)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    file_system.rename(new, path)


def sync(file_system: FileSystem, fd: int) -> None:
    """fdatasync; WriteFailed (lasting) where it fails."""
    try:
        file_system.fdatasync(fd)
    except OSError as error:
        raise WriteFailed(f"fdatasync failed ({error_name(error)})", lasting=True) from None


def sync_folder(file_system: FileSystem, folder: Path) -> None:
    """fsync of a folder; WriteFailed (lasting) where it fails."""
    try:
        file_system.sync_folder(folder)
    except OSError as error:
        raise WriteFailed(f"fsync of a folder failed ({error_name(error)})", lasting=True) from None
