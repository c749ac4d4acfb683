"""Fixtures of the client's tests: a scripted server, a profile for it, a guard for leftovers."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fixtures.libraries import (
    LIBRARIES,
    AsyncClient,
    AsyncTransport,
    Client,
    Library,
    Transport,
)
from ironwork_client import Profile
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


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.name)
def library(request: pytest.FixtureRequest) -> Library:
    """Each HTTP library in turn: what is said of a transport holds for all its faces."""
    found: Library = request.param
    return found


@pytest.fixture
def transport(library: Library, profile: Profile) -> Transport:
    made: Transport = library.transport(profile, task="t1", agent="a1")
    return made


@pytest.fixture
def client(library: Library, transport: Transport) -> Iterator[Client]:
    with library.http.Client(transport=transport) as made:
        yield made


@pytest.fixture
def atransport(library: Library, profile: Profile) -> AsyncTransport:
    made: AsyncTransport = library.async_transport(profile)
    return made


@pytest.fixture
async def aclient(library: Library, atransport: AsyncTransport) -> AsyncIterator[AsyncClient]:
    async with library.http.AsyncClient(transport=atransport) as made:
        yield made
    # Nothing of the transport's outlives it.
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not [task for task in left if "ironwork_client" in repr(task)], left
