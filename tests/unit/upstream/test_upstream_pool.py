"""Which connections are used again, how many there are, and when they end."""

import asyncio
import itertools
from collections.abc import Callable

import pytest

from ironwork_server.core.errors import Unavailable, UpstreamFailed
from ironwork_server.core.ports import Injector
from ironwork_server.upstream import HttpUpstream
from unit.upstream.raw_server import RawServer
from unit.upstream.sending import KEY, OK, KeyInjector, Keys, Progress, fetch, get, pieces


async def exchange(server: RawServer, upstream: HttpUpstream, index: int, number: int = 1) -> None:
    """One whole exchange, as the number-th on the connection with this index."""
    answer = asyncio.create_task(fetch(upstream))
    connection = await server.connection(index)
    await connection.head(number)
    connection.send(OK)
    assert await answer == (200, b"ok")


async def until_idle_is(upstream: HttpUpstream, count: int) -> None:
    while upstream.connections[1] != count:  # noqa: ASYNC110 - the pool tells nobody
        await asyncio.sleep(0)


async def test_a_clean_exchange_leaves_its_connection_for_the_next(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Requests in turn share one connection, each with its own head and key."""
    for number in (1, 2, 3):
        await exchange(server, upstream, 0, number)
    assert len(server.connections) == 1
    assert server.connections[0].received.count(KEY) == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\n\r\n",
    ],
    ids=["close", "http-1.0", "more-bytes", "two-framings"],
)
async def test_a_connection_in_doubt_is_not_used_again(
    answer: bytes, server: RawServer, upstream: HttpUpstream
) -> None:
    """Where the answer says close, or its end is in doubt, the connection ends."""
    task = asyncio.create_task(fetch(upstream))
    connection = await server.connection()
    await connection.head()
    connection.send(answer)
    assert await task == (200, b"ok")
    await connection.disconnected.wait()
    assert upstream.connections == (0, 0)


async def test_bytes_that_nobody_asked_for_end_an_idle_connection(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """An answer without a request must not become the next request's answer."""
    await exchange(server, upstream, 0)
    server.connections[0].send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    await server.connections[0].disconnected.wait()
    assert upstream.connections == (0, 0)
    await exchange(server, upstream, 1)


@pytest.mark.parametrize("end", ["close", "cut", "send_reset"])
async def test_an_idle_connection_that_the_server_ends_is_forgotten(
    end: str, server: RawServer, upstream: HttpUpstream
) -> None:
    """A connection that died while idle is replaced without anybody noticing."""
    await exchange(server, upstream, 0)
    getattr(server.connections[0], end)()
    await until_idle_is(upstream, 0)
    await exchange(server, upstream, 1)


@pytest.mark.parametrize("end", ["close", "cut", "send_reset"])
async def test_a_connection_that_dies_before_the_write_is_replaced(
    end: str, server: RawServer, upstream: HttpUpstream
) -> None:
    """A reused connection that proves dead before anything was written is replaced silently, and
    the key that was prepared for it is discarded."""
    await exchange(server, upstream, 0)
    keys: list[KeyInjector] = []

    async def credential() -> Injector:
        if not keys:
            getattr(server.connections[0], end)()
            for _ in range(5):  # turns of the loop in which the server ends it
                await asyncio.sleep(0)
        keys.append(KeyInjector())
        return keys[-1]

    async with asyncio.TaskGroup() as group:
        task = group.create_task(_status(upstream, credential))
        connection = await server.connection(1)
        await connection.head()
        connection.send(OK)
    assert task.result() == 200
    assert server.connections[0].received.count(KEY) == 1
    assert [injector.discarded for injector in keys] == [1, 1]


async def _status(upstream: HttpUpstream, credential: Callable) -> int:  # type: ignore[type-arg]
    async with upstream.send(get(), pieces(), credential, Progress()) as response:
        return response.status


async def test_a_connection_that_dies_after_the_write_is_an_error(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Once a byte may have reached Anthropic nothing is sent again."""
    await exchange(server, upstream, 0)
    progress = Progress()
    task = asyncio.create_task(fetch(upstream, progress=progress))
    connection = await server.connection()
    await connection.head(2)
    connection.close()
    with pytest.raises(UpstreamFailed) as caught:
        await task
    assert caught.value.reason == "UPSTREAM_CUT"
    assert progress.sent
    assert len(server.connections) == 1


async def test_connections_that_keep_dying_end_the_call(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Replacing has a bound: after three the call fails as retryable, with nothing sent."""
    progress = Progress()

    numbers = itertools.count()

    async def credential() -> Injector:
        newest = await server.connection(next(numbers))
        newest.send_reset()
        await newest.disconnected.wait()
        return KeyInjector()

    async def replace() -> None:
        async with upstream.send(get(), pieces(), credential, progress):
            pass

    await exchange(server, upstream, 0)
    with pytest.raises(Unavailable) as caught:
        await replace()
    assert caught.value.reason == "UPSTREAM_UNREACHABLE"
    assert len(server.connections) == 3
    assert not progress.sent
    assert upstream.connections == (0, 0)


async def test_connections_are_bounded_and_waiting_for_one_is_too(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """With all connections in use a call waits for one, and no longer than its deadline."""
    upstream = make_upstream(server, max_connections=1, pool_wait_s=0.01)
    first = asyncio.create_task(fetch(upstream))
    connection = await server.connection()
    await connection.head()
    with pytest.raises(Unavailable) as caught:
        await fetch(upstream)
    assert caught.value.reason == "UPSTREAM_LIMIT"
    assert caught.value.retry_after_s is not None
    assert upstream.connections == (1, 0)
    connection.send(OK)
    await first
    await exchange(server, upstream, 0, 2)


async def test_a_call_that_waits_gets_the_connection_that_is_given_back(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A waiting call proceeds on the connection of the one before it."""
    upstream = make_upstream(server, max_connections=1)
    first, second = (asyncio.create_task(fetch(upstream)) for _ in range(2))
    connection = await server.connection()
    for number in (1, 2):
        await connection.head(number)
        connection.send(OK)
    assert await first == await second == (200, b"ok")
    assert len(server.connections) == 1


async def test_no_more_calls_wait_than_there_are_connections(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """The queue for connections has a bound; beyond it a call fails at once."""
    upstream = make_upstream(server, max_connections=1)
    tasks = [asyncio.create_task(fetch(upstream)) for _ in range(2)]
    connection = await server.connection()
    await connection.head()
    with pytest.raises(Unavailable) as caught:
        await fetch(upstream)
    assert caught.value.reason == "UPSTREAM_LIMIT"
    for number in (1, 2):
        await connection.head(number)
        connection.send(OK)
    await asyncio.gather(*tasks)


async def test_an_idle_connection_ends_after_its_time(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A connection that nobody uses is closed, politely: the server sees an end and no reset."""
    upstream = make_upstream(server, keep_alive_s=0.01)
    await exchange(server, upstream, 0)
    await server.connections[0].disconnected.wait()
    assert not server.connections[0].reset
    assert upstream.connections == (0, 0)


async def test_closing_the_client_ends_everything(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """After close no connection is left, what was in flight fails, and new calls are refused."""
    await exchange(server, upstream, 0)
    flying = asyncio.create_task(fetch(upstream))
    await server.connections[0].head(2)
    idle = asyncio.create_task(fetch(upstream))
    connection = await server.connection(1)
    await connection.head()
    connection.send(OK)
    await idle
    await upstream.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await flying
    for connection in server.connections:
        await connection.disconnected.wait()
    keys = Keys()
    with pytest.raises(Unavailable) as caught:
        await fetch(upstream, keys=keys)
    assert caught.value.reason == "UPSTREAM_CLOSED"
    assert keys.given == []
    assert upstream.connections == (0, 0)


async def test_an_end_that_the_loop_has_not_noticed_yet_is_seen_before_reuse(
    plain_server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """The socket itself is asked before an idle connection is used, not the loop's last news."""
    upstream = make_upstream(plain_server)
    await exchange(plain_server, upstream, 0)
    plain_server.connections[0].cut()  # a FIN is there at once; the loop has not turned since
    assert upstream.connections == (0, 1)
    await exchange(plain_server, upstream, 1)


async def test_a_false_alarm_keeps_an_idle_connection(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """What TLS handles by itself, such as a session ticket, does not end an idle connection."""
    await exchange(server, upstream, 0)
    (channel,) = upstream._pool._idle
    channel._wake()
    assert upstream.connections == (0, 1)
    await exchange(server, upstream, 0, 2)
    assert len(server.connections) == 1


async def test_a_connection_that_is_made_while_closing_is_not_used(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Closing wins over a connection that is being made."""
    task = asyncio.create_task(fetch(upstream))
    await asyncio.sleep(0)
    await upstream.close()
    with pytest.raises(Unavailable) as caught:
        await task
    assert caught.value.reason == "UPSTREAM_CLOSED"
    assert upstream.connections == (0, 0)
