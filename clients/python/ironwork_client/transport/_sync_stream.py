"""One open WithKey stream, for threads.

Three threads meet here. gRPC's own sending thread pulls messages from `_outgoing`, and with them
the caller's request body, so that an upload goes on while the answer arrives. The reading thread
passes messages on and notices GoAway and breaks while the stream is idle. The caller's thread
waits in the mailbox, with the HTTP library's timeouts.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import grpc

from ironwork.keys.v1 import keys_pb2
from ironwork_client import errors
from ironwork_client._channel import Lease
from ironwork_client.errors import IronworkError
from ironwork_client.transport import _mapper, _outcome
from ironwork_client.transport._grammar import Conversation
from ironwork_client.transport._mailbox import Mailbox, StreamEnded
from ironwork_client.transport._values import (
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


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request on its way: its head (without a call number) and its body.

    replayable: the body can be iterated over again.
    """

    head: keys_pb2.RequestHead
    body: Iterable[bytes]
    replayable: bool
    timeouts: Timeouts


class Upload:
    """One call's messages. gRPC's sending thread runs it; the caller's thread reads its state
    (single words, written by one side each).
    """

    def __init__(self, head: keys_pb2.RequestHead, body: Iterable[bytes]) -> None:
        self._head = head
        self._body = body
        self.begun = False
        self.ending = False
        self.stop = False
        self.writing_since: float | None = None
        self.finished_at: float | None = None
        self.error: BaseException | None = None

    def messages(self) -> Iterator[Message]:
        """head, body, end; without `end` where the caller's body raised (see error)."""
        self.begun = True
        yield from self._written(Message(head=self._head))
        body = self._pieces()
        while not self.stop:
            try:
                piece = next(body, None)
            except BaseException as error:  # noqa: BLE001 - the caller's own; raised in its thread
                self.error = error
                return
            if piece is None:
                break
            yield from self._written(Message(body=keys_pb2.RequestBody(data=piece)))
        self.ending = True
        yield from self._written(Message(end=keys_pb2.RequestEnd()))
        self.finished_at = time.monotonic()

    def _pieces(self) -> Iterator[bytes]:
        for data in self._body:
            yield from _mapper.pieces(data)

    def _written(self, message: Message) -> Iterator[Message]:
        # gRPC asks for the next message once flow control has taken this one.
        self.writing_since = time.monotonic()
        yield message
        self.writing_since = None


class SyncStream:
    """A stream and where it stands. One thread uses it at a time; its pool owns it."""

    def __init__(
        self,
        method: "grpc.StreamStreamMultiCallable[Message, keys_pb2.WithKeyResponse]",
        start: keys_pb2.Start,
        lease: Lease[grpc.Channel],
        on_idle_end: Callable[["SyncStream"], None],
    ) -> None:
        """on_idle_end: called by the reading thread when the stream is of no further use."""
        self.lease = lease
        self.talk = Conversation()
        self._start = start
        self._on_idle_end = on_idle_end
        self._mail = Mailbox()
        self._outbox: queue.SimpleQueue[Upload | Message | None] = queue.SimpleQueue()
        self._sender_ended = threading.Event()
        self._leave: keys_pb2.GoAway | None = None
        self._upload: Upload | None = None
        self._timeouts = Timeouts()
        self._call = method(self._outgoing())
        self._reader = threading.Thread(target=self._read, name="ironwork-stream", daemon=True)
        self._reader.start()

    # --- the two helpers' threads -------------------------------------------------------------

    def _outgoing(self) -> Iterator[Message]:
        try:
            yield Message(start=self._start)
            while (item := self._outbox.get()) is not None:
                if isinstance(item, Upload):
                    yield from item.messages()
                    self._mail.wake()
                    if item.error is not None:
                        # Half a body must not look like a whole one: no half-close, a cancel.
                        self._call.cancel()
                        return
                else:
                    yield item
        finally:
            self._sender_ended.set()

    def _read(self) -> None:
        error: IronworkError | None = None
        try:
            for message in self._call:
                if message.HasField("go_away"):
                    self._leave = message.go_away
                if not self._mail.put(message):
                    break
                if self._leave is not None:
                    self._on_idle_end(self)
        except grpc.RpcError as failure:
            error = errors.from_rpc(failure)
        finally:
            self._mail.end(error)
            self._outbox.put(None)
            self._on_idle_end(self)

    # --- the caller's thread ------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """A call may begin: nothing is left over and the server has not said good-bye."""
        return self._leave is None and not self._mail.ended

    @property
    def leave_reason(self) -> keys_pb2.GoAway.Reason.ValueType | None:
        """Why the server asked to leave, None where it did not."""
        return None if self._leave is None else self._leave.reason

    def wait_started(self, timeout: float | None) -> None:
        """Wait for Started. Raises Fault (CONNECT, CONNECT_TIMEOUT) or Refused."""
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while not self.talk.started:
                self.talk.feed(self._mail.get(lambda: (until, FaultKind.CONNECT_TIMEOUT)))
        except StreamEnded as ended:
            raise _outcome.opening_broken(ended.error) from None

    def begin(self, outgoing: Outgoing) -> None:
        """Send a request. The answer's events follow from `event`."""
        head = keys_pb2.RequestHead()
        head.CopyFrom(outgoing.head)
        head.call = self.talk.begin()
        self._timeouts = outgoing.timeouts
        self._upload = Upload(head, outgoing.body)
        self._outbox.put(self._upload)

    def event(self) -> Event:
        """The call's next event. Raises Fault, Refused, NotSent, or what the body raised."""
        waiting_since = time.monotonic()
        while True:
            try:
                message = self._mail.get(lambda: self._deadline(waiting_since))
            except StreamEnded as ended:
                raise self._broken(ended.error) from None
            event = self.talk.feed(message)
            if isinstance(event, CallEnded) and self._upload is not None:
                self._upload.stop = True
            if not isinstance(event, Nothing):
                return event

    def settle(self) -> bool:
        """After ResponseEnd: whether the stream can carry another call. Waits for what is left of
        the upload, for a bounded time.
        """
        upload = self._upload
        if upload is None or self.talk.in_call:
            return False
        return self._sent(upload) and self.usable

    def abandon(self) -> bool:
        """End a call whose answer nobody reads; whether the stream can be used again."""
        if self.talk.in_call:
            # During an upload, cancelling means cancelling the RPC.
            if self._upload is None or not self._upload.ending or not self._sent(self._upload):
                return False
            self._outbox.put(Message(cancel=keys_pb2.Cancel(call=self.talk.call)))
            if not self._drain(time.monotonic() + SETTLE_S):
                return False
        return self.settle()

    def close(self) -> None:
        """Cancel the RPC, and with it whatever it does upstream. Never waits."""
        self._call.cancel()
        self._mail.close()
        self._outbox.put(None)

    @property
    def ended(self) -> bool:
        """Both helper threads are done."""
        return self._sender_ended.is_set() and not self._reader.is_alive()

    def join(self, timeout: float) -> None:
        """After close: wait until both helper threads have ended, at most timeout seconds."""
        until = time.monotonic() + timeout
        self._reader.join(max(0.0, until - time.monotonic()))
        self._sender_ended.wait(max(0.0, until - time.monotonic()))

    def _deadline(self, waiting_since: float) -> tuple[float | None, FaultKind]:
        upload = self._upload
        if upload is not None and upload.error is not None:
            raise upload.error
        if upload is not None and upload.finished_at is None:
            write = self._timeouts.write
            since = upload.writing_since or time.monotonic()
            return (None if write is None else since + write), FaultKind.WRITE_TIMEOUT
        since = waiting_since
        if upload is not None and upload.finished_at is not None:
            since = max(since, upload.finished_at)
        read = self._timeouts.read
        return (None if read is None else since + read), FaultKind.READ_TIMEOUT

    def _drain(self, until: float) -> bool:
        """Whether the call's end arrived before until (time.monotonic())."""
        try:
            while self.talk.in_call:
                self.talk.feed(self._mail.get(lambda: (until, FaultKind.READ_TIMEOUT)))
        except (StreamEnded, Fault):
            return False
        return True

    def _sent(self, upload: Upload) -> bool:
        """Whether the whole upload has left, or does so within a bounded time.

        Once the RPC is over, gRPC asks the upload for nothing more: it is as finished as it gets.
        """

        def over() -> bool:
            return self._mail.ended or upload.finished_at is not None or upload.error is not None

        self._mail.wait_for(over, SETTLE_S)
        return upload.finished_at is not None

    def _broken(self, error: IronworkError | None) -> BaseException:
        self.lease.proven = False
        upload = self._upload
        if upload is not None and upload.error is not None:
            return upload.error  # which is why the RPC was cancelled
        if error is None and self.talk.leaving and not self.talk.has_head:
            return _outcome.left_unread()
        if upload is not None and not upload.begun:
            return NotSent(_outcome.opening_broken(error), body_untouched=True)
        return _outcome.call_broken(error, has_head=self.talk.has_head)
