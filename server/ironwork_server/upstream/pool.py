"""Connections to the one endpoint: how many, which are kept, and for how long."""

import asyncio
from collections.abc import Callable

from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.upstream import faults
from ironwork_server.upstream.channel import Channel
from ironwork_server.upstream.connector import Connector
from ironwork_server.upstream.timeouts import UpstreamTimeouts


class Pool:
    """At most max_connections at once, in use and idle together.

    A slot (the semaphore) stands for a connection in use. A new one is opened only where none is
    idle, so idle and used ones together never exceed the slots. The pool owns every channel; an
    exchange borrows one between acquire and release.
    """

    def __init__(
        self,
        connector: Connector,
        timeouts: UpstreamTimeouts,
        max_connections: int,
        meter: Meter = SILENT,
    ) -> None:
        if max_connections < 1:
            raise ValueError("upstream connections: give a number of at least 1")
        self._connector = connector
        self._timeouts = timeouts
        self._slots = asyncio.Semaphore(max_connections)
        # No more may wait than could be served next.
        self._max_waiting = max_connections
        self._waiting = 0
        self._used: set[Channel] = set()
        # Newest last: the one that was used last is used first, so that the others can age.
        self._idle: dict[Channel, asyncio.TimerHandle] = {}
        self._closed = False
        self._meter = meter

    @property
    def counts(self) -> tuple[int, int]:
        """Connections in use and idle; for metrics."""
        return len(self._used), len(self._idle)

    async def acquire(self) -> Channel:
        """A connection that is open and quiet. Raises Unavailable."""
        await self._take_slot()
        try:
            idle = self._pop_idle()
            channel = idle or await self._connect()
        except BaseException:
            self._slots.release()
            raise
        self._used.add(channel)
        self._meter.connected(reused=idle is not None)
        return channel

    def release(self, channel: Channel, *, reusable: bool) -> None:
        """Give a channel back: it is kept where reusable and quiet, else aborted at once."""
        self._used.remove(channel)
        self._slots.release()
        if reusable and not self._closed and channel.is_quiet():
            loop = asyncio.get_running_loop()
            expiry = loop.call_later(self._timeouts.keep_alive_s, self._expire, channel)
            self._idle[channel] = expiry
            channel.watcher = self._watcher(channel)
        else:
            channel.abort()

    async def close(self) -> None:
        """End all connections; what is in flight fails."""
        self._closed = True
        channels = [*self._used, *self._idle]
        for channel in list(self._idle):
            self._forget(channel)
            channel.close()
        for channel in self._used:
            channel.fail(faults.closing())
            channel.abort()
        await asyncio.gather(*(channel.wait_closed() for channel in channels))

    async def _take_slot(self) -> None:
        if self._closed:
            raise faults.closing()
        if self._slots.locked() and self._waiting >= self._max_waiting:
            raise faults.pool_exhausted()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeouts.pool_wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise faults.pool_exhausted() from None
        finally:
            self._waiting -= 1

    def _pop_idle(self) -> Channel | None:
        while self._idle:
            channel = next(reversed(self._idle))
            self._forget(channel)
            if channel.is_quiet():
                return channel
            channel.abort()
        return None

    async def _connect(self) -> Channel:
        channel = await self._connector.open()
        if self._closed:
            channel.abort()
            raise faults.closing()
        return channel

    def _watcher(self, channel: Channel) -> Callable[[], None]:
        def watch() -> None:
            """Bytes that nobody asked for, or an end: the connection is of no more use."""
            channel.watcher = None
            if channel.is_quiet():
                channel.watcher = watch
            else:
                self._forget(channel)
                channel.abort()

        return watch

    def _expire(self, channel: Channel) -> None:
        self._forget(channel)
        channel.close()

    def _forget(self, channel: Channel) -> None:
        channel.watcher = None
        self._idle.pop(channel).cancel()
