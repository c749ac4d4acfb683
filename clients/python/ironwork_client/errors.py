"""The client's errors, one small tree, and the one place where gRPC's become ours.

IronworkError
├── InvalidArgument      INVALID_ARGUMENT     mend the request; violations name the fields
├── Unauthenticated      UNAUTHENTICATED      the certificate is no acceptable identity
├── PermissionDenied     PERMISSION_DENIED    forbidden, or it does not exist: the same answer
├── NotFound             NOT_FOUND            no such thing in the caller's own workspace
├── AlreadyExists        ALREADY_EXISTS
├── FailedPrecondition   FAILED_PRECONDITION  change the state first, or say so explicitly
├── OutOfRange           OUT_OF_RANGE         kept elsewhere now; first_index is what is there
├── ResourceExhausted    RESOURCE_EXHAUSTED   a limit of the service
├── Unavailable          UNAVAILABLE          worth another try after retry_after seconds
│   └── DeadlineExceeded DEADLINE_EXCEEDED    no answer in time; it may have been done all the same
└── ServiceFault         any other code       a fault of the service

Programs decide on the class or on `reason`, never on the text. None of them holds a key: their
texts are the service's own (which never repeats a request's values) or written here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "keys.ironwork.dev"
_DETAILS_KEY = "grpc-status-details-bin"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request and what is wrong with it (google.rpc.BadRequest)."""

    field: str
    description: str


class IronworkError(Exception):
    """Base of what the service refused or could not do.

    code: the gRPC status. reason: UPPER_SNAKE and stable (google.rpc.ErrorInfo), empty where the
    answer did not come from the service. metadata: its dynamic values. retry_after: seconds after
    which another try makes sense (google.rpc.RetryInfo), or None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after


class InvalidArgument(IronworkError): ...


class Unauthenticated(IronworkError): ...


class PermissionDenied(IronworkError): ...


class NotFound(IronworkError): ...


class AlreadyExists(IronworkError): ...


class FailedPrecondition(IronworkError): ...


class OutOfRange(IronworkError):
    @property
    def first_index(self) -> int | None:
        """The first entry that the service still has (AUDIT_PRUNED); those before are in the log's
        archive.
        """
        text = self.metadata.get("first_index", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


class ResourceExhausted(IronworkError): ...


class Unavailable(IronworkError): ...


class DeadlineExceeded(Unavailable): ...


class ServiceFault(IronworkError): ...


_CLASSES: dict[grpc.StatusCode, type[IronworkError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}

# For answers that did not come from the service, whose text is a library's and not for people.
_FOREIGN_TEXT: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: (
        "The service could not be reached. Check the profile's target, ca and server_name, that"
        " its certificate has not expired, and that the service runs."
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "The service did not answer in time. The call may have been done all the same: look"
        " before you repeat it, or repeat it with the same request_id."
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        "The profile's target does not serve this call. Check that it is an Ironwork server."
    ),
    grpc.StatusCode.CANCELLED: "The call was cancelled.",
}


class RpcFailure(Protocol):
    """What grpc.RpcError has in both of gRPC's Python stacks, though its own type says nothing."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> object: ...


def from_status(status: status_pb2.Status) -> IronworkError:
    """Our error for a google.rpc.Status (AIP-193); unknown details are passed over."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_after: float | None = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) and _unpacked(detail, info):
            if info.domain == DOMAIN:
                reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR) and _unpacked(detail, bad):
            violations += [FieldViolation(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) and _unpacked(detail, retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return _CLASSES.get(code, ServiceFault)(
        status.message if reason else _foreign_text(code),
        code=code,
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_after=retry_after,
    )


def from_rpc(failure: RpcFailure) -> IronworkError:
    """Our error for a failed RPC. Without details of the service's own, its reason is empty."""
    code = failure.code()
    status = status_pb2.Status(code=code.value[0])
    metadata = failure.trailing_metadata()
    for name, value in metadata if isinstance(metadata, Iterable) else ():
        if name == _DETAILS_KEY and isinstance(value, bytes):
            decoded = _decoded(value)
            # The RPC's own code stands: a detail that contradicts it is not believed.
            if decoded is not None and decoded.code == status.code:
                status = decoded
    return from_status(status)


def unavailable(message: str, *, reason: str = "") -> Unavailable:
    """An Unavailable that is found out on this side."""
    return Unavailable(message, code=grpc.StatusCode.UNAVAILABLE, reason=reason)


def invalid(field: str, description: str, *, reason: str) -> InvalidArgument:
    """An InvalidArgument that is found out on this side, in the service's own shape."""
    return InvalidArgument(
        f"{field}: {description}",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason=reason,
        metadata={"field": field},
        violations=(FieldViolation(field, description),),
    )


def _foreign_text(code: grpc.StatusCode) -> str:
    return _FOREIGN_TEXT.get(code, f"The call failed with {code.name}; the service gave no reason.")


def _decoded(value: bytes) -> status_pb2.Status | None:
    try:
        return status_pb2.Status.FromString(value)
    except DecodeError:
        return None


class _Packed(Protocol):
    def Unpack(self, msg: object) -> bool: ...  # noqa: N802 - protobuf's own name


def _unpacked(detail: _Packed, into: object) -> bool:
    try:
        return detail.Unpack(into)
    except DecodeError:
        return False
