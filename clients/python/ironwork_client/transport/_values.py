"""What passes between a face (an HTTP library), a stream core and the mapper.

Nothing here knows an HTTP library: a face turns faults into its own library's errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from ironwork.keys.v1 import keys_pb2
from ironwork_client.errors import IronworkError

# A body leaves in messages of this size. The server says in Started what it takes, and never less
# than this, so a client need not wait for it.
PIECE_BYTES: Final = 16 * 1024

# After a response was closed early: how long its ResponseEnd may take (the server closes the
# upstream connection within a second) before the stream is given up. Likewise for an upload that
# outlives its answer.
SETTLE_S: Final = 2.0

# How long closing a transport waits for its threads and calls.
CLOSE_S: Final = 5.0


class FaultKind(Enum):
    """How a request can fail, in the terms of every HTTP library."""

    UNSUPPORTED = auto()
    LOCAL_PROTOCOL = auto()
    POOL_TIMEOUT = auto()
    CONNECT = auto()
    CONNECT_TIMEOUT = auto()
    WRITE_TIMEOUT = auto()
    READ = auto()
    READ_TIMEOUT = auto()
    REMOTE_PROTOCOL = auto()


class Fault(Exception):
    """A request failed; kind says how."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, or None for no limit: for a connection; for each message written and read; for a
    free stream.
    """

    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as Anthropic reported them."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


@dataclass(frozen=True, slots=True)
class AuditReference:
    """Where the entry that records this call stands in the audit log."""

    origin: str
    index: int


@dataclass(slots=True)
class CallReport:
    """What the service says of a call. Filled once its body has been consumed (`complete`).

    outcome: COMPLETED, REFUSED, FAILED or CANCELLED, or '' while it runs or where the service
    could not say. sent_upstream: whether anything may have reached Anthropic; None: not known.
    """

    complete: bool = False
    outcome: str = ""
    sent_upstream: bool | None = None
    anthropic_request_id: str = ""
    key_name: str = ""
    key_mask: str = ""
    usage: Usage | None = None
    audit: AuditReference | None = None
    error: IronworkError | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's head: a status, and headers as they came."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal by the service, as an answer in Anthropic's shape."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    error: IronworkError


class Refused(Exception):
    """The service refused; `refusal` is the answer to give."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self.refusal = refusal


class NotSent(Exception):
    """This stream was of no use and nothing of the request went upstream: another may be tried.

    otherwise: what to report where another must not be tried. body_untouched: nothing of the
    request's body has been taken yet.
    """

    def __init__(self, otherwise: Fault | Refused, *, body_untouched: bool) -> None:
        super().__init__()
        self.otherwise = otherwise
        self.body_untouched = body_untouched


# What the state machine of a stream makes of a message.
@dataclass(frozen=True, slots=True)
class HeadArrived:
    answer: Answer


@dataclass(frozen=True, slots=True)
class BodyArrived:
    data: bytes


@dataclass(frozen=True, slots=True)
class CallEnded:
    end: keys_pb2.ResponseEnd


@dataclass(frozen=True, slots=True)
class Nothing:
    """A message that is not about the call: Started, GoAway."""


Event = HeadArrived | BodyArrived | CallEnded | Nothing
