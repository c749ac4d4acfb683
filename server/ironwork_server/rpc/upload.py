"""A request's body on its way from the stream's reader to the upstream client: bounded."""

import asyncio
from collections.abc import AsyncIterator
from enum import Enum

from ironwork_server.core.errors import InvalidRequest

# Messages of at most 16 KiB that may wait for the upstream: 128 KiB for a call.
QUEUE_MESSAGES = 8


class _Mark(Enum):
    END = "end"
    BROKEN = "broken"


class Upload:
    """Filled by the reader, drained by the call. Owned by the call: when the call has ended, what
    still arrives is discarded, and the reader never waits for it.
    """

    def __init__(self, *, stall_s: float) -> None:
        self._queue: asyncio.Queue[bytes | _Mark] = asyncio.Queue(QUEUE_MESSAGES)
        self._stall_s = stall_s
        self._discarding = False
        self._read = False
        self.complete = False
        # Bytes that were taken on, for metrics.
        self.received = 0

    async def put(self, data: bytes) -> None:
        """Hand over a message, waiting for room."""
        if data and not self._discarding:
            await self._queue.put(data)
            self.received += len(data)

    async def end(self) -> None:
        """The client has sent all."""
        self.complete = True
        await self._mark(_Mark.END)

    async def broken(self) -> None:
        """The client closed its side in the middle."""
        await self._mark(_Mark.BROKEN)

    async def _mark(self, mark: _Mark) -> None:
        if not self._discarding:
            await self._queue.put(mark)

    def discard(self) -> None:
        """Nobody reads any more. A reader that waits for room is let go."""
        self._discarding = True
        while not self._queue.empty():
            self._queue.get_nowait()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body; nothing more once it was read to its end. Errors: InvalidRequest
        (UPLOAD_STALLED, UPLOAD_BROKEN).
        """
        while not self._read:
            try:
                async with asyncio.timeout(self._stall_s):
                    item = await self._queue.get()
            except TimeoutError:
                raise InvalidRequest(
                    f"No part of the request's body arrived for {self._stall_s:g} s.",
                    reason="UPLOAD_STALLED",
                ) from None
            if item is _Mark.END:
                self._read = True
                return
            if item is _Mark.BROKEN:
                raise InvalidRequest(
                    "The stream's sending side was closed before the request was complete.",
                    reason="UPLOAD_BROKEN",
                )
            yield item
