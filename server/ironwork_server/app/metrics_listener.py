"""A small HTTP/1.1 server for one page: GET /metrics (RFC 9112 by h11, one request a connection).

Plain, for a scraper on the same machine or in the same pod; it holds no secret and takes none.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h11
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ironwork_server.app.startup import StartupError
from ironwork_server.core.described import described

log = logging.getLogger(__name__)

PATH = b"/metrics"
MAX_CONNECTIONS = 8
MAX_HEAD_BYTES = 8 * 1024
# For the request, the page, and its way out together.
DEADLINE_S = 5.0


@asynccontextmanager
async def listening(listen: str, registry: CollectorRegistry) -> AsyncIterator[str]:
    """Serve on ADDRESS:PORT; gives it with the port that was taken. Errors: StartupError."""
    host, _, port = listen.rpartition(":")
    listener = _Listener(lambda: generate_latest(registry))
    try:
        server = await asyncio.start_server(
            listener.serve, host.strip("[]"), int(port), limit=MAX_HEAD_BYTES
        )
    except OSError:
        raise StartupError(
            f"metrics.listen: {listen} cannot be listened on: the port is in use or not allowed."
        ) from None
    try:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await listener.close()


class _Listener:
    """Owns its connections. The page is made on the loop: what it asks belongs to the loop."""

    def __init__(self, page: Callable[[], bytes]) -> None:
        self._page = page
        self._open: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; beyond MAX_CONNECTIONS it is closed unheard."""
        task = asyncio.current_task()
        if task is None or len(self._open) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._answer(reader, writer)
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, h11.ProtocolError):
            # A peer that is slow, gone, or speaks no HTTP: there is nothing to tell.
            writer.transport.abort()
        except Exception as error:  # noqa: BLE001  a seam: a page that cannot be made
            log.error("error.unexpected", extra=described(error))  # noqa: TRY400
            writer.transport.abort()
        finally:
            writer.transport.abort()
            self._open.discard(task)

    async def close(self) -> None:
        """End what is open."""
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(MAX_HEAD_BYTES))
        if not isinstance(event, h11.Request):
            return
        status, headers, body = self._response(event)
        common = [("connection", "close"), ("content-length", str(len(body)))]
        response = h11.Response(status_code=status, headers=[*common, *headers])
        parts = [connection.send(response)]
        if event.method != b"HEAD":
            parts.append(connection.send(h11.Data(data=body)))
        writer.write(b"".join(part for part in parts if part))
        await writer.drain()

    def _response(self, request: h11.Request) -> tuple[int, list[tuple[str, str]], bytes]:
        if request.target.partition(b"?")[0] != PATH:
            return 404, [], b""
        if request.method not in {b"GET", b"HEAD"}:
            return 405, [("allow", "GET, HEAD")], b""
        return 200, [("content-type", CONTENT_TYPE_LATEST)], self._page()
