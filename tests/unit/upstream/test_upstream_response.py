"""How answers are read: delivered as they come, never clean when they were cut."""

import asyncio
from collections.abc import Callable

import pytest

from ironwork_server.core.errors import UpstreamFailed
from ironwork_server.upstream import HttpUpstream
from unit.upstream.raw_server import RawConnection, RawServer
from unit.upstream.sending import OK, Keys, Progress, fetch, get, pieces

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def answered(
    server: RawServer, upstream: HttpUpstream, act: Callable[[RawConnection], None]
) -> tuple[int, bytes]:
    """One GET, answered by act once its head has arrived."""
    answer = asyncio.create_task(fetch(upstream, get()))
    connection = await server.connection()
    await connection.head()
    act(connection)
    return await answer


def sending(data: bytes, then: str | None = None) -> Callable[[RawConnection], None]:
    def act(connection: RawConnection) -> None:
        connection.send(data)
        if then is not None:
            getattr(connection, then)()

    return act


async def test_status_and_headers_come_as_received(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Order, case, duplicates and odd bytes of the answer's headers are kept."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_serve_odd_headers(server))
        async with upstream.send(get(), pieces(), Keys(), Progress()) as response:
            assert response.status == 429
            assert list(response.headers) == [
                (b"Request-Id", b"req_1"),
                (b"set-Cookie", b"a=1"),
                (b"Set-cookie", b"b=2"),
                (b"x-bytes", b"caf\xe9"),
                (b"Connection", b"keep-alive"),
                (b"Content-Length", b"0"),
            ]


async def _serve_odd_headers(server: RawServer) -> None:
    connection = await server.connection()
    await connection.head()
    connection.send(
        b"HTTP/1.1 429 Too Many\r\nRequest-Id: req_1\r\nset-Cookie: a=1\r\nSet-cookie: b=2\r\n"
        b"x-bytes: caf\xe9\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"
    )


async def test_chunks_are_passed_on_as_they_come(server: RawServer, upstream: HttpUpstream) -> None:
    """A piece is delivered although the next has not been sent, and in 16 KiB at most."""
    async with upstream_response(server, upstream) as (connection, response):
        chunks = response.chunks()
        connection.send(CHUNKED[len(CHUNKED) :] + b"5\r\nfirst\r\n")
        assert await anext(chunks) == b"first"
        connection.send(b"6\r\nsecond\r\n")
        assert await anext(chunks) == b"second"
        connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (100_000, b"x" * 100_000))
        rest = [chunk async for chunk in chunks]
    assert sum(len(chunk) for chunk in rest) == 100_000
    assert max(len(chunk) for chunk in rest) <= 16 * 1024


class upstream_response:  # noqa: N801 - reads as the function that it is
    """Enter an exchange whose answer is a chunked 200 without a body yet."""

    def __init__(self, server: RawServer, upstream: HttpUpstream) -> None:
        self._server = server
        self._context = upstream.send(get(), pieces(), Keys(), Progress())

    async def __aenter__(self):  # type: ignore[no-untyped-def]
        entering = asyncio.create_task(self._context.__aenter__())
        connection = await self._server.connection(len(self._server.connections))
        await connection.head()
        connection.send(CHUNKED)
        return connection, await entering

    async def __aexit__(self, *error) -> None:  # type: ignore[no-untyped-def]
        await self._context.__aexit__(*error)


async def test_an_answer_that_ends_with_the_connection_is_whole_when_that_was_announced(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A body without a length ends cleanly at the peer's announced end."""
    act = sending(b"HTTP/1.1 200 OK\r\n\r\nto the end", "close")
    assert await answered(server, upstream, act) == (200, b"to the end")


async def test_a_tls_end_without_close_notify_is_a_cut(
    tls_server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """Over TLS a FIN that anybody could forge does not end a body."""
    act = sending(b"HTTP/1.1 200 OK\r\n\r\nto the end", "cut")
    with pytest.raises(UpstreamFailed) as caught:
        await answered(tls_server, make_upstream(tls_server), act)
    assert caught.value.reason == "UPSTREAM_CUT"


@pytest.mark.parametrize("end", ["close", "cut", "send_reset"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        CHUNKED + b"5\r\nwhole\r\n",
        CHUNKED + b"5\r\nwh",
        CHUNKED + b"5\r\nwhole\r\n0\r\n",
    ],
    ids=["nothing", "in-head", "after-1xx", "length", "no-terminator", "in-chunk", "in-trailer"],
)
async def test_a_cut_is_never_a_clean_end(
    data: bytes, end: str, server: RawServer, upstream: HttpUpstream
) -> None:
    """However an answer is cut, the caller gets UPSTREAM_CUT and not an end."""
    with pytest.raises(UpstreamFailed) as caught:
        await answered(server, upstream, sending(data, end))
    assert caught.value.reason == "UPSTREAM_CUT"
    assert caught.value.retry_after_s is None
    assert upstream.connections == (0, 0)


async def test_a_reset_in_a_body_that_ends_with_the_connection_is_a_cut(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """A reset never ends a body."""
    act = sending(b"HTTP/1.1 200 OK\r\n\r\nsome", "send_reset")
    with pytest.raises(UpstreamFailed, match="cut"):
        await answered(server, upstream, act)


async def test_what_came_before_a_broken_chunk_is_delivered_first(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Good bytes before broken framing reach the caller, then the cut does."""
    async with upstream_response(server, upstream) as (connection, response):
        chunks = response.chunks()
        connection.send(b"4\r\ngood\r\nnot a length\r\n")
        assert await anext(chunks) == b"good"
        with pytest.raises(UpstreamFailed) as caught:
            await anext(chunks)
        assert caught.value.reason == "UPSTREAM_CUT"
        assert "not a length" not in repr(caught.value)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_a_redirect_is_an_error_and_nobody_follows_it(
    status: int, server: RawServer, upstream: HttpUpstream, authority: object
) -> None:
    """A 3xx is UPSTREAM_REDIRECT before anything is delivered; the host it names hears nothing."""
    async with RawServer.run() as second:
        location = b"http://127.0.0.1:%d/v1/models" % second.port
        head = b"HTTP/1.1 %d X\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, location)
        with pytest.raises(UpstreamFailed) as caught:
            await answered(server, upstream, sending(head))
        assert caught.value.reason == "UPSTREAM_REDIRECT"
        assert second.connections == []
    assert upstream.connections == (0, 0)


async def test_interim_answers_are_skipped(server: RawServer, upstream: HttpUpstream) -> None:
    """100 and 103 are passed over, in one piece with the answer or before it."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    assert await answered(server, upstream, sending(interim + OK)) == (200, b"ok")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK,
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(257)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"v" * 66_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"v" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\x16\x03\x01\x00\x00\r\n\r\n",
    ],
    ids=[
        *("101", "1xx-flood", "many-headers", "large-head", "endless-head", "two-lengths"),
        *("other-coding", "no-colon", "status-600", "status-099", "ssh", "tls"),
    ],
)
async def test_a_head_that_is_not_http_or_too_large_is_refused(
    head: bytes, server: RawServer, upstream: HttpUpstream
) -> None:
    """What cannot be an answer of Anthropic's is UPSTREAM_MALFORMED, in words of ours."""
    with pytest.raises(UpstreamFailed) as caught:
        await answered(server, upstream, sending(head))
    assert caught.value.reason == "UPSTREAM_MALFORMED"
    assert str(caught.value) == "Anthropic's answer is not valid HTTP."
    assert upstream.connections == (0, 0)


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("read", [True, False])
async def test_answers_without_a_body_are_whole_at_their_head(
    method: str, head: bytes, read: bool, server: RawServer, upstream: HttpUpstream
) -> None:
    """HEAD and 204 have no body whatever their headers say, and the connection is kept."""
    context = upstream.send(get(method=method), pieces(), Keys(), Progress())
    entering = asyncio.create_task(context.__aenter__())
    connection = await server.connection()
    await connection.head()
    connection.send(head)
    response = await entering
    if read:
        assert [chunk async for chunk in response.chunks()] == []
    await context.__aexit__(None, None, None)
    assert upstream.connections == (0, 1)


async def test_content_coding_is_left_alone(server: RawServer, upstream: HttpUpstream) -> None:
    """A body is passed on in the coding it came in."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
    assert await answered(server, upstream, sending(head + b"\x1f\x8b\x08\x00")) == (
        200,
        b"\x1f\x8b\x08\x00",
    )


async def test_a_response_that_is_kept_reads_nothing_of_the_next_one(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """After its exchange a response gives no bytes, although its connection lives on."""
    entering = upstream_response(server, upstream)
    async with entering as (connection, response):
        connection.send(b"0\r\n\r\n")
        assert [chunk async for chunk in response.chunks()] == []
    second = asyncio.create_task(fetch(upstream))
    await connection.head(2)
    connection.send(OK)
    assert [chunk async for chunk in response.chunks()] == []
    assert await second == (200, b"ok")


async def test_a_slow_consumer_makes_the_server_wait(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """While nobody reads, the connection holds at most its small buffer, and nothing is lost."""
    size = 16 * 1024 * 1024
    async with upstream_response(server, upstream) as (connection, response):
        chunks = response.chunks()
        connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size)))
        flushed = asyncio.create_task(connection.flush())
        received = len(await anext(chunks))
        for _ in range(200):  # turns of the loop in which it could read on
            await asyncio.sleep(0)
        (channel,) = upstream._pool._used
        assert channel._filled <= 32 * 1024
        assert all(layer.incoming.pending <= 64 * 1024 for layer in channel._layers)
        # With TLS the server's own queue of ciphertext does not count for its drain().
        assert flushed.done() == server.endpoint.tls
        async for chunk in chunks:
            received += len(chunk)
        await flushed
    assert received == size
