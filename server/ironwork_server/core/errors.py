"""The service's errors, one small tree.

IronworkError
├── InvalidRequest        INVALID_ARGUMENT     the caller mends its request; names the fields
├── Unauthenticated       UNAUTHENTICATED      no acceptable identity
├── PermissionDenied      PERMISSION_DENIED    forbidden, or it does not exist: the same answer
├── NotFound              NOT_FOUND            inside the caller's own workspace only
├── AlreadyExists         ALREADY_EXISTS
├── PreconditionFailed    FAILED_PRECONDITION  the caller changes the state, or says so explicitly
├── OutOfRange            OUT_OF_RANGE         it was there once, and is kept elsewhere now
├── LimitExceeded         RESOURCE_EXHAUSTED   a limit of ours
├── Unavailable           UNAVAILABLE          worth another try later (RetryInfo)
├── UpstreamFailed        UNAVAILABLE          Anthropic's answer cannot be delivered whole
├── Cancelled             CANCELLED            the call was ended on purpose
└── DataLoss              DATA_LOSS            a stored record does not open

Messages are for people, are written here and in the raising code, and never hold a value that
the caller sent where a secret could stand. Programs decide on `code` and `reason`. Anything that
is not an IronworkError reaches a caller as INTERNAL and nothing more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Code(Enum):
    """gRPC status codes (google.rpc.Code), by name, so that the core needs no grpc."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request and what is wrong with it (google.rpc.BadRequest)."""

    field: str
    description: str


class IronworkError(Exception):
    """Base of every error that a caller may see.

    reason: UPPER_SNAKE, stable (google.rpc.ErrorInfo.reason). metadata: dynamic values, never
    secrets. retry_after_s: seconds after which another try makes sense (google.rpc.RetryInfo).
    """

    code: Code

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retry_after_s = retry_after_s


class InvalidRequest(IronworkError):
    code = Code.INVALID_ARGUMENT

    @classmethod
    def field(
        cls, field: str, description: str, *, reason: str = "INVALID_FIELD"
    ) -> "InvalidRequest":
        """One wrong field: the message names it and says how to mend it."""
        return cls(
            f"{field}: {description}",
            reason=reason,
            metadata={"field": field},
            violations=(FieldViolation(field, description),),
        )


class Unauthenticated(IronworkError):
    code = Code.UNAUTHENTICATED


class PermissionDenied(IronworkError):
    code = Code.PERMISSION_DENIED


class NotFound(IronworkError):
    code = Code.NOT_FOUND


class AlreadyExists(IronworkError):
    code = Code.ALREADY_EXISTS


class PreconditionFailed(IronworkError):
    code = Code.FAILED_PRECONDITION


class OutOfRange(IronworkError):
    code = Code.OUT_OF_RANGE


class LimitExceeded(IronworkError):
    code = Code.RESOURCE_EXHAUSTED


class Unavailable(IronworkError):
    code = Code.UNAVAILABLE


class UpstreamFailed(IronworkError):
    code = Code.UNAVAILABLE


class Cancelled(IronworkError):
    code = Code.CANCELLED


class DataLoss(IronworkError):
    code = Code.DATA_LOSS


def permission_denied() -> PermissionDenied:
    """The one refusal: what is forbidden and what does not exist answer alike (AIP-211)."""
    return PermissionDenied(
        "This identity may not do that, or it does not exist.", reason="PERMISSION_DENIED"
    )
