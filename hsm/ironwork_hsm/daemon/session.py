"""A client's connection: who it is by the kernel's word, what it may send, and how much of it."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ironwork_hsm.daemon.operations import Operations, over_rate
from ironwork_hsm.interface import ConfigurationError
from ironwork_hsm.remote import wire
from ironwork_hsm.remote.codec import Malformed
from ironwork_hsm.remote.framing import FrameBuffer
from ironwork_hsm.remote.place import Peer, peer_of
from ironwork_hsm.remote.wire import Frame, Kind

log = logging.getLogger(__name__)

# Of connections, for the life of the process.
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """pipelined: requests without an answer on one connection; then no more is read. hello_s: for
    the first frame. idle_s: without any request. stall_s: for a client to take its answers.
    """

    pipelined: int = 256
    hello_s: float = 5.0
    idle_s: float = 600.0
    stall_s: float = 10.0


class Door(Protocol):
    """Who lets connections in."""

    def admit(self, session: "Session", peer: Peer) -> str | None:
        """None, or why this peer is refused (the record's word)."""

    def leave(self, session: "Session") -> None:
        """The connection has ended."""

    def may_use_keys(self, peer: Peer) -> bool:
        """Whether the peer may ask for operations, or for the status only."""


class Session(asyncio.BufferedProtocol):
    """See the module."""

    def __init__(
        self,
        door: Door,
        operations: Operations,
        report: Callable[[], bytes],
        limits: SessionLimits,
    ) -> None:
        self._door = door
        self._operations = operations
        self._report = report
        self._limits = limits
        self._number = next(_numbers)
        self._loop = asyncio.get_running_loop()
        self._buffer = FrameBuffer()
        self._transport: asyncio.Transport | None = None
        self._peer: Peer | None = None
        self._greeted = False
        # What a client is told that speaks another version of the protocol.
        self._other: ConfigurationError | None = None
        self._draining = False
        self._under_way = 0
        self._outgoing: list[bytes] = []
        self._reading = True
        self._stalled = False
        self._heard_at = self._loop.time()
        self._watch: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream's transport is expected")
        self._transport = transport
        self._peer = peer_of(transport.get_extra_info("socket"))
        refused = self._door.admit(self, self._peer)
        if refused is not None:
            self._operations.count_refusal(self._peer, refused)
            transport.abort()
            return
        transport.set_write_buffer_limits(high=wire.MAX_FRAME_BYTES)
        self._watch = self._loop.call_later(self._limits.hello_s, self._look)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for frame in self._buffer.received(nbytes):
                self._take(frame)
        except Malformed:
            if self._peer is not None:
                self._operations.count_refusal(self._peer, "MALFORMED")
            self.abort()
        self._pace()

    def connection_lost(self, exc: Exception | None) -> None:
        self._buffer.wipe()
        self._transport = None
        for timer in (self._watch, self._stall):
            if timer is not None:
                timer.cancel()
        self._door.leave(self)

    def pause_writing(self) -> None:
        """The client does not take its answers."""
        self._stalled = True
        self._stall = self._loop.call_later(self._limits.stall_s, self.abort)
        self._pace()

    def resume_writing(self) -> None:
        """It does again."""
        self._stalled = False
        if self._stall is not None:
            self._stall.cancel()
        self._pace()

    # --- ending

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    def drain(self) -> None:
        """Take nothing more, answer what is under way, and end."""
        self._draining = True
        self._pace()
        self._end_if_drained()

    # --- inside

    def _take(self, frame: Frame) -> None:
        if self._draining or self._transport is None or self._peer is None:
            return
        if not self._greeted:
            self._greet(frame)
        if self._other is not None:
            # Told of each request; the connection ends when it was not greeted in time.
            self._answer_soon(wire.failed(frame.number, self._other))
            return
        self._heard_at = self._loop.time()
        match frame.kind:
            case Kind.HELLO:
                self._tell(frame.number, self._peer, self._info)
            case Kind.STATUS:
                wire.parse_plain(frame.payload)
                self._tell(frame.number, self._peer, self._status)
            case _ if not self._door.may_use_keys(self._peer):
                self._operations.count_refusal(self._peer, "PEER_REFUSED")
                self._answer_soon(wire.failed(frame.number, _not_allowed()))
            case _:
                self._under_way += 1
                self._operations.take(self._peer, self._number, frame, self._answer)

    def _greet(self, frame: Frame) -> None:
        """The first frames of a connection. Raises Malformed."""
        if frame.kind is Kind.HELLO:
            try:
                wire.check_hello(frame.payload)
            except ConfigurationError as other:
                self._other = other
                return
            self._greeted = True
        elif self._other is None:
            raise Malformed("a client greets first")

    def _tell(self, number: int, peer: Peer, build: Callable[[int], bytes]) -> None:
        """What is known without a device: bounded as what is asked of one."""
        may = self._operations.may_ask(peer)
        self._answer_soon(build(number) if may else wire.failed(number, over_rate()))

    def _info(self, number: int) -> bytes:
        return wire.info_answer(number, self._operations.info())

    def _status(self, number: int) -> bytes:
        return wire.report_answer(number, self._report())

    def _answer_soon(self, data: bytes) -> None:
        """In the loop's next round: until then it counts as under way, so that a client that sends
        without end is no longer read from.
        """
        self._under_way += 1
        self._loop.call_soon(self._answer, data)

    def _answer(self, data: bytes) -> None:
        self._under_way -= 1
        self._write(data)
        self._pace()
        self._end_if_drained()

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        done = self._draining and not self._under_way and not self._outgoing
        if done and self._transport is not None:
            self._transport.close()

    def _pace(self) -> None:
        """Read only where more can be taken. A read that is under way may bring a buffer more."""
        if self._transport is None or self._transport.is_closing():
            return
        wanted = (
            self._under_way < self._limits.pipelined and not self._stalled and not self._draining
        )
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _look(self) -> None:
        """Whether anything came since the last look; a connection that is silent is ended."""
        quiet = self._loop.time() - self._heard_at >= self._limits.idle_s
        if not self._greeted or (quiet and not self._under_way):
            self.abort()
        else:
            self._watch = self._loop.call_later(self._limits.idle_s, self._look)


def _not_allowed() -> ConfigurationError:
    return ConfigurationError(
        "The HSM process does not let this process' user use its keys: see its allowed_uids."
    )
