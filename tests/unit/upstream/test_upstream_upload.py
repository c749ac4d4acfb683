"""How bodies go up: while the answer comes down, within their bounds, no further than needed."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from ironwork_server.core.errors import Cancelled, InvalidRequest, UpstreamFailed
from ironwork_server.upstream import HttpUpstream
from ironwork_server.upstream.channel import Channel
from unit.upstream.raw_server import RawServer
from unit.upstream.sending import KEY, OK, Keys, Progress, fetch, pieces, post


class Feed:
    """A body that yields what is put into it."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self.stopped = asyncio.Event()

    def put(self, item: bytes | BaseException | None) -> None:
        self._queue.put_nowait(item)

    async def body(self) -> AsyncIterator[bytes]:
        try:
            while (item := await self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.stopped.set()


async def test_the_answer_is_read_while_the_body_goes_up(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Both directions stream at once; when both have ended the connection is kept."""
    feed = Feed()
    feed.put(b"one")
    context = upstream.send(post(None), feed.body(), Keys(), Progress())
    entering = asyncio.create_task(context.__aenter__())
    connection = await server.connection()
    await connection.ends_with(b"3\r\none\r\n")
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nearl\r\n")
    response = await entering
    chunks = response.chunks()
    assert await anext(chunks) == b"earl"
    feed.put(b"two")
    await connection.ends_with(b"3\r\ntwo\r\n")
    feed.put(None)
    await connection.ends_with(b"0\r\n\r\n")
    connection.send(b"0\r\n\r\n")
    assert [chunk async for chunk in chunks] == []
    await context.__aexit__(None, None, None)
    assert upstream.connections == (0, 1)


async def test_an_early_refusal_is_delivered_and_stops_the_upload(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A 413 during the upload reaches the caller whole, the upload stops, the connection ends."""
    feed = Feed()
    feed.put(b"some")
    answer = asyncio.create_task(fetch(upstream, post(1000), feed.body()))
    connection = await server.connection()
    await connection.ends_with(b"some")
    connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
    assert await answer == (413, b"large")
    await feed.stopped.wait()
    await connection.disconnected.wait()
    assert connection.received.endswith(b"some")
    assert upstream.connections == (0, 0)


async def test_an_answer_before_a_reset_survives_a_failed_write(plain_server: RawServer) -> None:
    """What the kernel holds already is read although a write met the reset that followed it."""
    channel = await Channel.open("127.0.0.1", plain_server.port, None, "127.0.0.1")
    connection = await plain_server.connection()
    channel._transport.pause_reading()  # the write comes first
    connection.send(b"the answer")
    await connection.flush()
    connection.send_reset()
    while not channel._lost.done():
        if not channel._transport.is_closing():
            channel.write(b"more of the body")
        await asyncio.sleep(0)
    assert await channel.read() == b"the answer"
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await channel.read()
    channel.abort()


@pytest.mark.parametrize(
    ("length", "parts"),
    [(5, (b"four",)), (5, ()), (3, (b"four",)), (4, (b"four", b"!")), (0, (b"!",))],
)
async def test_a_body_that_is_not_as_long_as_announced_is_an_error(
    length: int, parts: tuple[bytes, ...], server: RawServer, upstream: HttpUpstream
) -> None:
    """Too short or too long: the caller is told, nothing beyond the length is sent, the
    connection ends."""
    with pytest.raises(InvalidRequest) as caught:
        await fetch(upstream, post(length), pieces(*parts))
    assert caught.value.reason == "BODY_LENGTH_MISMATCH"
    connection = await server.connection()
    await connection.disconnected.wait()
    body = connection.received.partition(b"\r\n\r\n")[2]
    assert len(body) <= length
    assert upstream.connections == (0, 0)


async def test_a_body_on_a_request_without_one_is_an_error(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A GET that says it has no body must not bring one."""
    with pytest.raises(InvalidRequest) as caught:
        await fetch(upstream, body=pieces(b"smuggled"))
    assert caught.value.reason == "BODY_LENGTH_MISMATCH"
    connection = await server.connection()
    await connection.disconnected.wait()
    assert b"smuggled" not in connection.received


async def test_a_chunked_body_is_bounded(server: RawServer, upstream: HttpUpstream) -> None:
    """A body of unknown length ends at the path's bound, which is never passed on the wire."""
    with pytest.raises(InvalidRequest) as caught:
        await fetch(upstream, post(None, max_body=8), pieces(b"12345678", b"9"))
    assert caught.value.reason == "BODY_TOO_LARGE"
    connection = await server.connection()
    await connection.disconnected.wait()
    assert b"8\r\n12345678\r\n".startswith(connection.received.partition(b"\r\n\r\n")[2])


async def test_an_announced_body_above_the_bound_is_refused_at_once(
    plain_server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A Content-Length above the path's bound costs neither a connection nor a decryption."""
    keys = Keys()
    with pytest.raises(InvalidRequest) as caught:
        await fetch(make_upstream(plain_server), post(9, max_body=8), keys=keys)
    assert caught.value.reason == "BODY_TOO_LARGE"
    assert (plain_server.connections, keys.given) == ([], [])


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(
    "error", [RuntimeError("the agent's stream broke"), OSError("likewise"), TimeoutError()]
)
async def test_an_error_of_the_body_passes_unchanged(
    error: Exception, answered: bool, server: RawServer, upstream: HttpUpstream
) -> None:
    """What the body raises is what the caller gets, before or after the head; the rest is cut."""
    feed = Feed()
    feed.put(b"some")
    entered = asyncio.Event()

    async def use() -> None:
        async with upstream.send(post(1000), feed.body(), Keys(), Progress()) as response:
            entered.set()
            async for _ in response.chunks():
                pass

    using = asyncio.create_task(use())
    connection = await server.connection()
    await connection.ends_with(b"some")
    if answered:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await entered.wait()
    feed.put(error)
    with pytest.raises(type(error)) as caught:
        await using
    assert caught.value is error
    await connection.disconnected.wait()
    assert upstream.connections == (0, 0)


async def test_an_upload_to_a_lost_connection_stops_and_the_reader_says_why(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A write that meets a lost connection is no error of its own: the answer's cut is."""
    feed = Feed()
    feed.put(b"some")
    context = upstream.send(post(1000), feed.body(), Keys(), Progress())
    entering = asyncio.create_task(context.__aenter__())
    connection = await server.connection()
    await connection.ends_with(b"some")
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    response = await entering
    (channel,) = upstream._pool._used
    connection.send_reset()
    await channel.wait_closed()
    feed.put(b"more")
    for _ in range(5):  # turns of the loop in which the upload meets the loss
        await asyncio.sleep(0)
    with pytest.raises(UpstreamFailed) as caught:
        await anext(response.chunks())
    assert caught.value.reason == "UPSTREAM_CUT"
    await context.__aexit__(None, None, None)


async def test_a_body_that_is_cancelled_ends_the_call(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A body whose own source was cancelled does not leave the caller waiting."""
    with pytest.raises(Cancelled) as caught:
        await fetch(upstream, post(1000), _cancelled())
    assert caught.value.reason == "UPLOAD_CANCELLED"


async def _cancelled() -> AsyncIterator[bytes]:
    yield b"some"
    raise asyncio.CancelledError


async def test_a_large_body_arrives_whole(server: RawServer, upstream: HttpUpstream) -> None:
    """8 MiB in pieces of any size arrive unchanged, with the upload waiting for the server."""
    parts = [bytes([number]) * (1 << 18) for number in range(32)]
    connecting = asyncio.create_task(fetch(upstream, post(8 << 20), pieces(*parts)))
    connection = await server.connection()
    connection.reading.clear()
    for _ in range(50):
        await asyncio.sleep(0)
    connection.reading.set()
    received = await connection.until(lambda data: len(data) >= 8 << 20)
    received = await connection.until(
        lambda data: len(data) - data.index(b"\r\n\r\n") - 4 == 8 << 20
    )
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.endswith(KEY)
    assert body == b"".join(parts)
    connection.send(OK)
    assert await connecting == (200, b"ok")


async def test_a_body_that_is_too_long_never_arrives_whole(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A piece past the announced length is noticed before the last announced byte is sent."""
    with pytest.raises(InvalidRequest) as caught:
        await fetch(upstream, post(4), pieces(b"ab", b"cd", b"", b"e"))
    assert caught.value.reason == "BODY_LENGTH_MISMATCH"
    connection = await server.connection()
    await connection.disconnected.wait()
    assert connection.received.endswith(b"\r\n\r\nab")
