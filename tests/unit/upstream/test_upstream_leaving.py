"""Whoever leaves early ends the connection, so that nobody pays for tokens that nobody reads."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from ironwork_server.upstream import HttpUpstream
from unit.upstream.raw_server import RawServer
from unit.upstream.sending import Keys, Progress, fetch, get, pieces, post

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"


async def test_leaving_the_context_early_ends_the_connection(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Leaving with the answer unread resets the connection at once."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_leave(upstream))
        connection = await server.connection()
        await connection.head()
        connection.send(STREAM)
        await connection.disconnected.wait()
    assert upstream.connections == (0, 0)


async def _leave(upstream: HttpUpstream) -> None:
    async with upstream.send(get(), pieces(), Keys(), Progress()) as response:
        assert await anext(response.chunks()) == b"first"


@pytest.mark.parametrize("answered", [False, True])
async def test_cancelling_the_task_ends_the_connection(
    answered: bool, server: RawServer, upstream: HttpUpstream
) -> None:
    """A cancelled call is gone upstream, whether its answer had begun or not."""
    task = asyncio.create_task(fetch(upstream))
    connection = await server.connection()
    await connection.head()
    if answered:
        connection.send(STREAM)
    task.cancel()
    await connection.disconnected.wait()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert upstream.connections == (0, 0)


async def test_cancelling_an_upload_that_the_server_does_not_read_ends_the_connection(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Bytes that wait for the server do not keep the connection alive: it is reset."""
    task = asyncio.create_task(fetch(upstream, post(32 << 20), pieces(*[bytes(1 << 20)] * 32)))
    connection = await server.connection()
    await connection.head()
    connection.reading.clear()
    (channel,) = upstream._pool._used
    while not channel._paused_writing:  # noqa: ASYNC110 - the channel tells nobody
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    connection.reading.set()
    await connection.disconnected.wait()
    assert len(connection.received) < 32 << 20


async def test_cancelling_while_the_key_is_prepared_keeps_the_connection(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Nothing was written: the connection is as good as before."""
    preparing = asyncio.Event()

    async def credential() -> object:
        preparing.set()
        return await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(_enter(upstream, credential))
    await preparing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert upstream.connections == (0, 1)


async def _enter(upstream: HttpUpstream, credential: Callable) -> None:  # type: ignore[type-arg]
    async with upstream.send(get(), pieces(), credential, Progress()):
        pass


async def test_cancelling_while_connecting_leaves_nothing(
    make_upstream: Callable[..., HttpUpstream], plain_server: RawServer, authority: object
) -> None:
    """A connection that is being made when its call is cancelled does not stay open."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        loop = asyncio.get_running_loop()
        plain_server.port = silent.getsockname()[1]
        plain_server._authority = authority  # a TLS client meets a server that says nothing
        upstream = make_upstream(plain_server)
        task = asyncio.create_task(fetch(upstream))
        accepted, _ = await loop.sock_accept(silent)
        with accepted:
            hello = await loop.sock_recv(accepted, 4096)
            assert hello.startswith(b"\x16\x03")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(accepted, 4096)
    assert upstream.connections == (0, 0)
