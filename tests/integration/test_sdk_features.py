"""What else Anthropic's SDK does, unmodified, on a whole service: raw and streamed responses, the
tool runner, its timeouts and its retries.
"""

from __future__ import annotations

import asyncio

import anthropic
import httpx2
import pytest

from fixtures.sdk import MODEL, QUESTION, asked, async_sdk, scripted
from fixtures.server import TestService

# The SDK waits as long as it is told to before it repeats: here, not at all.
AT_ONCE = (("retry-after-ms", "1"),)


async def test_a_raw_response_has_anthropics_headers(service: TestService) -> None:
    """with_raw_response shows the ids, the organisation and the limits that Anthropic sent, and
    the service's own report beside them.
    """
    await service.add()
    async with async_sdk(service) as sdk:
        raw = await sdk.messages.with_raw_response.create(**QUESTION)
        message = await raw.parse()
    (request,) = asked(service)
    assert raw.headers["request-id"] == request.request_id == message._request_id
    assert raw.headers["anthropic-organization-id"]
    assert raw.headers["anthropic-ratelimit-requests-remaining"]
    report = raw.http_response.extensions["ironwork"]
    assert report.anthropic_request_id == request.request_id
    assert report.usage.output_tokens == message.usage.output_tokens


async def test_a_streamed_response_is_read_as_it_comes(service: TestService) -> None:
    """with_streaming_response gives the first lines while Anthropic still holds the rest back."""
    await service.add()
    hold = service.simulator.hold()
    scripted(service, hold=hold.name, hold_at="body", hold_after=2)
    async with (
        async_sdk(service) as sdk,
        sdk.messages.with_streaming_response.create(**QUESTION, stream=True) as response,
    ):
        lines = response.iter_lines()
        assert await anext(lines) == "event: message_start"
        hold.release()
        rest = [line async for line in lines]
    assert "event: ping" in rest
    assert [line for line in rest if line.startswith("event:")][-1] == "event: message_stop"


async def test_the_tool_runner_goes_back_and_forth(service: TestService) -> None:
    """beta.messages.tool_runner calls a tool and brings its answer, each time with the key."""
    key = service.simulator.make_key()
    await service.add(key)
    called: list[str] = []

    @anthropic.beta_async_tool
    async def weather(city: str) -> str:
        """The weather.

        Args:
            city: where.
        """
        called.append(city)
        return "sunny"

    question = {**QUESTION, "messages": [{"role": "user", "content": "the weather, please"}]}
    async with async_sdk(service) as sdk:
        runner = sdk.beta.messages.tool_runner(**question, tools=[weather])
        answers = [answer async for answer in runner]
    assert [answer.stop_reason for answer in answers] == ["tool_use", "end_turn"]
    assert len(called) == 1
    first, second = asked(service)
    assert {first.key, second.key} == {key}
    assert second.body is not None
    assert b"tool_result" in second.body


async def test_a_list_is_paged_through(service: TestService) -> None:
    """The SDK's own paging asks for page after page."""
    await service.add()
    async with async_sdk(service) as sdk:
        paged = [model.id async for model in sdk.models.list(limit=1)]
        whole = [model.id async for model in sdk.models.list(limit=100)]
    assert len(whole) > 1
    assert paged == whole


@pytest.mark.parametrize("status", [408, 409, 429, 500, 529])
async def test_what_anthropic_asks_to_repeat_is_repeated(service: TestService, status: int) -> None:
    """The SDK repeats what it repeats without us, and says so to Anthropic; we add none."""
    await service.add()
    scripted(service, status=status, headers=AT_ONCE)
    async with async_sdk(service) as sdk:
        assert (await sdk.messages.create(**QUESTION)).content
    tries = [request.values("x-stainless-retry-count") for request in asked(service)]
    assert tries == [["0"], ["1"]]


@pytest.mark.parametrize(
    ("options", "headers"),
    [({"max_retries": 0}, AT_ONCE), ({}, (*AT_ONCE, ("x-should-retry", "false")))],
    ids=["told by the caller", "told by Anthropic"],
)
async def test_what_is_not_to_be_repeated_is_sent_once(
    service: TestService, options: dict[str, int], headers: tuple[tuple[str, str], ...]
) -> None:
    """max_retries=0 and x-should-retry: false hold; the error is Anthropic's, to the letter."""
    await service.add()
    scripted(service, None, status=529, headers=headers)
    async with async_sdk(service, **options) as sdk:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await sdk.messages.create(**QUESTION)
    (request,) = asked(service)
    assert caught.value.status_code == 529
    assert caught.value.request_id == request.request_id
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "overloaded_error"


async def test_a_lost_answer_is_the_sdks_to_repeat(service: TestService) -> None:
    """A connection to Anthropic that dies before the answer is a connection error: the SDK
    repeats the request, and with no repeats allowed raises it.
    """
    await service.add()
    scripted(service, cut="reset_before_head")
    async with async_sdk(service) as sdk:
        assert (await sdk.messages.create(**QUESTION)).content
        assert len(asked(service)) == 2
        scripted(service, cut="reset_before_head")
        with pytest.raises(anthropic.APIConnectionError) as caught:
            await sdk.with_options(max_retries=0).messages.create(**QUESTION)
    assert isinstance(caught.value.__cause__, httpx2.ReadError)


async def test_the_sdks_timeout_reaches_anthropic(service: TestService) -> None:
    """A request that takes too long is an APITimeoutError here and a closed connection there."""
    await service.add()
    scripted(service, hang=True)
    number = len(service.simulator.requests) + 1
    async with async_sdk(service, max_retries=0, timeout=0.5) as sdk:
        with pytest.raises(anthropic.APITimeoutError):
            await sdk.messages.create(**QUESTION)
        await service.simulator.disconnected(number)
        assert (await sdk.with_options(timeout=60).messages.create(**QUESTION)).content


async def test_a_stream_that_falls_silent_is_a_timeout(service: TestService) -> None:
    """The read timeout counts from the last bytes, and the connection to Anthropic is closed."""
    await service.add()
    hold = service.simulator.hold()
    scripted(service, hold=hold.name, hold_at="body", hold_after=3)
    number = len(service.simulator.requests) + 1
    async with async_sdk(service, max_retries=0, timeout=httpx2.Timeout(60, read=0.5)) as sdk:
        with pytest.raises((httpx2.ReadTimeout, anthropic.APITimeoutError)):
            async with sdk.messages.stream(**QUESTION) as stream:
                await stream.until_done()
        await service.simulator.disconnected(number)


async def test_an_error_in_the_stream_is_the_sdks_own(service: TestService) -> None:
    """`event: error` after a 200 raises what it raises without us."""
    await service.add()
    scripted(service, error_after=3)
    async with async_sdk(service) as sdk:
        with pytest.raises(anthropic.APIStatusError) as caught:
            async with sdk.messages.stream(**QUESTION) as stream:
                await stream.until_done()
    assert "overloaded_error" in str(caught.value.body)
    assert len(asked(service)) == 1


@pytest.mark.parametrize("cut", ["content_length", "chunked", "mid_chunk", "reset"])
async def test_a_cut_answer_is_never_a_whole_one(service: TestService, cut: str) -> None:
    """However Anthropic's answer breaks off, the SDK's stream raises."""
    await service.add()
    scripted(service, cut=cut, cut_after=3)
    async with async_sdk(service) as sdk:
        with pytest.raises((httpx2.RemoteProtocolError, anthropic.APIConnectionError)):
            async with sdk.messages.stream(**QUESTION) as stream:
                await stream.until_done()


async def test_many_at_once(service: TestService) -> None:
    """Twenty streamed answers at once are each whole and their own."""
    await service.add()

    async def ask(sdk: anthropic.AsyncAnthropic, number: int) -> str:
        question = {"role": "user", "content": f"question {number}"}
        async with sdk.messages.stream(model=MODEL, max_tokens=64, messages=[question]) as stream:
            return "".join([text async for text in stream.text_stream])

    async with async_sdk(service) as sdk:
        at_once = await asyncio.gather(*(ask(sdk, number) for number in range(20)))
        in_turn = [await ask(sdk, number) for number in range(20)]
    assert at_once == in_turn
