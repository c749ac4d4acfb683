"""Break-glass: its recipient, its key pair, and opening the store without the HSM (ADR 0023)."""

import os
from collections.abc import Callable
from pathlib import Path

from ironwork_server.app.operator import operating
from ironwork_server.app.settings import Settings
from ironwork_server.app.startup import StartupError
from ironwork_server.custody.break_glass import BreakGlassError, Recipient, RecoveryKey
from ironwork_server.custody.rewrap import Report, Rewrapper

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
