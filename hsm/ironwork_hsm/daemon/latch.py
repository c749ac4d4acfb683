"""Remembers, over restarts, that a token refused a PIN: it is not tried again until its file
changes, so that no restart, however often it is repeated, runs into a lock-out.

What is kept is which file it was (device, inode, size, times of change), never anything of the PIN:
a digest of a short PIN can be searched. Writing the file again, also with the same PIN, is how an
operator says "try it once more". A file that is made anew at every start (systemd's credentials, a
tmpfs) is another one each time, so refusals in a row are counted too: after MAX_REFUSALS it is
tried no more, whatever the file, until an operator takes the latch away.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Final

from ironwork_hsm.daemon.durable import replace_durably
from ironwork_hsm.interface import ConfigurationError, PinRefused
from ironwork_hsm.pin import FileIdentity
from ironwork_hsm.uri import SCHEME as PKCS11
from ironwork_hsm.uri import parse_pkcs11_uri

# Tokens lock themselves after 3 refusals or more: one try is left for the operator.
MAX_REFUSALS: Final = 2


class PinLatch:
    """One PIN file's latch. lock: held by whoever tries the PIN, so that two devices with one PIN
    do not both have it refused; theirs is one lock.
    """

    def __init__(self, state: Path, pin_file: Path, lock: asyncio.Lock | None = None) -> None:
        self._pin_file = pin_file
        self._state = state
        self.lock = lock or asyncio.Lock()

    @property
    def path(self) -> Path:
        """Of the latch: one for all names that lead to the PIN file."""
        # A file name of fixed length for any path; the path is no secret.
        name = sha256(os.fsencode(os.path.realpath(self._pin_file))).hexdigest()[:32]
        return self._state / f"pin-refused-{name}.json"

    def identity(self) -> FileIdentity:
        """The PIN file's, to be taken before the PIN is read."""
        return FileIdentity.of(self._pin_file)

    def is_set(self) -> bool:
        """Whether the PIN in the file as it is now was refused. What cannot be read counts as set:
        an operator must look.
        """
        try:
            refused, count = self._stored()
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError):
            return True
        return count >= MAX_REFUSALS or refused == self.identity()

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """Around whatever tries the PIN. Raises PinRefused where it is not to be tried, and
        ConfigurationError where a refusal cannot be remembered, or not be forgotten.
        """
        if self.is_set():
            raise self.refusal()
        # Before the PIN is read: a file that changes meanwhile is not the refused one.
        tried = self.identity()
        try:
            yield
        except PinRefused:
            self.set(tried)
            raise
        self.clear()

    def refusal(self) -> PinRefused:
        """What is told while it is set."""
        return PinRefused(
            "The token refused the PIN, which is not tried again until its file changes; after"
            f" {MAX_REFUSALS} refusals in a row, until {self.path} is removed too."
        )

    def set(self, refused: FileIdentity) -> None:
        """Remember, durably, that this was refused. Raises ConfigurationError."""
        try:
            _, count = self._stored()
        except (OSError, ValueError, TypeError):
            count = 0
        kept = json.dumps(asdict(refused) | {"refusals": count + 1}).encode("ascii")
        try:
            replace_durably(self.path, kept)
        except OSError as error:
            raise ConfigurationError(
                f"That the PIN was refused cannot be remembered in {self._state}:"
                f" {os.strerror(error.errno or 0)}."
            ) from None

    def clear(self) -> None:
        """The PIN was taken. Raises ConfigurationError."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"{self.path} cannot be removed although the PIN is right:"
                f" {os.strerror(error.errno or 0)}."
            ) from None

    def _stored(self) -> tuple[FileIdentity, int]:
        """Which file was refused last, and how many refusals there were in a row. Raises OSError,
        ValueError, TypeError.
        """
        stored = json.loads(self.path.read_bytes())
        if not isinstance(stored, dict):
            raise TypeError("a latch is a JSON object")
        count = stored.pop("refusals", None)
        if not isinstance(count, int):
            raise TypeError("a latch's count is a number")
        return FileIdentity(**stored), count


def latch_of(state: Path, uri: str, locks: dict[Path, asyncio.Lock]) -> PinLatch | None:
    """The latch of the PIN file in a device's URI, where it has one. locks: of the devices that
    were met so far, by file; all with one PIN file get one lock. Raises ConfigurationError.
    """
    if uri.partition(":")[0].lower() != PKCS11:
        return None
    pin_file = parse_pkcs11_uri(uri).pin_source
    lock = locks.setdefault(Path(os.path.realpath(pin_file)), asyncio.Lock())
    return PinLatch(state, pin_file, lock)


def make_private(folder: Path) -> None:
    """Make the state's folder, closed to other users. Raises ConfigurationError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        raise ConfigurationError(
            f"state: {folder} cannot be used: {os.strerror(error.errno or 0)}."
        ) from None
    if mode & 0o077:
        raise ConfigurationError(
            f"state: {folder} is open to other users; mend it with: chmod 700 {folder}"
        )
