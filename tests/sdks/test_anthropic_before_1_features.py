"""The unmodified anthropic 0.x, sync and async, over a whole service: all that today's is tested
with, as far as it has it. What reached Anthropic is counted in the simulator's log.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from fixtures import sdk_scenarios as scenarios
from fixtures.sdk_scenarios import QUESTION
from ironwork_client.httpx import AsyncWithKeyTransport, WithKeyTransport

BOTH_SDKS = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
AT_ONCE = ["retry-after-ms", "1"]
SHORT = httpx.Timeout(60, read=1)


def played(
    server: Any,
    sync: bool,
    use: Callable[..., Any],
    ause: Callable[..., Awaitable[Any]],
    *arguments: Any,
    **options: Any,
) -> Any:
    """What a scenario returns: `use` of the sync SDK, `ause` of the other."""
    options["api_key"] = "held-by-ironwork"
    if sync:
        http = httpx.Client(transport=WithKeyTransport(server.agent))
        with anthropic.Anthropic(http_client=http, **options) as sdk:
            return use(sdk, *arguments)

    async def play() -> Any:
        ahttp = httpx.AsyncClient(transport=AsyncWithKeyTransport(server.agent))
        async with anthropic.AsyncAnthropic(http_client=ahttp, **options) as sdk:
            return await ause(sdk, *arguments)

    return asyncio.run(play())


def ask(sdk: anthropic.Anthropic, more: dict[str, Any]) -> Any:
    return sdk.messages.create(**QUESTION, **more)


async def aask(sdk: anthropic.AsyncAnthropic, more: dict[str, Any]) -> Any:
    return await sdk.messages.create(**QUESTION, **more)


def behaving(mark: str, **behaviour: Any) -> dict[str, Any]:
    """A request that the simulator answers so, each time, and that its log shows by this mark."""
    return {"extra_headers": {"anthropic-simulator": json.dumps(behaviour), mark: "1"}}


@BOTH_SDKS
def test_responses_and_tools(server: Any, *, sync: bool) -> None:
    """Raw and streamed responses with our report; the tool runner."""
    played(server, sync, scenarios.use_responses, scenarios.ause_responses)
    played(server, sync, scenarios.use_tools, scenarios.ause_tools)


@BOTH_SDKS
def test_batches(server: Any, *, sync: bool) -> None:
    """A batch lives its life, its results by the absolute results_url."""
    played(server, sync, scenarios.use_batches, scenarios.ause_batches)


@BOTH_SDKS
def test_files(server: Any, tmp_path: Path, *, sync: bool) -> None:
    """Random bytes go up in three ways and come down in three, unchanged."""
    data, path = os.urandom(1_500_003), tmp_path / "r.bin"
    played(server, sync, scenarios.use_files, scenarios.ause_files, data, path)


@BOTH_SDKS
def test_what_is_to_be_repeated_is_and_the_rest_is_not(server: Any, *, sync: bool) -> None:
    """Anthropic's errors and lost answers are repeated max_retries times, nothing else is, and we
    add no repeat of our own."""
    cases: dict[str, tuple[dict[str, Any], int]] = {
        **{
            f"x-{status}": ({"status": status, "headers": [AT_ONCE]}, 3)
            for status in (408, 409, 429, 500, 529)
        },
        "x-400": ({"status": 400, "headers": [AT_ONCE]}, 1),
        "x-told": ({"status": 529, "headers": [["x-should-retry", "false"]]}, 1),
        "x-redirect": ({"status": 307, "location": "https://evil.example/"}, 1),
        "x-lost": ({"cut": "reset_before_head"}, 3),
        "x-cut": ({"cut": "content_length"}, 3),
    }
    for name, (behaviour, count) in cases.items():
        mark = f"{name}-{sync}".lower()
        with pytest.raises((anthropic.APIStatusError, anthropic.APIConnectionError)):
            played(server, sync, ask, aask, behaving(mark, **behaviour), max_retries=2)
        assert len(server.tries(mark)) == count, name


@BOTH_SDKS
def test_a_timeout_closes_the_upstream(server: Any, *, sync: bool) -> None:
    """A ReadTimeout, of one request or of the client, is the SDK's own error, and the request is
    abandoned at Anthropic's."""
    for where, more, options in (
        ("request", {"timeout": SHORT}, {}),
        ("client", {}, {"timeout": SHORT}),
    ):
        mark = f"x-slow-{where}-{sync}".lower()
        with pytest.raises(anthropic.APITimeoutError) as caught:
            played(
                server, sync, ask, aask, {**behaving(mark, hang=True), **more},
                max_retries=0, **options,
            )  # fmt: skip
        assert isinstance(caught.value.__cause__, httpx.ReadTimeout)
        assert len(server.left(mark)) == 1


def leave(sdk: anthropic.Anthropic, more: dict[str, Any]) -> None:
    with sdk.messages.stream(**QUESTION, **more) as stream:
        next(iter(stream))


async def cancel(sdk: anthropic.AsyncAnthropic, more: dict[str, Any]) -> None:
    reading = asyncio.Event()

    async def read() -> None:
        async with sdk.messages.stream(**QUESTION, **more) as stream:
            async for _ in stream:
                reading.set()

    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await sdk.messages.create(**QUESTION)).content


@BOTH_SDKS
def test_leaving_a_stream_closes_the_upstream(server: Any, *, sync: bool) -> None:
    """A stream that is left, or whose task is cancelled, is abandoned at Anthropic's."""
    mark = f"x-leave-{sync}".lower()
    more = behaving(mark, hold="never", hold_at="body", hold_after=3)
    played(server, sync, leave, cancel, more)
    assert len(server.left(mark)) == 1
