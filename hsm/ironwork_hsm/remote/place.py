"""Where the HSM process listens, and whether that place can be trusted."""

import os
import re
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ironwork_hsm.interface import ConfigurationError, Unavailable

SCHEME: Final = "unix"
# sun_path of unix(7), with the zero byte at its end.
_MAX_PATH_BYTES: Final = 107
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/@+=,:-]+")
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket, by the kernel's word (SO_PEERCRED, unix(7)).

    pid is that of the process that connected, at that time; 0 where it runs in a PID namespace that
    this process cannot see into, as in another container.
    """

    pid: int
    uid: int

    @property
    def is_nobody(self) -> bool:
        """Whether there is no peer at all: the kernel's word for that is the uid -1, which no user
        has.
        """
        return self.uid < 0


def parse_unix_uri(uri: str) -> Path:
    """The socket of `unix:/absolute/path`. Raises ConfigurationError."""
    scheme, _, path = uri.partition(":")
    if scheme.lower() != SCHEME or not _PATH.fullmatch(path) or "//" in path:
        raise ConfigurationError(
            "The HSM process' URI is `unix:` and its socket's absolute path, nothing more:"
            " unix:/run/ironwork-hsmd/hsm.sock"
        )
    return checked_path(Path(path))


def checked_path(path: Path) -> Path:
    """The same path. Raises ConfigurationError where no socket can have it."""
    if not path.is_absolute() or len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ConfigurationError(
            f"A socket's path is absolute and at most {_MAX_PATH_BYTES} bytes long."
        )
    return path


def folder_owner(socket_path: Path, *, geteuid: Callable[[], int] = os.geteuid) -> int:
    """The uid that owns the socket's folder. Raises ConfigurationError where others than its owner
    may write to it: they could put a socket of their own there. The same where the folder is
    neither root's nor this process' own, and others may write to a folder above it: they could put
    a folder of their own in its place. Raises Unavailable where it is not there.
    """
    folder = socket_path.parent
    try:
        status = folder.stat()
    except OSError as error:
        raise Unavailable(
            f"The HSM process' folder {folder} cannot be looked at:"
            f" {os.strerror(error.errno or 0)}."
        ) from None
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise ConfigurationError(
            f"The HSM process' folder {folder} can be written to by group or others, who could put"
            f" a socket of their own there; mend it with: chmod go-w {folder}"
        )
    if status.st_uid not in {0, geteuid()}:
        above = _open_above(folder)
        if above is not None:
            raise ConfigurationError(
                f"{above}, above the HSM process' folder {folder}, can be written to by group or "
                "others, who could put a folder of their own in its place; use one below /run."
            )
    return status.st_uid


def _open_above(folder: Path) -> Path | None:
    """The first folder above this one that group or others may write to. A sticky one too: when
    what was in it is gone, anybody may make it anew.
    """
    for above in Path(os.path.realpath(folder)).parents:
        if stat.S_IMODE(above.stat().st_mode) & 0o022:
            return above
    return None


def peer_of(connected: socket.socket) -> Peer:
    """Who is at the other end."""
    size = _CREDENTIALS.size
    pid, uid, _ = _CREDENTIALS.unpack(
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return Peer(pid=pid, uid=uid)
