"""The calls that make an entry durable, behind a seam through which tests let a disk fail."""

import os
from typing import Protocol


class FileSystem(Protocol):
    """Raises OSError as the operating system does; calls may block for as long as the disk does."""

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """pwrite(2): how many bytes were written, possibly fewer than given."""

    def fdatasync(self, fd: int) -> None:
        """fdatasync(2)."""

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate(2)."""


class OperatingSystem:
    """The real one."""

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)
