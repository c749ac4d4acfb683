"""One connection: requests parsed by h11, answers written byte by byte, so that they can be wrong.

h11 only reads here, a new parser for each request; what is written is up to the player.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import Enum
from typing import Protocol, cast

import h11

from ironwork_simulator.behaviour import Behaviour
from ironwork_simulator.errors import ApiError
from ironwork_simulator.log import BodyDigest, RequestRecord

_MAX_HEAD = 64 * 1024
_END_OF_HEAD = b"\r\n\r\n"
# What a client may send ahead of the answer to its current request.
_MAX_AHEAD = 256 * 1024
# How long an answered but unfinished upload is read and dropped, so that the answer arrives.
_LINGER_S = 2.0
# A client that reads nothing for so long is given up.
_STUCK_S = 600.0
_NO_LINGER = struct.pack("ii", 1, 0)


class After(Enum):
    """What becomes of a connection after an answer."""

    KEEP = "keep"
    CLOSE = "close"
    RESET_AT_NEXT_REQUEST = "reset_at_next_request"


class Exchange:
    """One request and its answer on a connection. The server fills it in at the head."""

    def __init__(self, connection: "Connection", record: RequestRecord) -> None:
        self.connection = connection
        self.record = record
        self.behaviour = Behaviour()
        self.refusal: ApiError | None = None
        self.body = bytearray()
        # Whether anybody will want the body, beyond its digest.
        self.keeps_body = True
        self.max_body = 0
        self.too_large = False
        self.wants_close = False
        # Nothing more will be written for this request, by intention.
        self.answered = False
        self.body_done = False
        self.digest = BodyDigest()
        self.sent_digest = BodyDigest()

    async def write(self, data: bytes) -> None:
        """Hand bytes to the transport and wait until it has room for more."""
        connection = self.connection
        if connection.transport.is_closing():
            raise ConnectionResetError
        self.record.bytes_sent += len(data)
        connection.transport.write(data)
        if not connection.writable.is_set():
            await asyncio.wait_for(connection.writable.wait(), _STUCK_S)

    async def write_head(self, head: bytes, body: bytes = b"") -> None:
        """Write an answer's head, and with it its whole body where that is known."""
        self.record.sent_head = head
        self._note(body)
        await self.write(head + body)

    async def write_body(self, part: bytes, framed: bytes) -> None:
        """Write a part of an answer's body in its framing."""
        self._note(part)
        await self.write(framed)

    def _note(self, part: bytes) -> None:
        self.sent_digest.add(part)
        self.record.sent_length += len(part)

    def end(self, after: After) -> None:
        """The answer is complete, or as complete as it was meant to become."""
        if not self.answered:
            self.answered = True
            self.connection.ended(self, after)

    def reset(self) -> None:
        """Break off with a TCP RST."""
        if not self.answered:
            self.answered = True
            self.connection.broken_off(self)


class Application(Protocol):
    """What a connection serves: the API or the control endpoint."""

    def max_body(self, exchange: Exchange) -> int:
        """Bytes, past which a body is too large; asked once the head is complete."""

    def first_byte(self, connection: "Connection") -> RequestRecord: ...

    def head_complete(self, exchange: Exchange) -> None: ...

    def body_grew(self, exchange: Exchange) -> None: ...

    def body_complete(self, exchange: Exchange) -> None: ...

    def finished(self, exchange: Exchange, *, disconnected: bool) -> None: ...

    def malformed(self, exchange: Exchange) -> bytes:
        """The answer to what is no HTTP/1.1 request."""

    def upload_gate(self, exchange: Exchange) -> Callable[[], "asyncio.Future[None]"] | None:
        """What to wait for before the body is read."""

    async def serve(self, exchange: Exchange) -> None: ...


class Owner(Protocol):
    """Who counts the connections."""

    def opened(self, connection: "Connection") -> int:
        """A client has connected; returns the connection's number, from 1."""

    def closed(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """The state of one connection: which request is being read, which answered."""

    def __init__(
        self, application: Application, owner: Owner, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._application = application
        self._owner = owner
        self._loop = loop
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._ahead = bytearray()
        self._gated = False
        self._dropping = False
        self._poisoned = False
        self.transport: asyncio.Transport
        self.writable = asyncio.Event()
        self.number = 0
        self.last_used = loop.time()

    @property
    def idle(self) -> bool:
        """No request is being read or answered."""
        return self._exchange is None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.writable.set()
        self.number = self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        self.last_used = self._loop.time()
        if self._dropping:
            return
        if self._poisoned:
            self.reset()
            return
        exchange = self._exchange
        if exchange is not None and (exchange.body_done or self._gated):
            self._ahead += data
            if len(self._ahead) > _MAX_AHEAD:
                self.transport.pause_reading()
            return
        if exchange is None:
            exchange = Exchange(self, self._application.first_byte(self))
            self._exchange = exchange
        if exchange.record.head_at is None:
            exchange.record.received_head += data
        self._parse(data)

    def eof_received(self) -> None:
        # A client that ends its sending is taken to be gone: none of ours half-closes.
        self._client_gone()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client_gone()
        self.writable.set()
        self._owner.closed(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    # --- for the server ---

    def shut(self) -> asyncio.Task[None] | None:
        """The simulator stops: end everything without calling it the client's doing. Returns the
        task that is being cancelled.
        """
        if self._exchange is not None:
            self._exchange.answered = True
        if self._task is not None:
            self._task.cancel()
        self.transport.abort()
        return self._task

    def broken_off(self, exchange: Exchange) -> None:
        """exchange's answer ends here, with a TCP RST."""
        self._application.finished(exchange, disconnected=False)
        self.reset()

    def reset(self) -> None:
        """Close with a TCP RST instead of a FIN."""
        sock: socket.socket | None = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def ended(self, exchange: Exchange, after: After) -> None:
        """exchange's answer is written: close, or take up the next request once its body is in."""
        self._application.finished(exchange, disconnected=False)
        if after is After.CLOSE or exchange.wants_close or exchange.too_large:
            self._close_politely(exchange)
            return
        self._poisoned = after is After.RESET_AT_NEXT_REQUEST
        if exchange.body_done:
            # Not from within the answer's own task: its end belongs to this request.
            self._loop.call_soon(self._next_request)

    # --- reading ---

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError:
            self._refuse_malformed()

    def _advance(self) -> None:
        exchange = self._exchange
        while exchange is not None and not self._gated and not self._dropping:
            event = self._parser.next_event()
            if isinstance(event, h11.Request):
                self._on_head(exchange, event)
            elif isinstance(event, h11.Data):
                self._on_data(exchange, bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._on_end(exchange)
                return
            else:
                return

    def _on_head(self, exchange: Exchange, request: h11.Request) -> None:
        record = exchange.record
        end = record.received_head.find(_END_OF_HEAD)
        record.received_head = record.received_head[: end + len(_END_OF_HEAD)]
        record.method = request.method.decode("latin-1")
        record.target = request.target.decode("latin-1")
        record.http_version = request.http_version.decode("latin-1")
        record.headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in request.headers.raw_items()
        ]
        exchange.wants_close = request.http_version != b"1.1" or any(
            "close" in value.lower() for value in record.values("connection")
        )
        lengths = record.values("content-length")
        self._application.head_complete(exchange)
        exchange.max_body = self._application.max_body(exchange)
        exchange.too_large = bool(lengths) and int(lengths[0]) > exchange.max_body
        if exchange.too_large or exchange.behaviour.early:
            self._start(exchange)
            return
        gate = self._application.upload_gate(exchange)
        if gate is not None:
            self._hold_upload(gate)
        elif self._parser.they_are_waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _on_data(self, exchange: Exchange, data: bytes) -> None:
        exchange.digest.add(data)
        exchange.record.body_length += len(data)
        self._application.body_grew(exchange)
        if exchange.too_large:
            return
        if exchange.record.body_length > exchange.max_body:
            exchange.too_large = True
            self._start(exchange)
            return
        if exchange.keeps_body:
            exchange.body += data

    def _on_end(self, exchange: Exchange) -> None:
        exchange.body_done = True
        record = exchange.record
        record.body_sha256, record.body = exchange.digest.sha256, exchange.digest.kept
        self._application.body_complete(exchange)
        self._start(exchange)
        if exchange.answered and not self.transport.is_closing():
            self._loop.call_soon(self._next_request)

    def _hold_upload(self, gate: Callable[[], "asyncio.Future[None]"]) -> None:
        self._gated = True
        self.transport.pause_reading()
        gate().add_done_callback(lambda _: self._open_gate())

    def _open_gate(self) -> None:
        if self.transport.is_closing():
            return
        self._gated = False
        self.transport.resume_reading()
        if self._parser.they_are_waiting_for_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        ahead, self._ahead = bytes(self._ahead), bytearray()
        try:
            if ahead:
                self._parser.receive_data(ahead)
            self._advance()
        except h11.RemoteProtocolError:
            self._refuse_malformed()

    def _next_request(self) -> None:
        if self.transport.is_closing() or self._exchange is None:
            return
        rest, _ = self._parser.trailing_data
        rest += bytes(self._ahead)
        self._ahead.clear()
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._exchange = None
        self._task = None
        self.transport.resume_reading()
        if rest:
            self.data_received(rest)

    # --- answering ---

    def _start(self, exchange: Exchange) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._application.serve(exchange))

    def _refuse_malformed(self) -> None:
        exchange = self._exchange
        if exchange is None or self._task is not None:
            self.transport.abort()
            return
        exchange.record.malformed = True
        self.transport.write(self._application.malformed(exchange))
        exchange.end(After.CLOSE)

    def _close_politely(self, exchange: Exchange) -> None:
        """Closing with unread bytes would reset the connection under the answer: read them."""
        if exchange.body_done:
            self.transport.close()
            return
        self._dropping = True
        self._loop.call_later(_LINGER_S, self.transport.close)

    def _client_gone(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if not exchange.answered:
            exchange.answered = True
            self._application.finished(exchange, disconnected=True)
        if self._task is not None:
            self._task.cancel()
