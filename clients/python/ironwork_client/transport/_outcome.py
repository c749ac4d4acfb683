"""How a call's end, or a stream's, is told to the user of an HTTP library. Pure.

A refusal before any answer becomes an answer in Anthropic's shape, so that an SDK raises the
error its users know. Everything that cuts an answer is a fault, never a clean end. Decided on
codes and flags alone.
"""

import json
import math
import re
from typing import Final

import grpc

from ironwork.keys.v1 import keys_pb2
from ironwork_client import errors
from ironwork_client.errors import IronworkError
from ironwork_client.transport._values import (
    AuditReference,
    CallReport,
    Fault,
    FaultKind,
    NotSent,
    Refusal,
    Refused,
    Usage,
)

STREAM_CLOSING: Final = "STREAM_CLOSING"
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")

_Code = grpc.StatusCode
# gRPC code → HTTP status and error.type as Anthropic's API pairs them.
_SHAPES: Final[dict[grpc.StatusCode, tuple[int, str]]] = {
    _Code.PERMISSION_DENIED: (403, "permission_error"),
    _Code.UNAUTHENTICATED: (403, "permission_error"),
    _Code.FAILED_PRECONDITION: (403, "permission_error"),
    _Code.INVALID_ARGUMENT: (400, "invalid_request_error"),
    _Code.NOT_FOUND: (404, "not_found_error"),
    _Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    _Code.UNAVAILABLE: (503, "api_error"),
}
_OTHER: Final = (500, "api_error")
# A decision about the caller, whatever the outcome is called: told as an answer.
_DECISIONS: Final = frozenset(
    {_Code.PERMISSION_DENIED, _Code.UNAUTHENTICATED, _Code.FAILED_PRECONDITION}
)
# Anthropic answered, and a repeat would spend its tokens for the same end: told as an answer, since
# SDKs repeat what looks like a lost connection.
_FINAL_REASONS: Final = frozenset(
    {"KEY_ECHOED", "ECHO_UNDECIDED", "UPSTREAM_ENCODING", "UPSTREAM_REDIRECT"}
)
# What a stream can be refused with after it had begun a call. UNAVAILABLE is not among them: the
# call may have gone upstream, so an answer that invites a repeat would be wrong.
_STREAM_DECISIONS: Final = _DECISIONS | {_Code.INVALID_ARGUMENT, _Code.RESOURCE_EXHAUSTED}

_OUTCOMES: Final = {
    keys_pb2.OUTCOME_COMPLETED: "COMPLETED",
    keys_pb2.OUTCOME_REFUSED: "REFUSED",
    keys_pb2.OUTCOME_FAILED: "FAILED",
    keys_pb2.OUTCOME_CANCELLED: "CANCELLED",
}


def fill(report: CallReport, end: keys_pb2.ResponseEnd) -> None:
    """Copy what a ResponseEnd says into the report that the caller holds."""
    report.outcome = _OUTCOMES.get(end.outcome, "")
    report.sent_upstream = end.sent_upstream
    report.anthropic_request_id = end.anthropic_request_id
    report.key_name, report.key_mask = end.key.name, end.key.mask
    if end.HasField("usage"):
        report.usage = Usage(
            end.usage.input_tokens,
            end.usage.output_tokens,
            end.usage.cache_creation_input_tokens,
            end.usage.cache_read_input_tokens,
        )
    if end.HasField("audit"):
        report.audit = AuditReference(end.audit.origin, end.audit.index)
    if end.HasField("error"):
        report.error = errors.from_status(end.error)
    report.complete = True


def end_without_head(end: keys_pb2.ResponseEnd) -> Fault | Refused | NotSent:
    """A call ended before its answer began."""
    if end.outcome == keys_pb2.OUTCOME_COMPLETED or not end.HasField("error"):
        return Fault(FaultKind.REMOTE_PROTOCOL, "The server ended the call without an answer.")
    error = errors.from_status(end.error)
    refused = end.outcome == keys_pb2.OUTCOME_REFUSED
    if refused or error.code in _DECISIONS or error.reason in _FINAL_REASONS:
        answer = Refused(refusal(error, sent_upstream=end.sent_upstream))
        closing = refused and not end.sent_upstream and error.reason == STREAM_CLOSING
        return NotSent(answer, body_untouched=False) if closing else answer
    if end.sent_upstream:
        return Fault(FaultKind.READ, f"Anthropic's answer was lost. {error.message}")
    return Fault(FaultKind.CONNECT, f"Anthropic could not be asked. {error.message}")


def end_after_head(end: keys_pb2.ResponseEnd) -> Fault | None:
    """A call ended after its answer began; None where the answer is whole."""
    if end.outcome == keys_pb2.OUTCOME_COMPLETED:
        return None
    why = errors.from_status(end.error).message if end.HasField("error") else ""
    return Fault(FaultKind.REMOTE_PROTOCOL, f"The answer was cut; it is not whole. {why}".strip())


def opening_broken(error: IronworkError | None) -> Fault | Refused:
    """The stream ended before it had started, and nothing had been sent on it."""
    if error is None:
        return Fault(FaultKind.CONNECT, "The server closed the stream before it had started.")
    if error.reason or error.code in _STREAM_DECISIONS:
        return Refused(refusal(error, sent_upstream=False))
    return Fault(FaultKind.CONNECT, error.message)


def left_unread() -> NotSent:
    """The stream ended well after GoAway, without a ResponseEnd: every call that the server reads
    gets one, so it has not read this one.
    """
    fault = Fault(FaultKind.CONNECT, "The server closed the stream before it took the request.")
    return NotSent(fault, body_untouched=False)


def call_broken(error: IronworkError | None, *, has_head: bool) -> Fault | Refused:
    """The stream ended in the middle of a call; what reached Anthropic is not known."""
    if has_head:
        return Fault(
            FaultKind.REMOTE_PROTOCOL,
            "The stream broke; the answer is not whole." + (f" {error.message}" if error else ""),
        )
    if error is not None and error.code in _STREAM_DECISIONS:
        return Refused(refusal(error, sent_upstream=None))
    return Fault(
        FaultKind.READ,
        "The stream broke before the answer; whether Anthropic was asked is not known."
        + (f" {error.message}" if error else ""),
    )


def refusal(error: IronworkError, *, sent_upstream: bool | None) -> Refusal:
    """The service's refusal as Anthropic would word it, with the SDKs' retry headers.

    x-should-retry is `true` only where nothing was sent upstream and the service expects to be
    able to soon; it is left out for a rate limit that says when to come back, which SDKs treat
    well by themselves; else a repeat would be useless or unsafe, and it is `false`.
    """
    status, kind = _SHAPES.get(error.code, _OTHER)
    body = {
        "type": "error",
        "error": {"type": kind, "message": f"Ironwork: {error.message}"},
        "request_id": None,
    }
    headers = [(b"content-type", b"application/json")]
    if _REASON.fullmatch(error.reason):
        headers.append((b"x-ironwork-reason", error.reason.encode()))
    if error.code is _Code.UNAVAILABLE and sent_upstream is False:
        headers.append((b"x-should-retry", b"true"))
    elif not (error.code is _Code.RESOURCE_EXHAUSTED and error.retry_after is not None):
        headers.append((b"x-should-retry", b"false"))
    if error.retry_after is not None and status in {429, 503}:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    encoded = json.dumps(body).encode()
    headers.append((b"content-length", b"%d" % len(encoded)))
    return Refusal(status, headers, encoded, error)
