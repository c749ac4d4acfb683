"""The client's half of the WithKey grammar, as a state machine without IO.

    server: started ( head body* end )*    go_away

Both stream cores feed it every message, in order.
"""

from ironwork.keys.v1 import keys_pb2
from ironwork_client.transport import _mapper
from ironwork_client.transport._values import (
    BodyArrived,
    CallEnded,
    Event,
    Fault,
    FaultKind,
    HeadArrived,
    Nothing,
)

GoAwayReason = keys_pb2.GoAway.Reason


class Conversation:
    """Where one stream stands: started or not, in a call or between two, asked to leave or not."""

    def __init__(self) -> None:
        self.started = False
        self.leave_reason: GoAwayReason.ValueType | None = None
        self.call = 0
        self.in_call = False
        self.has_head = False

    @property
    def leaving(self) -> bool:
        """The server asked for new calls to go elsewhere."""
        return self.leave_reason is not None

    def begin(self) -> int:
        """The number of the call that begins now."""
        self.call += 1
        self.in_call = True
        self.has_head = False
        return self.call

    def feed(self, message: keys_pb2.WithKeyResponse) -> Event:
        """What the message means. Raises Fault (REMOTE_PROTOCOL) for one out of turn."""
        match message.WhichOneof("message"):
            case "started" if not self.started:
                self.started = True
                return Nothing()
            case "go_away":
                self.leave_reason = message.go_away.reason
                return Nothing()
            case "head" if self._in_turn(message.head.call) and not self.has_head:
                self.has_head = True
                return HeadArrived(_mapper.answer(message.head))
            case "body" if self._in_turn(message.body.call) and self.has_head:
                return BodyArrived(message.body.data)
            case "end" if self._in_turn(message.end.call):
                self.in_call = False
                return CallEnded(message.end)
        raise Fault(FaultKind.REMOTE_PROTOCOL, "The server sent a message out of turn.")

    def _in_turn(self, call: int) -> bool:
        return self.started and self.in_call and call == self.call
