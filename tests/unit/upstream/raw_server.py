"""A scripted TCP or TLS server: it records what arrives and sends what it is told, exactly."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from ironwork_server.upstream import UpstreamEndpoint
from unit.upstream.certificates import Authority, Issued

HOST = "api.anthropic.com"


class RawConnection:
    """One accepted connection. What arrives is read at once, unless `reading` is cleared."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._changed = asyncio.Condition()
        self.reading = asyncio.Event()
        self.reading.set()
        self.received = bytearray()
        self.disconnected = asyncio.Event()
        self.reset = False
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                await self.reading.wait()
                data = await self._reader.read(65536)
                if not data:
                    break
                self.received += data
                async with self._changed:
                    self._changed.notify_all()
        except OSError:
            self.reset = True
        finally:
            self.disconnected.set()
            async with self._changed:
                self._changed.notify_all()

    async def until(self, ready: Callable[[bytearray], bool]) -> bytes:
        """Wait until what arrived satisfies ready; all of it."""
        async with self._changed:
            await self._changed.wait_for(lambda: ready(self.received) or self.disconnected.is_set())
        assert ready(self.received), "the client left before sending what was waited for"
        return bytes(self.received)

    async def head(self, number: int = 1) -> bytes:
        """Everything up to the number-th blank line."""
        return await self.until(lambda data: data.count(b"\r\n\r\n") >= number)

    async def ends_with(self, tail: bytes) -> bytes:
        return await self.until(lambda data: data.endswith(tail))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def flush(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        """An announced end: close_notify (with TLS) and FIN."""
        self._writer.close()

    def cut(self) -> None:
        """FIN without close_notify."""
        self._socket().shutdown(socket.SHUT_WR)

    def send_reset(self) -> None:
        """RST."""
        self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def _socket(self) -> socket.socket:
        sock: socket.socket = self._writer.get_extra_info("socket")
        return sock

    async def stop(self) -> None:
        self._pump.cancel()
        self._writer.transport.abort()
        await asyncio.wait({self._pump})
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class RawServer:
    """Listens on loopback; connections appear in `connections` in the order they came."""

    def __init__(self, authority: Authority | None) -> None:
        self._authority = authority
        self._ca_file: Path | None = None
        self._accepted = asyncio.Condition()
        self.connections: list[RawConnection] = []
        self.port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def run(
        cls, authority: Authority | None = None, issued: Issued | None = None
    ) -> AsyncIterator["RawServer"]:
        """With an authority it speaks TLS, with a certificate for HOST or the one given."""
        server = cls(authority)
        context = None
        if authority is not None:
            context = (issued or authority.issue(HOST)).server_context()
        listener = await asyncio.start_server(server._accept, "127.0.0.1", 0, ssl=context)
        server.port = listener.sockets[0].getsockname()[1]
        try:
            yield server
        finally:
            listener.close()
            for connection in server.connections:
                await connection.stop()
            await listener.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._accepted:
            self.connections.append(RawConnection(reader, writer))
            self._accepted.notify_all()

    async def connection(self, index: int = 0) -> RawConnection:
        """Wait for the connection with this number."""
        async with self._accepted:
            await self._accepted.wait_for(lambda: len(self.connections) > index)
        return self.connections[index]

    @property
    def endpoint(self) -> UpstreamEndpoint:
        if self._authority is None:
            return UpstreamEndpoint("127.0.0.1", self.port, tls=False)
        return UpstreamEndpoint(
            HOST, self.port, ca_file=self._authority.ca_file, connect_address="127.0.0.1"
        )


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
