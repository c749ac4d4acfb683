"""The timeouts and the leaving of Anthropic's SDK, unmodified, sync and async, on a whole service:
what the caller gives up is given up towards Anthropic too.
"""

from __future__ import annotations

import asyncio

import anthropic
import httpx2
import pytest

from fixtures.sdk import BOTH_SDKS, asked, asking, async_sdk, scripted, sync_sdk
from fixtures.sdk_scenarios import QUESTION
from fixtures.server import TestService
from ironwork_simulator.holds import Hold

SHORT = httpx2.Timeout(60, read=1)


def held(service: TestService, after: int) -> Hold:
    """The next answer stops after so many parts of its body."""
    hold = service.simulator.hold()
    scripted(service, hold=hold.name, hold_at="body", hold_after=after)
    return hold


@BOTH_SDKS
async def test_the_sdks_timeout_reaches_anthropic(service: TestService, *, sync: bool) -> None:
    """No answer within the read timeout is a ReadTimeout, so an APITimeoutError, here, and a
    closed connection there."""
    await service.add()
    scripted(service, hang=True)
    number = len(service.simulator.requests) + 1
    async with asking(service, sync=sync, max_retries=0, timeout=SHORT) as sdk:
        with pytest.raises(anthropic.APITimeoutError) as caught:
            await sdk.create()
        assert isinstance(caught.value.__cause__, httpx2.ReadTimeout)
        await service.simulator.disconnected(number)


@BOTH_SDKS
async def test_a_requests_own_timeout_counts(service: TestService, *, sync: bool) -> None:
    """timeout= of one request ends that one; the next has the client's."""
    await service.add()
    scripted(service, hang=True)
    number = len(service.simulator.requests) + 1
    async with asking(service, sync=sync, max_retries=0) as sdk:
        with pytest.raises(anthropic.APITimeoutError):
            await sdk.create(timeout=SHORT)
        await service.simulator.disconnected(number)
        assert (await sdk.create()).content


@BOTH_SDKS
async def test_a_timeout_is_the_sdks_to_repeat(service: TestService, *, sync: bool) -> None:
    """The SDK repeats a request that timed out, and each try is closed towards Anthropic."""
    await service.add()
    scripted(service, hang=True)
    number = len(service.simulator.requests) + 1
    async with asking(service, sync=sync, max_retries=1) as sdk:
        # The repeat must not be as short: it is to be answered.
        assert (await sdk.create(timeout=httpx2.Timeout(60, read=3))).content
    await service.simulator.disconnected(number)
    assert len(asked(service)) == 2


@BOTH_SDKS
async def test_a_stream_that_falls_silent_is_a_timeout(service: TestService, *, sync: bool) -> None:
    """The read timeout counts from the last bytes, and the connection to Anthropic is closed."""
    await service.add()
    held(service, 3)
    number = len(service.simulator.requests) + 1
    async with asking(service, sync=sync, timeout=SHORT) as sdk:
        with pytest.raises((httpx2.ReadTimeout, anthropic.APITimeoutError)):
            await sdk.streamed()
        await service.simulator.disconnected(number)
    assert len(asked(service)) == 1


@pytest.mark.parametrize("where", ["head", "body"])
async def test_a_cancelled_task_closes_the_upstream(service: TestService, where: str) -> None:
    """Cancelling the task that waits for an answer, or reads one, ends the request at Anthropic's;
    the client stays usable."""
    await service.add()
    if where == "body":
        held(service, 3)
    else:
        scripted(service, hang=True)
    number = len(service.simulator.requests) + 1
    reading = asyncio.Event()

    async def read(sdk: anthropic.AsyncAnthropic) -> None:
        async with sdk.messages.stream(**QUESTION) as stream:
            async for _ in stream:
                reading.set()

    async with async_sdk(service) as sdk:
        task = asyncio.create_task(read(sdk))
        await service.simulator.wait_for_body(number)
        if where == "body":
            await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.simulator.disconnected(number)
        assert (await sdk.messages.create(**QUESTION)).content
    assert len(asked(service)) == 2


def leave_early(sdk: anthropic.Anthropic) -> None:
    with sdk.messages.stream(**QUESTION) as stream:
        next(iter(stream))


async def test_leaving_a_stream_early_closes_the_upstream(service: TestService) -> None:
    """A `with` block that is left before the stream's end ends the request at Anthropic's, sync
    and async."""
    await service.add()
    number = len(service.simulator.requests) + 1
    held(service, 3)
    with sync_sdk(service) as sdk:
        await asyncio.to_thread(leave_early, sdk)
        await service.simulator.disconnected(number)
        held(service, 3)
        async with async_sdk(service) as asdk, asdk.messages.stream(**QUESTION) as stream:
            await anext(aiter(stream))
            await stream.close()
            await service.simulator.disconnected(number + 1)
        assert await asyncio.to_thread(lambda: sdk.messages.create(**QUESTION).content)
