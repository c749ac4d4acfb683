"""One TCP connection to the upstream, with TLS or without, read by pulling.

asyncio's own TLS is not used, for three reasons: it keeps 256 KiB for each connection and reads
on while nobody takes what it has read; it does not tell an end that the peer announced
(close_notify) from a cut; and what becomes of a plaintext in its write queue is its own business.
Here `ssl.MemoryBIO` stands between the transport and us: a plaintext handed to `write` is
encrypted before it returns, and only ciphertext waits anywhere.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import struct
from collections.abc import Callable

from ironwork_server.upstream.dialing import dial
from ironwork_server.upstream.faults import FOREIGN, Truncated
from ironwork_server.upstream.layer import TlsLayer
from ironwork_server.upstream.timeouts import CHUNK_BYTES, RECEIVE_BYTES, WRITE_HIGH_WATER

# A silent partition ends a connection after 30 + 3 * 10 s.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
# SO_LINGER on with 0 s: close sends a reset, so that the peer notices at once, even when there
# are bytes that it does not read.
_LINGER_NONE = struct.pack("ii", 1, 0)


class Channel(asyncio.BufferedProtocol):
    """Bytes to and from one peer. One reader and one writer at a time.

    Its methods raise what sockets and TLS raise (faults.FOREIGN); the caller maps that.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._view = memoryview(bytearray(RECEIVE_BYTES))
        # _view[_start:_filled] was received and not taken yet.
        self._start = 0
        self._filled = 0
        self._ended = False
        self._loss: Exception | None = None
        self._failure: BaseException | None = None
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._lost = self._loop.create_future()
        self._paused_writing = False
        # The one that is read and written; None without TLS.
        self._tls: ssl.SSLObject | None = None
        # Nearest to the wire first: TLS with an https proxy, if any, then with the upstream.
        self._layers: list[TlsLayer] = []
        # Set by the pool while nobody uses the connection: called when anything happens to it.
        self.watcher: Callable[[], None] | None = None

    # --- opening and closing ---------------------------------------------------------------

    @classmethod
    async def open(
        cls, address: str, port: int, context: ssl.SSLContext | None, host: str
    ) -> "Channel":
        """Connect, and with a context agree on TLS with `host`. The deadline is the caller's."""
        loop = asyncio.get_running_loop()
        sock = await dial(address, port)
        # From here on the socket is the transport's, which asyncio closes when this is cancelled.
        _, channel = await loop.create_connection(cls, sock=sock)
        if context is not None:
            await channel.start_tls(context, host)
        return channel

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Agree on TLS with whoever proves to be host; within what is there already, where this is
        called again. The channel is ended when this raises.
        """
        try:
            await self._shake_hands(TlsLayer(context, host))
        except ssl.SSLError:
            self.close()  # lets the alert out that says why
            raise
        except BaseException:
            self.abort()
            raise

    async def _shake_hands(self, layer: TlsLayer) -> None:
        self._layers.append(layer)
        while True:
            try:
                layer.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
            finally:
                self._flush()  # also the alert that says why we refuse
            while not self._feed():
                if self._ended:
                    raise ssl.SSLEOFError
                await self._wait_readable()
        self._tls = layer.tls

    def abort(self) -> None:
        """End it now: what is unsent is dropped and the peer gets a reset. Safe to call again."""
        if self._transport is not None and not self._lost.done():
            if not self._transport.is_closing():
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            self._transport.abort()
        self.fail(ConnectionAbortedError())

    def close(self) -> None:
        """End an idle connection, or one that never came to be, politely."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # writes our close_notify; the peer's is not waited for
            self._flush()
        if self._transport.get_write_buffer_size():
            self.abort()  # a polite end would wait for a peer that takes nothing
        else:
            self._transport.close()

    async def wait_closed(self) -> None:
        """Until the socket is closed, which abort and close make a matter of loop turns."""
        await asyncio.shield(self._lost)

    def fail(self, error: BaseException) -> None:
        """Make the reader raise error, whatever else there is to read; the first one counts."""
        if self._failure is None:
            self._failure = error
        self._wake()

    # --- reading ---------------------------------------------------------------------------

    async def read(self) -> bytes:
        """The next bytes, at most CHUNK_BYTES; b'' at an end that the peer announced.

        Without TLS a FIN counts as announced. Raises Truncated, OSError, or what fail() was given.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            data = self._pull()
            if data is not None:
                return data
            await self._wait_readable()

    def is_quiet(self) -> bool:
        """Whether it is open and the peer has sent nothing that nobody asked for.

        Looks at the socket itself, so that an end is seen although the loop has not got to it.
        """
        if self._failure is not None or self._transport is None or self._transport.is_closing():
            return False
        self._receive_now()
        try:
            return self._pull() is None
        except FOREIGN:
            return False

    def _pull(self) -> bytes | None:
        """What can be had without waiting; None: nothing yet."""
        if self._tls is None:
            return self._pull_plain()
        while True:
            try:
                return self._tls.read(CHUNK_BYTES)
            except ssl.SSLWantReadError:
                pass
            finally:
                self._flush()  # TLS answers some records by itself, such as KeyUpdate
            if not self._feed():
                if self._ended:
                    raise self._loss or Truncated
                return None

    def _pull_plain(self) -> bytes | None:
        data = bytes(self._view[self._start : min(self._filled, self._start + CHUNK_BYTES)])
        self._taken(len(data))
        if data:
            return data
        if self._loss is not None:
            raise self._loss
        return b"" if self._ended else None

    def _feed(self) -> bool:
        """Hand what was received to TLS; whether there was anything."""
        count = self._filled - self._start
        if count:
            self._layers[0].incoming.write(self._view[self._start : self._filled])
            self._taken(count)
            for below, above in itertools.pairwise(self._layers):
                self._ended |= not below.lift(above)
        return count > 0

    def _taken(self, count: int) -> None:
        self._start += count
        if self._start == self._filled:
            self._start = self._filled = 0
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def _receive_now(self) -> None:
        """Read the socket behind the transport's back, as far as there is room and data."""
        if self._transport is None:
            return
        descriptor = self._transport.get_extra_info("socket").fileno()
        while descriptor >= 0 and self._filled < RECEIVE_BYTES and not self._ended:
            try:
                count = os.readv(descriptor, [self._view[self._filled :]])
            except OSError:  # BlockingIOError: there is no more now; else connection_lost tells
                break
            self._filled += count
            self._ended = count == 0
        self._pause_when_full()

    def _pause_when_full(self) -> None:
        if self._filled == RECEIVE_BYTES and self._transport is not None:
            self._transport.pause_reading()

    async def _wait_readable(self) -> None:
        self._readable = self._loop.create_future()
        try:
            await self._readable
        finally:
            self._readable = None

    # --- writing ---------------------------------------------------------------------------

    def write(self, data: bytes | bytearray) -> None:
        """Write all of data now or queue what the socket does not take.

        With TLS only ciphertext is queued: when this returns, nothing but the caller's buffer
        holds the plaintext. Without TLS (development) the transport may copy the rest of data.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        if self._tls is None:
            self._transport.write(data)
            return
        self._layers[-1].write(data)
        self._flush()

    async def drain(self) -> None:
        """Until the socket has taken most of what was written. Returns when it is lost, too."""
        while self._paused_writing and not self._lost.done():
            self._writable = self._loop.create_future()
            try:
                await self._writable
            finally:
                self._writable = None

    def _flush(self) -> None:
        data = b""
        for layer in reversed(self._layers):
            if data:
                layer.write(data)
            data = layer.outgoing.read()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # --- what the transport calls ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is needed")
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        sock = transport.get_extra_info("socket")
        for option in _KEEPALIVE:
            sock.setsockopt(*option)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._pause_when_full()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return True  # closing is for whoever uses the connection

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            # A peer that refuses an upload answers and resets: a failed write must not lose
            # the answer that the kernel holds already.
            self._receive_now()
            self._loss = exc
        self._ended = True
        self._paused_writing = False
        if not self._lost.done():
            self._lost.set_result(None)
        self._wake()

    def pause_writing(self) -> None:
        self._paused_writing = True

    def resume_writing(self) -> None:
        self._paused_writing = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _wake(self) -> None:
        for waiter in (self._readable, self._writable):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self.watcher is not None:
            self.watcher()
