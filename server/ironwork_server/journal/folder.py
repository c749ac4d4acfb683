"""The journal's folder: made once, private, and held by one process."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from ironwork_audit import FieldRefused, header
from ironwork_server.journal.errors import JournalInUse, JournalUnusable

LOG_NAME: Final = "journal.jsonl"
_LOCK_NAME: Final = "lock"
_NEW_NAME: Final = "journal.jsonl.new"
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


def prepare(folder: Path) -> None:
    """Make the folder (0700) where there is none; refuse one that others may enter."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        sync_folder(folder.parent)
    if folder.stat().st_mode & 0o077:
        raise JournalUnusable(
            f"the audit journal's folder {folder} is open to other users: chmod 700 it"
        )


def lock(folder: Path) -> int:
    """Hold the folder until the descriptor that is returned is closed. Raises JournalInUse."""
    fd = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise JournalInUse(
            f"the audit journal in {folder} is in use by process {holder}: "
            "stop it, or give this process a folder and an origin of its own"
        ) from None
    except OSError:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def open_log(folder: Path, origin: str) -> int:
    """A descriptor of the log file, which is made with its header where there is none."""
    path = folder / LOG_NAME
    if not os.path.lexists(path):
        _create(folder, origin)
    # Each time: the start that made the file may have been cut short before its name was durable.
    sync_folder(folder)
    fd = os.open(path, os.O_RDWR | _FLAGS)
    if os.fstat(fd).st_mode & 0o077:
        os.close(fd)
        raise JournalUnusable(f"the audit journal {path} is open to other users: chmod 600 it")
    return fd


def _create(folder: Path, origin: str) -> None:
    """Whole or not at all: written beside its place, synced, then named."""
    try:
        content = header(origin)
    except FieldRefused as refused:
        raise JournalUnusable(f"the audit log's {refused}") from None
    new = folder / _NEW_NAME
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(folder / LOG_NAME)


def sync_folder(folder: Path) -> None:
    """Make the folder's names durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
