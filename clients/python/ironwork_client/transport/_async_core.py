"""One request over a pooled stream, for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from weakref import WeakKeyDictionary

from ironwork_client.transport import _outcome
from ironwork_client.transport._async_pool import AsyncPool
from ironwork_client.transport._async_stream import AsyncOutgoing, AsyncStream
from ironwork_client.transport._settings import Settings
from ironwork_client.transport._values import (
    Answer,
    BodyArrived,
    CallEnded,
    CallReport,
    HeadArrived,
    NotSent,
)


async def _let_go(pool: AsyncPool, stream: AsyncStream, verdict: Awaitable[bool]) -> None:
    """Give the stream back as verdict says; drop it where finding out is interrupted."""
    reusable = False
    try:
        reusable = await verdict
    finally:
        pool.release(stream, reusable=reusable)


class AsyncBody:
    """An answer's body. It holds a stream until it is read to its end or closed."""

    def __init__(self, pool: AsyncPool, stream: AsyncStream, report: CallReport) -> None:
        self._pool = pool
        self._stream = stream
        self._report = report
        self._done = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes as they come. Raises Fault; ends cleanly only where the answer is whole."""
        while not self._done:
            try:
                event = await self._stream.event()
            except BaseException:
                self._done = True
                self._pool.release(self._stream, reusable=False)
                raise
            if isinstance(event, BodyArrived):
                yield event.data
            elif isinstance(event, CallEnded):
                self._done = True
                _outcome.fill(self._report, event.end)
                await _let_go(self._pool, self._stream, self._stream.settle())
                fault = _outcome.end_after_head(event.end)
                if fault is not None:
                    raise fault

    async def close(self) -> None:
        """Cancels the call where its end has not been seen."""
        if not self._done:
            self._done = True
            await _let_go(self._pool, self._stream, self._stream.abandon())


class AsyncCore:
    """Sends requests; owns a pool for each event loop, since a channel belongs to one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncPool] = WeakKeyDictionary()

    async def send(self, outgoing: AsyncOutgoing, report: CallReport) -> tuple[Answer, AsyncBody]:
        """The answer's head, and its body to come. Raises Fault, Refused, or what the request's
        body raises.

        A stream that proves useless before anything went upstream is replaced, once.
        """
        pool = self._pool()
        try:
            return await _attempt(pool, outgoing, report)
        except NotSent as unsent:
            if not (unsent.body_untouched or outgoing.replayable):
                raise unsent.otherwise from None
        try:
            return await _attempt(pool, outgoing, report)
        except NotSent as unsent:
            raise unsent.otherwise from None

    async def close(self) -> None:
        """End the streams of the running loop. Those of other loops end with them."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is not None:
            await pool.close()

    def _pool(self) -> AsyncPool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = AsyncPool(self._settings)
        return pool


async def _attempt(
    pool: AsyncPool, outgoing: AsyncOutgoing, report: CallReport
) -> tuple[Answer, AsyncBody]:
    stream = await pool.acquire(outgoing.timeouts)
    try:
        stream.begin(outgoing)
        event = await stream.event()
    except BaseException:
        pool.release(stream, reusable=False)
        raise
    if isinstance(event, HeadArrived):
        return event.answer, AsyncBody(pool, stream, report)
    if isinstance(event, CallEnded):
        _outcome.fill(report, event.end)
        error = _outcome.end_without_head(event.end)
        if isinstance(error, NotSent):
            # It takes no further call, whether or not its GoAway is here yet.
            pool.release(stream, reusable=False)
        else:
            await _let_go(pool, stream, stream.settle())
        raise error
    raise AssertionError("the grammar lets nothing else come first")
