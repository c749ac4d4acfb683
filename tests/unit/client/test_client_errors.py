"""gRPC's errors as ours, and what a call's end means."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from ironwork.keys.v1 import keys_pb2
from ironwork_client import errors
from ironwork_client.transport import _outcome
from ironwork_client.transport._values import CallReport, Fault, FaultKind, NotSent, Refused
from unit.client.scripted_server import end, status

Code = grpc.StatusCode


class Failure:
    """What gRPC raises, as far as it is looked at."""

    def __init__(self, code: Code, *metadata: tuple[str, object], text: str = "canary") -> None:
        self._code, self._metadata, self._text = code, metadata, text

    def code(self) -> Code:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> object:
        return self._metadata


CLASSES = {
    Code.INVALID_ARGUMENT: errors.InvalidArgument,
    Code.UNAUTHENTICATED: errors.Unauthenticated,
    Code.PERMISSION_DENIED: errors.PermissionDenied,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.OUT_OF_RANGE: errors.OutOfRange,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.UNAVAILABLE: errors.Unavailable,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.INTERNAL: errors.ServiceFault,
    Code.DATA_LOSS: errors.ServiceFault,
}


@pytest.mark.parametrize(("code", "kind"), CLASSES.items())
def test_a_status_with_details_becomes_our_error(code: Code, kind: type[Exception]) -> None:
    """Class by code; reason, metadata, violations and retry delay from the details."""
    made = status(code, "REASON", retry_s=4, message="Says the service.")
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="api_key", description="is empty")
    made.details.add().Pack(bad)
    failure = Failure(code, ("x", "y"), ("grpc-status-details-bin", made.SerializeToString()))
    error = errors.from_rpc(failure)
    assert type(error) is kind
    assert (error.code, error.reason, error.retry_after) == (code, "REASON", 4.0)
    assert error.violations == (errors.FieldViolation("api_key", "is empty"),)
    assert str(error) == "Says the service."


@pytest.mark.parametrize(
    ("said", "index"), [("1024", 1024), ("", None), ("-1", None), ("²", None), ("9" * 20, None)]
)
def test_what_is_out_of_range_says_what_is_there(said: str, index: int | None) -> None:
    """The first index that the service still has is a number, or there is none."""
    made = errors.OutOfRange("x", code=Code.OUT_OF_RANGE, metadata={"first_index": said})
    assert made.first_index == index


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_a_failure_of_grpcs_own_is_told_in_our_words(code: Code) -> None:
    """Without the service's details a library's text is never shown, and there is no reason."""
    error = errors.from_rpc(Failure(code))
    assert (error.code, error.reason) == (code, "")
    assert "canary" not in str(error)


@given(st.binary(max_size=60))
def test_broken_details_are_passed_over(data: bytes) -> None:
    """Bytes that are no Status, or one that contradicts the RPC's code, change nothing."""
    plain = errors.from_rpc(Failure(Code.UNAVAILABLE))
    error = errors.from_rpc(Failure(Code.UNAVAILABLE, ("grpc-status-details-bin", data)))
    assert (type(error), error.code) == (type(plain), plain.code)


def test_details_that_do_not_unpack_are_passed_over() -> None:
    """A detail with the right type and wrong bytes is ignored."""
    made = status_pb2.Status(code=Code.NOT_FOUND.value[0])
    made.details.append(
        any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    )
    assert errors.from_status(made).reason == ""


def test_another_domains_reason_is_not_ours() -> None:
    """Only an ErrorInfo of the service's own domain counts."""
    made = status_pb2.Status(code=Code.UNAVAILABLE.value[0], message="canary")
    made.details.add().Pack(error_details_pb2.ErrorInfo(reason="X", domain="elsewhere"))
    error = errors.from_status(made)
    assert (error.reason, "canary" in str(error)) == ("", False)


OUTCOMES = st.sampled_from(list(keys_pb2.Outcome.values()))
CODES = st.sampled_from([code for code in Code if code is not Code.OK])


@given(OUTCOMES, CODES, st.booleans())
def test_only_a_completed_answer_ends_cleanly(
    outcome: keys_pb2.Outcome.ValueType, code: Code, sent: bool
) -> None:
    """After a head, every outcome but COMPLETED is a RemoteProtocol fault."""
    fault = _outcome.end_after_head(end(1, outcome, error=status(code, "R"), sent=sent).end)
    assert (fault is None) == (outcome == keys_pb2.OUTCOME_COMPLETED)
    assert fault is None or fault.kind is FaultKind.REMOTE_PROTOCOL


@given(OUTCOMES, CODES, st.booleans(), st.booleans())
def test_a_repeat_is_invited_only_where_nothing_was_sent(
    outcome: keys_pb2.Outcome.ValueType, code: Code, sent: bool, closing: bool
) -> None:
    """x-should-retry is true, or another stream is tried, only for what never went upstream; a
    ConnectError likewise.
    """
    reason = "STREAM_CLOSING" if closing else "OTHER"
    result = _outcome.end_without_head(end(1, outcome, error=status(code, reason), sent=sent).end)
    if isinstance(result, NotSent):
        assert not sent
        result = result.otherwise
    if isinstance(result, Refused):
        again = dict(result.refusal.headers).get(b"x-should-retry")
        assert again != b"true" or (not sent and code is Code.UNAVAILABLE)
    elif result.kind is FaultKind.CONNECT:
        assert not sent


def test_an_end_without_an_answer_or_a_reason_is_a_protocol_fault() -> None:
    """COMPLETED without a head makes no sense, and is not taken for an empty answer."""
    for broken in (end(1), end(1, keys_pb2.OUTCOME_FAILED)):
        result = _outcome.end_without_head(broken.end)
        assert isinstance(result, Fault)
        assert result.kind is FaultKind.REMOTE_PROTOCOL


def test_a_grant_that_ended_is_told_as_a_refusal() -> None:
    """CANCELLED because of a policy is a 403 that is not to be repeated."""
    error = status(Code.PERMISSION_DENIED, "PERMISSION_DENIED")
    result = _outcome.end_without_head(end(1, keys_pb2.OUTCOME_CANCELLED, error=error).end)
    assert isinstance(result, Refused)
    assert (b"x-should-retry", b"false") in result.refusal.headers


@pytest.mark.parametrize(
    "reason", ["KEY_ECHOED", "ECHO_UNDECIDED", "UPSTREAM_ENCODING", "UPSTREAM_REDIRECT"]
)
def test_an_answer_that_may_not_begin_is_not_asked_for_again(reason: str) -> None:
    """Where a repeat would spend tokens for the same end, SDKs are told not to, as an answer."""
    made = status(Code.UNAVAILABLE, reason)
    result = _outcome.end_without_head(end(1, keys_pb2.OUTCOME_FAILED, error=made, sent=True).end)
    assert isinstance(result, Refused)
    assert result.refusal.status == 503
    assert (b"x-should-retry", b"false") in result.refusal.headers
    assert (b"x-ironwork-reason", reason.encode()) in result.refusal.headers


def test_a_reason_that_is_none_is_left_out() -> None:
    """A header is made from a well-formed reason only."""
    made = status(Code.PERMISSION_DENIED, "A\r\nx: y")
    refusal = _outcome.refusal(errors.from_status(made), sent_upstream=False)
    assert b"x-ironwork-reason" not in dict(refusal.headers)


def test_a_report_holds_what_the_end_said() -> None:
    """Outcome, request id, key, usage and audit reference; None where the service said nothing."""
    report = CallReport()
    _outcome.fill(report, end(1).end)
    assert (report.outcome, report.anthropic_request_id) == ("COMPLETED", "req_1")
    assert (report.key_name, report.sent_upstream) == ("workspaces/acme/keys/k1", True)
    bare = CallReport()
    _outcome.fill(bare, keys_pb2.ResponseEnd())
    assert (bare.complete, bare.outcome, bare.usage, bare.audit) == (True, "", None, None)


@pytest.mark.parametrize("error", [None, errors.unavailable("x")])
def test_a_stream_that_breaks_in_an_answer_is_always_a_cut(
    error: errors.IronworkError | None,
) -> None:
    """With a head the break is a RemoteProtocol fault, without one it is a Read fault."""
    after = _outcome.call_broken(error, has_head=True)
    before = _outcome.call_broken(error, has_head=False)
    assert isinstance(after, Fault)
    assert isinstance(before, Fault)
    assert (after.kind, before.kind) == (FaultKind.REMOTE_PROTOCOL, FaultKind.READ)
    opening = _outcome.opening_broken(error)
    assert isinstance(opening, Fault)
    assert opening.kind is FaultKind.CONNECT
