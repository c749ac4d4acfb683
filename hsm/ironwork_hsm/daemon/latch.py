"""Remembers, over restarts, that a token refused a PIN: it is not tried again until its file
changes, so that no restart, however often it is repeated, runs into a lock-out.

What is kept is which file it was (device, inode, size, times of change), never anything of the PIN:
a digest of a short PIN can be searched. Writing the file again, also with the same PIN, is how an
operator says "try it once more".
"""

import asyncio
import json
import os
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from ironwork_hsm.interface import ConfigurationError
from ironwork_hsm.pin import FileIdentity


class PinLatch:
    """One PIN file's latch. lock: held by whoever tries the PIN, so that two devices with one PIN
    do not both have it refused.
    """

    def __init__(self, state: Path, pin_file: Path) -> None:
        self._pin_file = pin_file
        # A file name of fixed length for any path; the path is no secret.
        name = sha256(os.fsencode(pin_file.absolute())).hexdigest()[:32]
        self._path = state / f"pin-refused-{name}.json"
        self.lock = asyncio.Lock()

    def identity(self) -> FileIdentity:
        """The PIN file's, to be taken before the PIN is read."""
        return FileIdentity.of(self._pin_file)

    def is_set(self) -> bool:
        """Whether the PIN in the file as it is now was refused. What cannot be read counts as set:
        an operator must look.
        """
        try:
            stored = json.loads(self._path.read_bytes())
            refused = FileIdentity(**stored)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError):
            return True
        return refused == self.identity()

    def set(self, refused: FileIdentity) -> None:
        """Remember, durably, that this was refused. Raises ConfigurationError."""
        new = self._path.with_suffix(".new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(asdict(refused), file)
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._path)
            _sync(self._path.parent)
        except OSError as error:
            raise ConfigurationError(
                f"That the PIN was refused cannot be remembered in {self._path.parent}:"
                f" {os.strerror(error.errno or 0)}."
            ) from None

    def clear(self) -> None:
        """The PIN was taken."""
        self._path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
