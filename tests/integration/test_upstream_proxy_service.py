"""A whole service behind a CONNECT proxy."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fixtures.agent import Agent
from fixtures.connect_proxy import ConnectProxy
from fixtures.server import AGENT, StartService, TestService
from fixtures.simulator import TestSimulator
from ironwork_server.app.startup import StartupError
from ironwork_server.upstream import UpstreamEndpoint

CREDENTIALS = b"Basic dXNlcjpodW50ZXIy"


@pytest.fixture
async def proxy() -> AsyncIterator[ConnectProxy]:
    """One that wants credentials."""
    async with ConnectProxy.run() as running:
        running.credentials = CREDENTIALS
        yield running


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """The credentials that it wants."""
    file = tmp_path / "proxy-credentials"
    file.write_text("user:hunter2\n")
    file.chmod(0o600)
    return file


@pytest.fixture
async def behind(
    start_service: StartService, simulator: TestSimulator, proxy: ConnectProxy, credentials: Path
) -> TestService:
    """A service whose only way to api.anthropic.com is the proxy: it resolves no name itself."""
    return await start_service(
        endpoint=UpstreamEndpoint("api.anthropic.com", simulator.port, ca_file=simulator.ca_file),
        upstream={
            "proxy": f"http://127.0.0.1:{proxy.port}",
            "proxy_credentials": str(credentials),
        },
    )


async def test_adding_and_using_a_key_take_the_proxys_way(
    behind: TestService, simulator: TestSimulator, proxy: ConnectProxy
) -> None:
    """Both arrive at Anthropic through the tunnel; the proxy sees no key, no prompt, no answer."""
    key = simulator.make_key()
    await behind.add(key)
    agent = Agent(behind.keys(AGENT))
    await agent.start()
    answer = await agent.message(text="a secret prompt")
    assert answer.head is not None
    assert answer.head.status == 200
    assert json.loads(answer.body)["type"] == "message"
    assert len(list(simulator.requests)) == 3
    assert all(one.startswith(b"CONNECT api.anthropic.com:") for one in proxy.targets)
    seen = b"".join(tunnel.head + bytes(tunnel.through) for tunnel in proxy.tunnels)
    for plain in (key.encode(), key[20:32].encode(), b"a secret prompt", b"/v1/messages"):
        assert plain not in seen


async def test_a_proxy_that_refuses_is_told_with_its_status(
    behind: TestService, proxy: ConnectProxy
) -> None:
    """The agent's call ends unsent, with the proxy's status; the stream stays usable."""
    await behind.add()
    agent = Agent(behind.keys(AGENT))
    await agent.start()
    proxy.credentials = b"Basic changed"
    for tunnel in proxy.tunnels:
        tunnel.cut()
        await tunnel.ended.wait()
    refused = await agent.message()
    assert (refused.reason, refused.end.sent_upstream) == ("UPSTREAM_PROXY_REFUSED", False)
    proxy.credentials = CREDENTIALS
    answer = await agent.message()
    assert answer.reason == ""


async def test_credentials_that_cannot_be_read_end_the_start(
    start_service: StartService, tmp_path: Path
) -> None:
    """Before anything is served, by the setting's name."""
    missing = str(tmp_path / "missing")
    with pytest.raises(StartupError, match=r"^upstream\.proxy_credentials: .* cannot be read"):
        await start_service(upstream={"proxy": "http://127.0.0.1:1", "proxy_credentials": missing})
