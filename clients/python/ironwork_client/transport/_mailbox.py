"""What a stream's reading thread hands to the thread that waits for an answer."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ironwork.keys.v1 import keys_pb2
from ironwork_client.errors import IronworkError
from ironwork_client.transport._values import Fault, FaultKind

# At most this many messages (16 KiB each) wait; then HTTP/2's flow control holds the server back.
_MESSAGES: Final = 4

# When to give up (time.monotonic(), None: never) and as what. Asked again after each wake-up.
Deadline = Callable[[], tuple[float | None, FaultKind]]


class StreamEnded(Exception):
    """The RPC is over; error is its status, None for OK."""

    def __init__(self, error: IronworkError | None) -> None:
        super().__init__()
        self.error = error


class Mailbox:
    """A bounded queue of messages for one reader; one thread puts.

    The condition is held only to move a message, never while anything waits for the network.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: deque[keys_pb2.WithKeyResponse] = deque()
        self._ended: StreamEnded | None = None
        self._closed = False

    def put(self, message: keys_pb2.WithKeyResponse) -> bool:
        """Wait for room and add; False once the mailbox is closed."""
        with self._changed:
            while len(self._messages) >= _MESSAGES and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._messages.append(message)
            self._changed.notify_all()
            return True

    def end(self, error: IronworkError | None) -> None:
        """No message follows."""
        with self._changed:
            self._ended = StreamEnded(error)
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of whoever waits to put."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Have the reader ask for its deadline again."""
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Whether condition (checked after each wake-up) came true within timeout seconds."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    @property
    def ended(self) -> bool:
        """The RPC is over, whatever still waits to be read."""
        with self._changed:
            return self._ended is not None

    def get(self, deadline: Deadline) -> keys_pb2.WithKeyResponse:
        """The next message. Raises StreamEnded after the last one, Fault past the deadline, and
        what deadline raises.
        """
        with self._changed:
            while not self._messages:
                if self._ended is not None:
                    raise StreamEnded(self._ended.error)
                until, kind = deadline()
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise Fault(kind, TIMEOUTS[kind])
                self._changed.wait(left)
            message = self._messages.popleft()
            self._changed.notify_all()
            return message


TIMEOUTS: Final = {
    FaultKind.CONNECT_TIMEOUT: "The server did not answer within the connect timeout.",
    FaultKind.READ_TIMEOUT: "Nothing was received within the read timeout.",
    FaultKind.WRITE_TIMEOUT: "The server took nothing within the write timeout.",
}
