"""The page's listener: one path, one method, and little of everything."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ironwork_server.app import metrics_listener
from ironwork_server.app.metrics import PrometheusMeter
from ironwork_server.app.metrics_listener import listening
from ironwork_server.app.startup import StartupError

DEADLINE_S = 20.0
GET = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def address() -> AsyncIterator[str]:
    async with listening("127.0.0.1:0", PrometheusMeter().registry) as taken:
        yield taken


async def ask(address: str, request: bytes, *, end: bool = False) -> bytes:
    """All that comes back until the connection ends; empty where it is cut."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    if end:
        writer.write_eof()
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET, b"200"),
        (b"GET /metrics?x=1 HTTP/1.1\r\nhost: x\r\n\r\n", b"200"),
        (b"HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"404"),
        (b"GET /metrics/ HTTP/1.1\r\nhost: x\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello", b"405"),
        (b"DELETE /metrics HTTP/1.1\r\nhost: x\r\n\r\n", b"405"),
    ],
)
async def test_one_path_is_read_and_nothing_else(
    address: str, request_: bytes, status: bytes
) -> None:
    """GET and HEAD of /metrics; another path is 404, another method 405."""
    head, _, body = (await ask(address, request_)).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == status
    assert (b"ironwork_build_info" in body) is (status == b"200" and request_.startswith(b"GET"))


async def test_the_page_has_its_type_and_ends_the_connection(address: str) -> None:
    """Prometheus' text format; a pipelined second request is not heard."""
    answer = await ask(address, GET + GET)
    assert answer.count(b"HTTP/1.1 200") == 1
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"content-type: text/plain" in head
    assert b"connection: close" in head


@given(noise=st.binary(min_size=1, max_size=300))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_gets_no_page(noise: bytes) -> None:
    """Whatever else is sent, the connection ends, and the next one is served."""

    async def run() -> None:
        async with listening("127.0.0.1:0", PrometheusMeter().registry) as address:
            assert b" 200 " not in await ask(address, noise, end=True)
            assert b" 200 " in await ask(address, GET)

    asyncio.run(run())


async def test_a_long_head_is_cut(address: str) -> None:
    """A head has a bound."""
    assert await ask(address, b"GET /metrics HTTP/1.1\r\nx: " + b"y" * 100_000) == b""


async def test_a_silent_peer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends nothing has its deadline."""
    monkeypatch.setattr(metrics_listener, "DEADLINE_S", 0.01)
    async with listening("127.0.0.1:0", PrometheusMeter().registry) as address:
        assert await ask(address, b"GET /met") == b""


async def test_connections_are_few(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed unheard; when another has ended there is room."""
    monkeypatch.setattr(metrics_listener, "MAX_CONNECTIONS", 1)
    host, _, port = address.rpartition(":")
    _, silent = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(DEADLINE_S):
        while b" 200 " in await ask(address, GET):
            pass
        silent.transport.abort()
        while b" 200 " not in await ask(address, GET):
            pass


async def test_a_page_that_cannot_be_made_ends_its_connection_only(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours is logged by its place, and the next scrape is served."""

    def broken(_: object) -> bytes:
        raise RuntimeError("a text that nobody may read")

    with monkeypatch.context() as patch:
        patch.setattr(metrics_listener, "generate_latest", broken)
        assert await ask(address, GET) == b""
    assert "error.unexpected" in caplog.messages
    assert b" 200 " in await ask(address, GET)


async def test_a_taken_port_is_named(address: str) -> None:
    """A second listener on the port refuses to start and names the setting."""
    with pytest.raises(StartupError, match=r"metrics\.listen"):
        async with listening(address, PrometheusMeter().registry):
            pytest.fail("listened")
