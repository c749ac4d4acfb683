"""Break-glass: its recipient, its key pair, and opening the store without the HSM (ADR 0023)."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ironwork_server.app.operator import operating
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError
from ironwork_server.custody.break_glass import BreakGlassError, Recipient, RecoveryKey
from ironwork_server.custody.drop_copies import CopyDropper
from ironwork_server.custody.rewrap import Report, Rewrapper
from ironwork_server.store import open_store

_MAX_FILE = 64 * 1024


def recipient_of(settings: Settings) -> Recipient | None:
    """Whom copies are for; None where break-glass is off. Errors: StartupError."""
    path = settings.break_glass.recipient
    if path is None:
        return None
    try:
        return Recipient.parse(_read(path))
    except BreakGlassError as error:
        raise StartupError(f"break_glass.recipient: {path}: {error}") from None


def keygen(private: Path, public: Path, passphrase: bytes) -> Recipient:
    """Make a key pair: two new files, the private one encrypted and its owner's alone. Errors:
    StartupError, OSError.
    """
    key = RecoveryKey.generate()
    try:
        encrypted = key.pem(passphrase)
    except BreakGlassError as error:
        raise StartupError(str(error)) from None
    _write_new(private, encrypted, 0o600)
    _write_new(public, key.recipient.pem, 0o644)
    return key.recipient


def read_private(path: Path, passphrase: bytes) -> RecoveryKey:
    """Errors: StartupError."""
    try:
        return RecoveryKey.parse(_read(path), passphrase)
    except BreakGlassError as error:
        raise StartupError(f"{path}: {error}") from None


async def open_store_without_hsm(
    settings: Settings, key: RecoveryKey, *, rate: float, progress: Callable[[int], None]
) -> Report:
    """Wrap every data key that has a copy under the first URI's master key, a new one. No plaintext
    leaves the process, and no API key is opened. Errors: StartupError, HsmError, IronworkError.
    """
    async with operating(settings) as open_:
        rewrapper = Rewrapper(
            open_.wrappers[:1],
            open_.store,
            open_.records,
            rate=rate,
            progress=progress,
            recovery_key=key,
        )
        return await rewrapper.run()


@dataclass(frozen=True, slots=True)
class Held:
    """Copies for one recipient. configured: whether new keys get one for it."""

    recipient: str
    copies: int
    configured: bool


async def held(settings: Settings) -> list[Held]:
    """Whom the store has copies for. Errors: StartupError, IronworkError."""
    configured = recipient_of(settings)
    store = open_store(settings.store.url)
    try:
        copies = await store.copies()
    finally:
        await store.close()
    current = "" if configured is None else configured.id
    return [Held(each, copies[each], each == current) for each in sorted(copies)]


async def drop(
    settings: Settings,
    recipient: str | None,
    *,
    rate: float,
    begin: Callable[[int], None],
    progress: Callable[[int], None],
) -> tuple[Report, int]:
    """Drop the copies for recipient, or for all but the one that is configured; what was done, and
    how many of these copies are there still. begin: told how many there are. Errors: StartupError,
    HsmError, IronworkError.
    """
    there = await held(settings)
    to_drop = _to_drop(there, recipient)
    begin(sum(each.copies for each in to_drop))
    report = Report()
    async with operating(settings) as open_:
        dropper = CopyDropper(
            open_.wrappers, open_.store, open_.records, rate=rate, progress=progress
        )
        for each in to_drop:
            await dropper.run(each.recipient, report)
        # Also where a run that was killed dropped the last.
        await open_.store.erase()
        left = await open_.store.copies()
    return report, sum(left.get(each.recipient, 0) for each in to_drop)


def _to_drop(there: Sequence[Held], recipient: str | None) -> Sequence[Held]:
    if recipient is None:
        return [each for each in there if not each.configured]
    for each in there:
        if each.recipient == recipient and each.configured:
            raise StartupError(
                f"{recipient} is break_glass.recipient: new keys get copies for it. Change or"
                " remove that setting, restart the servers, and run this again."
            )
        if each.recipient == recipient:
            return [each]
    known = ", ".join(each.recipient for each in there) or "nobody"
    raise StartupError(f"--recipient: there are no copies for it; there are for {known}.")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise StartupError(f"{path} cannot be read ({error.strerror}).") from None


def _write_new(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
