"""Servers and clients of the upstream tests."""

from collections.abc import AsyncIterator, Callable

import pytest

from ironwork_server.upstream import HttpUpstream, UpstreamTimeouts
from unit.upstream.certificates import Authority
from unit.upstream.raw_server import RawServer


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("upstream-ca"))


@pytest.fixture(params=["tls", "plain"])
async def server(request: pytest.FixtureRequest, authority: Authority) -> AsyncIterator[RawServer]:
    """Each rule holds with TLS and without."""
    async with RawServer.run(authority if request.param == "tls" else None) as running:
        yield running


@pytest.fixture
async def tls_server(authority: Authority) -> AsyncIterator[RawServer]:
    async with RawServer.run(authority) as running:
        yield running


@pytest.fixture
async def plain_server() -> AsyncIterator[RawServer]:
    async with RawServer.run() as running:
        yield running


@pytest.fixture
async def make_upstream() -> AsyncIterator[Callable[..., HttpUpstream]]:
    """make_upstream(server, **timeouts): closed after the test."""
    made: list[HttpUpstream] = []

    def make(server: RawServer, *, max_connections: int = 4, **timeouts: float) -> HttpUpstream:
        upstream = HttpUpstream(
            server.endpoint,
            timeouts=UpstreamTimeouts(**timeouts),
            max_connections=max_connections,
        )
        made.append(upstream)
        return upstream

    yield make
    for upstream in made:
        await upstream.close()


@pytest.fixture
def upstream(server: RawServer, make_upstream: Callable[..., HttpUpstream]) -> HttpUpstream:
    """A client of `server` with the default bounds."""
    return make_upstream(server)
