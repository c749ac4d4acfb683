"""A log's folder: made once, private, held by one process, and of one origin for good.

origin       {"format":"ironwork-log/1","origin":"…"}
id           32 hexadecimal digits, drawn with the folder: two logs of one name differ in it
lock         held while a process has the log open
pending.0/1  the write-ahead files            (pending.py)
state        how far the tree's tiles go      (snapshot.py)
snapshot     what is derived from the entries (snapshot.py)
checkpoint   the signed tree head, and tile/: static files that any web server can publish
checkpoint.witnessed, witness/  what witnesses signed, where there are any (written by the server)
"""

import contextlib
import fcntl
import os
import re
import secrets
from pathlib import Path
from typing import Final

from ironwork_audit.fields import FieldRefused
from ironwork_audit.file_format import WrongHeader, header, parse_header
from ironwork_audit.log.errors import LogDamaged, LogInUse, LogUnusable, OriginDiffers
from ironwork_audit.log.filesystem import FLAGS, FileSystem, sync_folder, write_file

ORIGIN: Final = "origin"
ID: Final = "id"
LOCK: Final = "lock"
TILES: Final = "tile"
CHECKPOINT: Final = "checkpoint"
# What an older version of this program wrote in this place.
_OLD_JOURNAL: Final = "journal.jsonl"
_ID_BYTES: Final = 16
_ID_LINE: Final = re.compile(rb"[0-9a-f]{32}\n")


def prepare(folder: Path, file_system: FileSystem) -> None:
    """Make the folder (0700) where there is none; refuse one that others may enter."""
    if not folder.is_dir():
        _make(folder, file_system)
    if folder.stat().st_mode & 0o077:
        raise LogUnusable(f"the audit log's folder {folder} is open to other users: chmod 700 it")
    if os.path.lexists(folder / _OLD_JOURNAL):
        raise LogUnusable(
            f"{folder} holds a plain journal ({_OLD_JOURNAL}) of an older version, which this one "
            "does not go on with: keep the folder as an archive, and set audit.folder to a new one "
            "and audit.origin to a new name. (A `dev` state is thrown away whole.)"
        )


def _make(folder: Path, file_system: FileSystem) -> None:
    missing = [parent for parent in folder.parents if not parent.is_dir()]
    folder.mkdir(mode=0o700, parents=True)
    for made in missing:
        sync_folder(file_system, made.parent)


def sync_parent(folder: Path, file_system: FileSystem) -> None:
    """Make a new log's own name durable, whoever made the folder: perhaps a process that was killed
    before it could. Raises OSError.
    """
    # Where we may not read the parent, it was not us who made the folder.
    with contextlib.suppress(PermissionError):
        file_system.sync_folder(folder.parent)


def lock(folder: Path) -> int:
    """Hold the folder until the descriptor that is returned is closed. Raises LogInUse, OSError."""
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | FLAGS, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise LogInUse(
            f"the audit log in {folder} is in use by process {holder}: "
            "stop it, or give this process a folder and an origin of its own"
        ) from None
    except OSError:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def is_new(folder: Path) -> bool:
    """Whether the folder's log is still to be made. Raises LogDamaged where it was made already."""
    if os.path.lexists(folder / ORIGIN):
        return False
    if (folder / TILES).is_dir() and any((folder / TILES / "entries").glob("*")):
        raise LogDamaged(ORIGIN, "the file is missing")
    return True


def write_origin(folder: Path, origin: str, file_system: FileSystem) -> None:
    """Say whose folder it is: the last step of making a log."""
    try:
        content = header(origin)
    except FieldRefused as refused:
        raise LogUnusable(f"the audit log's {refused}") from None
    write_file(file_system, folder / ORIGIN, content)
    sync_folder(file_system, folder)


def check_origin(folder: Path, origin: str) -> None:
    """Raises OriginDiffers, LogDamaged, OSError."""
    try:
        stored = parse_header((folder / ORIGIN).read_bytes())
    except WrongHeader as wrong:
        raise LogDamaged(ORIGIN, str(wrong)) from None
    if stored != origin:
        raise OriginDiffers(
            f"this log belongs to the origin {stored!r}, not {origin!r}: "
            "give each process a folder of its own, or set the origin back"
        )


def own_id(folder: Path, file_system: FileSystem) -> str:
    """The folder's id, drawn where it has none: a new one, or one of an earlier version. Raises
    LogDamaged, OSError, WriteFailed.
    """
    try:
        line = (folder / ID).read_bytes()
    except FileNotFoundError:
        line = secrets.token_hex(_ID_BYTES).encode() + b"\n"
        write_file(file_system, folder / ID, line)
        sync_folder(file_system, folder)
    if not _ID_LINE.fullmatch(line):
        raise LogDamaged(ID, "it is not what was written there")
    return line.decode().rstrip()
