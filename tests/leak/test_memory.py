"""What of keys and data keys is in the server's memory: nothing, a second after the last call."""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures import memory_subject
from fixtures.memory_load import NONE, Loaded, add_keys, streaming, use_keys
from fixtures.memory_subject import masked
from fixtures.migrated import NewStore
from fixtures.server import make_settings, spiffe
from fixtures.signing import SigningKeyFiles
from fixtures.simulator import TestSimulator
from fixtures.softhsm import MakeToken
from fixtures.subjects import Subject, subject
from ironwork_server.app.devpki import DevCa

DATA_KEY_BYTES = 32
NOTHING = {"after AddKey": NONE, "after WithKey": NONE, "while streaming": NONE}


@dataclass
class Watched:
    """A running server that tells its data keys."""

    server: Loaded
    subject: Subject
    told: Path

    def data_keys(self) -> set[bytes]:
        """Every data key that there was so far, and the pepper."""
        told = masked(self.told.read_bytes())
        return {told[at : at + DATA_KEY_BYTES] for at in range(0, len(told), DATA_KEY_BYTES)}

    def copies(self) -> dict[str, int]:
        return self.server.copies(self.data_keys())

    def plant(self, secret: bytes) -> None:
        """Have the process keep a copy."""
        assert self.subject.ask(f"plant {masked(secret).hex()}") == "planted"


class Start:
    """`with start() as watched`, on files of its own."""

    def __init__(
        self,
        folder: Path,
        ca: DevCa,
        simulator: TestSimulator,
        make_token: MakeToken,
        signing_key: SigningKeyFiles,
        new_store: NewStore,
    ) -> None:
        self._folder = folder
        self._ca = ca
        self._simulator = simulator
        self._make_token = make_token
        self._signing_key = signing_key
        self._new_store = new_store

    @contextmanager
    def __call__(self, *arguments: str, **overrides: Any) -> Iterator[Watched]:
        folder = self._folder
        for name in ("tls", "db", "policy", "audit"):
            (folder / name).mkdir(mode=0o700)
        token = self._make_token(with_key=True)
        settings = make_settings(
            folder,
            self._ca,
            token,
            self._new_store(folder / "db" / "keys.db"),
            signing_key=self._signing_key.uri,
            # A call that its client gave up is still being wound up when the next one begins.
            limits={"max_keys": 5000, "unary_per_principal": 64},
            **overrides,
        )
        with subject(
            memory_subject.__file__,
            *arguments,
            log=folder / "log",
            settings=settings,
            simulator=self._simulator,
            env=token.env,
            data_keys=str(folder / "data-keys"),
        ) as running:
            target = f"localhost:{running.port}"
            server = Loaded(running.pid, target, self._ca, spiffe(""), self._simulator)
            yield Watched(server, running, folder / "data-keys")


@pytest.fixture
def start(
    tmp_path: Path,
    dev_ca: DevCa,
    simulator: TestSimulator,
    make_token: MakeToken,
    signing_key: SigningKeyFiles,
    new_store: NewStore,
) -> Start:
    return Start(tmp_path, dev_ca, simulator, make_token, signing_key, new_store)


async def measure(watched: Watched, count: int) -> dict[str, dict[str, int]]:
    """Copies found a second after the last AddKey and the last request, and while 16 answers are
    open.
    """
    await add_keys(watched.server, count)
    await asyncio.sleep(1)  # what is promised is one second
    found = {"after AddKey": watched.copies()}
    await use_keys(watched.server, count)
    await asyncio.sleep(1)
    found["after WithKey"] = watched.copies()
    async with streaming(watched.server):
        found["while streaming"] = watched.copies()
    return found


def control(watched: Watched) -> None:
    """The scan finds what is there: 12 bytes of a key, and of a data key, wherever they lie."""
    pieces, expected = watched.server.pieces(watched.data_keys())
    for piece in pieces:
        watched.plant(piece)
    assert watched.copies() == expected


async def test_nothing_of_a_key_is_left_in_memory(start: Start) -> None:
    """A second after AddKey and WithKey calls that succeed and fail in every way, and while answers
    stream, no 12 bytes of a key or data key are in the server's memory; planted ones are found.
    """
    with start() as watched:
        assert await measure(watched, 48) == NOTHING
        control(watched)


@pytest.mark.slow
async def test_kept_data_keys_are_gone_a_second_after_their_age(start: Start) -> None:
    """With the data-key cache on, data keys are in memory until its age, which the scan shows, and
    not a second after it; nobody asked again meanwhile.
    """
    age_s = 30
    bounds = {"max_age_s": age_s, "max_uses": 10_000, "max_entries": 64}
    with start(data_key_cache=bounds) as watched:
        await add_keys(watched.server, 48)
        await use_keys(watched.server, 48)
        last = time.monotonic()
        assert watched.copies()["data"] > 0
        assert time.monotonic() < last + age_s, "the scan took longer than the keys are kept"
        await asyncio.sleep(last + age_s + 1 - time.monotonic())
        assert watched.copies() == NONE


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_nothing_of_a_key_is_left_after_a_thousand_calls(start: Start) -> None:
    """The same for 1,000 calls of each, 16 at once."""
    with start() as watched:
        assert await measure(watched, 1000) == NOTHING
        control(watched)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_what_a_plain_allocator_leaves(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the allocator's settings the copies are counted and shown; nothing is claimed."""
    with start("--plain") as watched:
        found = await measure(watched, 1000)
    with capsys.disabled():
        sys.stdout.write(f"\nplain allocator: {found}\n")
