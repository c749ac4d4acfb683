"""Rotation under load: no failed request, and no request on a deleted key."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from fixtures.agent import Agent, Answer
from fixtures.faults import Pause, ServiceFaults, install_faults
from fixtures.rotation import DEADLINE_S, Load, delete, late
from fixtures.server import AGENT, StartService, TestService
from ironwork.keys.v1 import keys_pb2
from ironwork_server.app.service import FRESHNESS_S
from ironwork_server.custody.use_key import SealedInjector
from ironwork_simulator import Behaviour

AGENTS = 16
ROTATIONS = 10


async def test_rotation_under_load_fails_nothing_and_uses_nothing_deleted(
    start_service: StartService,
) -> None:
    """While 16 agents stream, ten keys are added and the ones before deleted: every answer is
    whole, each key serves its turn, and none after its deletion has returned.
    """
    service = await start_service(freshness_s=FRESHNESS_S)
    load = Load(service.keys)
    keys = [service.simulator.make_key() for _ in range(ROTATIONS + 1)]
    current = await service.add(keys[0])
    agents = [asyncio.create_task(load.run(number)) for number in range(AGENTS)]
    deleted: dict[str, asyncio.Task[float]] = {}
    async with asyncio.timeout(DEADLINE_S):
        await load.answered(AGENTS)
        for old, new in itertools.pairwise(keys):
            previous, current = current, await service.add(new)
            deleted[old] = asyncio.create_task(delete(service.keys(), previous.name))
            # Each key serves while the one before it is still being deleted.
            await load.answered(AGENTS)
        returned = {key: await task for key, task in deleted.items()}
        await load.answered(AGENTS)
        load.stop()
        await asyncio.gather(*agents)
    assert load.failures == []
    used = {record.key for record in service.simulator.requests if record.path == "/v1/messages"}
    assert used == set(keys), "each key served requests"
    for key, at in returned.items():
        assert late(service.simulator, key, at) == []
    assert service.simulator.requests[-1].key == keys[-1]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ServiceFaults:
    return install_faults(monkeypatch)


Stall = Callable[[ServiceFaults, Pause], None]


def between_query_and_row(faults: ServiceFaults, pause: Pause) -> None:
    faults.store.after["current"] = pause


def between_unwrap_and_write(faults: ServiceFaults, pause: Pause) -> None:
    faults.hsm.after["unwrap"] = pause


@pytest.mark.parametrize("stall", [between_query_and_row, between_unwrap_and_write])
async def test_a_request_that_stalls_does_not_outlive_its_read(
    faults: ServiceFaults, start_service: StartService, stall: Stall
) -> None:
    """A request that read the old key, and was kept from its write until the key's deletion had
    returned, reads again and is served by the new key.
    """
    service = await start_service(freshness_s=FRESHNESS_S)
    old, new = service.simulator.make_key(), service.simulator.make_key()
    served = await stalled_rotation(service, faults, stall, old, new)
    assert served.answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
    assert late(service.simulator, old, served.deleted_at) == []
    assert service.simulator.requests[-1].key == new


async def test_without_the_rule_the_deleted_key_would_be_used(
    faults: ServiceFaults, start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above sees it when the rule is taken out: the stalled request then goes out with the
    deleted key.
    """
    make: Any = SealedInjector.__init__

    def never_stale(*args: Any, **options: Any) -> None:
        make(*args, **(options | {"freshness_s": math.inf}))

    monkeypatch.setattr(SealedInjector, "__init__", never_stale)
    service = await start_service(freshness_s=FRESHNESS_S)
    old, new = service.simulator.make_key(), service.simulator.make_key()
    served = await stalled_rotation(service, faults, between_unwrap_and_write, old, new)
    assert [record.key for record in late(service.simulator, old, served.deleted_at)] == [old]


@dataclass
class StalledRotation:
    """deleted_at: when the old key's deletion had returned."""

    answer: Answer
    deleted_at: float


async def stalled_rotation(
    service: TestService, faults: ServiceFaults, stall: Stall, old: str, new: str
) -> StalledRotation:
    """Rotate while a request is held between its read and its write."""
    added = await service.add(old)
    agent = Agent(service.keys(AGENT), deadline_s=DEADLINE_S)
    await agent.start()
    # A request before it, so that connections are there and the pause is where it is meant.
    assert (await agent.message()).end.key.name == added.name
    pause = Pause()
    stall(faults, pause)
    asked: Awaitable[Answer] = asyncio.create_task(agent.message())
    async with asyncio.timeout(DEADLINE_S):
        await pause.reached.wait()
        faults.store.after.clear()
        faults.hsm.after.clear()
        await service.add(new)
        deleted_at = await delete(service.keys(), added.name)
        pause.release()
        answer = await asked
    await agent.close()
    return StalledRotation(answer, deleted_at)


async def test_an_answer_under_way_outlives_its_key(service: TestService) -> None:
    """A deletion without cancel_in_flight lets what is under way finish, whole."""
    old = await service.add()
    agent = Agent(service.keys(AGENT), deadline_s=DEADLINE_S)
    await agent.start()
    hold = service.simulator.hold()
    service.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    asked = asyncio.create_task(agent.message(stream=True))
    await service.simulator.wait_for_body(len(service.simulator.requests) + 1)
    await service.add()
    await delete(service.keys(), old.name)
    hold.release()
    answer = await asked
    assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
    assert answer.end.key.name == old.name
    assert b"message_stop" in answer.body
    assert (await agent.message()).end.key.name != old.name
    await agent.close()
