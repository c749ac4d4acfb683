"""Where a log's files are read from: a folder, or the URL of static files.

Whoever publishes the files is not trusted: each read has a bound and a deadline, a URL leads to
one host and never on to another, and nothing that was read is believed before it is checked.
"""

import contextlib
import errno
import os
import stat
import threading
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from ironwork_audit.tlog.hashes import HASH_BYTES
from ironwork_audit.tlog.note import MAX_NOTE_BYTES
from ironwork_audit.tlog.tiles import (
    MAX_BUNDLE_BYTES,
    TILE_WIDTH,
    TilePath,
    parse_bundle,
    parse_tile,
)

CHECKPOINT: Final = "checkpoint"
DEADLINE_S: Final = 30.0
_CHUNK: Final = 64 * 1024
_SHUT_RDWR: Final = 2  # socket.SHUT_RDWR


class Unreadable(Exception):
    """The log cannot be read: the text says what and why, and is fit to be shown."""


class NotThere(Unreadable):
    """The log has no such file."""


class Source(Protocol):
    """A log's files. Can be pickled, for other processes. Raises NotThere, Unreadable."""

    def read(self, path: str, limit: int) -> bytes:
        """A file's bytes, by its path below the log's root; Unreadable for more than `limit`."""

    def close(self) -> None:
        """Give up what is kept between reads. It can still be read from."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A log in a folder."""

    folder: Path

    def read(self, path: str, limit: int) -> bytes:
        """See Source."""
        try:
            with open(self.folder / path, "rb", opener=_open_file) as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise NotThere(f"{self.folder / path}: no such file") from None
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise Unreadable(f"{self.folder / path}: {reason}") from None
        if len(data) > limit:
            raise Unreadable(f"{self.folder / path}: longer than {limit} bytes")
        return data

    def close(self) -> None:
        """See Source: nothing is kept."""


def _open_file(name: str, flags: int) -> int:
    """A file's descriptor, or a folder's, which `open` refuses itself: a pipe would be waited for,
    and a device may have no end.
    """
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file")
    return descriptor


class HttpSource:
    """A log published as static files under an http(s) URL. One connection, kept open; not for
    concurrent use. A redirect is an error: the files of one log are in one place.
    """

    def __init__(self, url: str, deadline_s: float = DEADLINE_S) -> None:
        """Raises Unreadable for what is not the URL of a folder."""
        try:
            parts = urlsplit(url)
            host, _ = (parts.hostname or "").encode("idna"), parts.port
        except ValueError:  # a port or an address that is none, a label that is too long
            raise Unreadable(f"{url}: not an http or https URL") from None
        if parts.scheme not in {"http", "https"} or not host:
            raise Unreadable(f"{url}: not an http or https URL")
        if not parts.path.isascii():
            raise Unreadable(f"{url}: its path must be percent-encoded")
        if parts.username or parts.query or parts.fragment:
            raise Unreadable(f"{url}: must have no user, query or fragment")
        self._url = url.rstrip("/")
        self._deadline_s = deadline_s
        self._connection: HTTPConnection | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return HttpSource, (self._url, self._deadline_s)

    def read(self, path: str, limit: int) -> bytes:
        """See Source."""
        fresh = self._connection is None
        try:
            return self._get(path, limit)
        except (HTTPException, OSError) as error:
            self.close()
            # A server may close a kept connection at any time; a GET of a static file can be said
            # again, once.
            if fresh or isinstance(error, TimeoutError):
                raise self._unreadable(path, error) from None
        try:
            return self._get(path, limit)
        except (HTTPException, OSError) as error:
            self.close()
            raise self._unreadable(path, error) from None

    def _get(self, path: str, limit: int) -> bytes:
        deadline = time.monotonic() + self._deadline_s
        connection = self._connection or self._connect()
        self._connection = connection
        target = f"{urlsplit(self._url).path}/{path}"
        connection.request("GET", target, headers={"Accept-Encoding": "identity"})
        # The socket's own timeout begins anew with each byte, and a server may send one at a time.
        watch = threading.Timer(self._deadline_s, shut, [connection.sock])
        watch.daemon = True
        watch.start()
        try:
            data = self._receive(connection, path, limit)
        except (HTTPException, OSError):
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            raise
        finally:
            watch.cancel()
        # What was cut may look like a whole answer: of a head, http.client takes what came.
        if time.monotonic() >= deadline:
            self.close()
            raise TimeoutError
        return data

    def _receive(self, connection: HTTPConnection, path: str, limit: int) -> bytes:
        response = connection.getresponse()
        self._check(path, response, limit)
        data = bytearray()
        while part := response.read1(_CHUNK):
            data += part
            if len(data) > limit:
                self.close()
                raise Unreadable(f"{self._url}/{path}: longer than {limit} bytes")
        if response.length:
            raise HTTPException("the body is shorter than announced")
        if response.will_close:
            self.close()
        return bytes(data)

    def _connect(self) -> HTTPConnection:
        parts = urlsplit(self._url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self._deadline_s)

    def _check(self, path: str, response: HTTPResponse, limit: int) -> None:
        status = response.status
        encoding = response.headers.get("Content-Encoding", "identity")
        if status == 200 and encoding == "identity" and (response.length or 0) <= limit:
            return
        self.close()
        if status in {404, 410}:
            raise NotThere(f"{self._url}/{path}: no such file")
        if status != 200:
            raise Unreadable(f"{self._url}/{path}: the server answered {status}")
        raise Unreadable(f"{self._url}/{path}: too long, or in an encoding that was not asked for")

    def _unreadable(self, path: str, error: Exception) -> Unreadable:
        if isinstance(error, TimeoutError):
            return Unreadable(f"{self._url}/{path}: no answer within {self._deadline_s:g} s")
        reason = getattr(error, "strerror", None) or "the connection failed"
        return Unreadable(f"{self._url}/{path}: {reason}")

    def close(self) -> None:
        """See Source."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def shut(sock: Any) -> None:
    """End whatever waits for the connection's socket; another thread's to call."""
    with contextlib.suppress(OSError):  # it is closed already
        sock.shutdown(_SHUT_RDWR)


def open_source(place: str) -> Source:
    """A folder's path, or an http(s) URL. Unreadable for a folder that is not there."""
    if place.startswith(("http://", "https://")):
        return HttpSource(place)
    if not Path(place).is_dir():
        raise Unreadable(f"{place}: no such folder")
    return FolderSource(Path(place))


def read_checkpoint(source: Source) -> bytes:
    """The log's newest checkpoint, unchecked."""
    return source.read(CHECKPOINT, MAX_NOTE_BYTES)


def read_tile(source: Source, tile: TilePath) -> bytes:
    """A hash tile's bytes, of its width: where a partial tile is gone, from the full one. Raises
    BadTile too.
    """
    data, width = _read(source, tile, TILE_WIDTH * HASH_BYTES)
    return b"".join(parse_tile(data, width)[: tile.width])


def read_bundle(source: Source, tile: TilePath) -> tuple[bytes, int]:
    """An entry bundle's bytes and the width that they are to have: 256 where a partial bundle is
    gone and the full one is there.
    """
    return _read(source, tile, MAX_BUNDLE_BYTES)


def read_entries(source: Source, tile: TilePath) -> list[bytes]:
    """The entries of a bundle. Raises BadTile too."""
    data, width = read_bundle(source, tile)
    return parse_bundle(data, width)[: tile.width]


def _read(source: Source, tile: TilePath, limit: int) -> tuple[bytes, int]:
    try:
        return source.read(tile.path, limit), tile.width
    except NotThere:
        # tlog-tiles, "Partial Tiles": a log may delete them once the full one is there.
        if tile.width == TILE_WIDTH:
            raise
        try:
            return source.read(tile.full.path, limit), TILE_WIDTH
        except NotThere:
            raise NotThere(f"{tile.path}: no such file") from None
