"""Cuts a byte stream into frames, in one buffer of its own that is wiped behind them.

Data keys pass here: a BufferedProtocol reads into this buffer, so that no immutable copies of them
stay behind in the process.
"""

from collections.abc import Iterator

from ironwork_hsm.remote.codec import LENGTH, Malformed
from ironwork_hsm.remote.wire import MAX_FRAME_BYTES, Frame, parse_body

# Room for the greatest frame, and for many small ones in one read.
BUFFER_BYTES = 2 * (LENGTH.size + MAX_FRAME_BYTES)


class FrameBuffer:
    """What asyncio.BufferedProtocol needs. Frames are lent: they are good until the next is taken.

    Used by one protocol on one loop.
    """

    def __init__(self) -> None:
        self._bytes = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._bytes)
        self._filled = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._view[self._filled :]

    def received(self, count: int) -> Iterator[Frame]:
        """The frames that are whole now that count bytes more have come. Raises Malformed.

        To be used up: what is left over is moved to the front, and the rest wiped, at its end.
        """
        self._filled += count
        at = 0
        try:
            while self._filled - at >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._bytes, at)
                if length > MAX_FRAME_BYTES:
                    raise Malformed("a frame is too long")
                end = at + LENGTH.size + length
                if end > self._filled:
                    break
                yield parse_body(self._view[at + LENGTH.size : end])
                at = end
        finally:
            rest = self._filled - at
            self._view[:rest] = self._view[at : self._filled]  # memmove: they may overlap
            self._view[rest : self._filled] = bytes(self._filled - rest)
            self._filled = rest

    def wipe(self) -> None:
        """Forget everything."""
        self._view[: self._filled] = bytes(self._filled)
        self._filled = 0
