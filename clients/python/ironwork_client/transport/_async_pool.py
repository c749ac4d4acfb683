"""The open streams of one transport in one event loop: idle ones are used again, newest first."""

import asyncio
import time
from collections import deque
from typing import Final

import grpc.aio

from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client._channel import ChannelSlot, channel_options
from ironwork_client.profile import Profile, ProfileError
from ironwork_client.transport._async_stream import AsyncStream
from ironwork_client.transport._settings import MAX_RECEIVE_BYTES, Settings
from ironwork_client.transport._values import CLOSE_S, Fault, FaultKind, Timeouts

_STAYS: Final = keys_pb2.GoAway.REASON_STREAM_AGE


def make_channel(profile: Profile) -> grpc.aio.Channel:
    """A channel for WithKey, with the profile's files as they are now. Raises ProfileError."""
    return grpc.aio.secure_channel(
        profile.target,
        profile.credentials(),
        options=channel_options(profile, max_receive_bytes=MAX_RECEIVE_BYTES),
    )


class AsyncPool:
    """Owns streams and their channels. Belongs to the loop that it is used in."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: list[AsyncStream] = []
        self._open: set[AsyncStream] = set()
        # Dropped ones whose tasks may still be about to end; close waits for them.
        self._leaving: set[asyncio.Task[None]] = set()
        self._reserved = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._channels = ChannelSlot(settings.profile, lambda: make_channel(settings.profile))

    async def acquire(self, timeouts: Timeouts) -> AsyncStream:
        """An idle stream, or a new one. Raises Fault or Refused."""
        stream = await self._idle_or_reserve(timeouts.pool)
        return stream if stream is not None else await self._open_new(timeouts)

    def release(self, stream: AsyncStream, *, reusable: bool) -> None:
        """The caller is done with it."""
        room = len(self._idle) < self._settings.max_idle_streams
        if reusable and stream.usable and room and not self._closed:
            self._idle.append(stream)
            stream.rest()
            self._wake_one()
        else:
            self._drop(stream)

    async def close(self) -> None:
        """End every stream, also those in use."""
        self._closed = True
        self._idle.clear()
        for stream in list(self._open):
            self._drop(stream)
        while self._waiters:
            self._wake_one()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=CLOSE_S)
        self._channels.retire_current()
        await self._close_unused()

    async def _idle_or_reserve(self, timeout: float | None) -> AsyncStream | None:
        """An idle stream, or None with a place reserved for a new one."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            self._check_open()
            while self._idle:
                stream = self._idle.pop()
                if stream.usable:
                    return stream
                self._drop(stream)
            if len(self._open) + self._reserved < self._settings.max_streams:
                self._reserved += 1
                return None
            await self._wait(None if until is None else until - time.monotonic())

    async def _wait(self, timeout: float | None) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done() and not waiter.cancelled():
                self._wake_one()  # woken too late: this one's turn passes on
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Fault(
                FaultKind.POOL_TIMEOUT,
                f"All {self._settings.max_streams} streams are in use; raise max_streams or send"
                " fewer requests at once.",
            ) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _open_new(self, timeouts: Timeouts) -> AsyncStream:
        try:
            await self._close_unused()
            self._check_open()
            lease = self._channels.take()
            method = keys_pb2_grpc.KeyServiceStub(lease.channel).WithKey
            stream = AsyncStream(method, self._settings.start, lease, self._of_no_use)
            self._open.add(stream)
        except ProfileError as error:
            raise Fault(FaultKind.CONNECT, str(error)) from None
        finally:
            self._reserved -= 1
            self._wake_one()
        if lease.proven:
            return stream
        try:
            await stream.wait_started(timeouts.connect)
        except BaseException:
            # The next stream connects anew instead of waiting out this channel's backoff.
            self._channels.retire(lease)
            self._drop(stream)
            raise
        lease.proven = True
        return stream

    def _check_open(self) -> None:
        if self._closed:
            raise Fault(FaultKind.LOCAL_PROTOCOL, "The transport is closed.")

    def _of_no_use(self, stream: AsyncStream) -> None:
        """An idle stream heard good-bye, or its RPC is over."""
        if stream in self._idle:
            self._idle.remove(stream)
            self._drop(stream)

    def _drop(self, stream: AsyncStream) -> None:
        if stream not in self._open:
            return
        self._open.remove(stream)
        if stream.talk.leave_reason not in {None, _STAYS}:
            self._channels.retire(stream.lease)
        self._channels.give_back(stream.lease)
        stream.close()
        leaving = asyncio.get_running_loop().create_task(stream.join())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        self._wake_one()

    async def _close_unused(self) -> None:
        for channel in self._channels.unused():
            await channel.close()
