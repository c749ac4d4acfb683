"""The open streams of one transport, for threads: idle ones are used again, newest first."""

import threading
import time
from typing import Final

import grpc

from ironwork.keys.v1 import keys_pb2, keys_pb2_grpc
from ironwork_client._channel import ChannelSlot, channel_options
from ironwork_client.profile import Profile, ProfileError
from ironwork_client.transport._settings import MAX_RECEIVE_BYTES, Settings
from ironwork_client.transport._sync_stream import SyncStream
from ironwork_client.transport._values import CLOSE_S, Fault, FaultKind, Timeouts

_STAYS: Final = keys_pb2.GoAway.REASON_STREAM_AGE


def make_channel(profile: Profile) -> grpc.Channel:
    """A channel for WithKey, with the profile's files as they are now. Raises ProfileError."""
    return grpc.secure_channel(
        profile.target,
        profile.credentials(),
        options=channel_options(profile, max_receive_bytes=MAX_RECEIVE_BYTES),
    )


class SyncPool:
    """Owns streams and their channels. The lock is held for bookkeeping only."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._idle: list[SyncStream] = []
        self._open: set[SyncStream] = set()
        # Dropped ones whose threads may still be about to end; close waits for them.
        self._leaving: list[SyncStream] = []
        self._reserved = 0
        self._closed = False
        self._channels = ChannelSlot(settings.profile, lambda: make_channel(settings.profile))

    def acquire(self, timeouts: Timeouts) -> SyncStream:
        """An idle stream, or a new one. Raises Fault or Refused."""
        stream = self._idle_or_reserve(timeouts.pool)
        return stream if stream is not None else self._open_new(timeouts)

    def release(self, stream: SyncStream, *, reusable: bool) -> None:
        """The caller is done with it."""
        with self._changed:
            keep = (
                reusable
                and not self._closed
                and stream.usable
                and len(self._idle) < self._settings.max_idle_streams
            )
            if keep:
                self._idle.append(stream)
                self._changed.notify()
        if not keep:
            self._drop(stream)

    def close(self) -> None:
        """End every stream, also those in use, and wait for their threads."""
        with self._changed:
            self._closed = True
            self._idle.clear()
            for stream in list(self._open):
                self._drop(stream)
            leaving = list(self._leaving)
            self._changed.notify_all()
        until = time.monotonic() + CLOSE_S
        for stream in leaving:
            stream.join(until - time.monotonic())
        with self._changed:
            self._channels.retire_current()
        self._close_unused()

    def _idle_or_reserve(self, timeout: float | None) -> SyncStream | None:
        """An idle stream, or None with a place reserved for a new one."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
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
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise Fault(
                        FaultKind.POOL_TIMEOUT,
                        f"All {self._settings.max_streams} streams are in use; raise max_streams"
                        " or send fewer requests at once.",
                    )
                self._changed.wait(left)

    def _open_new(self, timeouts: Timeouts) -> SyncStream:
        self._close_unused()
        try:
            with self._changed:
                self._check_open()
                lease = self._channels.take()
                method = keys_pb2_grpc.KeyServiceStub(lease.channel).WithKey
                stream = SyncStream(method, self._settings.start, lease, self._of_no_use)
                self._open.add(stream)
        except ProfileError as error:
            raise Fault(FaultKind.CONNECT, str(error)) from None
        finally:
            with self._changed:
                self._reserved -= 1
                self._changed.notify()
        if lease.proven:
            return stream
        try:
            stream.wait_started(timeouts.connect)
        except BaseException:
            # The next stream connects anew instead of waiting out this channel's backoff.
            with self._changed:
                self._channels.retire(lease)
            self._drop(stream)
            raise
        lease.proven = True
        return stream

    def _check_open(self) -> None:
        if self._closed:
            raise Fault(FaultKind.LOCAL_PROTOCOL, "The transport is closed.")

    def _of_no_use(self, stream: SyncStream) -> None:
        """Called by a stream's reading thread: the server said good-bye, or the RPC is over."""
        with self._changed:
            if stream.leave_reason not in {None, _STAYS}:
                self._channels.retire(stream.lease)
            idle = stream in self._idle
            if idle:
                self._idle.remove(stream)
        if idle:
            self._drop(stream)

    def _drop(self, stream: SyncStream) -> None:
        with self._changed:
            if stream not in self._open:
                return
            self._open.remove(stream)
            self._channels.give_back(stream.lease)
            self._leaving = [other for other in self._leaving if not other.ended]
            self._leaving.append(stream)
            self._changed.notify()
        stream.close()

    def _close_unused(self) -> None:
        with self._changed:
            channels = self._channels.unused()
        for channel in channels:
            channel.close()
