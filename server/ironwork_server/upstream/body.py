"""An answer's body out of the bytes behind its head (RFC 9112 sections 6.3 and 7.1).

h11 reads heads; for bodies it makes three objects for each chunk, which for a stream of events is
most of what the relay costs. Here a read of the socket becomes one piece, whatever chunks it held.
Stricter than a recipient has to be: line ends are CR LF, sizes are 1 to 16 hexadecimal digits.
"""

import re
from collections.abc import Sequence
from typing import Protocol

import h11

from ironwork_server.upstream.faults import Truncated
from ironwork_server.upstream.timeouts import MAX_HEAD_BYTES

# A chunk's size and extensions, which are passed over. Far more than anybody sends.
MAX_CHUNK_LINE = 1024

_CRLF = b"\r\n"
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
# RFC 9110 section 5.5; trailers are passed over.
_FIELD_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class Malformed(OSError):
    """The body is not framed as its head says."""


class BodyReader(Protocol):
    """Feed it what the socket gives, in order."""

    @property
    def complete(self) -> bool:
        """Whether the body has come whole."""

    @property
    def surplus(self) -> bool:
        """Whether there were bytes behind its end."""

    @property
    def broken(self) -> bool:
        """Whether a fault stood behind the good bytes that were given last; nothing follows."""

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in data. b"" is the connection's announced end. Raises Truncated;
        Malformed, but where something good came before the fault: then broken is set.
        """


def body_reader(method: str, response: h11.Response) -> BodyReader:
    """For an answer to method, by its head as h11 has checked it: Transfer-Encoding is chunked and
    nothing else, there is one Content-Length.
    """
    if method == "HEAD" or response.status_code in (204, 304):
        return SizedBody(0)
    headers: Sequence[tuple[bytes, bytes]] = list(response.headers)
    if any(name == b"transfer-encoding" for name, _ in headers):
        return ChunkedBody()
    for name, value in headers:
        if name == b"content-length":
            return SizedBody(int(value))
    return OpenBody()


class SizedBody:
    """Content-Length bytes."""

    broken = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.surplus = False

    @property
    def complete(self) -> bool:
        return self._left == 0

    def feed(self, data: bytes) -> bytes:
        if not data and self._left:
            raise Truncated
        taken = data[: self._left]
        self._left -= len(taken)
        self.surplus |= len(taken) < len(data)
        return taken


class OpenBody:
    """Everything up to the announced end of the connection."""

    broken = False
    complete = False
    surplus = False

    def feed(self, data: bytes) -> bytes:
        self.complete = not data
        return data


class ChunkedBody:
    """Chunks, their trailers passed over. Holds a line that is not complete, and nothing else."""

    def __init__(self) -> None:
        self.broken = False
        self.complete = False
        # Of a line that has not ended yet.
        self._held = b""
        # Bytes of the current chunk's data that are still to come; then its CR LF.
        self._left = 0
        self._in_data = False
        self._in_trailer = False
        self._trailer_bytes = 0
        self._surplus = b""

    @property
    def surplus(self) -> bool:
        return bool(self._surplus)

    def feed(self, data: bytes) -> bytes:
        if not data and not self.complete:
            raise Truncated
        data, self._held = self._held + data, b""
        pieces: list[bytes] = []
        position = 0
        try:
            while position < len(data) and not self.complete:
                start = position
                position = self._step(data, position, pieces)
                if position == start:
                    break
        except Malformed:
            if not pieces:
                raise
            self.broken = True
        if self.complete:
            self._surplus = data[position:]
        else:
            self._held = data[position:]
        return b"".join(pieces)

    def _step(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Read one line or one chunk's data; the new position, or the same: more is needed."""
        if self._left:
            piece = data[position : position + self._left]
            pieces.append(piece)
            self._left -= len(piece)
            return position + len(piece)
        if self._in_data:
            return self._end_of_data(data, position)
        end = data.find(_CRLF, position)
        limit = MAX_HEAD_BYTES - self._trailer_bytes if self._in_trailer else MAX_CHUNK_LINE
        if (end if end >= 0 else len(data)) - position > limit:
            raise Malformed
        if end < 0:
            if b"\n" in data[position:]:
                raise Malformed
            return position
        self._line(data[position:end])
        return end + len(_CRLF)

    def _end_of_data(self, data: bytes, position: int) -> int:
        ending = data[position : position + len(_CRLF)]
        if not _CRLF.startswith(ending):
            raise Malformed
        if len(ending) < len(_CRLF):
            return position
        self._in_data = False
        return position + len(_CRLF)

    def _line(self, line: bytes) -> None:
        if self._in_trailer:
            self._trailer_bytes += len(line) + len(_CRLF)
            if line and not _FIELD_LINE.fullmatch(line):
                raise Malformed
            self.complete = not line
            return
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise Malformed
        self._left = int(match[1], 16)
        self._in_data = self._left > 0
        self._in_trailer = not self._in_data
