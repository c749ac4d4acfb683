"""The unmodified Anthropic SDK over the transports, on a whole service."""

from __future__ import annotations

import asyncio

import anthropic
import httpx2
import pytest

from fixtures.sdk import async_sdk, profile_of
from fixtures.sdk_scenarios import MODEL, QUESTION
from fixtures.server import ADMIN, AGENT, STRANGER, StartService, TestService
from ironwork_client import AsyncKeyClient, Profile, WithKeyTransport
from ironwork_simulator import Behaviour


def converse(profile: Profile) -> tuple[str, str]:
    """The sync SDK's whole use: unary, streamed, counted, listed. The texts it got."""
    with anthropic.Anthropic(
        api_key="held-by-ironwork",
        http_client=httpx2.Client(transport=WithKeyTransport(profile)),
    ) as sdk:
        unary = sdk.messages.create(**QUESTION)
        with sdk.messages.stream(**QUESTION) as stream:
            streamed = "".join(stream.text_stream)
            report = stream.response.extensions["ironwork"]
        assert report.outcome == "COMPLETED"
        assert report.usage.output_tokens == stream.get_final_message().usage.output_tokens
        assert report.audit is not None
        counted = sdk.messages.count_tokens(model=MODEL, messages=QUESTION["messages"])
        assert counted.input_tokens > 0
        assert next(iter(sdk.models.list())).id
    return unary.content[0].text, streamed


async def test_the_sync_sdk_does_its_work_with_a_key_it_never_sees(service: TestService) -> None:
    """create, stream, count_tokens and models are served with the workspace's key."""
    key = service.simulator.make_key()
    await service.add(key)
    profile = profile_of(service, AGENT, "agent")
    unary, streamed = await asyncio.to_thread(converse, profile)
    assert unary
    assert streamed
    used = [request for request in service.simulator.requests if request.target == "/v1/messages"]
    assert {request.key for request in used} == {key}


async def test_the_very_next_request_uses_the_new_key(service: TestService) -> None:
    """After add-then-delete an open client goes on, without an error, on the new key."""
    async with (
        AsyncKeyClient(profile_of(service, ADMIN, "admin")) as admin,
        async_sdk(service) as sdk,
    ):
        old = await admin.add(service.simulator.make_key(), "old")
        first = await sdk.messages.with_raw_response.create(**QUESTION)
        new = await admin.add(service.simulator.make_key(), "new")
        deleted = await admin.delete(old.name)
        second = await sdk.messages.with_raw_response.create(**QUESTION)
        async with sdk.messages.stream(**QUESTION) as stream:
            await stream.until_done()
        third = stream.response
        listed = [key async for key in admin.list()]
    assert deleted.current is not None
    assert deleted.current.name == new.name
    assert [key.display_name for key in listed] == ["new"]
    served = [
        response.extensions["ironwork"].key_name
        for response in (first.http_response, second.http_response, third)
    ]
    assert served == [old.name, new.name, new.name]


async def test_refusals_are_the_sdks_own_errors(service: TestService) -> None:
    """No key, another workspace's agent, and a path that is not served are each a clear 4xx."""
    async with async_sdk(service) as sdk:
        with pytest.raises(anthropic.PermissionDeniedError) as caught:
            await sdk.messages.create(**QUESTION)
        assert caught.value.response.headers["x-ironwork-reason"] == "NO_KEY"
        with pytest.raises(anthropic.APIStatusError) as refused:
            await sdk.get("/v1/organizations/me", cast_to=object)
        assert 400 <= refused.value.status_code < 500
        assert refused.value.response.headers["x-should-retry"] == "false"
    async with async_sdk(service, STRANGER) as spy:
        with pytest.raises(anthropic.PermissionDeniedError):
            await spy.messages.create(**QUESTION)
    assert not [r for r in service.simulator.requests if r.target == "/v1/messages"]


async def test_leaving_a_stream_early_reaches_anthropic(service: TestService) -> None:
    """A stream left early is closed upstream, and the client goes on."""
    await service.add()
    hold = service.simulator.hold()
    service.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=2))
    number = len(service.simulator.requests) + 1
    async with async_sdk(service) as sdk:
        async with sdk.messages.stream(**QUESTION) as stream:
            await anext(aiter(stream))
        await service.simulator.disconnected(number)
        assert (await sdk.messages.create(**QUESTION)).content


async def test_cancelling_a_task_reaches_anthropic(service: TestService) -> None:
    """A cancelled task's request is closed upstream."""
    await service.add()
    hold = service.simulator.hold()
    service.simulator.script(None, Behaviour(hold=hold.name, hold_at="body", hold_after=1))
    number = len(service.simulator.requests) + 1
    async with async_sdk(service) as sdk:
        task = asyncio.create_task(sdk.messages.create(**QUESTION))
        await service.simulator.wait_for_request(number)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await service.simulator.disconnected(number)


async def test_a_client_finds_a_restarted_server(start_service: StartService) -> None:
    """A drained server's idle clients leave at once, and reach its successor without an error."""
    first = await start_service()
    await first.add()
    async with async_sdk(first) as sdk:
        assert (await sdk.messages.create(**QUESTION)).content
        await first.stop()
        await start_service(listen=f"127.0.0.1:{first.service.port}")
        assert (await sdk.messages.create(**QUESTION)).content
