"""One connection to a peer that answers requests: pipelined, and many requests in one write.

Used by clients of the HSM process, and by that process for its own children.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ironwork_hsm.interface import Busy, HsmError, Unavailable
from ironwork_hsm.remote.codec import Malformed
from ironwork_hsm.remote.framing import FrameBuffer
from ironwork_hsm.remote.wire import Frame

# Called once for each request: with the answer's frame, lent for the call, or with what stands in
# its place. It does not raise.
Answered = Callable[[Frame | HsmError], None]


class TimedOut(Unavailable):
    """The peer did not answer a request within its deadline."""


class GoneAway(Unavailable):
    """The connection ended before a request was answered."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    due: float
    answered: Answered


class Link(asyncio.BufferedProtocol):
    """See the module. Belongs to one loop.

    deadline_s: for each answer. capacity: requests that may wait for one; one more is refused.
    on_lost: called once, when the connection has ended, after every request was told.
    """

    def __init__(self, *, deadline_s: float, capacity: int, on_lost: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline_s = deadline_s
        self._capacity = capacity
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._buffer = FrameBuffer()
        self._outgoing: list[bytes] = []
        # By number, oldest first: all have the same time to be answered in.
        self._waiting: dict[int, _Waiting] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0
        self._lost = False

    @property
    def is_live(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._lost

    def request(
        self,
        build: Callable[[int], bytes],
        answered: Answered,
        *,
        deadline_s: float | None = None,
    ) -> None:
        """Send what build makes of a number; answered hears what becomes of it, never before this
        returns. deadline_s: another one than the link's, for a request that is alone on its way.
        Raises Unavailable, Busy.
        """
        if not self.is_live:
            raise Unavailable("The connection to the HSM process is lost.")
        if len(self._waiting) >= self._capacity:
            raise Busy("The HSM is busy: too many calls are waiting for it.")
        self._number = (self._number + 1) & 0xFFFFFFFF
        data = build(self._number)
        due = self._loop.time() + (self._deadline_s if deadline_s is None else deadline_s)
        self._waiting[self._number] = _Waiting(due, answered)
        if self._timer is None or due < self._timer.when():
            # One that is later was armed for a request with another deadline.
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._expire)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream's transport is expected")
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._buffer.received(nbytes):
                # An answer that nobody waits for came after its deadline.
                waiting = self._waiting.pop(frame.number, None)
                if waiting is not None:
                    waiting.answered(frame)
        except Malformed:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._buffer.wipe()
        self._outgoing.clear()
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            one.answered(GoneAway("The HSM process went away before it answered."))
        self._on_lost()

    # --- inside

    def _flush(self) -> None:
        if self._transport is not None and not self._lost:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _expire(self) -> None:
        """Tell what is overdue, and come back for the next."""
        now = self._loop.time()
        self._timer = None
        while self._waiting:
            number, oldest = next(iter(self._waiting.items()))
            if oldest.due > now:
                self._timer = self._loop.call_at(oldest.due, self._expire)
                return
            del self._waiting[number]
            oldest.answered(TimedOut("The HSM did not answer within its deadline."))
