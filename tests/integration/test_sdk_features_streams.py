"""Anthropic's SDK, unmodified, sync and async, reads answers as they come: each test has what is
first while Anthropic still holds the rest back.
"""

from __future__ import annotations

import os
from typing import Any

import anthropic

from fixtures.sdk import BOTH_SDKS, played, scripted
from fixtures.sdk_scenarios import GOOD, QUESTION
from fixtures.server import TestService
from ironwork_simulator import Behaviour, Match
from ironwork_simulator.holds import Hold


def held(service: TestService, path: str, after: int) -> Hold:
    """Anthropic's next answer to this path stops after so many parts of its body."""
    hold = service.simulator.hold()
    service.simulator.script(
        Match(path=path), Behaviour(hold=hold.name, hold_at="body", hold_after=after)
    )
    return hold


def lines(sdk: anthropic.Anthropic, hold: Hold) -> list[str]:
    with sdk.messages.with_streaming_response.create(**QUESTION, stream=True) as response:
        lines = response.iter_lines()
        first = next(lines)
        hold.release()
        return [first, *lines]


async def alines(sdk: anthropic.AsyncAnthropic, hold: Hold) -> list[str]:
    async with sdk.messages.with_streaming_response.create(**QUESTION, stream=True) as response:
        lines = response.iter_lines()
        first = await anext(lines)
        hold.release()
        return [first, *[line async for line in lines]]


@BOTH_SDKS
async def test_a_streamed_response(service: TestService, *, sync: bool) -> None:
    """with_streaming_response gives the first line, then pings and all."""
    await service.add()
    got = await played(service, sync, lines, alines, held(service, "/v1/messages", 2))
    events = [line for line in got if line.startswith("event:")]
    assert (got[0], events[-1]) == ("event: message_start", "event: message_stop")
    assert "event: ping" in events


def events(sdk: anthropic.Anthropic, hold: Hold) -> tuple[list[str], str]:
    with sdk.messages.stream(**QUESTION) as stream:
        parts = iter(stream)
        first = next(parts).type
        hold.release()
        return [first, *(event.type for event in parts)], stream.get_final_text()


async def aevents(sdk: anthropic.AsyncAnthropic, hold: Hold) -> tuple[list[str], str]:
    async with sdk.messages.stream(**QUESTION) as stream:
        parts = aiter(stream)
        first = (await anext(parts)).type
        hold.release()
        rest = [event.type async for event in parts]
        return [first, *rest], await stream.get_final_text()


@BOTH_SDKS
async def test_the_stream_helper(service: TestService, *, sync: bool) -> None:
    """messages.stream yields events, and gathers the text that was sent."""
    await service.add()
    hold = service.simulator.hold()
    scripted(service, answer="漢字 😀", hold=hold.name, hold_at="body", hold_after=2)
    got, text = await played(service, sync, events, aevents, hold)
    assert (got[0], got[-1]) == ("message_start", "message_stop")
    assert text == "漢字 😀"


def results(sdk: anthropic.Anthropic, service: TestService) -> list[str]:
    batch = sdk.messages.batches.create(requests=GOOD)
    sdk.messages.batches.retrieve(batch.id)
    hold = held(service, f"/v1/messages/batches/{batch.id}/results", 2)
    lines = iter(sdk.messages.batches.results(batch.id))
    first = next(lines).custom_id
    hold.release()
    return [first, *(line.custom_id for line in lines)]


async def aresults(sdk: anthropic.AsyncAnthropic, service: TestService) -> list[str]:
    batch = await sdk.messages.batches.create(requests=GOOD)
    await sdk.messages.batches.retrieve(batch.id)
    hold = held(service, f"/v1/messages/batches/{batch.id}/results", 2)
    lines = aiter(await sdk.messages.batches.results(batch.id))
    first = (await anext(lines)).custom_id
    hold.release()
    return [first, *[line.custom_id async for line in lines]]


@BOTH_SDKS
async def test_a_batchs_results(service: TestService, *, sync: bool) -> None:
    """A batch's first result (once a second is sent: the SDK reads in pieces that end in it)."""
    await service.add()
    got = await played(service, sync, results, aresults, service)
    assert got == [request["custom_id"] for request in GOOD]


def download(sdk: anthropic.Anthropic, service: TestService, data: bytes) -> Any:
    file = sdk.beta.files.upload(file=("r.bin", data))
    hold = held(service, f"/v1/files/{file.id}/content", 1)
    with sdk.beta.files.with_streaming_response.download(file.id) as response:
        parts = response.iter_bytes()
        first = next(parts)
        hold.release()
        return first + b"".join(parts)


async def adownload(sdk: anthropic.AsyncAnthropic, service: TestService, data: bytes) -> Any:
    file = await sdk.beta.files.upload(file=("r.bin", data))
    hold = held(service, f"/v1/files/{file.id}/content", 1)
    async with sdk.beta.files.with_streaming_response.download(file.id) as response:
        parts = response.iter_bytes()
        first = await anext(parts)
        hold.release()
        return first + b"".join([part async for part in parts])


@BOTH_SDKS
async def test_a_download(service: TestService, *, sync: bool) -> None:
    """A file's first bytes."""
    await service.add()
    data = os.urandom(700_001)
    assert await played(service, sync, download, adownload, service, data) == data
