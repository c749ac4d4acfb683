"""What Anthropic's SDK is used for, unmodified, sync and async, on a whole service
(fixtures/sdk_scenarios.py has what is done); the simulator's log has what it came to.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anthropic

from fixtures import sdk_scenarios as scenarios
from fixtures.sdk import BOTH_SDKS, asked, async_sdk, played, sync_sdk
from fixtures.sdk_scenarios import MODEL
from fixtures.server import TestService

BATCHES = "/v1/messages/batches"


@BOTH_SDKS
async def test_raw_and_streamed_responses(service: TestService, *, sync: bool) -> None:
    """with_raw_response shows the ids, the organisation and the limits that Anthropic sent, and
    the service's own report beside them; with_streaming_response the lines of a stream."""
    await service.add()
    await played(service, sync, scenarios.use_responses, scenarios.ause_responses)
    assert len(asked(service)) == 2


@BOTH_SDKS
async def test_the_tool_runner_goes_back_and_forth(service: TestService, *, sync: bool) -> None:
    """beta.messages.tool_runner calls a tool and brings its answer, each time with the key."""
    key = service.simulator.make_key()
    await service.add(key)
    await played(service, sync, scenarios.use_tools, scenarios.ause_tools)
    first, second = asked(service)
    assert {first.key, second.key} == {key}
    assert b"tool_result" in (second.body or b"")


@BOTH_SDKS
async def test_a_batch_lives_its_life(service: TestService, *, sync: bool) -> None:
    """create, retrieve, results over the absolute results_url, cancel, list page by page, delete:
    each asks Anthropic with the workspace's key, once."""
    key = service.simulator.make_key()
    await service.add(key)
    first = await played(service, sync, scenarios.use_batches, scenarios.ause_batches)
    (results,) = asked(service, f"{BATCHES}/{first}/results")
    assert (results.method, results.key) == ("GET", key)
    assert len([request for request in asked(service, BATCHES) if request.method == "GET"]) == 3
    used = {r.key for r in service.simulator.requests if r.path.startswith(BATCHES)}
    assert used == {key}


@BOTH_SDKS
async def test_a_file_comes_back_as_it_went(
    service: TestService, tmp_path: Path, *, sync: bool
) -> None:
    """Uploaded from bytes, a path and a stream; listed, described, downloaded whole, to disk and
    in parts, deleted: random bytes stay what they are."""
    key = service.simulator.make_key()
    await service.add(key)
    data, path = os.urandom(1_500_003), tmp_path / "r.bin"
    await played(service, sync, scenarios.use_files, scenarios.ause_files, data, path)
    uploads = [request for request in asked(service, "/v1/files") if request.method == "POST"]
    assert len(uploads) == 3
    assert {request.key for request in uploads} == {key}
    assert all(r.values("content-type")[0].startswith("multipart/form-data") for r in uploads)


def pages(sdk: anthropic.Anthropic) -> tuple[list[str], list[str]]:
    return [m.id for m in sdk.models.list(limit=1)], [m.id for m in sdk.models.list(limit=100)]


async def apages(sdk: anthropic.AsyncAnthropic) -> tuple[list[str], list[str]]:
    paged = [model.id async for model in sdk.models.list(limit=1)]
    return paged, [model.id async for model in sdk.models.list(limit=100)]


@BOTH_SDKS
async def test_a_list_is_paged_through(service: TestService, *, sync: bool) -> None:
    """The SDK's own paging asks for page after page."""
    await service.add()
    paged, whole = await played(service, sync, pages, apages)
    assert len(whole) > 1
    assert paged == whole
    assert len(asked(service, "/v1/models")) >= len(whole) + 1


def question(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"question {number}"}


async def test_many_tasks_at_once(service: TestService) -> None:
    """Twenty streamed answers at once are each whole and their own."""
    await service.add()

    async def ask(sdk: anthropic.AsyncAnthropic, number: int) -> str:
        messages = [question(number)]
        async with sdk.messages.stream(model=MODEL, max_tokens=64, messages=messages) as stream:
            return "".join([text async for text in stream.text_stream])

    async with async_sdk(service) as sdk:
        at_once = await asyncio.gather(*(ask(sdk, number) for number in range(20)))
        in_turn = [await ask(sdk, number) for number in range(20)]
    assert at_once == in_turn


def ask_on_threads(sdk: anthropic.Anthropic) -> tuple[list[str], list[str]]:
    def ask(number: int) -> str:
        messages = [question(number)]
        with sdk.messages.stream(model=MODEL, max_tokens=64, messages=messages) as stream:
            return "".join(stream.text_stream)

    with ThreadPoolExecutor(20) as threads:
        return list(threads.map(ask, range(20))), [ask(number) for number in range(20)]


async def test_many_threads_at_once(service: TestService) -> None:
    """The same of twenty threads that share one sync client."""
    await service.add()
    with sync_sdk(service) as sdk:
        at_once, in_turn = await asyncio.to_thread(ask_on_threads, sdk)
    assert at_once == in_turn
