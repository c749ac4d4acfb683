"""Every wait has a deadline; each has a reason of its own."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from ironwork_server.core.errors import Unavailable
from ironwork_server.core.ports import Injector
from ironwork_server.upstream import HttpUpstream, UpstreamEndpoint, UpstreamTimeouts
from unit.upstream.certificates import Authority
from unit.upstream.raw_server import HOST, RawServer, free_port
from unit.upstream.sending import KeyInjector, Keys, Progress, fetch, get, pieces, post

SHORT = 0.02


async def test_a_server_that_does_not_speak_tls_in_time(authority: Authority) -> None:
    """A handshake that does not end is UPSTREAM_TIMEOUT_CONNECT, and nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = UpstreamEndpoint(
            HOST, silent.getsockname()[1], ca_file=authority.ca_file, connect_address="127.0.0.1"
        )
        upstream = HttpUpstream(endpoint, timeouts=UpstreamTimeouts(connect_s=SHORT))
        keys, progress = Keys(), Progress()
        with pytest.raises(Unavailable) as caught:
            await fetch(upstream, keys=keys, progress=progress)
        await upstream.close()
    assert caught.value.reason == "UPSTREAM_TIMEOUT_CONNECT"
    assert caught.value.retry_after_s is not None
    assert (keys.given, progress.sent) == ([], False)


async def test_a_credential_that_does_not_come(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A key that cannot be prepared in time is CREDENTIAL_TIMEOUT; the connection is kept."""
    upstream = make_upstream(server, credential_s=SHORT)
    progress = Progress()

    async def credential() -> Injector:
        await asyncio.get_running_loop().create_future()
        return KeyInjector()

    with pytest.raises(Unavailable) as caught:
        async with upstream.send(get(), pieces(), credential, progress):
            pass
    assert caught.value.reason == "CREDENTIAL_TIMEOUT"
    assert caught.value.retry_after_s is not None
    assert not progress.sent
    assert upstream.connections == (0, 1)


async def test_a_timeout_of_the_credentials_own_passes_unchanged(
    server: RawServer, upstream: HttpUpstream
) -> None:
    """Only our deadline becomes CREDENTIAL_TIMEOUT."""
    error = TimeoutError()

    async def credential() -> Injector:
        raise error

    with pytest.raises(TimeoutError) as caught:
        async with upstream.send(get(), pieces(), credential, Progress()):
            pass
    assert caught.value is error


async def test_an_answer_that_does_not_begin(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """No head in time is UPSTREAM_TIMEOUT_FIRST_BYTE, without a hint to repeat; it is aborted."""
    progress = Progress()
    with pytest.raises(Unavailable) as caught:
        await fetch(make_upstream(server, first_byte_s=SHORT), progress=progress)
    assert caught.value.reason == "UPSTREAM_TIMEOUT_FIRST_BYTE"
    assert caught.value.retry_after_s is None
    assert progress.sent
    await (await server.connection()).disconnected.wait()


async def test_interim_answers_do_not_postpone_the_deadline(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A server that only says 100 Continue has not answered."""
    task = asyncio.create_task(fetch(make_upstream(server, first_byte_s=SHORT)))
    connection = await server.connection()
    await connection.head()
    connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    with pytest.raises(Unavailable, match="in time"):
        await task


async def test_the_first_byte_is_waited_for_from_the_end_of_the_upload(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """An upload may take longer than the answer may."""
    upstream = make_upstream(server, first_byte_s=SHORT)
    last = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        await last.wait()
        yield b"cd"

    task = asyncio.create_task(fetch(upstream, post(4), body()))
    connection = await server.connection()
    await connection.ends_with(b"ab")
    await asyncio.wait({task}, timeout=3 * SHORT)
    assert not task.done()
    last.set()
    await connection.ends_with(b"cd")
    with pytest.raises(Unavailable) as caught:
        await task
    assert caught.value.reason == "UPSTREAM_TIMEOUT_FIRST_BYTE"


async def test_an_answer_that_stops_coming(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """A gap between pieces is UPSTREAM_TIMEOUT_IDLE; what came before was delivered."""
    upstream = make_upstream(server, idle_s=SHORT)
    context = upstream.send(get(), pieces(), Keys(), Progress())
    entering = asyncio.create_task(context.__aenter__())
    connection = await server.connection()
    await connection.head()
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n")
    chunks = (await entering).chunks()
    assert await anext(chunks) == b"some"
    with pytest.raises(Unavailable) as caught:
        await anext(chunks)
    assert caught.value.reason == "UPSTREAM_TIMEOUT_IDLE"
    await context.__aexit__(None, None, None)
    await connection.disconnected.wait()


async def test_a_consumers_own_pause_is_no_gap(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """Time in which nobody asks for bytes does not count against the server."""
    upstream = make_upstream(server, idle_s=SHORT)
    context = upstream.send(get(), pieces(), Keys(), Progress())
    entering = asyncio.create_task(context.__aenter__())
    connection = await server.connection()
    await connection.head()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsome")
    response = await entering
    await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=3 * SHORT)
    assert [chunk async for chunk in response.chunks()] == [b"some"]
    await context.__aexit__(None, None, None)


async def test_a_server_that_takes_nothing(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """An upload that the server does not read is UPSTREAM_TIMEOUT_WRITE."""
    upstream = make_upstream(server, write_stall_s=SHORT)
    body = pieces(*[bytes(1 << 20)] * 32)
    context = upstream.send(post(32 << 20), body, Keys(), Progress())
    connecting = asyncio.create_task(context.__aenter__())
    connection = await server.connection()
    connection.reading.clear()
    with pytest.raises(Unavailable) as caught:
        await connecting
    assert caught.value.reason == "UPSTREAM_TIMEOUT_WRITE"
    assert upstream.connections == (0, 0)


async def test_a_body_that_stops_coming(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """An agent that stops uploading does not hold a connection for ever: BODY_TIMEOUT."""

    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Unavailable) as caught:
        await fetch(make_upstream(server, body_idle_s=SHORT), post(4), body())
    assert caught.value.reason == "BODY_TIMEOUT"
    await (await server.connection()).disconnected.wait()


async def test_a_body_that_does_not_let_go_does_not_hold_the_caller(
    server: RawServer, make_upstream: Callable[..., HttpUpstream]
) -> None:
    """Leaving waits for the upload to stop, but no longer than its bound."""
    release = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    upstream = make_upstream(server, settle_s=SHORT)
    task = asyncio.create_task(fetch(upstream, post(4), body()))
    connection = await server.connection()
    await connection.ends_with(b"ab")
    connection.close()
    with pytest.raises(Exception, match="cut off"):
        await task
    release.set()


async def test_a_refused_connection() -> None:
    """Nobody listens: UPSTREAM_UNREACHABLE."""
    endpoint = UpstreamEndpoint("127.0.0.1", free_port(), tls=False)
    await _unreachable(endpoint, "UPSTREAM_UNREACHABLE")


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address: UPSTREAM_DNS."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "a foreign text")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    await _unreachable(UpstreamEndpoint("no-such-host.invalid", 443), "UPSTREAM_DNS")


async def _unreachable(endpoint: UpstreamEndpoint, reason: str) -> None:
    upstream = HttpUpstream(endpoint)
    keys, progress = Keys(), Progress()
    with pytest.raises(Unavailable) as caught:
        await fetch(upstream, keys=keys, progress=progress)
    assert caught.value.reason == reason
    assert caught.value.retry_after_s is not None
    assert (keys.given, progress.sent) == ([], False)
    assert upstream.connections == (0, 0)
    await upstream.close()
