"""Errors as callers see them."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from ironwork_server.core import errors
from ironwork_server.core.errors import FieldViolation, InvalidRequest, IronworkError, Unavailable
from ironwork_server.rpc.errors import DOMAIN, STATUS_DETAILS, internal_status, sealed, to_status

SECRET = "sk-ant-api03-canary"


def subclasses(kind: type[IronworkError]) -> set[type[IronworkError]]:
    """All of them, deep."""
    return {kind, *(deeper for child in kind.__subclasses__() for deeper in subclasses(child))}


OWN = sorted(
    (
        kind
        for kind in subclasses(IronworkError) - {IronworkError}
        if kind.__module__ == errors.__name__
    ),
    key=lambda kind: kind.__name__,
)


def details(status: status_pb2.Status, kind: type[Message]) -> list[Any]:
    """The details of one type."""
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


class Context:
    """A servicer's context that keeps what it was aborted with."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.text = ""
        self.status = status_pb2.Status()

    async def abort(self, code: grpc.StatusCode, text: str, trailing: Any) -> None:
        self.code, self.text = code, text
        self.status = status_pb2.Status.FromString(dict(trailing)[STATUS_DETAILS])
        raise grpc.aio.AbortError


@pytest.mark.parametrize("kind", OWN)
async def test_every_error_of_ours_has_its_code_and_one_error_info(
    kind: type[IronworkError],
) -> None:
    """The status, its text and one ErrorInfo with reason, domain and metadata (AIP-193)."""
    context = Context()

    async def fail() -> None:
        raise kind("What is wrong.", reason="SOME_REASON", metadata={"limit": "3"})

    with pytest.raises(grpc.aio.AbortError):
        await sealed(context, fail)  # type: ignore[arg-type]
    assert context.code is grpc.StatusCode[kind.code.name]
    assert context.text == context.status.message == "What is wrong."
    assert context.status.code == code_pb2.Code.Value(kind.code.name)
    (info,) = details(context.status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "SOME_REASON",
        DOMAIN,
        {"limit": "3"},
    )
    assert len(context.status.details) == 1


def test_wrong_fields_are_listed() -> None:
    """BadRequest names each field with what is wrong with it."""
    error = InvalidRequest(
        "Two fields are wrong.",
        reason="INVALID_FIELD",
        violations=(FieldViolation("a", "is empty"), FieldViolation("b", "is long")),
    )
    (bad,) = details(to_status(error), error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("a", "is empty"),
        ("b", "is long"),
    ]


@given(st.floats(0, 86_400))
def test_retry_info_says_when_to_try_again(seconds: float) -> None:
    """RetryInfo holds the delay, to the nanosecond."""
    error = Unavailable("Later.", reason="LATER", retry_after_s=seconds)
    (retry,) = details(to_status(error), error_details_pb2.RetryInfo)
    delay: timedelta = retry.retry_delay.ToTimedelta()
    assert abs(delay.total_seconds() - seconds) < 1e-5
    assert 0 <= retry.retry_delay.nanos < 1_000_000_000


def test_without_a_delay_there_is_no_retry_info() -> None:
    """A zero delay is one; none at all is not."""
    assert not details(to_status(Unavailable("x", reason="X")), error_details_pb2.RetryInfo)
    assert details(
        to_status(Unavailable("x", reason="X", retry_after_s=0.0)), error_details_pb2.RetryInfo
    )


async def test_an_unexpected_error_tells_a_caller_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Anything that is not ours is `internal error`, and the log has its type and place only."""
    context = Context()

    async def fail() -> None:
        raise KeyError(SECRET)

    with caplog.at_level(logging.DEBUG), pytest.raises(grpc.aio.AbortError):
        await sealed(context, fail)  # type: ignore[arg-type]
    assert context.code is grpc.StatusCode.INTERNAL
    assert context.status == internal_status()
    assert (context.text, context.status.message) == ("internal error", "internal error")
    (record,) = caplog.records
    assert record.__dict__["error"] == "builtins.KeyError"
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("raised", "leaves"),
    [
        (asyncio.CancelledError, asyncio.CancelledError),
        (grpc.aio.AbortError, grpc.aio.AbortError),
        # A write to a peer that has gone raises one of these; there is nobody to answer.
        (grpc.aio.UsageError, asyncio.CancelledError),
        (grpc.aio.InternalError, asyncio.CancelledError),
    ],
)
async def test_endings_of_the_rpc_itself_pass(
    raised: type[BaseException], leaves: type[BaseException]
) -> None:
    """A cancelled or aborted RPC stays one, and a peer that has gone is a cancelled RPC."""
    context = Context()

    async def fail() -> None:
        raise raised

    with pytest.raises(leaves):
        await sealed(context, fail)  # type: ignore[arg-type]
    assert context.code is None


async def test_an_answer_passes() -> None:
    """What a handler returns is what the RPC answers."""

    async def answer() -> str:
        return "yes"

    assert await sealed(Context(), answer) == "yes"  # type: ignore[arg-type]


class Request:
    """Something that frames hold."""


class KeepingContext(Context):
    """Keeps the error that it raises, as gRPC's does."""

    async def abort(self, code: grpc.StatusCode, text: str, trailing: Any) -> None:
        self.raised = grpc.aio.AbortError()
        self.context = self
        raise self.raised


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Nothing but reference counts frees anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("kind", [None, KeyError, grpc.aio.UsageError, asyncio.CancelledError])
async def test_a_failed_call_keeps_no_request(kind: type[BaseException] | None) -> None:
    """When an RPC has failed nothing of its request stays, although the error and its frames, and
    gRPC's error and its context, hold each other: a key is in no garbage that waits.
    """
    held: list[weakref.ref[Request]] = []

    async def method(context: KeepingContext) -> None:
        request = Request()
        held.append(weakref.ref(request))

        async def handler() -> None:
            _ = request
            # The frame names the error that it raises, and so does the cause's.
            error = InvalidRequest("no", reason="NO") if kind is None else kind()
            try:
                cause = ValueError()
                raise cause
            except ValueError as first:
                raise error from first

        await sealed(context, handler)  # type: ignore[arg-type]

    await asyncio.wait([asyncio.create_task(method(KeepingContext()))])
    await asyncio.sleep(0)
    assert [reference() for reference in held] == [None]
