"""Connecting: to which address, and that no socket is lost on the way."""

import asyncio
import gc
import socket
import warnings
from collections.abc import Iterator

import pytest

from ironwork_server.upstream.channel import Channel
from ironwork_server.upstream.dialing import dial
from unit.upstream.raw_server import RawServer, free_port

# More turns of the loop than a connection over loopback takes, from name to transport.
TURNS = 25


@pytest.fixture
def abandoned() -> Iterator[list[warnings.WarningMessage]]:
    """What the collector had to close, at the end of the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield caught


@pytest.mark.parametrize("turns", range(TURNS))
async def test_a_cancelled_connection_leaves_no_socket_to_the_collector(
    turns: int, plain_server: RawServer, abandoned: list[warnings.WarningMessage]
) -> None:
    """In whatever turn of the loop connecting is cancelled, its socket is closed by us."""
    task = asyncio.create_task(Channel.open("127.0.0.1", plain_server.port, None, "127.0.0.1"))
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.done():
        (await task).abort()
    else:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    for _ in range(3):
        await asyncio.sleep(0)
    del task
    gc.collect()
    assert [str(warning.message) for warning in abandoned] == []


async def _resolving(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    async def getaddrinfo(
        host: str, port: int, **_: object
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_an_address_that_refuses_is_followed_by_the_next(
    plain_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dead address of several does not end a connection."""
    await _resolving(monkeypatch, ("127.0.0.1", free_port()), ("127.0.0.1", plain_server.port))
    with await dial("either.example", 443) as sock:
        assert sock.getpeername() == ("127.0.0.1", plain_server.port)
        assert not sock.getblocking()


async def test_an_address_that_is_silent_is_overtaken_by_the_next(
    plain_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next address is tried beside one that does not answer (RFC 8305), whose socket is then
    closed."""
    loop = asyncio.get_running_loop()
    connect, silent = loop.sock_connect, []

    async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "192.0.2.1":
            silent.append(sock)
            await loop.create_future()
        await connect(sock, address)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    await _resolving(monkeypatch, ("192.0.2.1", 443), ("127.0.0.1", plain_server.port))
    with await dial("either.example", 443) as sock:
        assert sock.getpeername() == ("127.0.0.1", plain_server.port)
    await asyncio.sleep(0)
    assert [one.fileno() for one in silent] == [-1]


async def test_where_two_connect_the_second_is_closed(
    plain_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was won but not wanted ends: the peer sees it."""
    loop = asyncio.get_running_loop()
    connect, both = loop.sock_connect, asyncio.Barrier(2)

    async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
        await connect(sock, address)
        await both.wait()

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    await _resolving(monkeypatch, *[("127.0.0.1", plain_server.port)] * 2)
    with await dial("either.example", 443):
        first, second = await plain_server.connection(0), await plain_server.connection(1)
        await asyncio.wait(
            [asyncio.create_task(one.disconnected.wait()) for one in (first, second)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert first.disconnected.is_set() != second.disconnected.is_set()


async def test_where_no_address_answers_the_refusal_is_told() -> None:
    """All addresses refused: the last one's reason."""
    with pytest.raises(ConnectionRefusedError):
        await dial("127.0.0.1", free_port())
