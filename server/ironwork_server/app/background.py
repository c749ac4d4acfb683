"""Tasks beside the calls, for as long as the service runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack

from ironwork_server.app.records import FLUSH_INTERVAL_S
from ironwork_server.core.described import described

log = logging.getLogger(__name__)


async def in_background(stack: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
    """Run it until the stack ends. One that breaks before is told of at once: nobody awaits it."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_tell)

    async def end() -> None:
        task.cancel()
        await asyncio.wait([task])

    stack.push_async_callback(end)


async def regularly(work: Callable[[], Awaitable[None]]) -> None:
    """Do it once a second, until cancelled."""
    while True:
        await asyncio.sleep(FLUSH_INTERVAL_S)
        await work()


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("error.unexpected", extra=described(error))
