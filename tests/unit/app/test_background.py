"""Tasks beside the calls."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from ironwork_server.app.background import in_background


async def test_a_task_that_breaks_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody awaits does not end in silence, and its text is not logged."""

    async def work() -> None:
        raise ValueError("sk-ant-api03-secret")

    async with AsyncExitStack() as stack:
        await in_background(stack, work())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert caplog.messages == ["error.unexpected"]
    assert "secret" not in caplog.text


async def test_a_task_ends_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    """A task that is ended in order is no error."""
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with AsyncExitStack() as stack:
        await in_background(stack, work())
        await asyncio.sleep(0)
    assert ended.is_set()
    assert not caplog.messages
