"""The main job on real parts: add, use, rotate, delete."""

import asyncio

import grpc
import pytest

from fixtures.agent import Agent, reason_of, status_of
from fixtures.server import AGENT, PARENT, STRANGER, TestService
from ironwork.keys.v1 import keys_pb2


async def test_a_request_is_served_by_the_key_that_was_added(service: TestService) -> None:
    """A Claude request carries the workspace's key, and its answer says which one served it."""
    key = service.simulator.make_key()
    added = await service.add(key)
    agent = Agent(service.keys(AGENT))
    await agent.start()
    answer = await agent.message()
    assert answer.head is not None
    assert answer.head.status == 200
    assert answer.end.outcome == keys_pb2.OUTCOME_COMPLETED
    assert answer.end.key.name == added.name
    assert answer.end.usage.input_tokens > 0
    assert service.simulator.requests[-1].key == key
    await agent.close()


async def test_rotation_takes_effect_on_the_very_next_request(service: TestService) -> None:
    """After add-then-delete, the next request on the same open stream uses the new key."""
    first, second = service.simulator.make_key(), service.simulator.make_key()
    old = await service.add(first)
    agent = Agent(service.keys(AGENT))
    await agent.start()
    assert (await agent.message(stream=True)).end.key.name == old.name
    new = await service.add(second)
    assert (await agent.message(stream=True)).end.key.name == new.name
    deleted = await service.keys().DeleteKey(keys_pb2.DeleteKeyRequest(name=old.name))
    assert deleted.current.name == new.name
    assert (await agent.message()).end.key.name == new.name
    assert [r.key for r in service.simulator.requests if r.target == "/v1/messages"] == [
        first,
        second,
        second,
    ]
    await agent.close()


async def test_a_hundred_simultaneous_adds_of_one_key_leave_one(service: TestService) -> None:
    """However many callers add one key at once, one adds it, and the others are told its name."""
    stub, key = service.keys(), service.simulator.make_key().encode()

    async def add() -> str:
        try:
            added = await stub.AddKey(keys_pb2.AddKeyRequest(parent=PARENT, api_key=key))
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {reason_of(status_of(error))}"
        return added.key.name

    answers = sorted(await asyncio.gather(*(add() for _ in range(100))))
    assert answers[:99] == ["ALREADY_EXISTS KEY_EXISTS"] * 99
    listed = await stub.ListMasked(keys_pb2.ListMaskedRequest(parent=PARENT))
    assert [masked.name for masked in listed.keys] == answers[99:]


async def test_another_workspaces_agent_is_refused(service: TestService) -> None:
    """A foreign workspace answers PERMISSION_DENIED before anything is read."""
    await service.add()
    agent = Agent(service.keys(STRANGER), PARENT)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await agent.start()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(status_of(refused.value)) == "PERMISSION_DENIED"
