"""The one error seam towards callers: ours become google.rpc.Status; anything else is
`INTERNAL: internal error` and nothing more (AIP-193).
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from ironwork_server.core.described import described
from ironwork_server.core.errors import IronworkError
from ironwork_server.rpc.context import Context

log = logging.getLogger(__name__)

DOMAIN = "keys.ironwork.dev"
STATUS_DETAILS = "grpc-status-details-bin"

T = TypeVar("T")

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


def internal_status() -> status_pb2.Status:
    """What a caller learns of an error that is not ours."""
    return _status(code_pb2.INTERNAL, "internal error", "INTERNAL", {})


def to_status(error: IronworkError) -> status_pb2.Status:
    """An error with its details: ErrorInfo always, BadRequest and RetryInfo where they fit."""
    status = _status(error.code.value, error.message, error.reason, error.metadata)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        status.details.append(_packed(bad))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s))
        status.details.append(_packed(retry))
    return status


def unexpected(error: BaseException) -> status_pb2.Status:
    """Record that a foreign error got here: its type and place, never its text. The record does
    not hold the error itself, so that no handler can print what it says.
    """
    log.error("error.unexpected", extra=described(error))
    return internal_status()


async def abort(context: Context, status: status_pb2.Status) -> NoReturn:
    """End the RPC with a status and its details."""
    try:
        await context.abort(
            _GRPC_CODES[status.code],
            status.message,
            ((STATUS_DETAILS, status.SerializeToString()),),
        )
    except grpc.aio.AbortError as error:
        release(error)
        raise
    raise AssertionError("abort raises")


def release(error: BaseException) -> None:
    """Let go what the error's frames hold, a request with its key among it, when this task ends.

    An error that a frame names, or that gRPC keeps with its call (the AbortError), keeps its
    frames and is kept by them until some full garbage collection, which may be hours away.
    """
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(lambda _: _clear(error))


def _clear(error: BaseException) -> None:
    found: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and one not in found:
            found.append(one)
            traceback.clear_frames(one.__traceback__)
            pending += (one.__cause__, one.__context__)


async def sealed(context: Context, handler: Callable[[], Awaitable[T]]) -> T:
    """Run a handler; whatever it raises leaves here as a status."""
    try:
        return await handler()
    except IronworkError as error:
        release(error)
        status = to_status(error)
    except (asyncio.CancelledError, grpc.aio.AbortError) as error:
        release(error)
        raise
    except grpc.aio.BaseError as error:
        # The peer has gone: there is nobody to answer.
        release(error)
        raise asyncio.CancelledError from None
    except Exception as error:  # noqa: BLE001  the seam: every other error stops here
        release(error)
        status = unexpected(error)
    return await abort(context, status)


def _status(code: int, message: str, reason: str, metadata: dict[str, str]) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)
    return status_pb2.Status(code=code, message=message, details=[_packed(info)])


def _packed(message: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]  # google.rpc ships no types
    return packed


def _duration(seconds: float) -> duration_pb2.Duration:
    whole = int(seconds)
    return duration_pb2.Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))
