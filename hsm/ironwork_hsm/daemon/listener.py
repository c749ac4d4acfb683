"""The socket: made in a folder that nobody else can write to, and guarded by uid."""

import fcntl
import os
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ironwork_hsm.daemon.session import Session
from ironwork_hsm.interface import ConfigurationError
from ironwork_hsm.remote.place import Peer, folder_owner

_BACKLOG: Final = 64


# Connections that root and the process' own user have beyond all shares, each: for the status.
RESERVED: Final = 2


class Guard:
    """Implements session.Door: who comes in, and how many. Each user on the list has an even share
    of the connections, at least one, that no other user can take.
    """

    def __init__(self, allowed: frozenset[int], connections: int) -> None:
        self._allowed = allowed
        self._share = max(1, connections // len(allowed))
        self._reserve = {0, os.geteuid()}
        self._held: Counter[int] = Counter()
        self.sessions: dict[Session, int] = {}

    def admit(self, session: Session, peer: Peer) -> str | None:
        """See session.Door. Root and the process' own user may ask for the status."""
        if peer.uid not in self._allowed | self._reserve:
            return "PEER_REFUSED"
        share = self._share if peer.uid in self._allowed else 0
        reserved = RESERVED if peer.uid in self._reserve else 0
        if self._held[peer.uid] >= share + reserved:
            return "TOO_MANY_CONNECTIONS"
        self._held[peer.uid] += 1
        self.sessions[session] = peer.uid
        return None

    def leave(self, session: Session) -> None:
        """See session.Door."""
        uid = self.sessions.pop(session, None)
        if uid is not None:
            self._held[uid] -= 1

    def may_use_keys(self, peer: Peer) -> bool:
        """See session.Door."""
        return peer.uid in self._allowed


class Listener:
    """Holds the socket and its lock. Made by `listen`."""

    def __init__(self, path: Path, listening: socket.socket, lock: int) -> None:
        self.socket = listening
        self._path = path
        self._lock = lock

    def close(self) -> None:
        """Take the socket's name away, and let another process have it."""
        self._path.unlink(missing_ok=True)
        self.socket.close()
        os.close(self._lock)


def listen(path: Path, *, geteuid: Callable[[], int] = os.geteuid) -> Listener:
    """Listen at path. Its folder is the operator's to make: this process' own or root's, and closed
    to other writers. Raises ConfigurationError, Unavailable.
    """
    if folder_owner(path) not in {geteuid(), 0}:
        raise ConfigurationError(
            f"The socket's folder {path.parent} belongs to another user, who could put a socket of"
            " their own there; give it to this process' user or to root."
        )
    try:
        return _listen(path)
    except OSError as error:
        raise ConfigurationError(
            f"socket: {path} cannot be listened on: {os.strerror(error.errno or 0)}."
        ) from None


def _listen(path: Path) -> Listener:
    lock = os.open(
        path.with_name(path.name + ".lock"),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What a killed process left behind; the lock says that nobody listens there.
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.setblocking(False)
        listening.bind(str(path))
        # Anybody may knock; who is let in is decided by uid.
        path.chmod(0o666)
        listening.listen(_BACKLOG)
    except BlockingIOError:
        os.close(lock)
        raise ConfigurationError(f"socket: another process listens at {path} already.") from None
    except BaseException:
        os.close(lock)
        raise
    return Listener(path, listening, lock)
