"""Rotation on two server processes that share one store and nothing else."""

from __future__ import annotations  # the generated stubs' async classes exist for types only

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import pytest

from fixtures import replica_subject
from fixtures.agent import Agent, Answer
from fixtures.migrated import NewStore
from fixtures.rotation import DEADLINE_S, Load, delete, late
from fixtures.server import ADMIN, AGENT, PARENT, make_settings, spiffe
from fixtures.signing import SigningKeyFiles
from fixtures.simulator import TestSimulator
from fixtures.softhsm import MakeToken
from fixtures.subjects import Subject, subject
from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_server.app.devpki import DevCa
from ironwork_server.app.service import FRESHNESS_S

AGENTS = 6
ROTATIONS = 6
NEVER_STALE_S = 1e9
# Where replica_subject.py can be stopped.
POINTS = ("query", "unwrap", "write")


@dataclass
class Replica:
    """One server process."""

    subject: Subject
    ca: DevCa
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def keys(self, path: str = ADMIN) -> keys_pb2_grpc.KeyServiceAsyncStub:
        """KeyService as this SPIFFE path, on a connection of its own."""
        issued = self.ca.client_certificate(spiffe(path))
        channel = grpc.aio.secure_channel(
            f"localhost:{self.subject.port}",
            grpc.ssl_channel_credentials(
                self.ca.certificate_pem, issued.private_key_pem, issued.certificate_pem
            ),
            [("grpc.use_local_subchannel_pool", 1)],
        )
        self.channels.append(channel)
        return keys_pb2_grpc.KeyServiceStub(channel)

    async def add(self, key: str) -> keys_pb2.MaskedKey:
        request = keys_pb2.AddKeyRequest(parent=PARENT, api_key=key.encode())
        return (await self.keys().AddKey(request, timeout=DEADLINE_S)).key

    async def stopped(self) -> None:
        """Until the process has stopped itself."""
        await asyncio.to_thread(os.waitid, os.P_PID, self.subject.pid, os.WSTOPPED)

    def go_on(self) -> None:
        os.kill(self.subject.pid, signal.SIGCONT)


StartReplica = Callable[..., Awaitable[Replica]]


@pytest.fixture
async def start_replica(
    tmp_path: Path,
    dev_ca: DevCa,
    simulator: TestSimulator,
    make_token: MakeToken,
    signing_key: SigningKeyFiles,
    new_store: NewStore,
) -> AsyncIterator[StartReplica]:
    """`await start_replica()`: a process with a folder, log and origin of its own; the store and
    the token are those of the others.
    """
    token = make_token(with_key=True)
    (tmp_path / "db").mkdir(mode=0o700)
    url = new_store(tmp_path / "db" / "keys.db")
    numbers = itertools.count(1)
    async with AsyncExitStack() as stack:

        async def start(*, freshness_s: float = FRESHNESS_S) -> Replica:
            name = f"replica-{next(numbers)}"
            folder = tmp_path / name
            for part in (folder, folder / "tls", folder / "policy"):
                part.mkdir(mode=0o700)
            settings = make_settings(
                folder,
                dev_ca,
                token,
                url,
                signing_key=signing_key.uri,
                audit={
                    "folder": folder / "audit",
                    "origin": f"ironwork.test/{name}",
                    "signing_key": signing_key.uri,
                },
            )
            process = subject(
                replica_subject.__file__,
                log=folder / "log",
                settings=settings,
                simulator=simulator,
                env=token.env,
                freshness_s=freshness_s,
            )
            replica = Replica(stack.enter_context(process), dev_ca)

            async def close() -> None:
                for channel in replica.channels:
                    await channel.close()

            stack.push_async_callback(close)
            return replica

        yield start


async def test_rotation_under_load_on_two_processes_uses_nothing_deleted(
    start_replica: StartReplica, simulator: TestSimulator
) -> None:
    """While agents stream on two processes, keys are added through one and the ones before deleted
    through the other, in turn: every answer is whole, each key serves on both, and none after its
    deletion has returned.
    """
    replicas = [await start_replica(), await start_replica()]
    loads = [Load(replica.keys) for replica in replicas]
    keys = [simulator.make_key() for _ in range(ROTATIONS + 1)]
    names = [(await replicas[0].add(keys[0])).name]
    agents = [asyncio.create_task(load.run(number)) for load in loads for number in range(AGENTS)]
    deleted: dict[str, asyncio.Task[float]] = {}
    async with asyncio.timeout(DEADLINE_S):
        await everywhere(loads)
        for turn, (old, new) in enumerate(itertools.pairwise(keys)):
            names.append((await replicas[turn % 2].add(new)).name)
            deleting = replicas[(turn + 1) % 2].keys()
            deleted[old] = asyncio.create_task(delete(deleting, names[turn]))
            # Each key serves while the one before it is still being deleted.
            await everywhere(loads)
        returned = {key: await task for key, task in deleted.items()}
        await everywhere(loads)
        for load in loads:
            load.stop()
        await asyncio.gather(*agents)
    for load in loads:
        assert load.failures == []
        assert load.served == set(names), "each key served requests of this process"
    assert {key: late(simulator, key, at) for key, at in returned.items()} == {
        key: [] for key in keys[:-1]
    }
    assert simulator.requests[-1].key == keys[-1]


async def everywhere(loads: list[Load]) -> None:
    """Wait until every agent of every process has asked anew and been answered, as a rule."""
    await asyncio.gather(*(load.answered(2 * AGENTS) for load in loads))


async def test_a_stopped_process_does_not_outlive_its_read(
    start_replica: StartReplica, simulator: TestSimulator
) -> None:
    """A process that is stopped between its read of the current key and its write, and goes on when
    another process has deleted that key, reads again and sends the new key.
    """
    stopping, other = await start_replica(), await start_replica()
    for point in POINTS:
        served = await stopped_rotation(stopping, other, simulator, point)
        assert served.answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
        assert served.answer.end.key.name == served.new_name
        assert late(simulator, served.old, served.deleted_at) == [], point
        assert simulator.requests[-1].key == served.new


async def test_a_stopped_process_without_the_rule_would_use_the_deleted_key(
    start_replica: StartReplica, simulator: TestSimulator
) -> None:
    """The test above sees it when the rule is taken out of the process that is stopped: its request
    then goes out with the deleted key.
    """
    stopping, other = await start_replica(freshness_s=NEVER_STALE_S), await start_replica()
    for point in POINTS:
        served = await stopped_rotation(stopping, other, simulator, point)
        wrong = late(simulator, served.old, served.deleted_at)
        assert [record.key for record in wrong] == [served.old], point


@dataclass
class StoppedRotation:
    """Keys, and deleted_at: when the old one's deletion had returned."""

    answer: Answer
    deleted_at: float
    old: str
    new: str
    new_name: str


async def stopped_rotation(
    stopping: Replica, other: Replica, simulator: TestSimulator, point: str
) -> StoppedRotation:
    """Rotate through the other process while one is stopped inside a request."""
    old, new = simulator.make_key(), simulator.make_key()
    added = await other.add(old)
    agent = Agent(stopping.keys(AGENT), deadline_s=DEADLINE_S)
    await agent.start()
    # A request before it, so that connections are there and the stop is where it is meant.
    assert (await agent.message()).end.key.name == added.name
    assert stopping.subject.ask(f"stop at {point}") == "armed"
    asked = asyncio.create_task(agent.message())
    async with asyncio.timeout(DEADLINE_S):
        await stopping.stopped()
        try:
            replacing = await other.add(new)
            deleted_at = await delete(other.keys(), added.name)
            assert not asked.done()
        finally:
            stopping.go_on()
        answer = await asked
    await agent.close()
    return StoppedRotation(answer, deleted_at, old, new, replacing.name)
