"""Few requests are between the read of a key and its write: no read grows old in a queue."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from ironwork_server.core.errors import Unavailable
from ironwork_server.core.ports import Injector
from ironwork_server.upstream import HttpUpstream, UpstreamTimeouts
from unit.upstream.raw_server import RawServer
from unit.upstream.sending import OK, KeyInjector, Keys, Progress, fetch, get, pieces

MakeOne = Callable[..., HttpUpstream]


@pytest.fixture
async def one_at_a_time(server: RawServer) -> AsyncIterator[MakeOne]:
    """`one_at_a_time(**timeouts)`: a client in which one request may be between read and write."""
    made: list[HttpUpstream] = []

    def make(*, max_connections: int = 4, **timeouts: float) -> HttpUpstream:
        made.append(
            HttpUpstream(
                server.endpoint,
                timeouts=UpstreamTimeouts(**timeouts),
                max_connections=max_connections,
                max_preparing=1,
            )
        )
        return made[-1]

    yield make
    for upstream in made:
        await upstream.close()


class SlowKeys:
    """A Credential that waits to be let go on. reads: how often it was asked for one."""

    def __init__(self) -> None:
        self.reads = 0
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self) -> Injector:
        self.reads += 1
        self.asked.set()
        await self.go_on.wait()
        return KeyInjector()


async def ask(upstream: HttpUpstream, keys: SlowKeys) -> bytes:
    async with upstream.send(get(), pieces(), keys, Progress()) as response:
        return b"".join([chunk async for chunk in response.chunks()])


async def in_use(upstream: HttpUpstream, count: int) -> None:
    """Wait until so many connections are ready and taken."""
    while upstream.connections != (count, 0):  # noqa: ASYNC110 - the pool tells nobody
        await asyncio.sleep(0)


async def test_a_request_reads_its_key_when_it_is_its_turn(
    server: RawServer, one_at_a_time: MakeOne
) -> None:
    """A request whose connection is ready does not read its key while another is between its read
    and its write.
    """
    upstream = one_at_a_time()
    first, second = SlowKeys(), SlowKeys()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        answers = [group.create_task(ask(upstream, keys)) for keys in (first, second)]
        await in_use(upstream, 2)
        assert first.reads + second.reads == 1
        first.go_on.set()
        second.go_on.set()
        for number in (0, 1):
            connection = await server.connection(number)
            await connection.head()
            connection.send(OK)
    assert [answer.result() for answer in answers] == [b"ok", b"ok"]
    assert (first.reads, second.reads) == (1, 1)


async def test_waiting_for_a_turn_is_bounded(server: RawServer, one_at_a_time: MakeOne) -> None:
    """A request that does not get its turn in time is refused as retryable, unread and unsent, and
    its connection is kept.
    """
    upstream = one_at_a_time(pool_wait_s=0.05)
    slow, waiting = SlowKeys(), SlowKeys()
    async with asyncio.timeout(20):
        first = asyncio.create_task(ask(upstream, slow))
        await slow.asked.wait()
        with pytest.raises(Unavailable) as caught:
            await ask(upstream, waiting)
        assert caught.value.reason == "UPSTREAM_LIMIT"
        assert caught.value.retry_after_s is not None
        assert waiting.reads == 0
        assert upstream.connections == (1, 1)
        slow.go_on.set()
        connection = await server.connection()
        await connection.head()
        connection.send(OK)
        assert await first == b"ok"


async def test_a_stale_read_costs_neither_connection_nor_turn(
    server: RawServer, one_at_a_time: MakeOne
) -> None:
    """A request whose read went stale reads again at once, before those that came after it."""
    upstream = one_at_a_time(max_connections=1)
    stale = Keys([KeyInjector(stale=True), KeyInjector(stale=True)])
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(fetch(upstream, get("/v1/models/first"), keys=stale))
        group.create_task(fetch(upstream, get("/v1/models/second"), keys=Keys()))
        connection = await server.connection()
        for number, name in enumerate((b"first", b"second"), 1):
            assert name in (await connection.head(number))
            connection.send(OK)
    assert len(server.connections) == 1
