"""Reads a token's PIN from a file of its own, into memory that is wiped."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ironwork_hsm.interface import ConfigurationError

MAX_PIN_BYTES = 256


class Pin:
    """A PIN in a bytearray of its own; shows itself nowhere and is wiped by whoever read it."""

    __slots__ = ("_buffer",)

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = buffer

    def reveal(self) -> bytearray:
        """The bytes themselves (UTF-8), lent until wipe(). Never log, keep or copy them."""
        return self._buffer

    def wipe(self) -> None:
        """Overwrite the bytes with zeros. Safe to call again."""
        self._buffer[:] = bytes(len(self._buffer))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "Pin(…)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which content a file had, without looking at it. Times in nanoseconds; a file that is not
    there has zeros.
    """

    device: int = 0
    inode: int = 0
    size: int = 0
    modified: int = 0
    changed: int = 0

    @classmethod
    def of(cls, path: Path) -> "FileIdentity":
        """The identity of what the path leads to now."""
        try:
            status = path.stat()
        except OSError:
            return cls()
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


def read_pin(path: Path) -> Pin:
    """The PIN in this file: one line, of which the line end is no part.

    Raises ConfigurationError where the file is missing, no regular file, open to group or others,
    empty, longer than 256 bytes, or holds more than one line. No error quotes what it holds.
    """
    # O_NONBLOCK: opening a FIFO must not hang before we can refuse it. Symbolic links are
    # followed, since secret mounts are made of them; the checks look at what was opened.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(
            f"The PIN file {path} cannot be opened: {os.strerror(error.errno or 0)}."
        ) from None
    try:
        _check_file(path, os.fstat(descriptor))
        buffer = bytearray(MAX_PIN_BYTES + 3)
        length = _read_into(path, descriptor, buffer)
    finally:
        os.close(descriptor)
    return _pin_in(path, buffer, length)


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"The PIN file {path} is not a regular file.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigurationError(
            f"The PIN file {path} is open to group or others; mend it with: chmod 600 {path}"
        )


def _read_into(path: Path, descriptor: int, buffer: bytearray) -> int:
    """Fill buffer from its start; returns how many bytes there were, at most its length."""
    length = 0
    try:
        while length < len(buffer):
            with memoryview(buffer) as whole, whole[length:] as rest:
                count = os.readv(descriptor, [rest])
            if count == 0:
                break
            length += count
    except OSError as error:
        raise ConfigurationError(
            f"The PIN file {path} cannot be read: {os.strerror(error.errno or 0)}."
        ) from None
    return length


def _pin_in(path: Path, buffer: bytearray, length: int) -> Pin:
    end = length
    if end and buffer[end - 1] == 0x0A:
        end -= 1
        if end and buffer[end - 1] == 0x0D:
            end -= 1
    problem = _problem(buffer, end)
    if problem:
        buffer[:] = bytes(len(buffer))
        raise ConfigurationError(f"The PIN file {path} {problem}.")
    pin = bytearray(memoryview(buffer)[:end])
    buffer[:] = bytes(len(buffer))
    return Pin(pin)


def _problem(buffer: bytearray, end: int) -> str | None:
    if end == 0:
        return "is empty"
    if end > MAX_PIN_BYTES:
        return f"is longer than {MAX_PIN_BYTES} bytes; it holds the PIN and nothing else"
    if any(buffer[index] < 0x20 or buffer[index] == 0x7F for index in range(end)):
        return "holds a control character or a second line; it holds the PIN and nothing else"
    return None
