"""Fixtures of the client's tests: a scripted server, a profile for it, a guard for leftovers."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from ironwork_client import AsyncWithKeyTransport, Profile, WithKeyTransport
from unit.client import scripted_server as scripted


@pytest.fixture(scope="session")
def client_authority() -> scripted.Authority:
    return scripted.Authority()


@pytest.fixture
def scripted_server(client_authority: scripted.Authority) -> Iterator[scripted.ScriptedServer]:
    server = scripted.ScriptedServer(client_authority)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def profile_file(
    tmp_path: Path,
    client_authority: scripted.Authority,
    scripted_server: scripted.ScriptedServer,
) -> Path:
    return scripted.write_profile(tmp_path, client_authority, f"127.0.0.1:{scripted_server.port}")


@pytest.fixture
def profile(profile_file: Path) -> Profile:
    return Profile.load(profile_file)


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Fails where a stream's helper threads outlive their transport."""
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [t for t in threading.enumerate() if t.name == "ironwork-stream"]
        if not left:
            return
        left[0].join(0.1)
    pytest.fail(f"threads left behind: {left}")


@pytest.fixture
def transport(profile: Profile) -> WithKeyTransport:
    return WithKeyTransport(profile, task="t1", agent="a1")


@pytest.fixture
def client(transport: WithKeyTransport) -> Iterator[httpx2.Client]:
    with httpx2.Client(transport=transport) as made:
        yield made


@pytest.fixture
def atransport(profile: Profile) -> AsyncWithKeyTransport:
    return AsyncWithKeyTransport(profile)


@pytest.fixture
async def aclient(atransport: AsyncWithKeyTransport) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=atransport) as made:
        yield made
    # Nothing of the transport's outlives it.
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not [task for task in left if "ironwork_client" in repr(task)], left
