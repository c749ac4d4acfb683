"""Files through Anthropic's SDK, unmodified, sync and async, on a whole service."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path
from typing import Any

import anthropic
import pytest

from fixtures.sdk import asked, async_sdk, sync_sdk
from fixtures.server import TestService
from ironwork_simulator import Behaviour, Match
from ironwork_simulator.holds import Hold

SIZE = 1_500_003
TYPE = "application/octet-stream"


def sources(data: bytes, path: Path) -> list[Any]:
    """The ways in which a file is given to the SDK: bytes, a path, an open stream."""
    path.write_bytes(data)
    return [("r.bin", data, TYPE), path, ("r.bin", io.BytesIO(data), TYPE)]


def held_in_the_middle(service: TestService, identifier: str) -> Hold:
    """Anthropic sends half of the file's content and waits."""
    hold = service.simulator.hold()
    service.simulator.script(
        Match(path=f"/v1/files/{identifier}/content"),
        Behaviour(hold=hold.name, hold_at="body", hold_after=1),
    )
    return hold


def converse(service: TestService, sdk: anthropic.Anthropic, data: bytes, path: Path) -> None:
    """Everything that the sync SDK does with files."""
    files = sdk.beta.files
    made = [files.upload(file=source) for source in sources(data, path)]
    assert {(file.filename, file.size_bytes) for file in made} == {("r.bin", SIZE)}
    assert [file.id for file in files.list(limit=1)] == [file.id for file in reversed(made)]
    assert files.retrieve_metadata(made[0].id) == made[0]
    for file in made:
        assert files.download(file.id).read() == data
    files.download(made[0].id).write_to_file(path)
    assert path.read_bytes() == data
    hold = held_in_the_middle(service, made[0].id)
    with files.with_streaming_response.download(made[0].id) as response:
        parts = response.iter_bytes()
        got = next(parts)
        hold.release()
        assert got + b"".join(parts) == data
    assert files.delete(made[0].id).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        files.download(made[0].id)


async def aconverse(
    service: TestService, sdk: anthropic.AsyncAnthropic, data: bytes, path: Path
) -> None:
    """The same of the asyncio SDK."""
    files = sdk.beta.files
    made = [await files.upload(file=source) for source in sources(data, path)]
    assert {(file.filename, file.size_bytes) for file in made} == {("r.bin", SIZE)}
    assert [file.id async for file in files.list(limit=1)] == [file.id for file in reversed(made)]
    assert await files.retrieve_metadata(made[0].id) == made[0]
    for file in made:
        assert await (await files.download(file.id)).read() == data
    await (await files.download(made[0].id)).write_to_file(path)
    assert await asyncio.to_thread(path.read_bytes) == data
    hold = held_in_the_middle(service, made[0].id)
    async with files.with_streaming_response.download(made[0].id) as response:
        parts = response.iter_bytes()
        got = await anext(parts)
        hold.release()
        assert got + b"".join([part async for part in parts]) == data
    assert (await files.delete(made[0].id)).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await files.download(made[0].id)


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_a_file_comes_back_as_it_went(
    service: TestService, tmp_path: Path, *, sync: bool
) -> None:
    """Uploaded from bytes, a path and a stream; listed page by page, described, downloaded whole,
    to disk and as it comes, deleted: random bytes stay what they are."""
    key = service.simulator.make_key()
    await service.add(key)
    data, path = os.urandom(SIZE), tmp_path / "r.bin"
    if sync:
        with sync_sdk(service) as sdk:
            await asyncio.to_thread(converse, service, sdk, data, path)
    else:
        async with async_sdk(service) as asdk:
            await aconverse(service, asdk, data, path)
    uploads = [request for request in asked(service, "/v1/files") if request.method == "POST"]
    assert len(uploads) == 3
    assert {request.key for request in uploads} == {key}
    assert all(r.values("content-type")[0].startswith("multipart/form-data") for r in uploads)
