"""`ironwork-server break-glass keygen|open`."""

import asyncio
import getpass
import sys
import warnings
from pathlib import Path

from ironwork_server.app import break_glass
from ironwork_server.app.startup import StartupError, refuse_speaking_environment
from ironwork_server.cli.config import settings_from
from ironwork_server.cli.master_key import moving, tell

_MAX_PASSPHRASE = 1024


def keygen(private: Path, public: Path) -> int:
    """Make the offline key pair; on a machine that is not on the network."""
    passphrase = _passphrase("Passphrase (not shown): ")
    if sys.stdin.isatty() and _passphrase("The same again: ") != passphrase:
        raise StartupError("The passphrases differ; nothing was written.")
    recipient = break_glass.keygen(private, public, passphrase)
    print(f"recipient {recipient.id}")  # noqa: T201  the answer
    return 0


def open_(config: Path | None, private: Path, *, rate: float) -> int:
    """Move a store whose HSM is lost under a new master key; 1 where something stays behind."""
    refuse_speaking_environment()
    settings = settings_from(config)
    key = break_glass.read_private(private, _passphrase("Passphrase (not shown): "))
    with moving("break-glass") as (_, progress):
        report = asyncio.run(
            break_glass.open_store_without_hsm(settings, key, rate=rate, progress=progress)
        )
    return tell(report)


def _passphrase(prompt: str) -> bytes:
    """From the terminal without echo, or the next line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline(_MAX_PASSPHRASE).rstrip("\n").encode()
    with warnings.catch_warnings():
        # Where the terminal cannot switch its echo off, getpass warns and echoes: refuse instead.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt).encode()
        except getpass.GetPassWarning:
            raise StartupError(
                "This terminal cannot hide what is typed: give the passphrase on standard input."
            ) from None
