"""Message batches through Anthropic's SDK, unmodified, sync and async, on a whole service."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest

from fixtures.sdk import QUESTION, asked, async_sdk, sync_sdk
from fixtures.server import TestService
from ironwork_simulator import Behaviour, Match

GOOD: list[Any] = [{"custom_id": f"c{n}", "params": QUESTION} for n in range(30)]
BAD: list[Any] = [{"custom_id": "bad", "params": {**QUESTION, "model": "no-such"}}]
WANTED = [(f"c{n}", "succeeded") for n in range(30)] + [("bad", "errored")]
BATCHES = "/v1/messages/batches"
ORIGIN = "https://api.anthropic.com"


def converse(sdk: anthropic.Anthropic) -> str:
    """Everything that the sync SDK does with batches; the first one's id."""
    batches = sdk.messages.batches
    first = batches.create(requests=GOOD + BAD)
    assert (first.processing_status, first.results_url) == ("in_progress", None)
    ended = batches.retrieve(first.id)
    assert ended.results_url == f"{ORIGIN}{BATCHES}/{first.id}/results"
    assert [(line.custom_id, line.result.type) for line in batches.results(first.id)] == WANTED
    more = [batches.create(requests=BAD).id for _ in range(2)]
    cancelled = batches.cancel(more[0])
    assert cancelled.processing_status == "canceling"
    assert batches.retrieve(more[0]).request_counts.canceled == 1
    assert [batch.id for batch in batches.list(limit=1)] == [*reversed(more), first.id]
    assert batches.delete(first.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        batches.retrieve(first.id)
    return first.id


async def aconverse(sdk: anthropic.AsyncAnthropic) -> str:
    """The same of the asyncio SDK."""
    batches = sdk.messages.batches
    first = await batches.create(requests=GOOD + BAD)
    assert (first.processing_status, first.results_url) == ("in_progress", None)
    ended = await batches.retrieve(first.id)
    assert ended.results_url == f"{ORIGIN}{BATCHES}/{first.id}/results"
    lines = [line async for line in await batches.results(first.id)]
    assert [(line.custom_id, line.result.type) for line in lines] == WANTED
    more = [(await batches.create(requests=BAD)).id for _ in range(2)]
    cancelled = await batches.cancel(more[0])
    assert cancelled.processing_status == "canceling"
    assert (await batches.retrieve(more[0])).request_counts.canceled == 1
    assert [batch.id async for batch in batches.list(limit=1)] == [*reversed(more), first.id]
    assert (await batches.delete(first.id)).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await batches.retrieve(first.id)
    return first.id


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_a_batch_lives_its_life(service: TestService, *, sync: bool) -> None:
    """create, retrieve, results over the absolute results_url, cancel, list page by page, delete:
    each asks Anthropic with the workspace's key, once."""
    key = service.simulator.make_key()
    await service.add(key)
    if sync:
        with sync_sdk(service) as sdk:
            first = await asyncio.to_thread(converse, sdk)
    else:
        async with async_sdk(service) as asdk:
            first = await aconverse(asdk)
    (results,) = asked(service, f"{BATCHES}/{first}/results")
    assert (results.method, results.key) == ("GET", key)
    listed = [request for request in asked(service, BATCHES) if request.method == "GET"]
    assert len(listed) == 3
    used = {r.key for r in service.simulator.requests if r.path.startswith(BATCHES)}
    assert used == {key}


async def test_results_are_read_as_they_come(service: TestService) -> None:
    """A batch's first result is there while Anthropic holds the others back: all but the second,
    since the SDK reads in pieces that end in the next line."""
    await service.add()
    async with async_sdk(service) as sdk:
        batch = await sdk.messages.batches.create(requests=GOOD)
        await sdk.messages.batches.retrieve(batch.id)
        hold = service.simulator.hold()
        service.simulator.script(
            Match(path=f"{BATCHES}/{batch.id}/results"),
            Behaviour(hold=hold.name, hold_at="body", hold_after=2),
        )
        results = await sdk.messages.batches.results(batch.id)
        assert (await anext(results)).custom_id == "c0"
        hold.release()
        assert len([line async for line in results]) == 29
