"""`ironwork-server break-glass keygen|open|list|drop`."""

import asyncio
import getpass
import sys
import warnings
from pathlib import Path

from ironwork_server.app import break_glass
from ironwork_server.app.startup import StartupError, refuse_speaking_environment
from ironwork_server.cli.config import settings_from
from ironwork_server.cli.master_key import moving, tell, tell_failures

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


def list_(config: Path | None) -> int:
    """Whom there are copies for."""
    for each in asyncio.run(break_glass.held(settings_from(config))):
        configured = ", for new keys too" if each.configured else ""
        print(f"recipient {each.recipient}: {each.copies} copies{configured}")  # noqa: T201
    return 0


def drop(config: Path | None, recipient: str | None, *, rate: float) -> int:
    """Drop copies of recipients that are none any more; 1 where some stay."""
    refuse_speaking_environment()
    settings = settings_from(config)
    with moving("drop") as (begin, progress):
        report, left = asyncio.run(
            break_glass.drop(settings, recipient, rate=rate, begin=begin, progress=progress)
        )
    pepper = ", and the pepper's" if report.pepper_moved else ""
    print(f"dropped {report.moved} copies{pepper}; {left} are left")  # noqa: T201  the answer
    tell_failures("not dropped, since the HSM does not open what they are for", report)
    return 1 if left else 0


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
