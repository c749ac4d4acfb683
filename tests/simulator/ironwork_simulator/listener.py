"""Listening on loopback, and what is connected; for the API and the control endpoint."""

import asyncio
import ssl

from ironwork_simulator.config import require_loopback
from ironwork_simulator.connection import Application, Connection

_STOP_S = 5.0


class Listener:
    """A port and its connections. Used on one event loop, the one that start() ran on."""

    def __init__(
        self,
        application: Application,
        *,
        tls: ssl.SSLContext | None,
        max_connections: int,
        idle_timeout_s: float,
    ) -> None:
        self._application = application
        self._tls = tls
        self._max_connections = max_connections
        self._idle_timeout_s = idle_timeout_s
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._connections: set[Connection] = set()
        self._count = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises OSError where it is taken, NotLoopback elsewhere."""
        require_loopback(host)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._application, self, loop),
            host,
            port,
            ssl=self._tls,
            backlog=1024,
        )
        self._sweeper = loop.create_task(self._sweep())
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the port and all connections, and wait until they are gone."""
        if self._server is None or self._sweeper is None:
            return
        self._server.close()
        self._sweeper.cancel()
        tasks = [task for c in tuple(self._connections) if (task := c.shut()) is not None]
        await asyncio.gather(self._sweeper, *tasks, return_exceptions=True)
        await asyncio.wait_for(self._empty.wait(), _STOP_S)

    # --- ironwork_simulator.connection.Owner ---

    def opened(self, connection: Connection) -> int:
        self._count += 1
        self._connections.add(connection)
        self._empty.clear()
        if len(self._connections) > self._max_connections:
            connection.transport.abort()
        return self._count

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._idle_timeout_s / 4)
            oldest = loop.time() - self._idle_timeout_s
            for connection in tuple(self._connections):
                if connection.idle and connection.last_used < oldest:
                    connection.transport.close()


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS for HTTP/1.1, from PEM files. Raises OSError or ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    return context
