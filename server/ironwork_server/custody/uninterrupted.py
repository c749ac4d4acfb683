"""What has begun to take effect is seen to its end, although its caller has gone.

A deletion that was cut short between the store and the log would be one that the log denies.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end, whoever cancels meanwhile; work is bounded by deadlines of its own.

    A cancellation that came takes effect at the caller's next await: when the result is known, and
    where the Gate records an outcome, the true one. There must be such an await, inside of whatever
    asyncio.timeout surrounds this one: see checkpoint.
    """
    task = asyncio.ensure_future(work)
    cancellations = 0
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancellations += 1
    _cancel_again(cancellations)
    return task.result()


async def checkpoint() -> None:
    """Be cancelled here, if uninterrupted held a cancellation back; costs nothing otherwise."""
    if _caller().cancelling():
        await asyncio.sleep(0)


def _cancel_again(times: int) -> None:
    """Deliver the cancellations that were held back; asyncio.timeout counts them."""
    caller = _caller()
    for _ in range(times):
        caller.uncancel()
    for _ in range(times):
        caller.cancel()


def _caller() -> asyncio.Task[Any]:
    # A coroutine of ours never runs outside of a task.
    return cast("asyncio.Task[Any]", asyncio.current_task())
