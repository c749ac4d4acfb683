"""One open WithKey stream, for asyncio.

One read is outstanding at a time, as a task of its own: the caller waits for it with the HTTP
library's timeouts, and an idle stream notices GoAway and breaks by it. Uploads are a task, so that
they go on while the answer arrives; it is the stream's only writer while it runs.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass

import grpc
import grpc.aio

from ironwork.keys.v1 import keys_pb2
from ironwork_client import errors
from ironwork_client._channel import Lease
from ironwork_client.errors import IronworkError
from ironwork_client.transport import _mapper, _outcome
from ironwork_client.transport._grammar import Conversation
from ironwork_client.transport._mailbox import TIMEOUTS, StreamEnded
from ironwork_client.transport._values import (
    CLOSE_S,
    SETTLE_S,
    CallEnded,
    Event,
    Fault,
    FaultKind,
    Nothing,
    NotSent,
    Timeouts,
)

Message = keys_pb2.WithKeyRequest
Arrival = keys_pb2.WithKeyResponse | StreamEnded


@dataclass(frozen=True, slots=True)
class AsyncOutgoing:
    """A request on its way: its head (without a call number) and its body.

    replayable: the body can be iterated over again.
    """

    head: keys_pb2.RequestHead
    body: AsyncIterable[bytes]
    replayable: bool
    timeouts: Timeouts


class AsyncStream:
    """A stream and where it stands. One task uses it at a time; its pool owns it."""

    def __init__(
        self,
        method: "grpc.aio.StreamStreamMultiCallable[Message, keys_pb2.WithKeyResponse]",
        start: keys_pb2.Start,
        lease: Lease[grpc.aio.Channel],
        on_idle_end: Callable[["AsyncStream"], None],
    ) -> None:
        """on_idle_end: called when something happens to the stream while it rests."""
        self.lease = lease
        self.talk = Conversation()
        self._on_idle_end = on_idle_end
        self._start: keys_pb2.Start | None = start
        self._call = method()
        self._reading: asyncio.Task[Arrival] | None = None
        self._upload: asyncio.Task[None] | None = None
        self._timeouts = Timeouts()
        self._stop = False
        self._touched = False
        self._ending = False
        self._in_body = False
        self._body_error: Exception | None = None
        self._writing_since: float | None = None
        self._uploaded_at = 0.0

    @property
    def usable(self) -> bool:
        """A call may begin: the RPC goes on and the server has not said good-bye."""
        heard = self._reading is not None and self._reading.done()
        return not (self.talk.leaving or heard or self._call.done())

    async def wait_started(self, timeout: float | None) -> None:
        """Say Start and wait for Started. Raises Fault (CONNECT, CONNECT_TIMEOUT) or Refused."""
        until = None if timeout is None else time.monotonic() + timeout
        self._upload = self._task(self._say_start())
        try:
            while not self.talk.started:
                arrival = await self._arrival(lambda: (until, FaultKind.CONNECT_TIMEOUT))
                self.talk.feed(arrival)
        except StreamEnded as ended:
            raise _outcome.opening_broken(ended.error) from None

    def begin(self, outgoing: AsyncOutgoing) -> None:
        """Send a request. The answer's events follow from `event`."""
        if self._reading is not None:
            self._reading.remove_done_callback(self._stirred)
        head = keys_pb2.RequestHead()
        head.CopyFrom(outgoing.head)
        head.call = self.talk.begin()
        self._timeouts = outgoing.timeouts
        self._stop = self._touched = self._ending = self._in_body = False
        self._upload = self._task(self._send(head, outgoing.body, self._upload))

    async def event(self) -> Event:
        """The call's next event. Raises Fault, Refused, NotSent, or what the body raised."""
        waiting_since = time.monotonic()
        while True:
            try:
                arrival = await self._arrival(lambda: self._deadline(waiting_since))
            except StreamEnded as ended:
                raise self._broken(ended.error) from None
            event = self.talk.feed(arrival)
            if isinstance(event, CallEnded):
                self._end_upload()
            if not isinstance(event, Nothing):
                return event

    async def settle(self) -> bool:
        """After ResponseEnd: whether the stream can carry another call. Waits for what is left of
        the upload, for a bounded time.
        """
        upload = self._upload
        if upload is None or self.talk.in_call:
            return False
        return await self._sent(upload) and self.usable

    async def abandon(self) -> bool:
        """End a call whose answer nobody reads; whether the stream can be used again."""
        if self.talk.in_call:
            # During an upload, cancelling means cancelling the RPC.
            if self._upload is None or not self._ending or not await self._sent(self._upload):
                return False
            cancel = Message(cancel=keys_pb2.Cancel(call=self.talk.call))
            self._upload = self._task(self._write(cancel))
            if not await self._drain(time.monotonic() + SETTLE_S):
                return False
        return await self.settle()

    def rest(self) -> None:
        """The stream is idle from now on: tell on_idle_end if anything arrives."""
        self._read().add_done_callback(self._stirred)

    def close(self) -> None:
        """Cancel the RPC, and with it whatever it does upstream. Never waits."""
        if self._reading is not None:
            self._reading.remove_done_callback(self._stirred)
        if self._upload is not None:
            self._upload.cancel()
        self._call.cancel()

    async def join(self) -> None:
        """After close: wait until its tasks have ended, for a bounded time."""
        tasks = [task for task in (self._reading, self._upload) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)

    # --- reading ------------------------------------------------------------------------------

    def _read(self) -> "asyncio.Task[Arrival]":
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._receive())
        return self._reading

    async def _receive(self) -> Arrival:
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            return StreamEnded(errors.from_rpc(failure))
        if isinstance(message, keys_pb2.WithKeyResponse):
            return message
        return StreamEnded(None)

    async def _arrival(
        self, deadline: Callable[[], tuple[float | None, FaultKind]]
    ) -> keys_pb2.WithKeyResponse:
        reading = self._read()
        while not reading.done():
            until, kind = deadline()
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise Fault(kind, TIMEOUTS[kind])
            upload = self._upload
            waiting = {reading} if upload is None or upload.done() else {reading, upload}
            await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self._reading = None
        # A read is cancelled where the RPC was, by close: that is not the caller's cancellation.
        arrival = StreamEnded(None) if reading.cancelled() else reading.result()
        if isinstance(arrival, StreamEnded):
            raise arrival
        return arrival

    def _stirred(self, reading: "asyncio.Task[Arrival]") -> None:
        if not reading.cancelled():
            arrival = reading.result()
            if isinstance(arrival, keys_pb2.WithKeyResponse) and arrival.HasField("go_away"):
                self.talk.feed(arrival)
        self._on_idle_end(self)

    async def _drain(self, until: float) -> bool:
        """Whether the call's end arrived before until (time.monotonic())."""
        try:
            while self.talk.in_call:
                self.talk.feed(await self._arrival(lambda: (until, FaultKind.READ_TIMEOUT)))
        except (StreamEnded, Fault):
            return False
        return True

    def _deadline(self, waiting_since: float) -> tuple[float | None, FaultKind]:
        upload = self._upload
        if upload is not None and not upload.done():
            write = self._timeouts.write
            since = self._writing_since or time.monotonic()
            return (None if write is None else since + write), FaultKind.WRITE_TIMEOUT
        if upload is not None and not upload.cancelled():
            upload.result()  # raises what the request's body raised
        read = self._timeouts.read
        since = max(waiting_since, self._uploaded_at)
        return (None if read is None else since + read), FaultKind.READ_TIMEOUT

    async def _sent(self, upload: "asyncio.Task[None]") -> bool:
        """Whether the whole upload has left, or does so within a bounded time."""
        if not upload.done():
            await asyncio.wait((upload,), timeout=SETTLE_S)
        return upload.done() and not upload.cancelled() and upload.exception() is None

    def _broken(self, error: IronworkError | None) -> Exception:
        self.lease.proven = False
        if self._body_error is not None:
            return self._body_error  # which is why the RPC was cancelled
        if error is None and self.talk.leaving and not self.talk.has_head:
            return _outcome.left_unread()
        if not self._touched:
            return NotSent(_outcome.opening_broken(error), body_untouched=True)
        return _outcome.call_broken(error, has_head=self.talk.has_head)

    # --- writing ------------------------------------------------------------------------------

    async def _send(
        self,
        head: keys_pb2.RequestHead,
        body: AsyncIterable[bytes],
        before: "asyncio.Task[None] | None",
    ) -> None:
        """head, body, end. What the caller's body raises cancels the RPC: half a body must not
        look like a whole one.
        """
        if before is not None and not before.done():
            await asyncio.wait((before,), timeout=SETTLE_S)
        if not await self._say_start():
            return
        self._touched = True
        if not await self._write(Message(head=head)):
            return
        try:
            going = await self._send_body(body)
        except BaseException as error:
            if isinstance(error, Exception):
                self._body_error = error
            self._call.cancel()
            raise
        if going:
            self._ending = True
            await self._write(Message(end=keys_pb2.RequestEnd()))
        self._uploaded_at = time.monotonic()

    async def _send_body(self, body: AsyncIterable[bytes]) -> bool:
        """Whether the RPC goes on."""
        source = aiter(body)
        try:
            while not self._stop:
                data = await self._next(source)
                if data is None:
                    break
                for piece in _mapper.pieces(data):
                    if self._stop:
                        break
                    if not await self._write(Message(body=keys_pb2.RequestBody(data=piece))):
                        return False
        finally:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()
        return True

    async def _next(self, source: AsyncIterator[bytes]) -> bytes | None:
        """The body's next part; None at its end, or where nobody needs the rest any more."""
        self._in_body = True
        try:
            return await anext(source, None)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Our own cancellation ends here; another's beside it goes on.
            if not self._stop or task is None or task.uncancel() > 0:
                raise
            return None
        finally:
            self._in_body = False

    def _end_upload(self) -> None:
        """The answer is whole: what is left of the request's body is not waited for."""
        self._stop = True
        if self._in_body and self._upload is not None:
            self._upload.cancel()

    async def _say_start(self) -> bool:
        start, self._start = self._start, None
        return start is None or await self._write(Message(start=start))

    async def _write(self, message: Message) -> bool:
        """Whether the RPC took it; why it did not, the outstanding read tells."""
        self._writing_since = time.monotonic()
        try:
            await self._call.write(message)
        except (grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError):
            return False
        finally:
            self._writing_since = None
        return True

    def _task(self, work: Coroutine[object, object, object]) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(_discard(work))
        # Read once, so that asyncio reports no error that `_deadline` did not get to see.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task


async def _discard(work: Coroutine[object, object, object]) -> None:
    await work
